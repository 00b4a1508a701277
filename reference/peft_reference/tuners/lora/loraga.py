"""PEFT's module path for LoRA-GA."""

from ...methods.lora_ga import preprocess_loraga

__all__ = ["preprocess_loraga"]
