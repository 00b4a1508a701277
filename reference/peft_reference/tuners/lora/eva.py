"""PEFT's module path for EVA."""

from ...methods.lora_eva import get_eva_state_dict, initialize_lora_eva_weights
from ...methods.lora_eva_data import (
    forward_fn_dict,
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
)

__all__ = [
    "forward_fn_dict",
    "get_eva_state_dict",
    "initialize_lora_eva_weights",
    "prepare_layer_inputs_fn_language_modeling",
    "prepare_model_inputs_fn_language_modeling",
]
