"""The functions that integrations build on: they work on any module, without `PeftModel`."""

from .adapters import cast_adapter_dtype, delete_adapter, set_adapter, set_requires_grad
from .injection import inject_adapter_in_model
from .state_dict import get_peft_model_state_dict, set_peft_model_state_dict

__all__ = [
    "cast_adapter_dtype",
    "delete_adapter",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "set_adapter",
    "set_peft_model_state_dict",
    "set_requires_grad",
]
