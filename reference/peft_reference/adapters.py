"""The verbs: activate, freeze, delete and cast adapters inside any module, whoever put them there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from .holder import Holder
from .layer import BaseTunerLayer
from .tokens import TrainableTokensLayer
from .wrappers import ModulesToSaveWrapper

# what an adapter of any method may have besides its layers
COMPANIONS = (ModulesToSaveWrapper, TrainableTokensLayer)
MODEL_PREFIX = "base_model.model."  # what a PeftModel puts before the names of the model inside


def walk(module: nn.Module, *, unique: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the model as its author knows it, adapted layers and wrappers included.

    The walk does not enter slots, base layers or copies, so its cost does not grow with the number of
    adapters. A module that sits in two places comes once if `unique`.
    """
    seen: set[int] = set()
    stack = [("", module)]
    while stack:
        name, current = stack.pop()
        if unique and id(current) in seen:
            continue
        seen.add(id(current))
        yield name, current
        if isinstance(current, BaseTunerLayer):
            if current.opaque:
                continue
            name, current = _below(name, current)
        children = current._modules.items()
        if isinstance(current, ModulesToSaveWrapper):
            children = {"original_module": current.original_module}.items()
        stack.extend(
            (f"{name}.{key}" if name else key, child)
            for key, child in reversed(children)
            if child is not None
        )


def _below(name: str, layer: BaseTunerLayer) -> tuple[str, nn.Module]:
    """Where the base layer is, below all adapted layers around it, and the layer itself."""
    module: nn.Module = layer
    while isinstance(module, BaseTunerLayer):
        name, module = f"{name}.base_layer", module.base_layer
    return name, module


def without_compile(name: str) -> str:
    """A key or module name without the `_orig_mod` that torch.compile puts into it."""
    return re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name).removeprefix(".")


def named_holders(model: nn.Module, *, unique: bool = True) -> Iterator[tuple[str, Holder]]:
    """(name, holder) of every adapted layer and `modules_to_save` wrapper. Where methods are mixed, one layer
    is the base layer of another: the outer one comes first.
    """
    for name, module in walk(model, unique=unique):
        while isinstance(module, BaseTunerLayer):
            yield name, module
            name, module = f"{name}.base_layer".removeprefix("."), module.base_layer
        if isinstance(module, Holder):
            yield name, module


def holders(model: nn.Module, layer_cls: type[BaseTunerLayer] = BaseTunerLayer) -> list[Holder]:
    """The adapted layers of class `layer_cls` and their companions in a model, outer first."""
    return [h for _, h in named_holders(model) if isinstance(h, (layer_cls, *COMPANIONS))]


def active_adapters_of(model: nn.Module) -> list[str]:
    """The active adapters, as the first adapted layer has them: all layers agree. [] without adapters."""
    return next((list(m.active_adapters) for _, m in walk(model) if isinstance(m, BaseTunerLayer)), [])


def set_adapter(
    model: nn.Module,
    adapter_name: str | list[str],
    inference_mode: bool = False,
    layer_cls: type[BaseTunerLayer] = BaseTunerLayer,
) -> None:
    """Make these adapters the ones that take part in the forward pass; several add up.

    They become trainable (frozen if `inference_mode`), all others are frozen. Merged layers are unmerged
    first, with a warning. Only layers of class `layer_cls` and `modules_to_save` copies are touched.
    ValueError, before anything changes, if two of the adapters have a copy of the same module.
    """
    names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    found = holders(model, layer_cls)
    for holder in found:
        holder.check_set_adapter(names)
    merged = [m for m in found if isinstance(m, BaseTunerLayer) and m.merged]
    if merged:
        warnings.warn("Adapters are merged: they are unmerged before others are activated.", stacklevel=2)
    for layer in merged:
        layer.unmerge()
    for holder in found:
        holder.set_adapter(names, inference_mode)


def set_requires_grad(
    model: nn.Module, adapter_names: str | Sequence[str], requires_grad: bool = True
) -> None:
    """Freeze or unfreeze these adapters, active or not; unknown names are ignored, base parameters never
    touched.
    """
    for holder in holders(model):
        holder.set_requires_grad(adapter_names, requires_grad)


def delete_adapter(
    model: nn.Module, adapter_name: str, prefix: str, layer_cls: type[BaseTunerLayer] = BaseTunerLayer
) -> list[str] | None:
    """Delete an adapter's weights from the layers whose slots begin with `prefix`, and its
    `modules_to_save`.

    Returns the adapters that are active afterwards, None if there are none. If the deleted one was the only
    active one, the first of the remaining names is activated, with a warning. The adapted layers themselves
    and the model's config stay; an unknown name is ignored. ValueError, before anything changes, if the
    adapter is merged.
    """
    found = [
        h
        for h in holders(model, layer_cls)
        if isinstance(h, COMPANIONS) or getattr(h, "prefix", prefix) == prefix
    ]
    return delete_from(found, adapter_name)


def delete_from(found: Sequence[Holder], adapter_name: str) -> list[str] | None:
    """Delete an adapter from these holders, as `delete_adapter` does."""
    check_not_merged(found, adapter_name)
    active = next((list(h.active_adapters) for h in found if isinstance(h, BaseTunerLayer)), [])
    still_active = [name for name in active if name != adapter_name]
    if active and not still_active:
        remaining = sorted({name for holder in found for name in holder.all_adapters()} - {adapter_name})
        still_active = remaining[:1]
        if still_active:
            warnings.warn(
                f"The active adapter '{adapter_name}' is deleted, '{remaining[0]}' is active instead.",
                stacklevel=2,
            )
    for holder in found:
        holder.delete(adapter_name)
        if still_active != active:
            holder.set_adapter(still_active)
    return still_active or None


def check_not_merged(found: Sequence[Holder], adapter_name: str) -> None:
    """ValueError if an adapter that is to be deleted is merged."""
    if any(isinstance(h, BaseTunerLayer) and adapter_name in h.merged_adapters for h in found):
        raise ValueError(
            f"Adapter '{adapter_name}' is merged into the base weights: unmerge it before deleting it."
        )


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Upcast one adapter's float16 and bfloat16 weights to float32, for stable training; other dtypes stay.

    `modules_to_save` copies keep their dtype. With `autocast_adapter_dtype=False` nothing happens.
    """
    if not autocast_adapter_dtype:
        return
    for holder in holders(model):
        if isinstance(holder, BaseTunerLayer):
            for parameter in holder.adapter_parameters(adapter_name):
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.float()
