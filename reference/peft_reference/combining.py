"""Several tensors as one: weighted sums, of all their entries or of chosen ones, and truncated products.

TIES (trim, elect sign, disjoint merge): Yadav et al., https://arxiv.org/abs/2306.01708, algorithm 1. DARE
(drop and rescale): Yu et al., https://arxiv.org/abs/2311.03099, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Combination:
    """How several adapters become one, as `add_weighted_adapter` is told; ValueError for what makes no
    sense.

    `kind` is `cat` (all factors side by side), or one of `ELEMENTWISE`, for the two factors apiece, or with
    `_svd` for the products (`svd` alone means `linear_svd`).
    """

    kind: str
    density: float | None = None  # of the entries that are kept; not for cat and linear
    majority_sign_method: str = "total"
    svd_clamp: float | None = None  # the quantile of the factors' entries above which they are cut off
    svd_full_matrices: bool = True
    svd_driver: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            raise ValueError(f"Invalid combination_type {self.kind!r}. The types are: {known}.")
        if self.elementwise not in ("cat", "linear") and (self.density is None or not 0 <= self.density <= 1):
            raise ValueError(
                f"combination_type {self.kind!r} needs a density between 0 and 1, got {self.density}."
            )
        if self.majority_sign_method not in ("total", "frequency"):
            raise ValueError(
                f"majority_sign_method should be total or frequency, got {self.majority_sign_method!r}."
            )
        if self.svd_clamp is not None and not 0 <= self.svd_clamp <= 1:
            raise ValueError(f"svd_clamp should be a quantile between 0 and 1, got {self.svd_clamp}.")

    @property
    def of_products(self) -> bool:
        """Whether products are combined and split again, rather than factors."""
        return self.kind.endswith("svd")

    @property
    def elementwise(self) -> str:
        """The rule for single entries."""
        return "linear" if self.kind == "svd" else self.kind.removesuffix("_svd")

    def sum(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The tensors, all of one shape, as one; entries are left out before the weights count."""
        kept = torch.stack([self._sparse(tensor) for tensor in tensors])
        weighted = kept * torch.tensor(weights, dtype=kept.dtype, device=kept.device).view(
            -1, *[1] * (kept.dim() - 1)
        )
        if not self.elementwise.endswith("ties"):
            return weighted.sum(0)
        agrees = kept.sign() == elected_sign(kept, self.majority_sign_method)
        return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    def _sparse(self, tensor: Tensor) -> Tensor:
        if self.elementwise == "linear" or self.density is None:
            return tensor
        prune = drop_and_rescale if self.elementwise.startswith("dare") else trim
        return prune(tensor, self.density)

    def split(self, product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank), whose product is the best of that rank; zeros beyond full rank."""
        exact = product.float() if product.dtype in (torch.float16, torch.bfloat16) else product
        U, S, V = torch.linalg.svd(exact, full_matrices=self.svd_full_matrices, driver=self.svd_driver)
        kept = min(rank, len(S))
        B, A = U[:, :kept] * S[:kept], V[:kept]
        if self.svd_clamp is not None:
            limit = torch.quantile(torch.cat([B.flatten(), A.flatten()]), self.svd_clamp)
            B, A = B.clamp(-limit, limit), A.clamp(-limit, limit)
        return padded(A, 0, rank).to(product.dtype), padded(B, 1, rank).to(product.dtype)


ELEMENTWISE = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
KINDS = ("svd", "cat", *ELEMENTWISE, *(f"{kind}_svd" for kind in ELEMENTWISE if kind != "linear"))


def trim(tensor: Tensor, density: float) -> Tensor:
    """The given share of the entries, those of the largest magnitude; the others are zero."""
    kept = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    mask = torch.zeros_like(tensor).flatten()
    mask[kept] = 1
    return tensor * mask.view_as(tensor)


def drop_and_rescale(tensor: Tensor, density: float) -> Tensor:
    """Each entry with that probability, divided by it, so that the expected value stays; zero otherwise."""
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / (density or 1)


def elected_sign(tensors: Tensor, method: str) -> Tensor:
    """1 or -1 for each entry of the stacked tensors (n, ...): the sign with more magnitude (`total`) or more
    of the tensors (`frequency`); a draw is positive.
    """
    votes = tensors.sign() if method == "frequency" else tensors
    return torch.where(votes.sum(0) >= 0, 1, -1)


def padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The tensor with zeros up to `size` along `dim`."""
    missing = list(tensor.shape)
    missing[dim] = size - missing[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim) if missing[dim] else tensor
