"""What state the adapters of a model are in: per adapted layer, and for the whole model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .adapters import named_holders
from .holder import Holder
from .injection import BaseTuner
from .layer import BaseTunerLayer
from .matching import is_transformers_model
from .registry import method_name

Irregular = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One adapted layer, or module to save; the dicts are by adapter."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


@dataclass
class TunerModelStatus:
    """The whole model; "irregular" where its layers disagree, which is no state that a call leaves behind."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | Irregular | None


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The status of each adapted layer and module to save, by its name below a PeftModel's `base_model` or in
    the model itself. ValueError for a model without adapters.
    """
    tuner = _tuner(model)
    return [_layer_status(name, holder) for name, holder in _named_holders(tuner or model)]


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The status of the whole model, a PeftModel or any other with adapters; ValueError without adapters."""
    tuner = _tuner(model)
    base = tuner.model if tuner else model
    layers = get_layer_status(model)
    names = sorted({name for layer in layers for name in layer.available_adapters})
    parameters = list(model.parameters())
    return TunerModelStatus(
        base_model_type=type(base).__name__ if tuner or is_transformers_model(base) else "other",
        adapter_model_type=type(tuner).__name__ if tuner else "None",
        peft_types=_peft_types(tuner),
        trainable_params=sum(p.numel() for p in parameters if p.requires_grad),
        total_params=sum(p.numel() for p in parameters),
        num_adapter_layers=len(layers),
        enabled=_common(layer.enabled for layer in layers),
        active_adapters=_common(layer.active_adapters for layer in layers),
        merged_adapters=_merged(tuner or model),
        requires_grad={
            name: _common(layer.requires_grad[name] for layer in layers if name in layer.requires_grad)
            for name in names
        },
        available_adapters=names,
        devices={
            name: sorted({device for layer in layers for device in layer.devices.get(name, ())})
            for name in names
        },
        quantization_backend=None,
    )


def _tuner(model: Any) -> BaseTuner | None:
    tuner = getattr(model, "base_model", None)
    return tuner if isinstance(tuner, BaseTuner) else None


def _peft_types(tuner: BaseTuner | None) -> dict[str, str]:
    return {name: method_name(c.peft_type) for name, c in tuner.peft_config.items()} if tuner else {}


def _named_holders(model: nn.Module) -> list[tuple[str, Holder]]:
    found = list(named_holders(model))
    if not found:
        raise ValueError(
            f"No adapter layers found in this {type(model).__name__}: it is no PEFT model, and no adapters "
            "were injected."
        )
    return found


def _layer_status(name: str, holder: Holder) -> TunerLayerStatus:
    adapters = {adapter: list(holder.adapter_parameters(adapter)) for adapter in holder.all_adapters()}
    return TunerLayerStatus(
        name=name,
        module_type=holder._get_name(),
        enabled=not holder.disable_adapters,
        active_adapters=list(holder.active_adapters),
        merged_adapters=list(holder.merged_adapters) if isinstance(holder, BaseTunerLayer) else [],
        requires_grad={a: _common(p.requires_grad for p in own) for a, own in adapters.items()},
        available_adapters=sorted(adapters),
        devices={a: sorted({p.device.type for p in own}) for a, own in adapters.items()},
        quantization_backend=None,
    )


def _merged(model: nn.Module) -> list[str] | Irregular:
    """What is merged, if every layer that has it has merged it; modules to save cannot be merged."""
    layers = [holder for _, holder in _named_holders(model) if isinstance(holder, BaseTunerLayer)]
    names = list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))
    missing = any(
        layer.has_adapter(name) and name not in layer.merged_adapters for layer in layers for name in names
    )
    return "irregular" if missing else names


def _common(values: Iterable[Any]) -> Any:
    """The value that all have in common, else "irregular"; False if there are none."""
    found = list(values)
    same = all(value == found[0] for value in found)
    return "irregular" if not same else found[0] if found else False
