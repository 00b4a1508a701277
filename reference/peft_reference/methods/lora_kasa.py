"""KaSA: W' = W_trunc + s·B·diag(d)·A, where W_trunc is W without its r smallest singular components.

Wang et al., "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models",
https://arxiv.org/abs/2412.06071. The truncation (equation 5) is for good: W_trunc is the base weight from
then on, whatever becomes of the adapter. Two regularisers (equations 9 to 11) belong to the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..operators import Linear, Operator
from .lora_init import svd
from .lora_variant import VARIANTS, LoraVariant
from .parts import normal

if TYPE_CHECKING:
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer

__all__ = ["KasaConfig"]


@dataclass
class KasaConfig:
    """How much KaSA's regularisers count; ValueError for a negative weight."""

    beta: float = 1e-4  # of ‖d‖²
    gamma: float = 1e-3  # of ‖BᵀB - I‖ + ‖AAᵀ - I‖

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"`{name}` should not be negative, got {value}.")


class KasaVariant(LoraVariant):
    """A diagonal of singular values between the factors, and a base weight without its noise."""

    operators = (Linear,)
    slots: ClassVar = {"lora_diag": nn.ParameterDict}  # d: (r,)
    trained_slots = ("lora_diag",)

    @staticmethod
    def check(config: LoraConfig, base: Any, op: type[Operator], name: str, r: int) -> None:
        """ValueError for a rank that would leave nothing of the base weight."""
        if r >= min(base.weight.shape):
            raise ValueError(
                f"KaSA takes r={r} singular components from '{name}', whose weight {tuple(base.weight.shape)}"
                " should have more."
            )

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, name: str, contents: dict[str, Any]) -> dict[str, Any]:
        """Add d ~ N(0, 1), and the truncated base weight."""
        weight = contents.get("weight", layer.weight).detach()
        U, S, V = svd(weight if weight.dtype is torch.float64 else weight.float())
        kept = len(S) - contents["r"]
        truncated = (U[:, :kept] * S[:kept]) @ V[:kept]
        return contents | {"lora_diag": normal(contents["r"]), "weight": truncated.to(weight.dtype)}

    @staticmethod
    def delta(layer: LoraLayer, adapter: str) -> Tensor:
        """s·B·diag(d)·A."""
        A, B = layer.factors(adapter)
        return layer.product(adapter, A, B * layer.lora_diag[adapter])

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + s·B(d * A(dropout(x)))."""
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        h = a(layer.drop_out(adapter, x).to(a.weight.dtype))
        return y.add(b(h * layer.lora_diag[adapter]), alpha=layer.scaling[adapter])


def regulariser(layer: LoraLayer, adapter: str, options: KasaConfig) -> Tensor:
    """β·‖d‖² + γ·(‖BᵀB - I‖ + ‖AAᵀ - I‖) of one adapter on one layer; Frobenius norms."""
    A, B = layer.factors(adapter)
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    orthogonal = (B.t() @ B - eye).norm() + (A @ A.t() - eye).norm()
    return options.beta * layer.lora_diag[adapter].square().sum() + options.gamma * orthogonal


VARIANTS["kasa_config"] = KasaVariant
