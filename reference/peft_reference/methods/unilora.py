"""Uni-LoRA: W' = W + B·A, where the entries of A (r, in) and B (out, r) of all layers are those of one
trained vector θ, at places that a seed decides, divided by the root of how often each is used.

Li et al., "Uni-LoRA: One Vector Is All You Need", https://arxiv.org/abs/2506.00799.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import dropout

__all__ = ["UniLoraConfig", "UniLoraModel"]


@dataclass
class UniLoraConfig(PeftConfig):
    """Uni-LoRA's options, in PEFT's order."""

    r: int = 4
    proj_seed: int = 42  # of the places
    theta_d_length: int = 256
    target_modules: list[str] | set[str] | str | None = None
    unilora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, unilora_only
    modules_to_save: list[str] | None = None
    init_theta_d_bound: float = 0.02
    init_weights: bool = True  # θ is uniform within the bound; else N(0, 1)
    save_indices: bool = False  # whether a checkpoint has the places
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None


class UniLoraLayer(BaseTunerLayer):
    """A layer with Uni-LoRA adapters: for each entry of A and B its place in θ and its factor."""

    prefix = "unilora_"
    operators = (Linear, Conv1D)
    places = ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B")
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "save_indices"), dict),
        "unilora_dropout": nn.ModuleDict,
        **dict.fromkeys(places, BufferDict),
    }
    shared_slots: ClassVar[dict[str, type]] = {"unilora_theta_d": nn.ParameterDict}
    adapter_layer_names = ("unilora_theta_d",)
    dropout_slot = "unilora_dropout"
    save_indices: dict[str, bool]
    unilora_theta_d: nn.ParameterDict

    @classmethod
    def check(cls, config: UniLoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """Rank and length are positive."""
        if config.r <= 0 or config.theta_d_length <= 0:
            raise ValueError(
                f"r={config.r} and theta_d_length={config.theta_d_length} should be positive ('{name}')."
            )

    def create_with(self, config: UniLoraConfig, name: str, shared: dict[str, Any]) -> dict[str, Any]:
        """The layer's own part of the places."""
        return {
            "r": config.r,
            "save_indices": config.save_indices,
            "unilora_dropout": dropout(config.unilora_dropout),
            **dict(zip(self.places, shared[name], strict=True)),
        }

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """The places, if they are saved."""
        return super().state_entries(adapter) if self.save_indices.get(adapter) else iter(())

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r)."""
        theta = self.unilora_theta_d[adapter]
        at_a, at_b, scale_a, scale_b = (getattr(self, slot)[adapter] for slot in self.places)
        return theta[at_a] * scale_a.to(theta.dtype), theta[at_b] * scale_b.to(theta.dtype)

    def delta(self, adapter: str) -> Tensor:
        """B·A."""
        A, B = self.factors(adapter)
        return B @ A

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + B(A(dropout(x)))."""
        A, B = self.factors(adapter)
        return y + F.linear(F.linear(self.drop_out(adapter, x.to(A.dtype)), A), B)


def draw_places(seed: int, length: int, count: int) -> Tensor:
    """Places in a vector of `length` for `count` entries, each used as often as any other, give or take one.

    Drawn with numpy, as in PEFT: a checkpoint need not contain them.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    often, rest = divmod(count, length)
    more = generator.choice(length, rest, replace=False) if rest else numpy.zeros(0, dtype=numpy.int64)
    every = numpy.concatenate([numpy.repeat(numpy.arange(length), often), more])
    return torch.from_numpy(generator.permutation(every))


class UniLoraModel(BaseTuner):
    """A model with Uni-LoRA adapters."""

    tuner_layer_cls = UniLoraLayer
    target_module_mapping = defaults.ATTENTION

    @classmethod
    def create_shared(
        cls, config: UniLoraConfig, layers: Mapping[str, BaseTunerLayer], held: Mapping[str, Any]
    ) -> dict[str, Any]:
        """θ; and, for each layer by its name, the places and factors of A and B, which are never on meta: a
        checkpoint may lack them.
        """
        theta = torch.empty(config.theta_d_length)
        bound = config.init_theta_d_bound
        theta = theta.uniform_(-bound, bound) if config.init_weights else theta.normal_()
        shapes = {
            name: ((config.r, layer.in_features), (layer.out_features, config.r))
            for name, layer in layers.items()
        }
        sizes = [rows * columns for pair in shapes.values() for rows, columns in pair]
        places = draw_places(config.proj_seed, config.theta_d_length, sum(sizes))
        scales = places.bincount()[places].float().rsqrt()
        dtype = next(iter(layers.values())).weight.dtype
        contents: dict[str, Any] = {"unilora_theta_d": nn.Parameter(theta.to(dtype))}
        split = iter(zip(places.split(sizes), scales.split(sizes), strict=True))
        for name, pair in shapes.items():
            weight = layers[name].weight
            device = "cpu" if weight.is_meta else weight.device
            (at_a, scale_a), (at_b, scale_b) = next(split), next(split)
            parts = zip((at_a, at_b, scale_a, scale_b), (*pair, *pair), strict=True)
            contents[name] = [part.reshape(shape).to(device) for part, shape in parts]
        return contents


register_peft_method(PeftType.UNILORA, UniLoraConfig, UniLoraModel)
