"""DEFT: W' = (I − Q·P₊ᵀ)·W + s·Q·R; of a trained P (out, r), Q = P and P₊ = relu(P), or both the Q of P = QR.

Kumar et al., "DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models", NeurIPS 2025: what W has
in some directions of the outputs is removed, and R injected in its place, in the beginning just that. Without
R it is PaRa, https://arxiv.org/abs/2406.05641. s = alpha / r, 1 without an alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import check_bias, dropout, normal, rank_of

__all__ = ["DeftConfig", "DeftModel"]

SPREAD = 0.02  # the standard deviation of P, and of an R that is not P's projection of W


@dataclass
class DeftConfig(PeftConfig):
    """DEFT's options, in PEFT's order. ValueError for an unknown `decomposition_method`."""

    r: int = 8  # the number of directions, as far as there are outputs
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    decomposition_method: str = "relu"  # or 'qr', an orthogonal projection
    init_scale: float = 1.0  # of a random R
    alpha: int | None = None
    para: bool = False  # no R
    fan_in_fan_out: bool = False  # whether the base stores (in, out): corrected by what the layer is
    deft_dropout: float = 0.0  # of what R reads
    init_weights: bool = True  # R gives what is removed; else random
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: str = "none"  # which base biases to train and save: none, all, deft_only
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decomposition_method not in PROJECTIONS:
            raise ValueError(
                f"decomposition_method={self.decomposition_method!r} is none of {', '.join(PROJECTIONS)}."
            )


def orthonormal(p: Tensor) -> tuple[Tensor, Tensor]:
    """Q of P = QR, twice; found in float32 where torch cannot in less."""
    exact = p if p.dtype is torch.float64 else p.float()
    q = torch.linalg.qr(exact)[0].to(p.dtype)
    return q, q


PROJECTIONS = {"relu": lambda p: (p, p.relu()), "qr": orthonormal}  # P -> Q and P₊


class DeftLayer(BaseTunerLayer):
    """A layer with DEFT adapters."""

    prefix = "deft_"
    operators = (Linear, Conv1D)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("deft_r", "deft_decomposition", "deft_scaling"), dict),
        "deft_P": nn.ParameterDict,
        "deft_R": nn.ParameterDict,
        "deft_dropout": nn.ModuleDict,
    }
    adapter_layer_names = ("deft_P", "deft_R")
    dropout_slot = "deft_dropout"
    deft_decomposition: dict[str, str]
    deft_scaling: dict[str, float]
    deft_P: nn.ParameterDict
    deft_R: nn.ParameterDict

    @classmethod
    def check(cls, config: DeftConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank is positive, R can be scaled, and the bias option known."""
        rank_of(config, name)
        check_bias(config, "deft_only")
        if config.alpha == 0:
            raise ValueError("`alpha` should not be 0: R begins as what is removed, divided by the scaling.")

    def create(self, config: DeftConfig, name: str) -> dict[str, Any]:
        """P from N(0, 0.02²), and R unless the config says PaRa."""
        r = min(config.r, self.out_features)
        scaling = 1.0 if config.alpha is None else config.alpha / r
        P = normal(self.out_features, r, std=SPREAD)
        contents = {
            **{"deft_r": r, "deft_decomposition": config.decomposition_method, "deft_scaling": scaling},
            "deft_P": P,
            "deft_dropout": dropout(config.deft_dropout),
        }
        if config.para:
            return contents
        R = normal(r, self.in_features, std=SPREAD * config.init_scale)
        if config.init_weights and not P.is_meta:
            _, kept = PROJECTIONS[config.decomposition_method](P.data.to(self.weight.dtype))
            R.data = kept.mT @ self.unmerged_weight.detach() / scaling
        return contents | {"deft_R": R}

    def factors(self, adapter: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Q (out, r), what it removes, P₊ᵀ·W (r, in), and what it injects, s·R (r, in) or None."""
        P = self.deft_P[adapter]
        Q, kept = PROJECTIONS[self.deft_decomposition[adapter]](P)
        injected = self.deft_scaling[adapter] * self.deft_R[adapter] if adapter in self.deft_R else None
        return Q, kept.mT @ self.unmerged_weight.to(P.dtype), injected

    def delta(self, adapter: str) -> Tensor:
        """Q·(s·R − P₊ᵀ·W) as (out, in)."""
        Q, removed, injected = self.factors(adapter)
        return Q @ (-removed if injected is None else injected - removed)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The same without building the delta; dropout is for what is injected."""
        Q, removed, injected = self.factors(adapter)
        x = x.to(Q.dtype)
        low = -F.linear(x, removed)
        if injected is not None:
            low = low + F.linear(self.drop_out(adapter, x), injected)
        return y + F.linear(low, Q)


class DeftModel(BaseTuner):
    """A model with DEFT adapters."""

    tuner_layer_cls = DeftLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.DEFT, DeftConfig, DeftModel)
