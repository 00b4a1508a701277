"""What LoHa and LoKr share, the two methods that PEFT has from LyCORIS, https://arxiv.org/abs/2309.14859:
options, dropout, and products of small factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import PeftConfig
from ..layer import BaseTunerLayer
from ..matching import pattern_value
from ..operators import Conv1d, Conv2d, Linear, Operator
from .parts import rank_of


@dataclass
class LycorisConfig(PeftConfig):
    """The options that come first in both methods."""

    rank_pattern: dict | None = field(default_factory=dict)  # regex for names -> rank
    alpha_pattern: dict | None = field(default_factory=dict)  # regex for names -> alpha


def product(a: Tensor, b: Tensor, core: Tensor | None = None) -> Tensor:
    """(out, r) @ (r, in); with a Tucker core (r, r, *kernel), of (r, out) and (r, in): (out, in, *kernel)."""
    return a @ b if core is None else torch.einsum("ij...,ip,jq->pq...", core, a, b)


def product_gradients(
    gradient: Tensor, a: Tensor, b: Tensor, core: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients by a, b and core, of the gradient by their product."""
    gradient = gradient.to(a.dtype)  # a product may have been made in another dtype, by autocast
    if core is None:
        return gradient @ b.t(), a.t() @ gradient, None
    inner = torch.einsum("pq...,jq->pj...", gradient, b)  # by a @ core
    by_a = torch.einsum("pj...,ij...->ip", inner, core)
    by_b = torch.einsum("pq...,pj...->jq", gradient, torch.einsum("ij...,ip->pj...", core, a))
    return by_a, by_b, torch.einsum("pj...,ip->ij...", inner, a)


class LycorisLayer(BaseTunerLayer):
    """A layer whose delta is a product of bare parameters; each method says which."""

    operators = (Linear, Conv1d, Conv2d)
    numbers: ClassVar[dict[str, type]] = dict.fromkeys(
        ("r", "alpha", "scaling", "rank_dropout", "module_dropout"), dict
    )
    scaling: dict[str, float]
    rank_dropout: dict[str, float]
    module_dropout: dict[str, float]

    @classmethod
    def check(cls, config: Any, base: Any, op: type[Operator], name: str) -> None:
        """The rank must be positive."""
        rank_of(config, name)

    def options(self, config: Any, name: str) -> dict[str, Any]:
        """The numbers of an adapter."""
        r = rank_of(config, name)
        alpha = pattern_value(config.alpha_pattern, name, config.alpha)
        dropout = {"rank_dropout": config.rank_dropout, "module_dropout": config.module_dropout}
        return {"r": r, "alpha": alpha, "scaling": alpha / r, **dropout}

    def shapes(self, config: Any) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        """(out, in per group, kernel, kernel of a Tucker core or ()): PEFT's cores have two kernel sizes."""
        n_out, n_in, *kernel = self.op.canonical(self.weight).shape
        core = (*kernel, 1)[:2] if config.use_effective_conv2d and math.prod(kernel) > 1 else ()
        return n_out, n_in, tuple(kernel), core

    def part(self, slot: str, adapter: str) -> Any:
        """A factor, or None if this adapter does without."""
        return getattr(self, slot).get(adapter)

    def keeps_size(self, adapter: str) -> bool:
        """Whether the rows that rank dropout leaves are enlarged, so that the delta keeps its size."""
        return True

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + delta(x); in training the whole adapter, or rows of the delta, may be dropped."""
        skip = self.module_dropout[adapter]
        if self.training and skip and torch.rand(()) < skip:
            return y
        delta = self.delta(adapter)
        p = self.rank_dropout[adapter]
        if self.training and p:
            kept = (torch.rand(len(delta), device=delta.device) > p).to(delta.dtype)
            if self.keeps_size(adapter):
                kept = kept / kept.mean().clamp(min=1 / len(kept))
            delta = delta * kept.view(-1, *[1] * (delta.dim() - 1))
        return y + self.op.call(self.get_base_layer(), x.to(delta.dtype), delta)
