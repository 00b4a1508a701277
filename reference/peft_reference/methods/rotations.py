"""What the orthogonal methods share: rotations made of a skew-symmetric Q, and layers with turned inputs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layer import BaseTunerLayer
from ..operators import Conv2d, Linear, Operator


def skew(entries: Tensor, n: int) -> Tensor:
    """Q = -Qᵀ, (…, n, n), with `entries` (…, n(n-1)/2) above the diagonal, row by row."""
    rows, columns = torch.triu_indices(n, n, 1, device=entries.device)
    zeros = entries.new_zeros(*entries.shape[:-1], n * n)
    upper = zeros.index_copy(-1, rows * n + columns, entries).unflatten(-1, (n, n))
    return upper - upper.mT


def identity(like: Tensor) -> Tensor:
    """I of the size, type and device of square matrices."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def precise(x: Tensor) -> Tensor:
    """Half precision as float32: torch solves no equations in less, and powers lose too much."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cayley(q: Tensor) -> Tensor:
    """(I - Q)·(I + Q)⁻¹, which is orthogonal."""
    exact = precise(q)
    eye = identity(exact)
    return torch.linalg.solve(eye + exact, eye - exact).to(q.dtype)  # the two factors commute


def cayley_neumann(q: Tensor, terms: int) -> Tensor:
    """I + 2Q + 2Q² + … + Qᵏ, which tends to (I + Q)·(I - Q)⁻¹: Cayley's transform of -Q.

    Qiu et al., "Orthogonal Finetuning Made Scalable", https://arxiv.org/abs/2506.19847. As in PEFT, k is one
    less than the terms and 3 at least, but two terms are I + 2Q and one is I.
    """
    exact = precise(q)
    result, power = identity(exact).add(exact, alpha=2 if terms > 1 else 0), exact
    last = max(terms - 1, 3) if terms > 2 else 1
    for k in range(2, last + 1):
        power = power @ exact
        result = result.add(power, alpha=1 if k == last else 2)
    return result.to(q.dtype)


def drop_blocks(blocks: Tensor, p: float) -> Tensor:
    """Blocks, (…, m, n, n), each of which is the identity with probability p."""
    dropped = torch.rand(blocks.shape[-3], 1, 1, device=blocks.device) < p
    return torch.where(dropped, identity(blocks), blocks)


def times_blocks(rows: Tensor, blocks: Tensor) -> Tensor:
    """Rows, (…, m·n), times the matrix with these blocks, (m, n, n), on its diagonal; in the blocks' type."""
    split = rows.to(blocks.dtype).unflatten(-1, (len(blocks), -1))
    if split.dim() == 3:  # einsum finds the same product, more slowly
        return (split.transpose(0, 1) @ blocks).transpose(0, 1).flatten(1)
    return torch.einsum("...bi,bij->...bj", split, blocks).flatten(-2)


class TurnedLayer(BaseTunerLayer):
    """A layer with W' = W·M: a linear one is given x·Mᵀ for x; a convolution, one linear layer on all inputs
    of its kernel, gets another kernel.
    """

    operators: ClassVar[tuple[type[Operator], ...]] = (Linear, Conv2d)
    changes_input = True

    def turn(self, adapter: str, rows: Tensor, transposed: bool = False, drop: bool = False) -> Tensor:
        """Rows, (…, inputs), times M, or times Mᵀ; with `drop`, parts of M are the identity as the config
        says.
        """
        raise NotImplementedError

    def turned(self, adapter: str, weight: Tensor, drop: bool = False) -> Tensor:
        """W·M, of a canonical weight."""
        return self.turn(adapter, weight.flatten(1), drop=drop).view(weight.shape)

    @property
    def inputs(self) -> int:
        """The size of M: the inputs of one output, a convolution's channels times its kernel."""
        return self.op.canonical(self.weight)[0].numel()

    @classmethod
    def check(cls, config: Any, base: Any, op: type[Operator], name: str) -> None:
        """ValueError for the groups of a convolution: M would reach over them."""
        if getattr(base, "groups", 1) > 1:
            raise ValueError(f"'{name}' has groups={base.groups}: its inputs cannot be turned as a whole.")

    def adapt_input(self, adapter: str, x: Tensor) -> Tensor:
        """x·Mᵀ for a linear layer, in the dtype of x."""
        return self.turn(adapter, x, True, self.training).to(x.dtype) if self.op is Linear else x

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """For a convolution, y and what the turned kernel adds."""
        if self.op is Linear:
            return y
        weight = self.weight_before(adapter)
        delta = self.turned(adapter, weight, self.training) - weight
        return y + self.op.call(self.get_base_layer(), x.to(delta.dtype), delta)

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W·M."""
        return self.turned(adapter, weight), bias

    def delta(self, adapter: str) -> Tensor:
        """W·M - W for the weight as it is now."""
        weight = self.op.canonical(self.weight)
        return self.turned(adapter, weight) - weight

    def check_per_sample(self, adapter: str) -> None:
        """ValueError: an adapter that changes the input changes it for the whole batch."""
        raise ValueError(f"'{adapter}' turns the inputs of the whole batch: it cannot be for some samples.")
