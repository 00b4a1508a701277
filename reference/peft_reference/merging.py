"""Writing adapters into the base weights, taking them out again, and taking PEFT out of a model."""

from __future__ import annotations

import warnings

from torch import nn

from .adapters import holders, walk
from .layer import BaseTunerLayer
from .tying import base_module
from .wrappers import ModulesToSaveWrapper


def merge_adapter(
    model: nn.Module,
    adapter_names: list[str] | None = None,
    safe_merge: bool = False,
    keep_base: bool = True,
) -> None:
    """Write adapters (default: the active ones) into the base weights, in place.

    TypeError if the names are no list; ValueError if `safe_merge` meets NaN or inf; whatever a method raises
    for an adapter that cannot be merged. The weights are unchanged after an error. Without `keep_base`
    they need no second copy of all weights, and nothing is taken back.
    """
    layers = [h for h in reversed(holders(model)) if isinstance(h, BaseTunerLayer)]  # inner ones first
    _warn_if_tied(model, layers)
    todo = {layer: names for layer in layers if (names := layer.mergeable_adapters(adapter_names))}
    merged_before = sorted({name for layer in layers for name in layer.merged_adapters})
    if merged_before and not todo:
        warnings.warn("Everything to merge is merged already.", stacklevel=3)
    elif merged_before:
        warnings.warn(f"Merging on top of what is merged already: {', '.join(merged_before)}.", stacklevel=3)
    done = []
    try:
        for layer, names in todo.items():
            if keep_base:
                done.append(layer.before_merge())
            layer.merge(safe_merge=safe_merge, adapter_names=names)
            if not keep_base:
                layer.forget_base()
    except BaseException:
        for take_back in reversed(done):
            take_back()
        raise


def unmerge_adapter(model: nn.Module) -> None:
    """Put the base weights back, bit for bit."""
    layers = [h for h in holders(model) if isinstance(h, BaseTunerLayer)]  # outer ones first
    if not any(layer.merged for layer in layers):
        warnings.warn("No adapter is merged, so that none can be unmerged.", stacklevel=3)
    for layer in layers:
        layer.unmerge()


def unload(
    model: nn.Module,
    merge: bool,
    progressbar: bool = False,
    safe_merge: bool = False,
    adapter_names: list[str] | None = None,
) -> nn.Module:
    """Replace adapted layers by their base layers and wrappers by the module that acts; returns `model`
    itself.
    """
    if merge:
        merge_adapter(model, adapter_names, safe_merge, keep_base=safe_merge)
    held = [(name, module) for name, module in walk(model) if base_module(module) is not module]
    if progressbar:
        from tqdm import tqdm  # type: ignore[import-untyped]

        held = tqdm(held, desc="Unloading" + (" and merging" if merge else ""))
    for name, holder in reversed(list(held)):  # inner ones first
        parent_name, _, key = name.rpartition(".")
        plain = base_module(holder)
        if merge and isinstance(holder, ModulesToSaveWrapper):
            plain = _saved_copy(holder, adapter_names)
        setattr(model.get_submodule(parent_name), key, plain)
    for module in model.modules():  # `model` may be a PeftModel around the model that carries the configs
        vars(module).pop("peft_config", None)
    return model


def _saved_copy(wrapper: ModulesToSaveWrapper, adapter_names: list[str] | None) -> nn.Module:
    names = wrapper.active_adapters if adapter_names is None else adapter_names
    wrapper.check_set_adapter(names)
    return wrapper.copy_of(names)


def _warn_if_tied(model: nn.Module, layers: list[BaseTunerLayer]) -> None:
    """Merging into a tied embedding changes the other end as well; fine where both have the same adapter."""
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    if not tied or any(layer.tied_to for layer in layers):
        return
    ends = [
        get()
        for name in ("get_input_embeddings", "get_output_embeddings")
        if (get := getattr(model, name, None))
    ]
    if any(layer is end or layer.get_base_layer() is end for layer in layers for end in ends):
        warnings.warn(
            "Model with `tie_word_embeddings=True` and an adapted embedding: merging changes the tied "
            "weight at both ends. Untie the embeddings before merging if that is not meant.",
            stacklevel=4,
        )
