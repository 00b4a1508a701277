"""PVeRA: W' = W + diag(b)·B·diag(d₁)·A₁, and in training noise on what lies between A and B.

Xu et al., "PVeRA: Probabilistic Vector-based Random Matrix Adaptation", https://arxiv.org/abs/2512.07703.
A is (2r, in), d is (2r): the first r rows give the mean μ of a normal distribution over r values, the others
the logarithm v of its variance, and B gets μ + e^(v/2)·ε. Without sampling this is VeRA of rank r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..registry import PeftType, register_peft_method
from .parts import dropout
from .projections import ProjectionLayer, ProjectionModel, Shape, first_vectors, warn_if_not_saved

__all__ = ["PveraConfig", "PveraModel"]


@dataclass
class PveraConfig(PeftConfig):
    """PVeRA's options, in PEFT's order. A UserWarning if the projections are not saved."""

    r: int = 256
    target_modules: list[str] | set[str] | str | None = None
    projection_prng_key: int = 0  # seed of A and B
    save_projection: bool = True  # whether a checkpoint has A and B
    pvera_dropout: float = 0.0
    d_initial: float = 0.1  # what d begins with
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, pvera_only
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # b = 0; else b = 1 and d from N(0, 1)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    sample_at_inference: bool = False  # whether there is noise in evaluation as well
    generator_seed: int | None = None  # of the noise; None: torch's own generator

    def __post_init__(self) -> None:
        super().__post_init__()
        warn_if_not_saved(self)


class PveraLayer(ProjectionLayer):
    """A layer with PVeRA adapters."""

    prefix = "pvera_lambda_"
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("save_projection", "sample_at_inference", "generator"), dict),
        "pvera_dropout": nn.ModuleDict,
        "pvera_lambda_b": nn.ParameterDict,
        "pvera_lambda_d": nn.ParameterDict,
    }
    shared_slots: ClassVar[dict[str, type]] = {"pvera_A": BufferDict, "pvera_B": BufferDict}
    adapter_layer_names = ("pvera_lambda_b", "pvera_lambda_d")
    dropout_slot = "pvera_dropout"
    sample_at_inference: dict[str, bool]
    generator: dict[str, int | None]  # its seed, and from the first use on the generator
    pvera_lambda_b: nn.ParameterDict
    pvera_lambda_d: nn.ParameterDict
    pvera_A: BufferDict
    pvera_B: BufferDict

    def create(self, config: PveraConfig, name: str) -> dict[str, Any]:
        """b (out) and d (2r)."""
        b, d = first_vectors(config, self.out_features, 2 * config.r)
        return {
            "save_projection": config.save_projection,
            "sample_at_inference": config.sample_at_inference,
            "generator": config.generator_seed,
            "pvera_dropout": dropout(config.pvera_dropout),
            "pvera_lambda_b": b,
            "pvera_lambda_d": d,
        }

    def factors(self, adapter: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b, B (out, r), d and A (2r, in) of this layer."""
        A, B = self.pvera_A[adapter][:, : self.in_features], self.pvera_B[adapter][: self.out_features]
        return self.pvera_lambda_b[adapter], B, self.pvera_lambda_d[adapter], A

    def delta(self, adapter: str) -> Tensor:
        """That of the mean: diag(b)·B·diag(d₁)·A₁."""
        b, B, d, A = self.factors(adapter)
        return (b[:, None] * B) @ (d[:, None] * A)[: len(d) // 2]

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + b∘B(μ + e^(v/2)·ε), where ε is 0 unless the adapter samples."""
        b, B, d, A = self.factors(adapter)
        mean, variance = (d * F.linear(self.drop_out(adapter, x.to(A.dtype)), A)).chunk(2, -1)
        if self.training or self.sample_at_inference[adapter]:
            mean = mean + (variance / 2).exp() * self.noise(adapter, mean)
        return y + b * F.linear(mean.to(B.dtype), B)

    def noise(self, adapter: str, like: Tensor) -> Tensor:
        """Draws from N(0, 1), from the adapter's own generator if it has a seed."""
        source: Any = self.generator[adapter]
        if isinstance(source, int):
            source = self.generator[adapter] = torch.Generator(like.device).manual_seed(source)  # type: ignore[assignment]
        return torch.randn(like.shape, generator=source, device=like.device, dtype=like.dtype)


class PveraModel(ProjectionModel):
    """A model with PVeRA adapters."""

    tuner_layer_cls = PveraLayer

    @classmethod
    def shapes(cls, config: PveraConfig, n_in: int, n_out: int) -> dict[str, Shape]:
        """A (2r, in) and B (out, r)."""
        return {"pvera_A": (2 * config.r, n_in), "pvera_B": (n_out, config.r)}


register_peft_method(PeftType.PVERA, PveraConfig, PveraModel)
