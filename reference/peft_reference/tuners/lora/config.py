"""PEFT's module path for the configs of LoRA and its initialisers."""

from ...methods.lora import LoraConfig, LoraRuntimeConfig
from ...methods.lora_init import CordaConfig, EvaConfig, LoftQConfig, LoraGAConfig

__all__ = ["CordaConfig", "EvaConfig", "LoftQConfig", "LoraConfig", "LoraGAConfig", "LoraRuntimeConfig"]
