"""BD-LoRA: W' = W + s·B·A where A or B is block-diagonal, so that layers split over devices need not exchange
what lies between the factors.

Wang et al., "Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA Serving",
https://arxiv.org/abs/2510.23346. A factor's n blocks are stored one below the other: (rows, columns / n).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..operators import Linear, Operator
from .lora_variant import VARIANTS, LoraVariant
from .parts import random, zeros

if TYPE_CHECKING:
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer

__all__ = ["BdLoraConfig"]


@dataclass
class BdLoraConfig:
    """Which factors are block-diagonal, by parts of module names. ValueError for lists that overlap."""

    target_modules_bd_a: list[str] | None = None  # A is, on modules whose name contains one of these
    target_modules_bd_b: list[str] | None = None  # B is
    nblocks: int = 1
    match_strict: bool = True  # whether every target has to be in one of the lists; else it gets plain LoRA

    def __post_init__(self) -> None:
        if both := set(self.target_modules_bd_a or ()) & set(self.target_modules_bd_b or ()):
            raise ValueError(f"A and B of one layer cannot both be block-diagonal: {sorted(both)}.")
        if self.nblocks < 1:
            raise ValueError(f"`nblocks` should be positive, got {self.nblocks}.")


class BlockDiagonal(nn.Module):
    """A linear layer whose weight is block-diagonal; `weight` has the blocks one below the other."""

    def __init__(self, weight: nn.Parameter, nblocks: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.nblocks = nblocks
        self.weight = weight
        self.bias = bias

    def dense(self) -> Tensor:
        """The whole matrix, (out, in)."""
        return torch.block_diag(*self.weight.chunk(self.nblocks))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), each block of outputs from its block of inputs."""
        blocks = self.weight.view(self.nblocks, -1, self.weight.shape[1])
        y = torch.einsum("...ni,noi->...no", x.unflatten(-1, (self.nblocks, -1)), blocks).flatten(-2)
        return y if self.bias is None else y + self.bias


class BdLoraVariant(LoraVariant):
    """LoRA with one block-diagonal factor."""

    operators = (Linear,)

    @staticmethod
    def check(config: LoraConfig, base: Any, op: type[Operator], name: str, r: int) -> None:
        """ValueError for a layer in both lists or, if they are strict, in none; for sizes that are no
        multiples of the blocks; and for initialisers, which know no blocks.
        """
        side, n = _side(config.use_bdlora, name), config.use_bdlora.nblocks  # type: ignore[union-attr]
        n_out, n_in = base.weight.shape
        rows, columns = (r, n_in) if side == "lora_A" else (n_out, r)
        if side and (rows % n or columns % n):
            raise ValueError(f"{side} of '{name}', ({rows}, {columns}), is not divisible by nblocks={n}.")
        if str(config.init_lora_weights).lower() not in ("true", "false"):
            raise ValueError(
                f"init_lora_weights={config.init_lora_weights!r} is not for BD-LoRA: use True or False."
            )

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, name: str, contents: dict[str, Any]) -> dict[str, Any]:
        """Put blocks in the place of A or B; plain LoRA where neither is to be block-diagonal."""
        options: Any = config.use_bdlora
        side = _side(options, name)
        if side is None:
            return {slot: value for slot, value in contents.items() if slot != "lora_variant"}
        factor = contents[side]
        rows, columns = factor.weight.shape
        new = random if side == "lora_A" or not config.init_lora_weights else zeros
        return contents | {
            side: BlockDiagonal(new(rows, columns // options.nblocks), options.nblocks, factor.bias)
        }

    @staticmethod
    def delta(layer: LoraLayer, adapter: str) -> Tensor:
        """s·B·A of the whole matrices."""
        A, B = (
            factor.dense() if isinstance(factor, BlockDiagonal) else factor.weight
            for factor in (layer.lora_A[adapter], layer.lora_B[adapter])
        )
        return layer.product(adapter, A, B)

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + s·B(A(dropout(x))), each block by itself."""
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        low_rank = b(a(layer.drop_out(adapter, x).to(a.weight.dtype)))
        return y.add(low_rank, alpha=layer.scaling[adapter])


def _side(options: Any, name: str) -> str | None:
    """The slot of the block-diagonal factor on the module called `name`; None if neither is."""
    a, b = (
        any(part in name for part in parts or ())
        for parts in (options.target_modules_bd_a, options.target_modules_bd_b)
    )
    if a and b:
        raise ValueError(f"'{name}' is meant by both lists of block-diagonal modules.")
    if options.match_strict and not (a or b):
        raise ValueError(
            f"'{name}' is in neither list of block-diagonal modules; match_strict=False allows it."
        )
    return "lora_A" if a else "lora_B" if b else None


VARIANTS["use_bdlora"] = BdLoraVariant
