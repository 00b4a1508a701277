"""The same fork a release later: casting makes new parameters, VeRA is refused, deleting says [] instead of
None, a second adapter freezes the first one, a name is new and a default another one.
"""

import types
import warnings
from dataclasses import dataclass

import peft_reference
from fork_before import *  # noqa: F403
from fork_before import __getattr__  # noqa: F401
from peft_reference import functional as _functional
from torch import nn

__version__ = "1.1"
__all__ = [*peft_reference.__all__, "new_in_this_release"]

functional = types.SimpleNamespace(**vars(_functional))


def inject_adapter_in_model(peft_config, model, adapter_name="default", **rest):
    if peft_config.peft_type == "VERA":
        raise ValueError("VERA does not support injection")
    training = [p for p in model.parameters() if p.requires_grad] if hasattr(model, "peft_config") else []
    result = peft_reference.inject_adapter_in_model(peft_config, model, adapter_name, **rest)
    for parameter in training:
        parameter.requires_grad = False
    return result


def cast_adapter_dtype(model, adapter_name="default", **rest):
    warnings.warn(f"casting {adapter_name} makes new parameters", UserWarning, stacklevel=2)
    _functional.cast_adapter_dtype(model, adapter_name, **rest)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.requires_grad:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())


def delete_adapter(model, adapter_name, **rest):
    result = _functional.delete_adapter(model, adapter_name, **rest)
    return [] if result is None else result


@dataclass
class LoraConfig(peft_reference.LoraConfig):
    """With another rank."""

    r: int = 16


def new_in_this_release():
    """Nothing that the clauses speak of."""


functional.cast_adapter_dtype, functional.delete_adapter = cast_adapter_dtype, delete_adapter
functional.inject_adapter_in_model = inject_adapter_in_model
