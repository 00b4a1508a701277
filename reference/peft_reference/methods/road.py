"""RoAd: W' = R·W and b' = R·b, where R turns pairs of outputs and scales them.

Liao and Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability",
https://arxiv.org/abs/2409.00119: (y₁, y₂) becomes (α·cos θ·y₁ - α·sin θ·y₂, α·sin θ·y₁ + α·cos θ·y₂). The
partner of an output stands half a group behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["RoadConfig", "RoadModel"]

# variant -> of θ and α in a group: (for cosine and sine, for both of a pair); 1 where they share one
VARIANTS = {"road_1": (1, 1), "road_2": (1, 2), "road_4": (2, 2)}


@dataclass
class RoadConfig(PeftConfig):
    """RoAd's options, in PEFT's order. ValueError for an unknown variant and a group that is not even."""

    variant: str = "road_1"  # one θ and α for a pair (road_1), for an output (road_2), for a factor (road_4)
    group_size: int = 64
    init_weights: bool = True  # θ = 0 and α = 1; else both N(0, 0.5²), α around 1
    target_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r} is not known: use {', '.join(VARIANTS)}.")
        if self.group_size <= 0 or self.group_size % 2:
            raise ValueError(f"`group_size` should be positive and even, got {self.group_size}.")


class RoadLayer(BaseTunerLayer):
    """A layer with RoAd adapters: θ and α have out/2 entries (road_1), out (road_2) or 2·out (road_4)."""

    prefix = "road_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        "variant": dict,
        "group_size": dict,
        "road_theta": nn.ParameterDict,
        "road_alpha": nn.ParameterDict,
    }
    variant: dict[str, str]
    group_size: dict[str, int]
    road_theta: nn.ParameterDict
    road_alpha: nn.ParameterDict
    adapter_layer_names = ("road_theta", "road_alpha")

    @classmethod
    def check(cls, config: RoadConfig, base: Any, op: type[Operator], name: str) -> None:
        """Groups have to fill the outputs."""
        if op.features(base)[1] % config.group_size:
            raise ValueError(
                f"'{name}' has {op.features(base)[1]} outputs, which group_size={config.group_size} should "
                "divide."
            )

    def create(self, config: RoadConfig, name: str) -> dict[str, Any]:
        """θ = 0, α = 1."""
        factors, members = VARIANTS[config.variant]
        size, spread = self.out_features // 2 * factors * members, 0.0 if config.init_weights else 0.5
        return {
            "variant": config.variant,
            "group_size": config.group_size,
            "road_theta": nn.Parameter(torch.randn(size).mul_(spread)),
            "road_alpha": nn.Parameter(torch.randn(size).mul_(spread).add_(1)),
        }

    def rotate(self, adapter: str, y: Tensor) -> Tensor:
        """R applied to the last dimension."""
        shape = (-1, *VARIANTS[self.variant[adapter]], self.group_size[adapter] // 2)
        theta, alpha = (slot[adapter].view(shape) for slot in (self.road_theta, self.road_alpha))
        cosine = alpha[:, 0] * theta[:, 0].cos()  # (groups, 1 or 2, half of a group)
        sine = alpha[:, -1] * theta[:, -1].sin()
        pairs = y.unflatten(-1, (-1, 2, shape[-1]))
        first, second = pairs.unbind(-2)
        return (cosine * pairs + sine * torch.stack((-second, first), -2)).flatten(-3)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """R·y: bias and all."""
        return self.rotate(adapter, y)

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """R·W and R·b."""
        return self.rotate(adapter, weight.t()).t(), None if bias is None else self.rotate(adapter, bias)


class RoadModel(BaseTuner):
    """A model with RoAd adapters."""

    tuner_layer_cls = RoadLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.ROAD, RoadConfig, RoadModel)
