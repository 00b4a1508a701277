"""PEFT's module path for LoHa."""

from ..methods.loha import LoHaConfig, LoHaLayer, LoHaModel

__all__ = ["LoHaConfig", "LoHaLayer", "LoHaModel"]
