"""PEFT's module path for LoKr."""

from ..methods.lokr import LoKrConfig, LoKrLayer, LoKrModel

__all__ = ["LoKrConfig", "LoKrLayer", "LoKrModel"]
