"""PEFT's module path for OFT."""

from ..methods.oft import OFTConfig, OFTLayer, OFTModel

__all__ = ["OFTConfig", "OFTLayer", "OFTModel"]
