"""RandLoRA: W' = W + s·Σⱼ Bⱼ·diag(λⱼ)·A·diag(γⱼ), of full rank by a sum of random bases; s = alpha / r.

Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
https://arxiv.org/abs/2502.00987. A (r, 1, small) and B (large, n, r) are random and the same for all layers,
of which each uses a corner; λ (r, n) and γ (n, small) are trained, n = ⌈small / r⌉, where small and large are
the sizes of the layer. One with more inputs than outputs gets the transposed sum. PEFT multiplies B, flat
as (large, n·r), with λ∘A∘γ, flat as (r·n, small): the bases are those columns of B, and files mean them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..registry import PeftType, register_peft_method
from .parts import dropout
from .projections import ProjectionLayer, ProjectionModel, Shape, warn_if_not_saved

__all__ = ["RandLoraConfig", "RandLoraModel"]


@dataclass
class RandLoraConfig(PeftConfig):
    """RandLoRA's options, in PEFT's order. A UserWarning if the bases are not saved."""

    r: int = 32  # of each basis: fewer ranks are more bases, and more to train
    target_modules: list[str] | set[str] | str | None = None
    projection_prng_key: int = 0  # seed of A and B
    save_projection: bool = True  # whether a checkpoint has A and B
    sparse: bool = False  # bases of -1, 0 and 1, of which 2/3 are 0
    very_sparse: bool = False  # fewer still: each of -1 and 1 with probability 1 / (2·√small)
    randlora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    randlora_alpha: int = 640
    bias: str = "none"  # which base biases to train and save: none, all, randlora_only
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # λ = 0; else N(0, 1)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        warn_if_not_saved(self)


class RandLoraLayer(ProjectionLayer):
    """A layer with RandLoRA adapters."""

    prefix = "randlora_"
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "scaling", "save_projection"), dict),
        "randlora_dropout": nn.ModuleDict,
        "randlora_lambda": nn.ParameterDict,
        "randlora_gamma": nn.ParameterDict,
    }
    shared_slots: ClassVar[dict[str, type]] = {"randlora_A": BufferDict, "randlora_B": BufferDict}
    needs_peft_model = False  # each layer's part of a checkpoint has A and B as well
    adapter_layer_names = ("randlora_lambda", "randlora_gamma")
    dropout_slot = "randlora_dropout"
    scaling: dict[str, float]
    randlora_lambda: nn.ParameterDict
    randlora_gamma: nn.ParameterDict
    randlora_A: BufferDict
    randlora_B: BufferDict

    def create(self, config: RandLoraConfig, name: str) -> dict[str, Any]:
        """λ (r, n) and γ (n, small)."""
        small, large = sorted((self.in_features, self.out_features))
        n = math.ceil(small / config.r)
        weights = torch.zeros(config.r, n) if config.init_weights else torch.randn(config.r, n)
        return {
            "r": config.r,
            "scaling": config.randlora_alpha / config.r,
            "save_projection": config.save_projection,
            "randlora_dropout": dropout(config.randlora_dropout),
            "randlora_lambda": nn.Parameter(weights),
            "randlora_gamma": nn.Parameter(
                torch.full((n, small), 1 / (small if config.init_weights else large))
            ),
        }

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """The layer's own tensors, and A and B again if they are saved."""
        yield from super().state_entries(adapter)
        yield from self.shared_entries(adapter)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Two matrices (small side first) whose product is the delta: (out, n·r) and (n·r, in)."""
        weights, gamma = self.randlora_lambda[adapter], self.randlora_gamma[adapter]
        small, large = sorted((self.in_features, self.out_features))
        A = self.randlora_A[adapter][..., :small] * weights[..., None] * gamma
        B = self.randlora_B[adapter][:large, : len(gamma)]
        down, up = A.flatten(0, 1), B.flatten(1)
        return (up, down) if self.out_features >= self.in_features else (down.t(), up.t())

    def delta(self, adapter: str) -> Tensor:
        """s·B·(λ∘A∘γ), transposed where there are more inputs than outputs."""
        up, down = self.factors(adapter)
        return self.scaling[adapter] * up @ down.to(up.dtype)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + s·up(down(dropout(x)))."""
        up, down = self.factors(adapter)
        x = self.drop_out(adapter, x.to(down.dtype))
        return y + self.scaling[adapter] * F.linear(F.linear(x, down), up.to(down.dtype))


class RandLoraModel(ProjectionModel):
    """A model with RandLoRA adapters."""

    tuner_layer_cls = RandLoraLayer

    @classmethod
    def shapes(cls, config: RandLoraConfig, n_in: int, n_out: int) -> dict[str, Shape]:
        """A (r, 1, small) and B (large, n, r)."""
        small, large = sorted((n_in, n_out))
        n = math.ceil(small / config.r)
        return {"randlora_A": (config.r, 1, small), "randlora_B": (large, n, config.r)}

    @classmethod
    def draw(
        cls, config: RandLoraConfig, slot: str, shapes: dict[str, Shape], generator: torch.Generator
    ) -> Tensor:
        """A basis of standard deviation 1: uniform, where B is drawn as (n, large, r), or -1, 0 and 1."""
        if config.sparse or config.very_sparse:
            p = 0.5 / math.sqrt(shapes["randlora_A"][-1]) if config.very_sparse else 1 / 6
            u = torch.rand(shapes[slot], generator=generator, device="cpu")
            basis = (u > 1 - p).float() - (u < p).float()
        else:
            first, second, r = shapes[slot]
            drawn = torch.empty(
                (first, second, r) if slot == "randlora_A" else (second, first, r), device="cpu"
            )
            nn.init.kaiming_uniform_(drawn, generator=generator)
            basis = drawn if slot == "randlora_A" else drawn.transpose(0, 1).contiguous()
        return basis / basis.std()

    @classmethod
    def rounded(cls, projection: Tensor, weight: Tensor) -> Tensor:
        """In float32 at least, whatever the base weight is."""
        return projection.to(torch.promote_types(weight.dtype, torch.float32))


register_peft_method(PeftType.RANDLORA, RandLoraConfig, RandLoraModel)
