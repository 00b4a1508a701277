"""SHiRA: W' = W + S, where S is zero but for r·(in + out) trained values at fixed places.

Bhardwaj et al., "Sparse High Rank Adapters", https://arxiv.org/abs/2406.13175.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["ShiraConfig", "ShiraModel"]


def random_mask(base_layer: Any, r: int, random_seed: int | None = None, **kwargs: Any) -> Tensor:
    """r·(in + out) ones at random places among zeros, like the layer's weight."""
    weight = base_layer.weight
    generator = torch.Generator()
    generator.manual_seed(random_seed) if random_seed is not None else generator.seed()
    places = torch.randperm(weight.numel(), generator=generator, device="cpu")[: r * sum(weight.shape)]
    mask = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    return mask.index_fill(0, places.to(mask.device), 1).view(weight.shape)


@dataclass
class ShiraConfig(PeftConfig):
    """SHiRA's options, in PEFT's order. Set `mask_fn` for other places: (base layer, r, **kwargs) -> mask of
    zeros and r·(in + out) ones.
    """

    r: int = 32  # as many values as LoRA of this rank has
    mask_type: str = "random"
    random_seed: int | None = None  # of the mask
    target_modules: list[str] | set[str] | str | None = None
    fan_in_fan_out: bool = False
    init_weights: bool = True  # zeros; else N(0, 1)
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mask_fn: Callable[..., Tensor] | None = random_mask if self.mask_type == "random" else None
        if self.mask_fn is None:
            warnings.warn(f"mask_type={self.mask_type!r} is not known: set `mask_fn`.", stacklevel=3)


class ShiraLayer(BaseTunerLayer):
    """A layer with SHiRA adapters: values, and where they stand as (2, values) rows and columns."""

    prefix = "shira_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        "r": dict,
        "scaling": dict,
        "shira_weight": nn.ParameterDict,
        "shira_indices": BufferDict,
    }
    shira_weight: nn.ParameterDict
    shira_indices: BufferDict
    adapter_layer_names = ("shira_weight",)

    @classmethod
    def check(cls, config: ShiraConfig, base: Any, op: type[Operator], name: str) -> None:
        """There must be a mask, with at least one value and no more than the weight has."""
        size, values = base.weight.numel(), config.r * sum(base.weight.shape)
        if not 0 < values <= size:
            raise ValueError(f"r={config.r} gives {values} values for '{name}', whose weight has {size}.")
        if config.mask_fn is None:
            raise ValueError(f"mask_type={config.mask_type!r} is not known, and `mask_fn` is not set.")

    def create(self, config: ShiraConfig, name: str) -> dict[str, Any]:
        """Zeros at the places of the mask."""
        base = self.get_base_layer()
        count = config.r * sum(self.weight.shape)
        places = torch.empty(2, count, dtype=torch.int32)
        if base.weight.device.type != "meta":
            mask = config.mask_fn(base, config.r, random_seed=config.random_seed)  # type: ignore[misc]
            places = mask.nonzero().t().to(torch.int32)
        if places.shape[1] != count:
            raise ValueError(f"The mask for '{name}' should have {count} ones, it has {places.shape[1]}.")
        values = torch.zeros(count) if config.init_weights else torch.randn(count)
        return {
            "r": config.r,
            "scaling": 1.0,
            "shira_weight": nn.Parameter(values),
            "shira_indices": places.contiguous().to(values.device),
        }

    def delta(self, adapter: str) -> Tensor:
        """S."""
        values = self.shira_weight[adapter]
        rows, columns = self.shira_indices[adapter].long()
        return self.scaling[adapter] * values.new_zeros(self.weight.shape).index_put((rows, columns), values)

    scaling: dict[str, float]


class ShiraModel(BaseTuner):
    """A model with SHiRA adapters."""

    tuner_layer_cls = ShiraLayer
    target_module_mapping: ClassVar[dict[str, Any]] = {**defaults.ATTENTION, "phi": defaults.QV}


register_peft_method(PeftType.SHIRA, ShiraConfig, ShiraModel)
