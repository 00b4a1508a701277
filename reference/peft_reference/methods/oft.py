"""OFT: W' = W·Rᵀ with R = blockdiag(R₁, …, R_m), each a rotation made of a skew-symmetric Q.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", https://arxiv.org/abs/2306.07280:
R = (I - Q)·(I + Q)⁻¹, Cayley's transform, or by default, in PEFT, a series for the transform of -Q. An
embedding's vectors are multiplied by R.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..errors import UnsupportedOptionError
from ..injection import BaseTuner
from ..operators import Conv2d, Embedding, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .rotations import TurnedLayer, cayley, cayley_neumann, drop_blocks, skew, times_blocks

__all__ = ["OFTConfig", "OFTModel"]


@dataclass
class OFTConfig(PeftConfig):
    """OFT's options, in PEFT's order. ValueError unless one of `r` and `oft_block_size` is 0."""

    r: int = 0  # the number of blocks; 0: as many as `oft_block_size` gives
    oft_block_size: int = 32
    module_dropout: float = 0.0  # how many blocks are the identity while training
    target_modules: list[str] | set[str] | str | None = None
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, oft_only
    exclude_modules: list[str] | set[str] | str | None = None
    init_weights: bool = True  # Q = 0; else N(0, 0.1²)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    coft: bool = False  # keep the norm of Q below eps / √m
    eps: float = 6e-5
    block_share: bool = False  # one block for all
    use_cayley_neumann: bool = True  # the series
    num_cayley_neumann_terms: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.r) == bool(self.oft_block_size):
            raise ValueError(
                f"r={self.r} and oft_block_size={self.oft_block_size}: one of them has to be 0, because each "
                "follows from the other."
            )


def nearest_divisor(n: int, wanted: int) -> int:
    """The divisor of n that is next to `wanted`, the smaller of two."""
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: (abs(d - wanted), d))


class Rotation(nn.Module):
    """The blocks of one adapter; `weight` is what stands above the diagonal of each Q, (blocks, n(n-1)/2)."""

    def __init__(self, config: OFTConfig, blocks: int, size: int) -> None:
        super().__init__()
        self.config, self.blocks, self.size = config, blocks, size
        entries = torch.zeros(1 if config.block_share else blocks, size * (size - 1) // 2)
        self.weight = nn.Parameter(entries if config.init_weights else entries.normal_(std=0.1))

    def forward(self, drop: bool = False) -> Tensor:
        """R as (blocks, n, n); with `drop`, some blocks are the identity, if the config says so."""
        v, config = self.weight, self.config
        if config.coft:
            norm = math.sqrt(2) * v.norm(dim=-1, keepdim=True)  # of Q
            limit = config.eps / math.sqrt(len(v))
            v = v * (limit / norm.clamp(min=limit)).detach()
        q = skew(v, self.size)
        r = cayley_neumann(q, config.num_cayley_neumann_terms) if config.use_cayley_neumann else cayley(q)
        if drop and config.module_dropout:
            r = drop_blocks(r, config.module_dropout)
        return r.expand(self.blocks, -1, -1) if len(r) < self.blocks else r


class OFTLayer(TurnedLayer):
    """A layer with OFT adapters."""

    prefix = "oft_"
    operators = (Linear, Conv2d, Embedding)
    slots: ClassVar[dict[str, type]] = {
        "oft_block_size": dict,
        "r": dict,
        "oft_R": nn.ModuleDict,
        "oft_embedding_R": nn.ModuleDict,
        "oft_dropout": nn.ModuleDict,
    }
    oft_R: nn.ModuleDict
    oft_embedding_R: nn.ModuleDict
    adapter_layer_names = ("oft_R", "oft_embedding_R")
    matrix_slots = adapter_layer_names

    @classmethod
    def check(cls, config: OFTConfig, base: Any, op: type[Operator], name: str) -> None:
        """Sizes have to be positive."""
        super().check(config, base, op, name)
        if max(config.r, config.oft_block_size) <= 0:
            raise ValueError(f"`r` and `oft_block_size` should be positive, got {config.r} blocks.")
        if config.bias not in ("none", "all", "oft_only"):
            raise UnsupportedOptionError(f"bias={config.bias!r} is not known: use none, all or oft_only.")

    def create(self, config: OFTConfig, name: str) -> dict[str, Any]:
        """Blocks that fill the inputs of the layer; sizes that do not divide them are changed, with a
        warning.
        """
        n = self.out_features if self.op is Embedding else self.inputs
        field = "r" if config.r else "oft_block_size"
        wanted = config.r or config.oft_block_size
        fitting = nearest_divisor(n, wanted)
        if fitting != wanted:
            warnings.warn(f"'{name}' has {n} inputs: {field}={wanted} becomes {fitting}.", stacklevel=7)
        blocks, size = (fitting, n // fitting) if config.r else (n // fitting, fitting)
        contents = {"r": blocks, "oft_block_size": size}
        rotation = Rotation(config, blocks, size)
        if self.op is Embedding:
            return contents | {"oft_embedding_R": rotation}
        return contents | {"oft_R": rotation, "oft_dropout": nn.Identity()}

    def turn(self, adapter: str, rows: Tensor, transposed: bool = False, drop: bool = False) -> Tensor:
        """Rows times Rᵀ, or times R."""
        r = (self.oft_embedding_R if self.op is Embedding else self.oft_R)[adapter](drop)
        return times_blocks(rows, r if transposed else r.mT)

    def turned(self, adapter: str, weight: Tensor, drop: bool = False) -> Tensor:
        """W·Rᵀ; an embedding's vectors, the columns here, times R."""
        if self.op is Embedding:
            return self.turn(adapter, weight.t(), True, drop).t()
        return super().turned(adapter, weight, drop)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y·R for an embedding."""
        if self.op is Embedding:
            return self.turn(adapter, y, True, self.training)
        return super().adapt(adapter, x, y)


class OFTModel(BaseTuner):
    """A model with OFT adapters."""

    tuner_layer_cls = OFTLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.OFT, OFTConfig, OFTModel)
