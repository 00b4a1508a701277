"""VeRA: W' = W + diag(b)·B·diag(d)·A with random A (r, in) and B (out, r), the same for all layers.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", https://arxiv.org/abs/2310.11454. Only the
vectors b (out) and d (r) are trained. A and B are as large as the largest layer needs; each uses a corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..registry import PeftType, register_peft_method
from .parts import dropout
from .projections import ProjectionLayer, ProjectionModel, Shape, first_vectors, warn_if_not_saved

__all__ = ["VeraConfig", "VeraModel"]


@dataclass
class VeraConfig(PeftConfig):
    """VeRA's options, in PEFT's order. A UserWarning if the projections are not saved."""

    r: int = 256
    target_modules: list[str] | set[str] | str | None = None
    projection_prng_key: int = 0  # seed of A and B
    save_projection: bool = True  # whether a checkpoint has A and B
    vera_dropout: float = 0.0
    d_initial: float = 0.1  # what d begins with
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, vera_only
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # b = 0; else b = 1 and d from N(0, 1)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        warn_if_not_saved(self)


class VeraLayer(ProjectionLayer):
    """A layer with VeRA adapters."""

    prefix = "vera_lambda_"
    slots: ClassVar[dict[str, type]] = {
        "save_projection": dict,
        "vera_dropout": nn.ModuleDict,
        "vera_lambda_b": nn.ParameterDict,
        "vera_lambda_d": nn.ParameterDict,
    }
    shared_slots: ClassVar[dict[str, type]] = {"vera_A": BufferDict, "vera_B": BufferDict}
    adapter_layer_names = ("vera_lambda_b", "vera_lambda_d")
    dropout_slot = "vera_dropout"
    vera_lambda_b: nn.ParameterDict
    vera_lambda_d: nn.ParameterDict
    vera_A: BufferDict
    vera_B: BufferDict

    def create(self, config: VeraConfig, name: str) -> dict[str, Any]:
        """b (out) and d (r)."""
        b, d = first_vectors(config, self.out_features, config.r)
        return {
            "save_projection": config.save_projection,
            "vera_dropout": dropout(config.vera_dropout),
            "vera_lambda_b": b,
            "vera_lambda_d": d,
        }

    def factors(self, adapter: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b, B (out, r), d and A (r, in) of this layer."""
        A, B = self.vera_A[adapter][:, : self.in_features], self.vera_B[adapter][: self.out_features]
        return self.vera_lambda_b[adapter], B, self.vera_lambda_d[adapter], A

    def delta(self, adapter: str) -> Tensor:
        """diag(b)·B·diag(d)·A."""
        b, B, d, A = self.factors(adapter)
        return (b[:, None] * B) @ (d[:, None] * A)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + b∘B(d∘A(dropout(x)))."""
        b, B, d, A = self.factors(adapter)
        x = self.drop_out(adapter, x.to(A.dtype))
        return y + b * F.linear((d * F.linear(x, A)).to(B.dtype), B)


class VeraModel(ProjectionModel):
    """A model with VeRA adapters."""

    tuner_layer_cls = VeraLayer

    @classmethod
    def shapes(cls, config: VeraConfig, n_in: int, n_out: int) -> dict[str, Shape]:
        """A (r, in) and B (out, r)."""
        return {"vera_A": (config.r, n_in), "vera_B": (n_out, config.r)}


register_peft_method(PeftType.VERA, VeraConfig, VeraModel)
