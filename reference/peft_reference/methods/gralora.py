"""GraLoRA: W' = W + s·Δ, each of the k × k blocks of Δ a product of rank r / k, s = alpha / (r + hybrid_r).

Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
https://arxiv.org/abs/2505.20355. Block n of the inputs has r vectors A[n] (in/k, r), block j of the outputs
r vectors B[j] (r, out/k); part j of the former meets part n of the latter. The hybrid adds a product of rank
hybrid_r for the whole weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import check_bias, dropout, random, rank_of

__all__ = ["GraloraConfig", "GraloraModel"]


@dataclass
class GraloraConfig(PeftConfig):
    """GraLoRA's options, in PEFT's order. ValueError unless `gralora_k` is positive and divides `r`."""

    r: int = 32  # there are as many values as LoRA of this rank has
    hybrid_r: int = 0  # the rank of the product for the whole weight
    target_modules: list[str] | set[str] | str | None = None
    alpha: int = 64
    gralora_dropout: float = 0.0  # of the adapter's input
    gralora_k: int = 2  # the weight has k × k blocks
    fan_in_fan_out: bool = False  # whether the base stores (in, out): corrected by what the layer is
    bias: str = "none"  # which base biases to train and save: none, all, gralora_only
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # B = 0; else random like A
    layers_to_transform: list[int] | int | None = None
    layers_pattern: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gralora_k <= 0:
            raise ValueError(f"`gralora_k` should be positive, got {self.gralora_k}.")
        if self.r % self.gralora_k:
            raise ValueError(f"`r` should be divisible by gralora_k={self.gralora_k}, got {self.r}.")


class GraloraLayer(BaseTunerLayer):
    """A layer with GraLoRA adapters."""

    prefix = "gralora_"
    operators = (Linear, Conv1D)
    adapter_layer_names = ("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general")
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "alpha", "gralora_k", "hybrid_r", "scaling"), dict),
        "gralora_dropout": nn.ModuleDict,
        "gralora_A": nn.ParameterDict,
        "gralora_B": nn.ParameterDict,
        "gralora_A_general": nn.ModuleDict,  # of a hybrid
        "gralora_B_general": nn.ModuleDict,
    }
    dropout_slot = "gralora_dropout"
    scaling: dict[str, float]
    gralora_A: nn.ParameterDict
    gralora_B: nn.ParameterDict
    gralora_A_general: Any
    gralora_B_general: Any

    @classmethod
    def check(cls, config: GraloraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The ranks fit, and k divides both sides of the weight."""
        rank_of(config, name)
        check_bias(config, "gralora_only")
        if config.hybrid_r < 0:
            raise ValueError(f"`hybrid_r` should not be negative, got {config.hybrid_r}.")
        for side, size in zip(("in_features", "out_features"), op.features(base), strict=True):
            if size % config.gralora_k:
                raise ValueError(
                    f"{side} of '{name}' should be divisible by gralora_k={config.gralora_k}, got {size}."
                )

    def create(self, config: GraloraConfig, name: str) -> dict[str, Any]:
        """A (k, in/k, r) and B (k, r, out/k), and the factors of a hybrid."""
        r, k, hybrid = config.r, config.gralora_k, config.hybrid_r
        A = random(k * r, self.in_features // k).data.view(k, r, -1).mT.contiguous()
        B = random(self.out_features, r).data.view(k, -1, r).mT.contiguous()
        contents = {
            **{"r": r, "alpha": config.alpha, "gralora_k": k, "hybrid_r": hybrid},
            "scaling": config.alpha / (r + hybrid),
            "gralora_dropout": dropout(config.gralora_dropout),
            "gralora_A": nn.Parameter(A),
            "gralora_B": nn.Parameter(torch.zeros_like(B) if config.init_weights else B),
        }
        if hybrid:
            down, up = self.op.factors(
                self.get_base_layer(), self.in_features, hybrid, self.out_features, False
            )
            if config.init_weights:
                nn.init.zeros_(up.weight)  # type: ignore[arg-type]
            contents |= {"gralora_A_general": down, "gralora_B_general": up}
        return contents

    def blocks(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A as (k, in/k, k, r/k), B as (k, k, r/k, out/k): block of inputs n, its part j, and the reverse."""
        A, B = self.gralora_A[adapter], self.gralora_B[adapter]
        return A.unflatten(2, (len(A), -1)), B.unflatten(1, (len(B), -1))

    def delta(self, adapter: str) -> Tensor:
        """s·Δ as (out, in)."""
        A, B = self.blocks(adapter)
        delta = torch.einsum("nijq,jnqo->joni", A, B).flatten(2).flatten(0, 1)
        if adapter in self.gralora_A_general:
            delta = delta + self.gralora_B_general[adapter].weight @ self.gralora_A_general[adapter].weight
        return self.scaling[adapter] * delta

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The same without building the delta."""
        A, B = self.blocks(adapter)
        x = self.drop_out(adapter, x).to(A.dtype)
        low = torch.einsum("...ni,nijq->...jnq", x.unflatten(-1, (len(A), -1)), A)
        change = torch.einsum("...jnq,jnqo->...jo", low, B).flatten(-2)
        if adapter in self.gralora_A_general:
            change = change + self.gralora_B_general[adapter](self.gralora_A_general[adapter](x))
        return y + self.scaling[adapter] * change


class GraloraModel(BaseTuner):
    """A model with GraLoRA adapters."""

    tuner_layer_cls = GraloraLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.GRALORA, GraloraConfig, GraloraModel)
