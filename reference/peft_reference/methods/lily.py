"""Lily: y' = y + s·h·ΣₑpₑBₑ with h = x·Aᵀ and p the mean over all vectors of the batch of softmax(h·Rᵀ).

Zhong et al., "Low-Rank Interconnected Adaptation across Layers", https://arxiv.org/abs/2407.09946: the layers
of a target have one set of experts B, and each `stride_A` of them, one after the other, have one A. Every
layer has a router R of its own. What a layer computes depends on its input, so nothing can be merged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..holder import Holder
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..matching import names_module
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["LilyConfig", "LilyModel"]


@dataclass
class LilyConfig(PeftConfig):
    """Lily's options, in PEFT's order. ValueError for fewer than two experts, and for a stride below 1."""

    r: int = 32
    stride_A: int = 1  # how many layers of a target, one after the other, share one A
    num_B: int = 2  # the experts that all layers of a target share
    scaling: float = 1.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_weights: bool = True  # B = 0; else random as a linear layer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_B < 2:
            raise ValueError(f"`num_B` should be at least 2, for a router to choose; got {self.num_B}.")
        if self.stride_A < 1:
            raise ValueError(f"`stride_A` should be at least 1, got {self.stride_A}.")


class LilyLayer(BaseTunerLayer):
    """A linear layer with Lily adapters: `lily_A` (r, in), `lily_B` (experts·r, out), `lily_router`
    (experts, r).
    """

    prefix = "lily_"
    operators = (Linear,)
    adapter_layer_names = ("lily_A", "lily_B", "lily_router")
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "scaling", "stride_A", "num_B"), dict),
        **dict.fromkeys(adapter_layer_names, nn.ModuleDict),
    }
    lily_A: nn.ModuleDict
    lily_B: nn.ModuleDict
    lily_router: nn.ModuleDict
    r: dict[str, int]
    scaling: dict[str, float]
    matrix_slots = adapter_layer_names

    @classmethod
    def check(cls, config: LilyConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank must be positive."""
        if config.r <= 0:
            raise ValueError(f"The rank of '{name}' should be positive, got r={config.r}.")

    def create(self, config: LilyConfig, name: str) -> dict[str, Any]:
        """A, B and the router, random as linear layers are; B zero unless the config says otherwise."""
        B = nn.Linear(self.out_features, config.num_B * config.r, bias=False)
        if config.init_weights:
            nn.init.zeros_(B.weight)
        numbers = {name: getattr(config, name) for name in ("r", "scaling", "stride_A", "num_B")}
        return numbers | {
            "lily_A": nn.Linear(self.in_features, config.r, bias=False),
            "lily_B": B,
            "lily_router": nn.Linear(config.r, config.num_B, bias=False),
        }

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + s·h·ΣₑpₑBₑ."""
        stacked: Any = self.lily_B[adapter].weight
        B = stacked.unflatten(0, (-1, self.r[adapter]))  # (experts, r, out)
        h = self.lily_A[adapter](x.to(B.dtype))
        p = self.lily_router[adapter](h).softmax(-1).flatten(0, -2).mean(0)
        return y + self.scaling[adapter] * h @ torch.einsum("e,ero->ro", p, B)

    def check_mergeable(self, adapter: str) -> None:
        """NotImplementedError: there is no weight that is right for every input."""
        raise NotImplementedError("Lily cannot be merged: what it adds depends on the input.")

    def check_per_sample(self, adapter: str) -> None:
        """ValueError: a sample's output depends on the other samples of its batch."""
        raise ValueError("Lily cannot use different adapters for the samples of a batch.")


class LilyModel(BaseTuner):
    """A model with Lily adapters."""

    tuner_layer_cls = LilyLayer
    target_module_mapping = defaults.ATTENTION

    @classmethod
    def join(
        cls, config: LilyConfig, layers: Mapping[str, LilyLayer], contents: dict[Holder, dict[str, Any]]
    ) -> None:
        """One B for the layers of a target, one A for each `stride_A` of them, where their sizes allow it."""
        groups = defaultdict(list)
        for name, layer in layers.items():
            groups[target_of(config, name), layer.in_features, layer.out_features].append(contents[layer])
        for group in groups.values():
            for i, own in enumerate(group):
                own["lily_B"] = group[0]["lily_B"]
                own["lily_A"] = group[i - i % config.stride_A]["lily_A"]


def target_of(config: LilyConfig, name: str) -> str:
    """The target by which a module was selected: the shortest of several names, or the one regular
    expression; for a module that a state dict has selected, its own name.
    """
    targets = config.target_modules
    if isinstance(targets, str):
        return targets
    fitting = (target for target in targets or () if names_module([target], name))
    return min(fitting, key=lambda target: (len(target), target), default=name)


register_peft_method(PeftType.LILY, LilyConfig, LilyModel)
