"""What can be adapted: the layers that compute `op(x, weight) + bias`, seen in one canonical layout.

Every operator shows its weight as (out, in, *kernel), whatever the layer stores, and can be called with
another weight. Methods are written against that view only, so none of them asks which layer it is on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

Factors = tuple[nn.Module, nn.Module]


def is_bare(layer: nn.Module) -> bool:
    """Whether a call of this layer is `F.linear` of its two parameters and nothing else: it is a plain
    `nn.Linear`, not quantised, parametrized, wrapped, hooked or patched. Asked in every call.
    """
    own = layer.__dict__
    return (
        type(layer) is nn.Linear
        and not (own["_forward_pre_hooks"] or own["_forward_hooks"])
        and not (own["_backward_pre_hooks"] or own["_backward_hooks"])
        and "forward" not in own
        and not _has_any_global_hook()
    )


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`. Of a bare linear layer without the call and the attribute lookups of nn.Module, which cost
    as much as a small product.
    """
    if is_bare(layer):
        own: Any = layer._parameters
        return F.linear(x, own["weight"], own["bias"])
    return layer(x)


def add_low_rank(y: Tensor, A: Any, B: Any, x: Tensor, scale: float) -> Tensor:
    """y + scale·B(A(x)). Of bare linear layers on a matrix the sum is part of the second product: it spares a
    kernel, and a tensor like y.
    """
    if not (is_bare(A) and is_bare(B)):
        return y.add(low_rank(A, B, x), alpha=scale)
    a, b = A._parameters["weight"], B._parameters
    down = F.linear(x if x.dtype is a.dtype else x.to(a.dtype), a)
    if down.dim() == 2 and b["bias"] is None and down.dtype is y.dtype:
        return torch.addmm(y, down, b["weight"].t(), alpha=scale)
    return y.add(F.linear(down, b["weight"], b["bias"]), alpha=scale)


def low_rank(A: Any, B: Any, x: Tensor) -> Tensor:
    """B(A(x)), in the dtype of A's weight."""
    dtype = A.weight.dtype
    return call(B, call(A, x if x.dtype is dtype else x.to(dtype)))


def _linear(base: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _linear_factors(base: Any, n_in: int, r: int, n_out: int, bias: bool) -> Factors:
    return nn.Linear(n_in, r, bias=False), nn.Linear(r, n_out, bias=bias)


def _embedding(base: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # without max_norm: it rescales rows of the base weight in place, and a delta has no such rows
    return F.embedding(
        x, weight.t(), base.padding_idx, scale_grad_by_freq=base.scale_grad_by_freq, sparse=base.sparse
    )


def _convolution(base: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return base._conv_forward(
        x, weight, bias
    )  # with the base's stride, padding and its mode, dilation, groups


def _convolution_factors(base: Any, n_in: int, r: int, n_out: int, bias: bool) -> Factors:
    conv = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(base, kind))
    as_base = {name: getattr(base, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    down = conv(n_in, r, base.kernel_size, bias=False, **as_base)
    # PEFT's shapes: the groups sit in the second factor: group j of the output reads slice j of the rank
    return down, conv(r, n_out, 1, groups=base.groups, bias=bias)


class Operator:
    """One row of the table: a class without instances, so that layers copy and pickle it by name."""

    where: ClassVar[tuple[str, str]]  # module and name of the layer's class
    transposed: ClassVar[bool] = False  # whether the layer stores (in, out)
    call: ClassVar[Callable[..., Tensor]]  # (base, x, canonical weight, bias): the layer's function
    factors: ClassVar[Callable[..., Factors]]  # (base, in, r, out, bias): two layers that are one of rank r

    @classmethod
    def kind(cls) -> Any:
        """The layer's class, or None while its library is not imported: then no model contains it."""
        package, name = cls.where
        return getattr(sys.modules.get(package), name, None)

    @classmethod
    def weight(cls, base: Any) -> Tensor:
        """The weight as the layer stores it."""
        return base.weight

    @classmethod
    def bias(cls, base: Any) -> Tensor | None:
        """The bias, (out,)."""
        return getattr(base, "bias", None)

    @classmethod
    def canonical(cls, weight: Tensor) -> Tensor:
        """Stored layout -> (out, in, *kernel), as a view. Its own inverse."""
        return weight.t() if cls.transposed else weight

    @classmethod
    def features(cls, base: Any) -> tuple[int, int]:
        """(in, out) of a layer; for an embedding the number of entries and their size."""
        n_out, n_in = cls.canonical(base.weight).shape[:2]
        return n_in * getattr(base, "groups", 1), n_out


class Linear(Operator):
    """`torch.nn.Linear`."""

    where = ("torch.nn", "Linear")
    call = staticmethod(_linear)
    factors = staticmethod(_linear_factors)


class Conv1D(Operator):
    """`transformers.pytorch_utils.Conv1D` (GPT-2): a linear layer that stores (in, out)."""

    where = ("transformers.pytorch_utils", "Conv1D")
    transposed = True
    call = staticmethod(_linear)
    factors = staticmethod(_linear_factors)


class Embedding(Operator):
    """`torch.nn.Embedding`: a linear layer on one-hot rows. It has no factors that are layers."""

    where = ("torch.nn", "Embedding")
    transposed = True
    call = staticmethod(_embedding)


class Conv1d(Operator):
    """`torch.nn.Conv1d`: weight (out, in / groups, k)."""

    where = ("torch.nn", "Conv1d")
    call = staticmethod(_convolution)
    factors = staticmethod(_convolution_factors)


class Conv2d(Conv1d):
    """`torch.nn.Conv2d`: weight (out, in / groups, k, k)."""

    where = ("torch.nn", "Conv2d")


class Conv3d(Conv1d):
    """`torch.nn.Conv3d`: weight (out, in / groups, k, k, k)."""

    where = ("torch.nn", "Conv3d")


class MultiheadAttention(Operator):
    """`torch.nn.MultiheadAttention`: its input projection, (3·embed, embed), for query, key and value."""

    where = ("torch.nn", "MultiheadAttention")
    factors = staticmethod(_linear_factors)

    @classmethod
    def weight(cls, base: Any) -> Tensor:
        """(3·embed, embed)."""
        return base.in_proj_weight

    @classmethod
    def bias(cls, base: Any) -> Tensor | None:
        """(3·embed,)."""
        return base.in_proj_bias

    @classmethod
    def features(cls, base: Any) -> tuple[int, int]:
        """(embed, 3·embed), also of an attention that has no such weight."""
        return base.embed_dim, 3 * base.embed_dim


class AnyModule(Operator):
    """A module of which nothing is known but that it has tensors: it has no canonical weight."""

    where = ("torch.nn", "Module")

    @classmethod
    def weight(cls, base: Any) -> Tensor:
        """One of its tensors, for its type and device."""
        for own in base._parameters.values():  # they come first, found without a walk through its modules
            if own is not None:
                return own
        return next(base.parameters())

    @classmethod
    def features(cls, base: Any) -> tuple[int, int]:
        """Unknown: (0, 0)."""
        return 0, 0


OPERATORS: tuple[type[Operator], ...] = (Linear, Conv1D, Embedding, Conv1d, Conv2d, Conv3d)


def operator_of(module: nn.Module) -> type[Operator] | None:
    """The operator that a module is (subclasses included), or None."""
    every: tuple[type[Operator], ...] = (*OPERATORS, MultiheadAttention)
    for op in every:
        kind = op.kind()
        if kind is not None and isinstance(module, kind):
            return op
    return None
