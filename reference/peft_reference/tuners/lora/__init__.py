"""PEFT's module path for LoRA."""

from ...methods.lora import LoraConfig, LoraLayer, LoraModel, LoraRuntimeConfig
from ...methods.lora_init import EvaConfig, LoftQConfig, LoraGAConfig

__all__ = [
    "EvaConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraLayer",
    "LoraModel",
    "LoraRuntimeConfig",
]
