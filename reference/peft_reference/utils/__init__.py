"""PEFT's module path for saving, loading and the enums."""

from ..config import CONFIG_NAME
from ..registry import PeftType, TaskType, register_peft_method
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
    "PeftType",
    "TaskType",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "load_peft_weights",
    "register_peft_method",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]
