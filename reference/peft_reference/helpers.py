"""PEFT's module path for conveniences around models."""

from .methods.lora_dora import DoraCaching

__all__ = ["DoraCaching"]
