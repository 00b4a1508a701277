"""SuperTuning: W' = W + S, where S is zero but for trained values at the places of the largest |W| (or the
smallest); with a rank, W' = W + S + (alpha / r)·B·A beside it.

"Super-Tuning", https://arxiv.org/abs/2607.09287.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import dropout, normal, zeros

__all__ = ["SupertuningConfig", "SupertuningModel"]


@dataclass
class SupertuningConfig(PeftConfig):
    """SuperTuning's options, in PEFT's order.

    ValueError for a sparsity outside [0, 1), a rank or a dropout that is none, and an alpha without a rank.
    """

    target_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    sparsity: float = 0.99  # the share of entries that are not trained
    select_top: bool = True  # the largest |W|; else the smallest
    r: int | None = None  # of the low-rank product beside the values; None for no product
    lora_alpha: float | None = None  # None: 2·r
    lora_dropout: float = 0.0  # of the product's input
    init_weights: bool = True  # values and B are zeros; else N(0, 1) and Kaiming-uniform
    save_precomputed_indices: bool = True  # else a file has no places, and the base weight gives them again

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"`sparsity` should be at least 0 and below 1, got {self.sparsity}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` should be at least 0 and below 1, got {self.lora_dropout}.")
        if self.r is not None and self.r <= 0:
            raise ValueError(f"`r` should be a positive number or None, got {self.r}.")
        if self.r is None and self.lora_alpha is not None:
            raise ValueError("`lora_alpha` is for the low-rank product, which needs `r`.")
        if self.r is not None and self.lora_alpha is None:
            self.lora_alpha = 2 * self.r
        if not self.save_precomputed_indices:
            warnings.warn(
                "Files will not contain the places of the values: they load right onto the same base weights "
                "only.",
                stacklevel=3,
            )

    def places(self, size: int) -> int:
        """How many entries of a weight of this size are trained."""
        return int(size * (1 - self.sparsity))


class SupertuningLayer(BaseTunerLayer):
    """A layer with SuperTuning adapters: values, and where they stand in the flattened weight."""

    prefix = "supertuning_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        "scaling": dict,
        "supertuning_saves_indices": dict,
        "supertuning_values": nn.ParameterDict,
        "supertuning_indices": BufferDict,
        **dict.fromkeys(
            ("supertuning_lora_A", "supertuning_lora_B", "supertuning_lora_dropout"), nn.ModuleDict
        ),
    }
    scaling: dict[str, float]
    supertuning_saves_indices: dict[str, bool]
    supertuning_values: nn.ParameterDict
    supertuning_indices: BufferDict
    supertuning_lora_A: nn.ModuleDict
    supertuning_lora_B: nn.ModuleDict
    adapter_layer_names = ("supertuning_values", "supertuning_lora_A", "supertuning_lora_B")
    matrix_slots = ("supertuning_lora_A", "supertuning_lora_B")
    dropout_slot = "supertuning_lora_dropout"

    @classmethod
    def check(cls, config: SupertuningConfig, base: Any, op: type[Operator], name: str) -> None:
        """At least one entry must be trained."""
        if not config.places(base.weight.numel()):
            raise ValueError(
                f"sparsity={config.sparsity} trains none of the {base.weight.numel()} entries of '{name}'."
            )

    def create(self, config: SupertuningConfig, name: str) -> dict[str, Any]:
        """Values (k,) and their places (k,), by the size of the entries; A (r, in) and B (out, r)."""
        weight = self.unmerged_weight.detach()
        k, saves = config.places(weight.numel()), config.save_precomputed_indices
        # a file that does not say the places leaves them to the base weight, also where the rest is on meta
        places = torch.empty(k) if saves and torch.empty(0).is_meta else None
        if places is None:
            places = weight.abs().flatten().topk(k, largest=config.select_top).indices
        contents = {
            "scaling": (config.lora_alpha or 0) / (config.r or 1),
            "supertuning_saves_indices": saves,
            "supertuning_values": zeros(k) if config.init_weights else normal(k),
            "supertuning_indices": places.to(torch.int32),
        }
        if config.r is None:
            return contents
        A = nn.Linear(self.in_features, config.r, bias=False)
        B = nn.Linear(config.r, self.out_features, bias=False)
        if config.init_weights:
            nn.init.zeros_(B.weight)
        drops = dropout(config.lora_dropout)
        return contents | {
            "supertuning_lora_A": A,
            "supertuning_lora_B": B,
            "supertuning_lora_dropout": drops,
        }

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """Everything, or all but the places."""
        for live, saved, tensor in super().state_entries(adapter):
            if saved != "supertuning_indices" or self.supertuning_saves_indices[adapter]:
                yield live, saved, tensor

    def sparse(self, adapter: str) -> Tensor:
        """S: (out, in)."""
        values, places = self.supertuning_values[adapter], self.supertuning_indices[adapter].long()
        shape = self.weight.shape
        return values.new_zeros(shape.numel()).index_put((places,), values).view(shape)

    def delta(self, adapter: str) -> Tensor:
        """S + s·B·A."""
        if adapter not in self.supertuning_lora_A:
            return self.sparse(adapter)
        factors: Any = self.supertuning_lora_A[adapter], self.supertuning_lora_B[adapter]
        return self.sparse(adapter) + self.scaling[adapter] * (factors[1].weight @ factors[0].weight)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + S·x + s·B(A(dropout(x)))."""
        x = x.to(self.supertuning_values[adapter].dtype)
        y = y + F.linear(x, self.sparse(adapter))
        if adapter not in self.supertuning_lora_A:
            return y
        A, B = self.supertuning_lora_A[adapter], self.supertuning_lora_B[adapter]
        return y + self.scaling[adapter] * B(A(self.drop_out(adapter, x)))


class SupertuningModel(BaseTuner):
    """A model with SuperTuning adapters."""

    tuner_layer_cls = SupertuningLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.SUPERTUNING, SupertuningConfig, SupertuningModel)
