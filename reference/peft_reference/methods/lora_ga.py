"""LoRA-GA: A and B from the singular vectors of the loss's gradient G = U·S·V by the base weight, so that the
first step goes where full fine-tuning would.

Wang et al., "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", arXiv 2407.05000. With disjoint
components I and J of the first 2r, A = V_I and B = U_J·S_J, scaled; W_res = W - s·B·A. That B is weighted by
S_J is PEFT's choice, not the paper's. `preprocess_loraga` leaves G on the layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..operators import operator_of
from .lora_config import LoraConfig
from .lora_corda import linear_targets
from .lora_init import INITIALISERS, Initialiser, Site, Start, without

__all__ = ["preprocess_loraga"]

DIRECTIONS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {  # r -> components of A, of B
    "ArBr": lambda r: (torch.arange(1, 2 * r, 2), torch.arange(0, 2 * r, 2)),
    "A2rBr": lambda r: (torch.arange(r, 2 * r), torch.arange(r)),
    "ArB2r": lambda r: (torch.arange(r), torch.arange(r, 2 * r)),
    "random": lambda r: (torch.randperm(2 * r)[:r],) * 2,
}
SCALES = ("stable", "weight_svd", "gd_scale", "unit")


def preprocess_loraga(
    model: nn.Module, lora_config: LoraConfig, train_step: Callable[[], Any], cache_file: str | None = None
) -> None:
    """Collect the gradients by the target layers' weights during `train_step()`, as `_peft_loraga_grad`.

    The gradients of all backward passes in it add up; the parameters' own gradients and flags are afterwards
    as before. With `cache_file` they are kept there, and read if it is there already. ValueError without
    `lora_ga_config`, and for a layer that got no gradient.
    """
    if lora_config.lora_ga_config is None:
        raise ValueError("LoRA-GA needs a LoraConfig with a `lora_ga_config`.")
    layers = linear_targets(model, lora_config)
    if cache_file and os.path.exists(cache_file):
        gradients = torch.load(cache_file, map_location="cpu", weights_only=True)
    else:
        gradients = _gradients(model, {name: layer.weight for name, layer in layers.items()}, train_step)
        if cache_file:
            torch.save(gradients, cache_file)
    if lacking := [name for name in layers if name not in gradients]:
        raise ValueError(f"LoRA-GA found no gradient for {lacking}.")
    for name, layer in layers.items():
        layer._peft_loraga_grad = gradients[name].to(layer.weight.device)


def _gradients(
    model: nn.Module, weights: dict[str, nn.Parameter], train_step: Callable[[], Any]
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]

    def collect(name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            sums[name] = sums[name] + gradient if name in sums else gradient.detach().clone()

        return hook

    handles = []
    try:
        for name, weight in weights.items():
            handles.append(weight.requires_grad_(True).register_hook(collect(name)))
        train_step()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
    return sums


def check(config: Any, base: Any, name: str, r: int) -> None:
    """ValueError without config or gradient, for unknown options, and for fewer than 2r components."""
    options = config.lora_ga_config
    if options is None:
        raise ValueError("init_lora_weights='lora_ga' needs a `lora_ga_config`.")
    if options.direction not in DIRECTIONS or options.scale not in SCALES or options.stable_gamma <= 0:
        raise ValueError(
            f"LoRA-GA takes direction {', '.join(DIRECTIONS)}, scale {', '.join(SCALES)} and a positive "
            f"stable_gamma, got {options}."
        )
    if getattr(base, "_peft_loraga_grad", None) is None:
        raise ValueError(f"init_lora_weights='lora_ga': '{name}' has no gradient, run `preprocess_loraga`.")
    if 2 * r > min(base.weight.shape):
        raise ValueError(f"LoRA-GA needs 2r <= min(in, out), got r={r} for '{name}'.")


def lora_ga(site: Site) -> Start:
    """A = V_I, B = U_J·S_J, times what `scale` says; W_res = W - s·B·A."""
    options = site.config.lora_ga_config
    G = operator_of(site.base).canonical(site.base._peft_loraga_grad).to(site.W)  # type: ignore[union-attr]
    U, S, V = torch.linalg.svd(G, full_matrices=False)
    with torch.device("cpu"):
        I, J = DIRECTIONS[options.direction](site.r)  # noqa: E741
    A, B = V[I], U[:, J] * S[J]
    if options.scale == "stable":
        B = B * (site.W.shape[0] ** 0.25 / options.stable_gamma**0.5)
    elif options.scale == "weight_svd":
        B = B * (torch.linalg.matrix_norm(site.W, 2) / S[J[0]])
    elif options.scale == "gd_scale":
        A, B = A / site.s, B / site.s
    return without(site, A, B)


INITIALISERS["lora_ga"] = Initialiser(lora_ga, check, True)
