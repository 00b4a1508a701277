"""LoKr: W' = W + s·W₁ ⊗ W₂ with W₁ (o₁, i₁), W₂ (o₂, i₂, *kernel), o₁·o₂ = out, i₁·i₂ = in, s = alpha / r.

W₂, and with `decompose_both` W₁, is a product of rank r where that is smaller. Yeh et al., "Navigating
Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
https://arxiv.org/abs/2309.14859; Edalati et al., "KronA", https://arxiv.org/abs/2212.10650.
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
from .lycoris import LycorisConfig, LycorisLayer, product
from .parts import random

__all__ = ["LoKrConfig", "LoKrModel"]


@dataclass
class LoKrConfig(LycorisConfig):
    """LoKr's options, in PEFT's order."""

    r: int = 8  # the rank of a product that stands for a factor
    alpha: int = 8
    rank_dropout: float = 0.0  # rows of the delta that are dropped while training
    module_dropout: float = 0.0  # how often the adapter is left out while training
    use_effective_conv2d: bool = False  # a Tucker core for kernels larger than 1
    decompose_both: bool = False  # W₁ may be a product as well
    decompose_factor: int = (
        -1
    )  # the size of W₁ where it divides, else the limit of it; -1: near the square root
    rank_dropout_scale: bool = False  # enlarge the rows that rank dropout leaves
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    init_weights: bool | str = True  # True: W₁ = 0; 'lycoris': W₂ = 0; False: all random
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None


def factorize(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `size`: the first is `factor` if that divides it, else the largest divisor
    up to √size and, unless it is negative, up to `factor`.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor < 0 else min(math.isqrt(size), factor)
    first = next((n for n in range(limit, 1, -1) if size % n == 0), 1)
    return first, size // first


class LoKrLayer(LycorisLayer):
    """A layer with LoKr adapters."""

    prefix = "lokr_"
    adapter_layer_names = (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    )
    slots: ClassVar[dict[str, type]] = {
        **LycorisLayer.numbers,
        "rank_dropout_scale": dict,
        **dict.fromkeys(adapter_layer_names, nn.ParameterDict),
    }
    rank_dropout_scale: dict[str, bool]

    def create(self, config: LoKrConfig, name: str) -> dict[str, Any]:
        """Both factors, each whole or as a product, whichever PEFT takes."""
        contents = self.options(config, name) | {"rank_dropout_scale": config.rank_dropout_scale}
        r = contents["r"]
        n_out, n_in, kernel, core = self.shapes(config)
        (o1, o2), (i1, i2) = (factorize(n, config.decompose_factor) for n in (n_out, n_in))
        if config.decompose_both and r < max(o1, i1) / 2:
            contents |= {"lokr_w1_a": random(o1, r), "lokr_w1_b": random(r, i1)}
        else:
            contents["lokr_w1"] = random(o1, i1)
        if r >= max(o2, i2) / 2:
            contents["lokr_w2"] = random(o2, i2, *kernel)
        elif core:
            contents |= {"lokr_w2_a": random(r, o2), "lokr_w2_b": random(r, i2)}
            contents["lokr_t2"] = random(r, r, *core)
        else:
            contents |= {"lokr_w2_a": random(o2, r), "lokr_w2_b": random(r, i2 * math.prod(kernel))}
        if config.init_weights:
            zero = ("lokr_w2", "lokr_w2_b") if config.init_weights == "lycoris" else ("lokr_w1", "lokr_w1_a")
            nn.init.zeros_(contents[zero[0] if zero[0] in contents else zero[1]])
        return contents

    def delta(self, adapter: str) -> Tensor:
        """s·W₁ ⊗ W₂ as (out, in, *kernel)."""
        shape = self.op.canonical(self.weight).shape
        w1, w2 = self.part("lokr_w1", adapter), self.part("lokr_w2", adapter)
        if w1 is None:
            w1 = product(self.part("lokr_w1_a", adapter), self.part("lokr_w1_b", adapter))
        if w2 is None:
            w2 = product(*(self.part(slot, adapter) for slot in ("lokr_w2_a", "lokr_w2_b", "lokr_t2")))
        w2 = w2.reshape(shape[0] // len(w1), -1, *shape[2:])
        w1 = w1.view(*w1.shape, *[1] * len(shape[2:]))  # the same at all positions of the kernel
        return self.scaling[adapter] * torch.kron(w1, w2)

    def keeps_size(self, adapter: str) -> bool:
        """As the config says."""
        return self.rank_dropout_scale[adapter]


class LoKrModel(BaseTuner):
    """A model with LoKr adapters."""

    tuner_layer_cls = LoKrLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.LOKR, LoKrConfig, LoKrModel)
