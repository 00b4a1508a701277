"""OFT: W' = W·Rᵀ with R = blockdiag(R₁, …, R_m), each a rotation made of a skew-symmetric Q.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", https://arxiv.org/abs/2306.07280:
R = (I - Q)·(I + Q)⁻¹, Cayley's transform. By default it is a series in its place (Qiu et al., "Orthogonal
Finetuning Made Scalable", https://arxiv.org/abs/2506.19847), in PEFT that of -Q: R = I + 2Q + 2Q² + … + Qᵏ.
An embedding's vectors are multiplied by R, a convolution is one linear layer on all inputs of its kernel.
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
from ..layer import BaseTunerLayer
from ..operators import Conv2d, Embedding, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

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

    def forward(self) -> Tensor:
        """R as (blocks, n, n)."""
        v = self.weight
        if self.config.coft:
            norm = math.sqrt(2) * v.norm(dim=-1, keepdim=True)  # of Q
            limit = self.config.eps / math.sqrt(len(v))
            v = v * (limit / norm.clamp(min=limit)).detach()
        rows, columns = torch.triu_indices(self.size, self.size, 1, device=v.device)
        upper = v.new_zeros(len(v), self.size, self.size)
        upper[:, rows, columns] = v
        r = self._series(upper - upper.mT) if self.config.use_cayley_neumann else cayley(upper - upper.mT)
        if self.training and self.config.module_dropout:
            dropped = torch.rand(len(r), 1, 1, device=r.device) < self.config.module_dropout
            r = torch.where(dropped, torch.eye(self.size, dtype=r.dtype, device=r.device), r)
        return r.expand(self.blocks, -1, -1)

    def _series(self, q: Tensor) -> Tensor:
        """I + 2Q + 2Q² + … + Qᵏ; k is one less than the terms, and 3 at least, as in PEFT."""
        terms = self.config.num_cayley_neumann_terms
        result = torch.eye(self.size, dtype=q.dtype, device=q.device).expand_as(q)
        if terms == 2:
            return result + 2 * q
        last = max(terms - 1, 3) if terms > 1 else 0
        power = result
        for k in range(1, last + 1):
            power = power @ q
            result = result + (power if k == last else 2 * power)
        return result


def cayley(q: Tensor) -> Tensor:
    """(I - Q)·(I + Q)⁻¹, which is orthogonal; solved in float32 where torch cannot in less."""
    exact = q if q.dtype is torch.float64 else q.float()
    eye = torch.eye(q.shape[-1], dtype=exact.dtype, device=q.device)
    return torch.linalg.solve(eye + exact, eye - exact).to(q.dtype)  # the two factors commute


class OFTLayer(BaseTunerLayer):
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
    changes_input = True

    @classmethod
    def check(cls, config: OFTConfig, base: Any, op: type[Operator], name: str) -> None:
        """Sizes are positive; a block cannot reach over the groups of a convolution."""
        if max(config.r, config.oft_block_size) <= 0:
            raise ValueError(f"`r` and `oft_block_size` should be positive, got {config.r} blocks.")
        if getattr(base, "groups", 1) > 1:
            raise ValueError(f"OFT cannot adapt '{name}', a convolution with groups={base.groups}.")
        if config.bias not in ("none", "all", "oft_only"):
            raise UnsupportedOptionError(f"bias={config.bias!r} is not known: use none, all or oft_only.")

    def create(self, config: OFTConfig, name: str) -> dict[str, Any]:
        """Blocks that fill the inputs of the layer; sizes that do not divide them are changed, with a
        warning.
        """
        n = self.out_features if self.op is Embedding else self.op.canonical(self.weight)[0].numel()
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

    def rotation(self, adapter: str) -> Tensor:
        """R as (blocks, n, n)."""
        return (self.oft_embedding_R if self.op is Embedding else self.oft_R)[adapter]()

    def rotate(self, vectors: Tensor, blocks: Tensor) -> Tensor:
        """Vectors in the last dimension, times R."""
        split = vectors.to(blocks.dtype).unflatten(-1, (len(blocks), -1))
        return torch.einsum("...bi,bij->...bj", split, blocks).flatten(-2)

    def adapt_input(self, adapter: str, x: Tensor) -> Tensor:
        """x·R for a linear layer, in the dtype of x."""
        return self.rotate(x, self.rotation(adapter)).to(x.dtype) if self.op is Linear else x

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y·R for an embedding; a convolution's kernel has to be rotated, that is done by what is added."""
        if self.op is Linear:
            return y
        if self.op is Embedding:
            return self.rotate(y, self.rotation(adapter))
        weight = self.weight_before(adapter)
        delta = self.fold(adapter, weight, None)[0] - weight
        return y + self.op.call(self.get_base_layer(), x.to(delta.dtype), delta)

    def weight_before(self, adapter: str) -> Tensor:
        """The canonical weight that this adapter meets, changed by all that act before it, inner ones too."""
        weight = self.op.canonical(self.weight)
        inner: list[BaseTunerLayer] = []
        layer: nn.Module = self
        while isinstance(layer, BaseTunerLayer):
            inner.insert(0, layer)
            layer = layer.base_layer
        for other in inner:
            for name in other.active_adapters:
                if other is self and name == adapter:
                    return weight
                if other.has_adapter(name) and not other.merged:
                    weight = other.fold(name, weight, None)[0]
        return weight

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W·Rᵀ; an embedding's vectors, the columns here, times R."""
        blocks = self.rotation(adapter)
        if self.op is Embedding:
            return self.rotate(weight.t(), blocks).t(), bias
        return self.rotate(weight.flatten(1), blocks.mT).view(weight.shape), bias

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging adds to the base weight, in the base weight's own layout."""
        weight = self.op.canonical(self.weight)
        return self.op.canonical(self.fold(adapter, weight, None)[0] - weight)

    def check_per_sample(self, adapter: str) -> None:
        """ValueError: an adapter that changes the input changes it for the whole batch."""
        raise ValueError("OFT cannot use different adapters for the samples of a batch.")


class OFTModel(BaseTuner):
    """A model with OFT adapters."""

    tuner_layer_cls = OFTLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.OFT, OFTConfig, OFTModel)
