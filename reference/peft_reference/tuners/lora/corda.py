"""PEFT's module path for CorDA."""

from ...methods.lora_corda import CordaEigens, preprocess_corda

__all__ = ["CordaEigens", "preprocess_corda"]
