"""PEANuT: W' = W + s·B·g(A·W), a small network g that reads the weight itself, column by column.

Zhong et al., "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers",
https://arxiv.org/abs/2410.01870: g is f, the activation, or with a depth encoders and decoders of f after it;
what an encoder has read is added to what its decoder gives: h₁ = f(E·h₀), g = f(D·h₁) + h₀ and h₀ = f(A·W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["PeanutConfig", "PeanutModel"]

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@cache
def activation(name: str) -> Activation:
    """The function that transformers calls by this name, of which some need no transformers; ValueError if
    there is none.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(f"act_fn={name!r} is not known. There are: {', '.join(sorted(ACT2FN))}.")
    return ACT2FN[name]


@dataclass
class PeanutConfig(PeftConfig):
    """PEANuT's options, in PEFT's order. ValueError for a rank below 1, a negative depth, an unknown
    activation.
    """

    r: int = 32  # the width of the network
    depth: int = 0  # how many encoders, and how many decoders, there are
    act_fn: str = "relu"  # a name of transformers' ACT2FN
    scaling: float = 1.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_weights: bool = True  # B = 0; else random

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r <= 0:
            raise ValueError(f"`r` should be positive, got {self.r}.")
        if self.depth < 0:
            raise ValueError(f"`depth` should not be negative, got {self.depth}.")
        activation(self.act_fn)


class PeanutLayer(BaseTunerLayer):
    """A layer with PEANuT adapters: A (r, out), encoders and decoders (r, r), B (out, r)."""

    prefix = "peanut_"
    operators = (Linear,)
    adapter_layer_names = ("peanut_A", "peanut_B", "peanut_encoders", "peanut_decoders")
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "depth", "scaling", "act_fn"), dict),
        **dict.fromkeys(adapter_layer_names, nn.ModuleDict),
    }
    peanut_A: nn.ModuleDict
    peanut_B: nn.ModuleDict
    scaling: dict[str, float]
    act_fn: dict[str, str]

    def create(self, config: PeanutConfig, name: str) -> dict[str, Any]:
        """A network that reads columns of the weight and writes columns of the delta."""
        r, n_out = config.r, self.out_features
        layers: list[Any] = [nn.Linear(n_out, r, bias=False), nn.Linear(r, n_out, bias=False)]
        if config.init_weights:
            nn.init.zeros_(layers[1].weight)
        layers += [nn.ModuleList(nn.Linear(r, r, bias=False) for _ in range(config.depth)) for _ in range(2)]
        options = {slot: getattr(config, slot) for slot in ("r", "depth", "scaling", "act_fn")}
        return options | dict(zip(self.adapter_layer_names, layers, strict=True))

    def hidden(self, adapter: str) -> Tensor:
        """g(A·W) as (r, in)."""
        first, _, encoders, decoders = (getattr(self, slot)[adapter] for slot in self.adapter_layer_names)
        f = activation(self.act_fn[adapter])
        read = [f(first.weight @ self.unmerged_weight.to(first.weight.dtype))]
        for encoder in encoders:
            read.append(f(encoder.weight @ read[-1]))
        h = read.pop()
        for decoder in decoders:
            h = f(decoder.weight @ h) + read.pop()
        return h

    def delta(self, adapter: str) -> Tensor:
        """s·B·g(A·W)."""
        last: Any = self.peanut_B[adapter]
        return self.scaling[adapter] * (last.weight @ self.hidden(adapter))

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + s·B·(g(A·W)·x)."""
        h = self.hidden(adapter)
        return y.add(self.peanut_B[adapter](F.linear(x.to(h.dtype), h)), alpha=self.scaling[adapter])


class PeanutModel(BaseTuner):
    """A model with PEANuT adapters."""

    tuner_layer_cls = PeanutLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.PEANUT, PeanutConfig, PeanutModel)
