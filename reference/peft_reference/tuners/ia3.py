"""PEFT's module path for (IA)³."""

from ..methods.ia3 import IA3Config, IA3Layer, IA3Model

__all__ = ["IA3Config", "IA3Layer", "IA3Model"]
