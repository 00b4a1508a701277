"""Layers with bare parameters, as mixtures of experts have them: a chain may hold them by name.

Plain torch and nothing of ours: a reproducing script copies a class's source.
"""

from __future__ import annotations

import torch


class Affine(torch.nn.Module):
    """x·Mᵀ + shift, with a matrix that is no layer's weight."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(out, width) / width**0.5)
        self.shift = torch.nn.Parameter(torch.randn(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, width) to (rows, out)."""
        return torch.nn.functional.linear(x, self.matrix, self.shift)


class Experts(torch.nn.Module):
    """The mean of several two-layer perceptrons, whose weights are stacked: (experts, width, inner), and
    back.
    """

    def __init__(self, experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(torch.randn(experts, width, inner) / width**0.5)
        self.down = torch.nn.Parameter(torch.randn(experts, inner, width) / inner**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, width) to (rows, width); ValueError for NaN, so that a call can fail half-way."""
        inside = torch.tanh(torch.einsum("rw,ewi->eri", x, self.up))
        if not bool(inside.isfinite().all()):
            raise ValueError("not finite")
        return torch.einsum("eri,eiw->rw", inside, self.down) / len(self.up)
