"""DeLoRA: W' = W + (λ / r)·Σᵢ bᵢaᵢᵀ / (‖bᵢ‖·‖aᵢ‖)·diag(‖W‖), the norms of the columns of W.

Bini et al., "DeLoRA: Decoupled Low-Rank Adaptation", https://arxiv.org/abs/2503.18225. A (r, in) and B (out,
r) give the directions alone; λ, a trained number, bounds how far W' is from W.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..matching import pattern_value
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import check_bias, dropout, random, rank_of, zeros

__all__ = ["DeloraConfig", "DeloraModel"]

SMALLEST_NORM = 1e-4  # what a shorter vector is divided by, so that B may begin at zero


@dataclass
class DeloraConfig(PeftConfig):
    """DeLoRA's options, in PEFT's order. ValueError unless `r` is positive."""

    r: int = 8  # the rank
    delora_lambda: int = 15  # λ in the beginning
    module_dropout: float = 0.0  # of the adapter's input
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    bias: str = "none"  # which base biases to train and save: none, all, delora_only
    init_weights: bool = True  # B = 0; else random like A
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict | None = field(default_factory=dict)  # regex for names -> rank
    lambda_pattern: dict | None = field(default_factory=dict)  # regex for names -> λ
    modules_to_save: list[str] | None = None

    _patterns: ClassVar[tuple[str, ...]] = ("rank_pattern", "lambda_pattern")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r <= 0:
            raise ValueError(f"`r` should be positive, got {self.r}.")


class DeloraLayer(BaseTunerLayer):
    """A layer with DeLoRA adapters."""

    prefix = "delora_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        "r": dict,
        "delora_dropout": nn.ModuleDict,
        "delora_A": nn.ParameterDict,
        "delora_B": nn.ParameterDict,
        "delora_lambda": nn.ParameterDict,  # of one number
        "delora_w_norm": BufferDict,  # of the columns of W, (in,)
    }
    adapter_layer_names = ("delora_A", "delora_B", "delora_lambda")
    dropout_slot = "delora_dropout"
    r: dict[str, int]
    delora_A: nn.ParameterDict
    delora_B: nn.ParameterDict
    delora_lambda: nn.ParameterDict
    delora_w_norm: BufferDict

    @classmethod
    def check(cls, config: DeloraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank is positive, the bias option known."""
        rank_of(config, name)
        check_bias(config, "delora_only")

    def create(self, config: DeloraConfig, name: str) -> dict[str, Any]:
        """A and B, λ, and the norms that a base weight in memory has."""
        r = rank_of(config, name)
        bound = pattern_value(config.lambda_pattern, name, config.delora_lambda)
        norms = torch.empty(self.in_features)
        if not norms.is_meta:
            norms = self.unmerged_weight.detach().float().norm(dim=0)
        return {
            "r": r,
            "delora_dropout": dropout(config.module_dropout),
            "delora_A": random(r, self.in_features),
            "delora_B": (zeros if config.init_weights else random)(self.out_features, r),
            "delora_lambda": nn.Parameter(torch.full((1,), float(bound))),
            "delora_w_norm": norms,
        }

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """(r, in) and (out, r), whose product is the delta."""
        A, B = self.delora_A[adapter], self.delora_B[adapter]
        A = A / A.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM) * self.delora_w_norm[adapter]
        B = B / B.norm(dim=0).clamp(min=SMALLEST_NORM)
        return A, B * (self.delora_lambda[adapter] / self.r[adapter])

    def delta(self, adapter: str) -> Tensor:
        """The bounded sum as (out, in)."""
        A, B = self.factors(adapter)
        return B @ A

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The same without building the delta."""
        A, B = self.factors(adapter)
        return y + F.linear(F.linear(self.drop_out(adapter, x).to(A.dtype), A), B)


class DeloraModel(BaseTuner):
    """A model with DeLoRA adapters."""

    tuner_layer_cls = DeloraLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.DELORA, DeloraConfig, DeloraModel)
