"""State dicts: one rule between live keys and checkpoint keys, used in both directions.

A holder (adapted layer or wrapper) at `P` lists its tensors as `P.<slot>.<adapter>.<rest>`, live, and
`P.<slot>.<rest>` in a checkpoint. The rule comes from where tensors are, never from how names look, so a
module called like the adapter or like the method's prefix is nothing special.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys as IncompatibleKeys

from .adapters import COMPANIONS, MODEL_PREFIX, Holder, named_holders, walk, without_compile
from .errors import PeftWarning
from .layer import BaseTunerLayer
from .matching import is_transformers_model
from .registry import tuner_for
from .tying import base_module
from .wrappers import ModulesToSaveWrapper

EMBEDDING_LAYER_NAMES = ["embed_tokens", "lm_head"]
SHARED_PREFIX = "base_model."  # of keys of what an adapter has once, for all of its layers


class Entry(NamedTuple):
    """One tensor of an adapter: its key in the live model and in a checkpoint, the tensor, and what holds
    it.
    """

    live: str
    saved: str
    tensor: Tensor
    holder: Holder | None


def adapter_entries(model: nn.Module, config: Any, adapter_name: str) -> Iterator[Entry]:
    """Everything that belongs to one adapter, in the model's order: its slots, its copies, the biases it
    trains.
    """
    bias = getattr(config, "bias", "none")
    copied: tuple[str, ...] = ()
    shared: list[Entry] = []  # what is one for the whole model comes last, and once
    for name, module in walk(model, unique=False):
        prefix = f"{name}." if name else ""
        adapted = False
        while isinstance(module, BaseTunerLayer):  # several, one inside the other, where methods are mixed
            for live, saved, tensor in module.state_entries(adapter_name):
                yield Entry(prefix + live, prefix + saved, tensor, module)
            if not shared and (module.needs_peft_model or "base_model" in model._modules):
                shared = [
                    Entry(prefix + live, SHARED_PREFIX + saved, tensor, module)
                    for live, saved, tensor in module.shared_entries(adapter_name)
                ]
            adapted |= module.has_adapter(adapter_name) and not isinstance(module, COMPANIONS)
            module, prefix = module.base_layer, f"{prefix}base_layer."
        if isinstance(module, Holder) and module.has_adapter(adapter_name):
            for live, saved, tensor in module.state_entries(adapter_name):
                yield Entry(prefix + live, prefix + saved, tensor, module)
            copied += (f"{prefix}original_module.",) * isinstance(module, ModulesToSaveWrapper)
        if bias == "all" or (bias != "none" and adapted):
            for key, parameter in module._parameters.items():
                if "bias" in key and parameter is not None and not prefix.startswith(copied or ("\0",)):
                    yield Entry(prefix + key, prefix + key, parameter.detach(), None)
    yield from shared


def get_peft_model_state_dict(
    model: Any,
    state_dict: dict[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | Literal["auto"] = "auto",
) -> dict[str, Tensor]:
    """One adapter's tensors (the live ones, no copies) under checkpoint keys, which do not name the adapter.

    With `state_dict` (live keys), tensors are taken from there. `save_embedding_layers`: add the weights of
    the input and output embeddings of a transformers model; "auto" does so if an embedding is adapted or the
    vocabulary has another size than the base model's config says. Raises KeyError for an unknown adapter,
    AttributeError for a model without adapters, ValueError for a config of unknown type.
    """
    if unwrap_compiled:
        model = getattr(model, "_orig_mod", model)
    config = model.peft_config[adapter_name]
    layer_cls = tuner_for(config, "get_peft_model_state_dict").tuner_layer_cls
    result: dict[str, Tensor] = {}
    for entry in adapter_entries(model, config, adapter_name):
        if state_dict is None or entry.live in state_dict:
            result[entry.saved] = entry.tensor if state_dict is None else state_dict[entry.live]
    _warn_if_sharded(result, layer_cls)
    if save_embedding_layers == "auto":
        save_embedding_layers = _embeddings_changed(model, config, layer_cls)
    if save_embedding_layers:
        for key, tensor in _embedding_tensors(model):
            if state_dict is None or key in state_dict:
                result[key] = tensor if state_dict is None else state_dict[key]
    return result


def set_peft_model_state_dict(
    model: Any,
    peft_model_state_dict: dict[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> IncompatibleKeys:
    """Put an adapter's checkpoint into a model that has the adapter, under whatever name it has there.

    Returns a named tuple: `missing_keys`, the live keys that were not set (base weights among them), and
    `unexpected_keys`, the given keys that belong nowhere. `low_cpu_mem_usage` replaces parameters (on meta
    or not) by copies of the given tensors, in the same dtype and on the base layer's device; otherwise
    values are copied into them.

    Everything is checked before anything changes. Raises RuntimeError for tensors of another shape (with
    `ignore_mismatched_sizes` they are left out, with a warning), KeyError for an unknown adapter or an
    incomplete `modules_to_save`, TypeError for a value that is no tensor, AttributeError for a model without
    adapters.
    """
    config = model.peft_config[adapter_name]
    layer_cls = tuner_for(config, "set_peft_model_state_dict").tuner_layer_cls
    peft_model_state_dict = layer_cls.from_checkpoint(config, peft_model_state_dict)
    entries = list(adapter_entries(model, config, adapter_name))
    holder_of = {entry.live: entry.holder for entry in entries}
    current = model.state_dict(keep_vars=True)
    own = {without_compile(entry.saved): entry.live for entry in entries}
    base = _base_places(model, current, own, peft_model_state_dict)

    values: dict[str, Tensor] = {}
    unexpected, mismatched = [], []
    for key, value in peft_model_state_dict.items():
        plain = without_compile(key)
        names = (plain, plain.removeprefix(MODEL_PREFIX))
        live = next((where[name] for name in names for where in (own, base) if name in where), None)
        if live is None:
            unexpected.append(key)
        elif not isinstance(value, Tensor):
            raise TypeError(f"'{key}' should be a tensor, got {type(value).__name__}.")
        elif value.shape != current[live].shape:
            mismatched.append((key, tuple(value.shape), tuple(current[live].shape)))
        else:
            values[live] = value
    told = [
        f"size mismatch for {key}: the checkpoint has {got}, the model has {want}"
        for key, got, want in mismatched
    ]
    if told and not ignore_mismatched_sizes:
        raise RuntimeError(f"The state dict does not fit {type(model).__name__}:\n\t" + "\n\t".join(told))
    skipped = {key for key, _, _ in mismatched}
    for entry in entries:
        if (
            isinstance(entry.holder, ModulesToSaveWrapper)
            and entry.live not in values
            and entry.saved not in skipped
        ):
            raise KeyError(entry.saved)
    if told:
        warnings.warn("Some weights were not loaded: " + "; ".join(told), stacklevel=2)

    if low_cpu_mem_usage:
        values = {key: _like(value, current[key], holder_of.get(key)) for key, value in values.items()}
    shared = _shared_parameters(model) if low_cpu_mem_usage else []
    outcome = model.load_state_dict(values, strict=False, assign=low_cpu_mem_usage)
    filled = {id(current[key]) for key in values}  # what sits in several places is set in all of them
    missing = [key for key in outcome.missing_keys if id(current[key]) not in filled]
    for old, places_of in shared:
        new = next((owner[key] for owner, key in places_of if owner[key] is not old), old)
        for owner, key in places_of:
            owner[key] = new
    return IncompatibleKeys(missing, unexpected)


def _base_places(
    model: nn.Module, current: Collection[str], own: Collection[str], given: Iterable[str]
) -> dict[str, str]:
    """Plain key -> live key of each base tensor; {} if all `given` keys are the adapter's `own`, as in most
    checkpoints, which spares a look at each key of the model.
    """
    if all(key in own for key in given):
        return {}
    held = _held(model)
    return {without_compile(key): key for key in current if original_key(key, held) is not None}


def _shared_parameters(model: nn.Module) -> list[tuple[Any, list[tuple[dict[str, Any], str]]]]:
    """Parameters that sit in several places (tied weights, tied adapters), and the places."""
    found: dict[Any, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(parameter, []).append((module._parameters, key))
    return [(parameter, where) for parameter, where in found.items() if len(where) > 1]


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The base weights (the live ones) under the keys they had before any adapter was added."""
    return {original: tensor for original, (_, tensor) in _base_tensors(model).items()}


def set_base_model_state_dict(
    model: nn.Module, state_dict: dict[str, Tensor], strict: bool = True
) -> IncompatibleKeys:
    """Load base weights given under their original keys; returns missing and unexpected keys, original too.

    RuntimeError, before anything changes, for tensors of another shape and, if `strict`, for missing or
    unexpected keys.
    """
    base = _base_tensors(model)
    missing = [key for key in base if key not in state_dict]
    unexpected = [key for key in state_dict if key not in base]
    problems = [
        f"size mismatch for {key}: given {tuple(value.shape)}, the model has {tuple(base[key][1].shape)}"
        for key, value in state_dict.items()
        if key in base and value.shape != base[key][1].shape
    ]
    if strict and missing:
        problems.append(f"missing keys: {missing}")
    if strict and unexpected:
        problems.append(f"unexpected keys: {unexpected}")
    if problems:
        raise RuntimeError("The state dict does not fit the base model:\n\t" + "\n\t".join(problems))
    model.load_state_dict(
        {base[key][0]: value for key, value in state_dict.items() if key in base}, strict=False
    )
    return IncompatibleKeys(missing, unexpected)


def _held(model: nn.Module) -> set[str]:
    """The names of what holds tensors of adapters: holders, and what their layers share."""
    found = list(named_holders(model, unique=False))
    layers = [holder for _, holder in found if isinstance(holder, BaseTunerLayer)]
    shared = {id(getattr(layer, slot)) for layer in layers for slot in layer.shared_slots}
    beside = walk(model) if shared else ()
    return {name for name, _ in found} | {name for name, module in beside if id(module) in shared}


def original_key(key: str, held: set[str]) -> str | None:
    """The key a base tensor had before adapters came (`held`: where the holders are); None for an adapter's
    tensor.
    """
    path, original = "", []
    for part in key.split("."):
        here = f"{path}.{part}" if path else part
        if path in held and part not in ("base_layer", "original_module"):
            return None
        if path not in held and not (part == "token_adapter" and here in held):
            original.append(part)
        path = here
    return ".".join(original)


def _base_tensors(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Original key -> (live key, tensor)."""
    held = _held(model)
    found = {}
    for live, tensor in model.state_dict().items():
        original = original_key(live, held)
        if original is not None:
            found[without_compile(original).removeprefix(MODEL_PREFIX)] = (live, tensor)
    return found


def _like(value: Tensor, current: Tensor, holder: Holder | None) -> Tensor:
    """A copy of `value` in the dtype of the tensor it replaces, on the base weight's device (that one may be
    meta).
    """
    device = (holder.weight if isinstance(holder, BaseTunerLayer) else current).device
    dtype = current.dtype if current.is_floating_point() and value.is_floating_point() else value.dtype
    return value.detach().to(device=value.device if device.type == "meta" else device, dtype=dtype, copy=True)


def _warn_if_sharded(tensors: dict[str, Tensor], layer_cls: type[BaseTunerLayer]) -> None:
    """A weight that is empty or flat is one process's part of a sharded model, which should have been
    gathered.
    """
    for key, tensor in tensors.items():
        slot = key.removesuffix(".weight").rpartition(".")[2]
        if (
            slot in layer_cls.matrix_slots
            and key.endswith(".weight")
            and (tensor.dim() < 2 or tensor.numel() == 0)
        ):
            warnings.warn(
                f"'{key}' has shape {tuple(tensor.shape)}, which no saved adapter has. If the model is "
                "sharded, gather its weights first and pass them as `state_dict`.",
                PeftWarning,
                stacklevel=3,
            )


def _embeddings_changed(model: Any, config: Any, layer_cls: type[BaseTunerLayer]) -> bool:
    """Whether the embeddings belong into the checkpoint: one is adapted, or the vocabulary was resized."""
    targets = getattr(config, "target_modules", None) or ()
    by_rows = issubclass(layer_cls, COMPANIONS)  # what changes of an embedding is in the checkpoint
    if not by_rows and any(name in targets for name in EMBEDDING_LAYER_NAMES):
        warnings.warn("`save_embedding_layers` is taken as True: embedding layers are adapted.", stacklevel=3)
        return True
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    model_id = getattr(config, "base_model_name_or_path", None)
    if size is None or model_id is None:
        return False
    from .saving import base_vocab_size

    original = base_vocab_size(model_id)
    if original is None:
        warnings.warn(
            f"There is no config of the base model in {model_id}: its vocabulary is taken as unchanged.",
            stacklevel=3,
        )
    elif original != size:
        warnings.warn(
            f"`save_embedding_layers` is taken as True: the vocabulary went from {original} to {size}.",
            stacklevel=3,
        )
        return True
    return False


def _embedding_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of the input and output embeddings, without the adapters on them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not is_transformers_model(inner):
        warnings.warn("The embedding layers are not known: this is no transformers model.", stacklevel=4)
        return
    both = (inner.get_input_embeddings(), inner.get_output_embeddings())
    ends = {id(base_module(module)) for module in both if module is not None}
    for name, base in walk(model):
        while isinstance(base, BaseTunerLayer):
            name, base = f"{name}.base_layer", base.base_layer
        if id(base) in ends:
            for key, tensor in base.state_dict().items():
                yield f"{name}.{key}", tensor
