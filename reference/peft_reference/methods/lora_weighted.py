"""`add_weighted_adapter` of LoRA: several adapters as one more, A and B of it per layer."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapters import walk
from ..combining import Combination, padded
from ..injection import Injection
from ..wrappers import ModulesToSaveWrapper

if TYPE_CHECKING:
    from .lora import LoraModel
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer

RESTRICTIONS = ("exclude_modules", "layers_to_transform")  # what makes target_modules mean less
INIT_OPTIONS = ("eva_config", "corda_config", "lora_ga_config")  # of initialisations that run on creation


@torch.no_grad()
def add_combined(
    tuner: LoraModel,
    inputs: Sequence[tuple[str, float]],
    adapter_name: str,
    combination: Combination,
    svd_rank: int | None,
) -> None:
    """Add the combination of these adapters with their weights; it is all computed before it is added."""
    configs: dict[str, Any] = {name: tuner.peft_config[name] for name, _ in inputs}
    layers: dict[str, Any] = {
        name: module
        for name, module in walk(tuner.model)
        if isinstance(module, tuner.tuner_layer_cls) and any(map(module.has_adapter, configs))
    }
    _check(tuner.model, configs)
    rank = _rank([configs[name] for name, _ in inputs], combination, svd_rank)
    targets = _targets(list(configs.values()))
    config = _config(list(configs.values()), rank, "|".join(map(re.escape, layers)))
    # on the meta device: nothing is drawn at random, and no initialisation touches the base weights
    planned = Injection(tuner.model, type(tuner), config, adapter_name, False, low_cpu_mem_usage=True)
    for holder, contents in planned.contents.items():
        if isinstance(holder, ModulesToSaveWrapper):
            (source,) = filter(holder.has_adapter, configs)
            planned.contents[holder] = copy.deepcopy(holder.modules_to_save[source])
        elif "tied_to" not in contents:
            _fill(holder, contents, [pair for pair in inputs if holder.has_adapter(pair[0])], combination)
    planned.apply().forget()
    if targets is not None:
        config.target_modules = targets


def _check(model: nn.Module, configs: Mapping[str, LoraConfig]) -> None:
    for name, config in configs.items():
        if config.target_parameters:
            raise ValueError(f"'{name}' targets parameters: such adapters cannot be combined.")
        if config.trainable_token_indices:
            raise ValueError(f"'{name}' trains tokens: such adapters cannot be combined.")
        if config.variant:
            raise ValueError(f"'{name}' is a {config.variant.__name__}: only plain LoRA can be combined.")
    if len({config.lora_bias for config in configs.values()}) > 1:
        raise ValueError("Adapters with and without `lora_bias` cannot be combined.")
    for name, module in walk(model):
        if isinstance(module, ModulesToSaveWrapper) and sum(map(module.has_adapter, configs)) > 1:
            raise ValueError(
                f"The adapters have copies of '{name}' (modules_to_save), which cannot be combined."
            )


def _rank(configs: Sequence[LoraConfig], combination: Combination, svd_rank: int | None) -> int:
    """The rank of the combined adapter; ValueError if factors of several ranks would have to be added."""
    ranks = [max([config.r, *(config.rank_pattern or {}).values()]) for config in configs]
    if combination.kind == "cat":
        return sum(ranks)
    if combination.of_products:
        rank = max(ranks) if svd_rank is None else svd_rank
        if rank < 1:
            raise ValueError(f"svd_rank should be positive, got {rank}.")
        return rank
    if len(set(ranks)) > 1:
        raise ValueError(
            f"combination_type {combination.kind!r} needs adapters of the same rank r, got {ranks}: use cat "
            "or svd."
        )
    return ranks[0]


def _targets(configs: Sequence[LoraConfig]) -> set[str] | str | None:
    """What the adapters target together; None if they restrict that further. ValueError for names mixed with
    regular expressions.
    """
    targets = [config.target_modules for config in configs]
    if len({isinstance(target, str) for target in targets}) > 1:
        raise ValueError(
            "The `target_modules` of some of the adapters are names and of others a regular expression: they "
            "cannot be combined."
        )
    if any(getattr(config, option) is not None for config in configs for option in RESTRICTIONS):
        return None
    if isinstance(targets[0], str):
        return "|".join(f"({target})" for target in dict.fromkeys(targets))
    return {name for target in targets for name in target or ()}


def _config(configs: Sequence[LoraConfig], rank: int, targets: str) -> LoraConfig:
    """The first adapter's config with scaling 1, for the layers that any of the adapters has."""
    first = configs[0]
    saved = dict.fromkeys(name for config in configs for name in config.modules_to_save or ())
    plain = first.init_lora_weights if isinstance(first.init_lora_weights, bool) else True
    changes: dict[str, Any] = dict.fromkeys((*RESTRICTIONS, "layers_pattern", *INIT_OPTIONS))
    return dataclasses.replace(
        first,
        r=rank,
        lora_alpha=rank,
        use_rslora=False,
        rank_pattern={},
        alpha_pattern={},
        loftq_config={},
        bias="none",
        init_lora_weights=plain,
        target_modules=targets,
        modules_to_save=list(saved) or None,
        **changes,
    )


def _fill(
    layer: Any, contents: dict[str, Any], inputs: Sequence[tuple[str, float]], combination: Combination
) -> None:
    """Put the combined A (r, in, *kernel) and B (out, r, *ones) into the slots' contents of one layer."""
    lora: LoraLayer = layer
    rank = contents["r"]
    names, weights = zip(*inputs, strict=True)
    scaled = [weight * lora.scaling[name] for name, weight in inputs]
    factors = [lora.factors(name) for name in names]
    As, Bs = ([factor.flatten(1) for factor in side] for side in zip(*factors, strict=True))
    if combination.kind == "cat":
        A = torch.cat([s * a for s, a in zip(scaled, As, strict=True)])
        B = torch.cat(Bs, 1)
    elif combination.of_products:
        products = [lora.delta(name).flatten(1) for name in names]
        A, B = combination.split(combination.sum(products, weights), rank)
    else:  # each factor takes the root of the weight, A its sign
        roots = [math.sqrt(abs(s)) for s in scaled]
        A = combination.sum(As, [math.copysign(root, s) for root, s in zip(roots, scaled, strict=True)])
        B = combination.sum(Bs, roots)
    like_a, like_b = factors[0]
    A = padded(A, 0, rank).to(like_a.dtype).view(rank, *like_a.shape[1:])
    B = padded(B, 1, rank).to(like_b.dtype).view(len(B), rank, *like_b.shape[2:])
    biases = [lora.lora_B[name].bias for name in names if name in lora.lora_B]
    bias: Tensor | None = None
    if biases and biases[0] is not None:
        bias = sum(s * b for s, b in zip(scaled, biases, strict=True))
    _put(contents, A, B, bias)


def _put(contents: dict[str, Any], A: Tensor, B: Tensor, bias: Tensor | None) -> None:
    """These factors into the contents of the slots, in the place of what `create` has made."""
    if "lora_embedding_A" in contents:
        contents |= {"lora_embedding_A": nn.Parameter(A), "lora_embedding_B": nn.Parameter(B)}
        return
    contents["lora_A"].weight, contents["lora_B"].weight = nn.Parameter(A), nn.Parameter(B)
    if bias is not None:
        contents["lora_B"].bias = nn.Parameter(bias)
