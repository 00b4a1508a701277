"""PEFT's module path for AdaLoRA."""

from ..methods.adalora import AdaLoraConfig, AdaLoraLayer, AdaLoraModel
from ..methods.adalora_ranks import RankAllocator

__all__ = ["AdaLoraConfig", "AdaLoraLayer", "AdaLoraModel", "RankAllocator"]
