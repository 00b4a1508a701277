"""PEFT's module path for saving, loading and the enums."""

from ..config import CONFIG_NAME
from ..errors import NoMatchingPeftModuleError, PeftError, PeftWarning
from ..kbit import prepare_model_for_kbit_training
from ..registry import PeftType, TaskType
from ..registry import register_by_name as register_peft_method
from ..saving import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from ..state_dict import (
    get_base_model_state_dict,
    get_peft_model_state_dict,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from ..wrappers import ModulesToSaveWrapper

__all__ = [
    "CONFIG_NAME",
    "SAFETENSORS_WEIGHTS_NAME",
    "WEIGHTS_NAME",
    "ModulesToSaveWrapper",
    "NoMatchingPeftModuleError",
    "PeftError",
    "PeftType",
    "PeftWarning",
    "TaskType",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "register_peft_method",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]
