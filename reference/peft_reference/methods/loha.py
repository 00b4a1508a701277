"""LoHa: W' = W + s·(A₁·B₁) ⊙ (A₂·B₂) with A (out, r), B (r, in·kernel), s = alpha / r.

Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
https://arxiv.org/abs/2108.06098; its proposition 3 is the option `use_effective_conv2d`, where each product
has a core T (r, r, *kernel) in its middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..injection import BaseTuner
from ..registry import PeftType, register_peft_method
from . import defaults
from .lycoris import LycorisConfig, LycorisLayer, product, product_gradients
from .parts import random

__all__ = ["LoHaConfig", "LoHaModel"]


@dataclass
class LoHaConfig(LycorisConfig):
    """LoHa's options, in PEFT's order."""

    r: int = 8  # the rank of each of the two products
    alpha: int = 8
    rank_dropout: float = 0.0  # rows of the delta that are dropped while training
    module_dropout: float = 0.0  # how often the adapter is left out while training
    use_effective_conv2d: bool = False  # a Tucker core for kernels larger than 1
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    init_weights: bool = True  # True: B₂ = 0; False: all random
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None


class LoHaLayer(LycorisLayer):
    """A layer with LoHa adapters."""

    prefix = "hada_"
    adapter_layer_names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    slots: ClassVar[dict[str, type]] = {
        **LycorisLayer.numbers,
        **dict.fromkeys(adapter_layer_names, nn.ParameterDict),
    }

    def create(self, config: LoHaConfig, name: str) -> dict[str, Any]:
        """Two pairs of factors, with cores if the config says so."""
        contents = self.options(config, name)
        r = contents["r"]
        n_out, n_in, kernel, core = self.shapes(config)
        for i in (1, 2):
            if core:
                contents[f"hada_t{i}"] = random(r, r, *core)
            contents[f"hada_w{i}_a"] = random(r, n_out) if core else random(n_out, r)
            contents[f"hada_w{i}_b"] = random(r, n_in if core else n_in * math.prod(kernel))
        if config.init_weights:
            nn.init.zeros_(contents["hada_w2_b"])
        return contents

    def delta(self, adapter: str) -> Tensor:
        """s·(A₁·B₁) ⊙ (A₂·B₂) as (out, in, *kernel)."""
        (a1, b1, t1), (a2, b2, t2) = (
            [self.part(f"hada_{part}", adapter) for part in (f"w{i}_a", f"w{i}_b", f"t{i}")] for i in (1, 2)
        )
        factors = self.scaling[adapter], a1, b1, t1, a2, b2, t2
        recompute = torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
        delta = _Hadamard.apply(*factors) if recompute else hadamard(*factors)
        return delta.reshape(self.op.canonical(self.weight).shape)


def hadamard(scale: float, *factors: Any) -> Tensor:
    """s·(A₁·B₁) ⊙ (A₂·B₂), of A, B and core twice."""
    return scale * product(*factors[:3]) * product(*factors[3:])


class _Hadamard(torch.autograd.Function):
    """`hadamard`, which keeps the factors only: their products, each as large as the weight, are made anew
    for the backward pass. `torch.func` needs the formula itself.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, *factors: Tensor | None) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*factors)
        return hadamard(scale, *factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        one, two = saved[:3], saved[3:]
        gradient = gradient * ctx.scale
        by_one = product_gradients(gradient * product(*two), *one)
        return None, *by_one, *product_gradients(gradient * product(*one), *two)


class LoHaModel(BaseTuner):
    """A model with LoHa adapters."""

    tuner_layer_cls = LoHaLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.LOHA, LoHaConfig, LoHaModel)
