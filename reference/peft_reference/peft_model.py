"""PEFT's module path for PeftModel and the status of models and layers."""

from .model import PeftModel
from .status import TunerLayerStatus, TunerModelStatus, get_layer_status, get_model_status

__all__ = ["PeftModel", "TunerLayerStatus", "TunerModelStatus", "get_layer_status", "get_model_status"]
