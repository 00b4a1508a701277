"""PEFT's module path for LoRA."""

from ..methods.lora import LoraConfig, LoraLayer, LoraModel, LoraRuntimeConfig

__all__ = ["LoraConfig", "LoraLayer", "LoraModel", "LoraRuntimeConfig"]
