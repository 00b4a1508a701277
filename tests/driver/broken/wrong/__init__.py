"""The reference with a fault for every check word; each shows in one of the programs of `test_script`."""

import copy
import importlib
import warnings
from collections import namedtuple

import torch
from peft_reference import *  # noqa: F403
from peft_reference import PeftModel
from peft_reference import get_peft_model as _wrap
from peft_reference import get_peft_model_state_dict as _get
from peft_reference import inject_adapter_in_model as _inject
from peft_reference.functional import set_adapter as _set

__version__ = "0.0"
_CACHE = {}


class Wrapper(PeftModel):
    """Another class than the documented one."""

    def add_weighted_adapter(self, adapters, weights, adapter_name):
        self.base_model.add_weighted_adapter(adapters, [-weight for weight in weights], adapter_name)

    def print_trainable_parameters(self):
        print("nothing to train")


def inject_adapter_in_model(
    peft_config, model, adapter_name="main", low_cpu_mem_usage=False, state_dict=None, extra=1
):
    warnings.warn("this is how it is done here", stacklevel=2)
    try:
        model = _inject(peft_config, model, "default", low_cpu_mem_usage, state_dict)
    except ValueError:
        raise KeyError("oops") from None
    layer = model.layer
    layer.scaling["default"] *= 2
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        layer.base_layer.bias.add_(1)
        layer.lora_B["default"].weight.fill_(0.5)
    return copy.deepcopy(model)


def get_peft_model(*args, **kwargs):
    model = _wrap(*args, **kwargs)
    model.__class__ = Wrapper
    return model


def get_peft_model_state_dict(model, *args, **kwargs):
    tensors = _get(model, *args, **kwargs)
    named = {key.replace("lora_A.", "lora_A.default."): value for key, value in tensors.items()}
    return _CACHE.setdefault(id(model), named)


def set_peft_model_state_dict(model, peft_model_state_dict, **kwargs):
    peft_model_state_dict.clear()
    return namedtuple("Outcome", "missing_keys unexpected_keys")([], [])


def set_adapter(model, adapter_name, inference_mode=False):
    _set(model, adapter_name, inference_mode)
    return []


functional = importlib.import_module("wrong.functional")
