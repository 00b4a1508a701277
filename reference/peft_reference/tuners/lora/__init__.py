"""PEFT's module path for LoRA."""

from ...methods.lora import LoraConfig, LoraLayer, LoraModel, LoraRuntimeConfig
from ...methods.lora_eva import get_eva_state_dict, initialize_lora_eva_weights
from ...methods.lora_ga import preprocess_loraga
from ...methods.lora_init import EvaConfig, LoftQConfig, LoraGAConfig

__all__ = [
    "EvaConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraLayer",
    "LoraModel",
    "LoraRuntimeConfig",
    "get_eva_state_dict",
    "initialize_lora_eva_weights",
    "preprocess_loraga",
]
