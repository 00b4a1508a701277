"""PEFT's documented module path for the verbs and the two base classes."""

from ..adapters import cast_adapter_dtype, delete_adapter, set_adapter, set_requires_grad
from ..injection import BaseTuner
from ..layer import BaseTunerLayer

__all__ = [
    "BaseTuner",
    "BaseTunerLayer",
    "cast_adapter_dtype",
    "delete_adapter",
    "set_adapter",
    "set_requires_grad",
]
