"""VeLoRA: LoRA that keeps its input for the backward pass as one number for each group of features.

Miles et al., "VeLoRA: Memory Efficient Training using Rank-1 Sub-Token Projections",
https://arxiv.org/abs/2405.17991. The input is cut into groups g; of each only g·v is kept, with a unit vector
v that all share, and the gradient by A is taken with x̂ = scale·(g·v)·v in place of x. Nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..buffers import BufferDict
from .lora_variant import VARIANTS, LoraVariant

if TYPE_CHECKING:
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer

__all__ = ["VeloraConfig"]


@dataclass
class VeloraConfig:
    """How inputs are compressed; ValueError for values out of range."""

    num_groups: int = 64  # into which the features of an input are cut, the last one padded with zeros
    scale: float = 1.0  # of the input that is put together again
    # v: the mean group of each training batch, or of the first one, or random
    init_type: Literal["batch_average", "batch_average_once", "random"] = "batch_average"

    def __post_init__(self) -> None:
        if self.num_groups <= 0 or self.scale <= 0:
            raise ValueError(
                "`num_groups` and `scale` should be positive, got "
                f"num_groups={self.num_groups} and scale={self.scale}."
            )
        if self.init_type not in ("batch_average", "batch_average_once", "random"):
            raise ValueError(f"init_type={self.init_type!r} is not known.")


class VeloraVariant(LoraVariant):
    """LoRA with another gradient by A, in training mode."""

    slots: ClassVar = {
        "lora_velora_embed": BufferDict,
        "velora": dict,
    }  # v, zero until it is known; its options

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, name: str, contents: dict[str, Any]) -> dict[str, Any]:
        """Add v (size of a group,)."""
        options: Any = config.velora_config
        size = -(-layer.in_features // options.num_groups)
        v = F.normalize(torch.randn(size), dim=0) if options.init_type == "random" else torch.zeros(size)
        return contents | {"lora_velora_embed": v, "velora": options}

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """As plain LoRA; in training mode A is applied by `_Compressed`."""
        if not layer.training:
            return LoraVariant.adapt(layer, adapter, x, y)
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        v, options = layer.lora_velora_embed[adapter], layer.velora[adapter]
        x = layer.drop_out(adapter, x).to(a.weight.dtype)
        if options.init_type == "batch_average" or (options.init_type != "random" and not v.any()):
            with torch.no_grad():
                v.copy_(F.normalize(_groups(x, len(v)).flatten(0, -2).mean(0), dim=0))
        h = _Compressed.apply(x, a.weight, v.to(x.dtype, copy=True), options.scale)
        return y.add(b(h), alpha=layer.scaling[adapter])


def _groups(x: Tensor, size: int) -> Tensor:
    """(..., in) -> (..., groups, size)."""
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))


class _Compressed(torch.autograd.Function):
    """x·Aᵀ, which keeps g·v of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(_groups(x, len(v)) @ v, A, v)
        ctx.scale = scale
        return F.linear(x, A)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, A, v = ctx.saved_tensors
        x = ctx.scale * (kept[..., None] * v).flatten(-2)[..., : A.shape[1]]
        return gradient @ A, gradient.flatten(0, -2).t() @ x.flatten(0, -2), None, None


VARIANTS["velora_config"] = VeloraVariant
