"""BOFT: W' = s ∘ (W·Rᵀ) with R = F_m·…·F₁, each factor a rotation with a butterfly's pattern.

Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
https://arxiv.org/abs/2311.06243. Factor i has blocks of size b, as OFT has; each turns a half of b/2
neighbours together with the half that stands b·2^(i-1)/2 behind it, so that m factors mix b·2^(m-1) inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..errors import UnsupportedOptionError
from ..injection import BaseTuner
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .rotations import TurnedLayer, cayley, drop_blocks, times_blocks

__all__ = ["BOFTConfig", "BOFTModel"]


@dataclass
class BOFTConfig(PeftConfig):
    """BOFT's options, in PEFT's order. ValueError unless one of block size and number is 0."""

    boft_block_size: int = 4
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1  # the number of factors; with one, BOFT is OFT
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    boft_dropout: float = 0.0  # how many blocks are the identity while training
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, boft_only
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # R = I and s = 1; else N(0, 0.1²) and N(1, 0.1²)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.boft_block_size) == bool(self.boft_block_num):
            raise ValueError(
                f"boft_block_size={self.boft_block_size} and boft_block_num={self.boft_block_num}: one of "
                "them has to be 0, because each follows from the other."
            )


class BOFTLayer(TurnedLayer):
    """A layer with BOFT adapters: R is (m, blocks, n, n), of which the skew-symmetric part counts; s is
    (out, 1), on a convolution (1, out).
    """

    prefix = "boft_"
    slots: ClassVar[dict[str, type]] = {
        "boft_block_size": dict,
        "boft_block_num": dict,
        "boft_dropout": nn.ModuleDict,
        "boft_R": nn.ParameterDict,
        "boft_s": nn.ParameterDict,
    }
    boft_dropout: nn.ModuleDict
    boft_R: nn.ParameterDict
    boft_s: nn.ParameterDict
    adapter_layer_names = ("boft_R", "boft_s")

    @classmethod
    def check(cls, config: BOFTConfig, base: Any, op: type[Operator], name: str) -> None:
        """Blocks have to fill the inputs; those of the last of m factors are halved, and 2^(m-1) side by
        side.
        """
        super().check(config, base, op, name)
        inputs = op.canonical(base.weight)[0].numel()
        wanted, m = config.boft_block_size or config.boft_block_num, config.boft_n_butterfly_factor
        if wanted <= 0 or inputs % wanted:
            raise ValueError(f"'{name}' has {inputs} inputs, which {wanted} should divide.")
        if m < 1:
            raise ValueError(f"`boft_n_butterfly_factor` should be positive, got {m}.")
        size = config.boft_block_size or inputs // wanted
        if m > 1 and (size % 2 or (inputs // size) % 2 ** (m - 1)):
            raise ValueError(
                f"{m} butterfly factors need an even block size and a multiple of {2 ** (m - 1)} blocks; "
                f"'{name}' has {inputs // size} blocks of size {size}."
            )
        if not 0 <= config.boft_dropout <= 1:
            raise ValueError(f"`boft_dropout` should be a probability, got {config.boft_dropout}.")
        if config.bias not in ("none", "all", "boft_only"):
            raise UnsupportedOptionError(f"bias={config.bias!r} is not known: use none, all or boft_only.")

    def create(self, config: BOFTConfig, name: str) -> dict[str, Any]:
        """Zeros and ones."""
        size = config.boft_block_size or self.inputs // config.boft_block_num
        blocks, spread = self.inputs // size, 0.0 if config.init_weights else 0.1
        ones = (self.out_features, 1) if self.op is Linear else (1, self.out_features)
        dropout = nn.Dropout(config.boft_dropout) if config.boft_dropout else nn.Identity()
        return {
            "boft_block_size": size,
            "boft_block_num": blocks,
            "boft_dropout": dropout,
            "boft_R": nn.Parameter(
                torch.randn(config.boft_n_butterfly_factor, blocks, size, size).mul_(spread)
            ),
            "boft_s": nn.Parameter(torch.randn(ones).mul_(spread).add_(1)),
        }

    def turn(self, adapter: str, rows: Tensor, transposed: bool = False, drop: bool = False) -> Tensor:
        """Rows times Rᵀ = F₁ᵀ·…·F_mᵀ, or times R."""
        entries, dropout = self.boft_R[adapter], self.boft_dropout[adapter]
        factors = cayley((entries - entries.mT) / 2)
        if drop and isinstance(dropout, nn.Dropout):
            factors = drop_blocks(factors, dropout.p)
        half = factors.shape[-1] // 2
        order = range(len(factors))
        for i in reversed(order) if transposed else order:
            blocks = factors[i] if transposed else factors[i].mT
            if i == 0:
                rows = times_blocks(rows, blocks)
                continue
            # (… segments, 2, 2^i, half): a block has two halves, 2^i of them apart
            paired = rows.unflatten(-1, (-1, 2, 2**i, half)).transpose(-3, -2)
            paired = times_blocks(paired.flatten(-4), blocks).view(paired.shape)
            rows = paired.transpose(-3, -2).flatten(-4)
        return rows

    def turned(self, adapter: str, weight: Tensor, drop: bool = False) -> Tensor:
        """s ∘ (W·Rᵀ)."""
        scale = self.boft_s[adapter].view(-1, *(1,) * (weight.dim() - 1))
        return scale * super().turned(adapter, weight, drop)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """s ∘ (y - b) + b for a linear layer, whose input is turned already."""
        if self.op is not Linear:
            return super().adapt(adapter, x, y)
        scale, bias = self.boft_s[adapter].view(-1), self.bias
        return y * scale if bias is None else bias + (y - bias) * scale


class BOFTModel(BaseTuner):
    """A model with BOFT adapters."""

    tuner_layer_cls = BOFTLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.BOFT, BOFTConfig, BOFTModel)
