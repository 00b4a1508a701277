"""EVA: A = the r principal directions of a layer's inputs, B = 0, and ranks shared out by explained variance.

Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation", arXiv 2410.07170: an
incremental SVD over batches until the directions stop moving, then the budget Σr goes to the components that
explain most of their layer's variance, at most rho·r to one layer.

A few lines longer than other files: the signatures of PEFT's two functions are long.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..adapters import MODEL_PREFIX, walk
from ..errors import UnsupportedOptionError
from ..matching import pattern_value, resolve_targets, select_targets
from ..model import PeftModel
from ..operators import Conv1D, Linear, operator_of
from .lora import LoraModel
from .lora_config import LoraConfig
from .lora_eva_data import (
    RunningPca,
    chosen_rows,
    forward_fn_dict,
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
    share_out,
)
from .lora_layer import LoraLayer

__all__ = ["get_eva_state_dict", "initialize_lora_eva_weights"]

MOST_PASSES = 100  # over the data, for directions that do not settle


@torch.no_grad()
def get_eva_state_dict(
    model: nn.Module,
    dataloader: Iterable[Any],
    peft_config: LoraConfig | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: Callable[[Any, Any], Any] | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: Any = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """Module name -> A (rank, in), float64, from what the layers are given while the model sees the data.

    `dataloader` is passed over again until all directions have settled. `model` is a PeftModel with an EVA
    adapter, or any model together with `peft_config`. `prepare_layer_inputs_fn`, one function or one for each
    layer name, makes 2d rows of a layer's input; None takes all of it. No progress is drawn.

    Raises ValueError for a model without config, a config without EVA, an empty dataloader and one that gives
    a layer fewer than two rows at a time.
    """
    config, layers = _eva_layers(model, peft_config, adapter_name)
    if gather_distributed_inputs and dist.is_available() and dist.is_initialized():
        raise UnsupportedOptionError("EVA over several processes is not implemented in the reference.")
    ranks = {name: pattern_value(config.rank_pattern, _inner(name), config.r) for name in layers}
    found = {name: RunningPca(round(rank * config.eva_config.rho)) for name, rank in ranks.items()}
    prepared: Any = None

    def watch(name: str) -> Callable[[Any, Any], None]:
        prepare = prepare_layer_inputs_fn
        prepare = prepare[name] if isinstance(prepare, Mapping) else prepare
        prepare = prepare or (lambda x, _, __: x[0].flatten(0, -2))

        def hook(module: nn.Module, args: Any) -> None:
            rows = prepare(args, prepared, name)
            if len(rows) > 1 and not found[name].settled:
                found[name].add(rows, config.eva_config.tau)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for _ in range(MOST_PASSES):
            empty = True
            for batch in dataloader:
                empty = False
                prepared = prepare_model_inputs_fn(batch, config) if prepare_model_inputs_fn else None
                forward_fn(model, batch)
                if all(pca.settled for pca in found.values()):
                    break
            if empty:
                raise ValueError("EVA needs data: the dataloader is empty.")
            if unseen := [name for name, pca in found.items() if not pca.count]:
                raise ValueError(f"EVA needs two rows at a time, which the data do not give to {unseen}.")
            if all(pca.settled for pca in found.values()):
                break
        else:
            warnings.warn(f"EVA's directions have not settled in {MOST_PASSES} passes.", stacklevel=2)
    finally:
        for handle in handles:
            handle.remove()
    ranks = share_out(ranks, found, config.eva_config.rho)
    return {
        name: chosen_rows(found[name], rank, config.eva_config.whiten) for name, rank in ranks.items() if rank
    }


def _inner(name: str) -> str:
    return name.removeprefix(MODEL_PREFIX)


def _eva_layers(model: nn.Module, peft_config: Any, adapter_name: str) -> tuple[Any, dict[str, Any]]:
    """The config, and the layers whose inputs count, by the names that the state dict uses."""
    if isinstance(model, PeftModel):
        if adapter_name not in model.peft_config:
            raise ValueError(f"There is no adapter '{adapter_name}', only {list(model.peft_config)}.")
        config: Any = model.peft_config[adapter_name]
        modules = dict(walk(model.get_base_model()))
        chosen: dict[str, Any] = {
            MODEL_PREFIX + name: module
            for name, module in modules.items()
            if isinstance(module, LoraLayer) and module.has_adapter(adapter_name)
        }
    else:
        if peft_config is None:
            raise ValueError("A model without adapters needs a `peft_config`.")
        config, modules = peft_config, dict(walk(model))
        targets = resolve_targets(config, model, modules, LoraModel.target_module_mapping)
        chosen = {name: modules[name] for name in select_targets(config, targets, modules)}
    if getattr(config, "init_lora_weights", None) != "eva":
        raise ValueError("EVA needs a LoraConfig with init_lora_weights='eva'.")
    linear = {
        name: layer
        for name, layer in chosen.items()
        if (layer.op if isinstance(layer, LoraLayer) else operator_of(layer)) in (Linear, Conv1D)
    }
    return config, linear


@torch.no_grad()
def initialize_lora_eva_weights(
    model: Any,
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: dict[str, Tensor] | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: Callable[[Any, Any], Any] | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: Any = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> Any:
    """Give a PeftModel's EVA adapter the A (and ranks) of `eva_state_dict`, by default those that
    `get_eva_state_dict` finds with the other arguments; B is zero. Returns the model.

    Ranks, alphas (with `adjust_scaling_factors` the scaling stays) and the config's patterns follow. Layers
    that the state dict lacks get LoRA's own start, with a warning. ValueError, before anything changes, for a
    model that is no PeftModel, an adapter without EVA, neither data nor state dict, an A of another width.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(f"EVA initialises a PeftModel, got a {type(model).__name__}.")
    layers: dict[str, Any]
    config, layers = _eva_layers(model, None, adapter_name)
    if eva_state_dict is None:
        if dataloader is None:
            raise ValueError("EVA needs a `dataloader` or an `eva_state_dict`.")
        eva_state_dict = get_eva_state_dict(
            model,
            dataloader,
            None,
            forward_fn,
            prepare_model_inputs_fn,
            prepare_layer_inputs_fn,
            adapter_name,
            gather_distributed_inputs,
        )
    found = {_inner(name): A for name, A in eva_state_dict.items()}
    for name, layer in layers.items():
        A = found.get(_inner(name))
        if A is not None and A.shape[1:] != (layer.in_features,):
            raise ValueError(f"'{name}' has {layer.in_features} inputs, and EVA's A is {tuple(A.shape)}.")
    missing = [name for name in map(_inner, layers) if name not in found]
    if missing:
        warnings.warn(f"EVA found nothing for {missing}: LoRA's own start is used there.", stacklevel=2)
    for name, layer in layers.items():
        _set_factors(layer, adapter_name, found.get(_inner(name)), config, _inner(name))
    return model


def _set_factors(layer: Any, adapter: str, A: Tensor | None, config: Any, name: str) -> None:
    """New factors for one layer: A (or LoRA's own), B = 0; rank, alpha and scaling with them."""
    contents = layer.detach(adapter)
    old_a, old_b, weight = contents["lora_A"], contents["lora_B"], layer.weight
    rank = contents["r"] if A is None else len(A)
    device = weight.device if old_a.weight.is_meta else old_a.weight.device
    with torch.device(device):
        a, b = layer.new_factors(rank, False)
    for new, old in ((a, old_a), (b, old_b)):
        new.to(old.weight.dtype).requires_grad_(old.weight.requires_grad).train(old.training)
    if A is not None:
        a.weight.copy_(A)
    b.weight.zero_()
    if rank != contents["r"]:
        size = rank**0.5 if config.use_rslora else rank
        if config.eva_config.adjust_scaling_factors:
            contents["lora_alpha"] = contents["scaling"] * size
            config.alpha_pattern = {**(config.alpha_pattern or {}), name: contents["lora_alpha"]}
        config.rank_pattern = {**(config.rank_pattern or {}), name: rank}
        contents |= {"r": rank, "scaling": contents["lora_alpha"] / size}
    layer.attach(adapter, contents | {"lora_A": a, "lora_B": b})
