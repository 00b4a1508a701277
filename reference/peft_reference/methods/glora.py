"""GLoRA: W' = W + W∘A + B and b' = b + b∘D + E + W·C, where each of the five is low-rank, a vector, a number
or nothing.

Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning",
https://arxiv.org/abs/2306.07967, equation 6. A layer without bias gets none: C, D and E are nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PeftConfig
from ..errors import UnsupportedOptionError
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import random

__all__ = ["GloraConfig", "GloraModel"]

KINDS = {
    "config_A_B": ("lora", "vector", "constant", "none"),
    "config_C": ("lora", "vector", "none"),
    "config_D_E": ("vector", "constant", "none"),
}


@dataclass
class GloraConfig(PeftConfig):
    """GLoRA's options, in PEFT's order. ValueError for a kind that a path cannot be of."""

    r: int = 8  # the rank of the paths that are `lora`
    target_modules: list[str] | set[str] | str | None = None
    bias: str = "none"  # which base biases to train and save: none, all, glora_only
    modules_to_save: list[str] | None = None
    config_A_B: str = "lora"
    config_C: str = "lora"
    config_D_E: str = "constant"
    init_weights: bool = True  # all paths are zero; else random

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, kinds in KINDS.items():
            if getattr(self, field) not in kinds:
                raise ValueError(f"{field}={getattr(self, field)!r} should be one of {', '.join(kinds)}.")


class Path(nn.Module):
    """One of A to E as a tensor of `shape`, or one that broadcasts to it: Xd·Xu, X or zeros."""

    def __init__(self, kind: str, shape: tuple[int, ...], config: GloraConfig) -> None:
        super().__init__()
        self.kind = kind
        if kind == "none":
            self.register_buffer("zeros", torch.zeros(shape))  # PEFT saves them
        elif kind == "lora":
            self.Xd, self.Xu = random(shape[0], config.r), random(config.r, shape[1])
        else:
            size, bound = (1,) if kind == "constant" else (shape[0], 1)[: len(shape)], shape[-1] ** -0.5
            self.X = nn.Parameter(torch.empty(size).uniform_(-bound, bound))
        if config.init_weights and kind != "none":
            nn.init.zeros_(self.Xd if kind == "lora" else self.X)

    def forward(self) -> Tensor:
        """The tensor."""
        if self.kind == "lora":
            return self.Xd @ self.Xu
        return self.X if "X" in self._parameters else self.get_buffer("zeros")


class GloraLayer(BaseTunerLayer):
    """A layer with GLoRA adapters."""

    prefix = "glora_"
    operators = (Linear,)
    adapter_layer_names = ("glora_A", "glora_B", "glora_C", "glora_D", "glora_E")
    slots: ClassVar[dict[str, type]] = {"r": dict, **dict.fromkeys(adapter_layer_names, nn.ModuleDict)}

    @classmethod
    def check(cls, config: GloraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank is positive."""
        if config.r <= 0:
            raise ValueError(f"The rank of '{name}' should be positive, got r={config.r}.")
        if config.bias not in ("none", "all", "glora_only"):
            raise UnsupportedOptionError(f"bias={config.bias!r} is not known: use none, all or glora_only.")

    def create(self, config: GloraConfig, name: str) -> dict[str, Any]:
        """A and B are like W, (out, in), C is (in, 1), D and E like b, (out,)."""
        n_in, n_out = self.in_features, self.out_features
        matrix, column, flat = (n_out, n_in), (n_in, 1), (n_out,)
        of_c, of_de = ("none", "none") if self.bias is None else (config.config_C, config.config_D_E)
        return {
            "r": config.r,
            "glora_A": Path(config.config_A_B, matrix, config),
            "glora_B": Path(config.config_A_B, matrix, config),
            "glora_C": Path(of_c, column, config),
            "glora_D": Path(of_de, flat, config),
            "glora_E": Path(of_de, flat, config),
        }

    def changes(self, adapter: str) -> tuple[Tensor, Tensor | None]:
        """What is added to W, (out, in), and to b, (out,); both come from the base as it was."""
        weight, bias = self.unmerged_weight, self.unmerged_bias
        a, b, c, d, e = (getattr(self, slot)[adapter]() for slot in self.adapter_layer_names)
        delta = weight * a + b
        return delta, None if bias is None else bias * d + e + (weight.to(c.dtype) @ c).flatten()

    def delta(self, adapter: str) -> Tensor:
        """W∘A + B."""
        return self.changes(adapter)[0]

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + x·(W∘A + B)ᵀ + b∘D + E + W·C."""
        delta, shift = self.changes(adapter)
        return y + F.linear(x.to(delta.dtype), delta, shift)

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same, added to weight and bias."""
        delta, shift = self.changes(adapter)
        return weight + delta, bias if bias is None or shift is None else bias + shift


class GloraModel(BaseTuner):
    """A model with GLoRA adapters."""

    tuner_layer_cls = GloraLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.GLORA, GloraConfig, GloraModel)
