"""CorDA: W·C = U·S·V for the covariance C of the layer's inputs, and s·B·A = U_k·S_k·(V_k·C⁻¹) for r of the
components: the largest in instruction-previewed mode, the smallest in knowledge-preserved mode.

Yang et al., "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models", arXiv 2406.05223.
`preprocess_corda` looks at the data and leaves the components on the layers, where the adapter finds them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import walk
from ..matching import pattern_value, resolve_targets, select_targets
from ..operators import Conv1D, Linear, operator_of
from .lora import LoraModel
from .lora_config import LoraConfig
from .lora_init import INITIALISERS, Initialiser, Site, Start, without

DAMPING = 0.01  # of the mean diagonal, doubled until the inverse is good
GOOD_INVERSE = 0.05  # mean error of C·C⁻¹


@dataclass
class CordaEigens:
    """The r components of one layer."""

    S_WC: Tensor  # (r,)
    U_WC: Tensor  # (out, r)
    V_WC: Tensor  # (in, r), with C⁻¹ multiplied in


def linear_targets(model: nn.Module, config: LoraConfig) -> dict[str, Any]:
    """The linear layers that a config means, by name."""
    modules = dict(walk(model))
    targets = resolve_targets(config, model, modules, LoraModel.target_module_mapping)
    names = select_targets(config, targets, modules)
    return {name: modules[name] for name in names if operator_of(modules[name]) in (Linear, Conv1D)}


@torch.no_grad()
def preprocess_corda(
    model: nn.Module,
    lora_config: LoraConfig,
    run_model: Callable[[], Any] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Decompose the target layers of `model` in the light of what `run_model()` feeds them, as `eigens`.

    `hooked_model` is the model that `run_model` runs, if it is another. The config's `covariance_file` keeps
    the covariances, its `cache_file` the components; a file that is there already is read instead.
    ValueError without `corda_config`, for an unknown `corda_method`, if there is nothing to run and no file,
    and for a layer that saw no input.
    """
    options: Any = lora_config.corda_config
    if options is None:
        raise ValueError("preprocess_corda needs a LoraConfig with a `corda_config`.")
    if options.corda_method not in ("ipm", "kpm"):
        raise ValueError(f"corda_method should be 'ipm' or 'kpm', got {options.corda_method!r}.")
    layers = linear_targets(model, lora_config)
    if options.cache_file and os.path.exists(options.cache_file):
        kept = torch.load(options.cache_file, map_location="cpu", weights_only=True)
        for name, layer in layers.items():
            parts = (kept[f"{name}.eigens.{part}"] for part in ("S_WC", "U_WC", "V_WC"))
            layer.eigens = CordaEigens(*(part.to(layer.weight.device) for part in parts))
        return
    covariances = _covariances(layers, hooked_model or model, run_model, options)
    for name, layer in layers.items():
        r = pattern_value(lora_config.rank_pattern, name, lora_config.r)
        layer.eigens = _decompose(layer, covariances[name], r, options.corda_method)
        if not options.prune_temporary_fields:
            layer.covariance_matrix = covariances[name]
    if options.cache_file:
        kept = {f"{n}.eigens.{part}": t for n, m in layers.items() for part, t in vars(m.eigens).items()}
        torch.save(kept, options.cache_file)


def _covariances(
    layers: dict[str, Any], hooked: nn.Module, run_model: Callable[[], Any] | None, options: Any
) -> dict[str, Tensor]:
    """Layer name -> C (in, in): the mean of xᵀx over the calls, each x scaled to a largest value of 1."""
    if options.covariance_file and os.path.exists(options.covariance_file):
        return torch.load(options.covariance_file, map_location="cpu", weights_only=True)
    if run_model is None:
        raise ValueError("CorDA needs `run_model`, as no covariance file and no cache file is there yet.")
    seen: dict[str, list[Any]] = {name: [0, 0.0] for name in layers}  # calls, sum
    dtype = torch.float16 if options.use_float16_for_covariance else torch.float32

    def watch(name: str) -> Callable[[Any, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            x = args[0].flatten(0, -2).float()
            x = x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny)
            seen[name] = [seen[name][0] + 1, seen[name][1] + (x.t() @ x).to(dtype)]

        return hook

    handles = [hooked.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers]
    try:
        run_model()
    finally:
        for handle in handles:
            handle.remove()
    if unseen := [name for name, (calls, _) in seen.items() if not calls]:
        raise ValueError(f"`run_model` gave no input to {unseen}.")
    covariances = {name: total / calls for name, (calls, total) in seen.items()}
    if options.covariance_file:
        torch.save(covariances, options.covariance_file)
    return covariances


def _decompose(layer: Any, covariance: Tensor, r: int, method: str) -> CordaEigens:
    """The r components of W·C that the method wants; C with a diagonal that makes it invertible."""
    C = covariance.to(layer.weight.device, torch.float32)
    W = operator_of(layer).canonical(layer.weight).float()  # type: ignore[union-attr]
    eye, damping = torch.eye(len(C), device=C.device), DAMPING
    while True:
        damped = C + damping * C.diagonal().mean() * eye
        inverse = torch.linalg.inv(damped)
        if (damped @ inverse - eye).abs().mean() < GOOD_INVERSE:
            break
        damping *= 2
    U, S, V = torch.linalg.svd(W @ damped, full_matrices=False)
    chosen = slice(None, r) if method == "ipm" else slice(len(S) - r, None)
    return CordaEigens(S[chosen].clone(), U[:, chosen].contiguous(), (V[chosen] @ inverse).t().contiguous())


def check(config: Any, base: Any, name: str, r: int) -> None:
    """ValueError if the layer has not been decomposed, or for another rank."""
    eigens = getattr(base, "eigens", None)
    if eigens is None:
        raise ValueError(f"init_lora_weights='corda': '{name}' has no `eigens`, run `preprocess_corda`.")
    if len(eigens.S_WC) != r:
        raise ValueError(f"'{name}' was decomposed for r={len(eigens.S_WC)}, and gets an adapter of r={r}.")


def corda(site: Site) -> Start:
    """B = U_k·√(S_k/s), A = √(S_k/s)·V_k·C⁻¹, W_res = W - s·B·A."""
    S, U, V = astuple(site.base.eigens)
    root = (S / site.s).sqrt()
    return without(site, root[:, None] * V.t(), U * root)


INITIALISERS["corda"] = Initialiser(corda, check, True)
