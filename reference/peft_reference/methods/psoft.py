"""PSOFT: W' = W + s·B·(diag(b)·R·diag(a) - I)·A, where s·B·A is the principal part of W and R a rotation.

Wu et al., "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation",
https://openreview.net/forum?id=FSHrinMArK. A and B come from W = U·S·V of rank r and never change: A = V and
B = U·S / s, so that R turns within r dimensions of the inputs, whatever s is. They are not in a checkpoint.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..buffers import UnsavedBufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import dropout, rank_of
from .rotations import cayley, cayley_neumann, precise, skew

__all__ = ["PsoftConfig", "PsoftModel"]


@dataclass
class PsoftConfig(PeftConfig):
    """PSOFT's options, in PEFT's order. ValueError for values that are not known; a warning for options that
    have no effect without another one.
    """

    r: int = 32  # the dimensions that are turned
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    psoft_alpha: int = 32  # s = alpha / r
    psoft_dropout: float = 0.0
    fan_in_fan_out: bool = False
    ab_svd_init: str = (
        "psoft_init"  # pissa_init: B = U·√S / s and A = √S·V, whose rows are no longer orthonormal
    )
    psoft_svd: str = "full"  # lowrank: torch.svd_lowrank
    psoft_svd_lowrank_niter: int = 10
    random_seed: int = 0  # of torch.svd_lowrank
    psoft_orth: bool = True  # R = (I + Q)·(I - Q)⁻¹ with a skew-symmetric Q; else any matrix
    psoft_mag_b: bool = True
    psoft_mag_a: bool = True
    use_cayley_neumann: bool = False  # a series for R
    num_cayley_neumann_terms: int = 5
    cayley_neumann_eps: float | None = None  # how large Q may be for the series
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # R = I; else some way from it
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in (
            ("ab_svd_init", ("psoft_init", "pissa_init")),
            ("psoft_svd", ("full", "lowrank")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is not known: use {' or '.join(known)}.")
        if self.r <= 0 or self.num_cayley_neumann_terms <= 0:
            raise ValueError("`r` and `num_cayley_neumann_terms` should be positive.")
        if self.cayley_neumann_eps is not None and not 0 < self.cayley_neumann_eps < 1:
            raise ValueError(f"`cayley_neumann_eps` should be in (0, 1), got {self.cayley_neumann_eps}.")
        series = ("num_cayley_neumann_terms", "cayley_neumann_eps")
        for used, needs, fields in (
            (self.psoft_svd == "lowrank", "psoft_svd='lowrank'", ("psoft_svd_lowrank_niter",)),
            (self.use_cayley_neumann, "use_cayley_neumann=True", series),
        ):
            for field in fields if not used else ():
                if getattr(self, field) != getattr(type(self), field):
                    warnings.warn(f"`{field}` has no effect without {needs}.", stacklevel=3)


class Turn(nn.Module):
    """diag(b)·R·diag(a) of one adapter; `weight` is what stands above the diagonal of Q, or R itself."""

    def __init__(self, config: PsoftConfig) -> None:
        super().__init__()
        self.config, r = config, config.r
        noise = 0.0 if config.init_weights else 0.1
        start = torch.zeros(r * (r - 1) // 2) if config.psoft_orth else torch.eye(r)
        self.weight = nn.Parameter(start + noise * torch.randn(start.shape))
        self.vector_b = nn.Parameter(torch.ones(r)) if config.psoft_mag_b else None
        self.vector_a = nn.Parameter(torch.ones(r)) if config.psoft_mag_a else None

    def forward(self) -> Tensor:
        """(r, r)."""
        r = self.rotation() if self.config.psoft_orth else self.weight
        r = r if self.vector_b is None else self.vector_b[:, None] * r
        return r if self.vector_a is None else r * self.vector_a

    def rotation(self) -> Tensor:
        """R, Cayley's transform of -Q or the series for it."""
        q, config = skew(self.weight, self.config.r), self.config
        if not config.use_cayley_neumann:
            return cayley(-q)
        if config.cayley_neumann_eps is not None:
            q = q * (config.cayley_neumann_eps / q.norm().clamp(min=config.cayley_neumann_eps))
        return cayley_neumann(q, config.num_cayley_neumann_terms)


class PsoftLayer(BaseTunerLayer):
    """A layer with PSOFT adapters."""

    prefix = "psoft_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "psoft_alpha", "scaling"), dict),
        "psoft_dropout": nn.ModuleDict,
        "psoft_R": nn.ModuleDict,
        "_psoft_A_cache": UnsavedBufferDict,
        "_psoft_B_cache": UnsavedBufferDict,
    }
    scaling: dict[str, float]
    psoft_R: nn.ModuleDict
    _psoft_A_cache: UnsavedBufferDict
    _psoft_B_cache: UnsavedBufferDict
    adapter_layer_names = ("psoft_R",)
    dropout_slot = "psoft_dropout"

    @classmethod
    def check(cls, config: PsoftConfig, base: Any, op: type[Operator], name: str) -> None:
        """No more dimensions than the weight has."""
        if rank_of(config, name) > min(base.weight.shape):
            raise ValueError(
                f"r={config.r} is too large for '{name}', a weight of {tuple(base.weight.shape)}."
            )
        dropout(config.psoft_dropout)

    def create(self, config: PsoftConfig, name: str) -> dict[str, Any]:
        """A and B from the weight without adapters, and R = I."""
        scaling = config.psoft_alpha / config.r
        A, B = self.principal_factors(config)
        return {
            "r": config.r,
            "psoft_alpha": config.psoft_alpha,
            "scaling": scaling,
            "psoft_dropout": dropout(config.psoft_dropout),
            "psoft_R": Turn(config),
            "_psoft_A_cache": A.contiguous(),
            "_psoft_B_cache": (B / scaling).contiguous(),
        }

    @torch.no_grad()
    def principal_factors(self, config: PsoftConfig) -> tuple[Tensor, Tensor]:
        """A (r, in) and s·B (out, r): the same function of the same weight as in PEFT, since the signs of
        singular vectors are not in a checkpoint either.
        """
        weight, r = precise(self.unmerged_weight), config.r
        if config.psoft_svd == "full":
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(config.random_seed)
                u, s, v = torch.svd_lowrank(weight, q=r, niter=config.psoft_svd_lowrank_niter)
            v = v.mT
        u, s, v = u[:, :r], s[:r], v[:r]
        if config.ab_svd_init == "pissa_init":
            return s.sqrt()[:, None] * v, u * s.sqrt()
        return v, u * s

    def change(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """A, diag(b)·R·diag(a) - I and s·B."""
        A, B = self._psoft_A_cache[adapter], self._psoft_B_cache[adapter]
        turn = self.psoft_R[adapter]()
        return A, turn - torch.eye(len(turn), dtype=turn.dtype, device=turn.device), self.scaling[adapter] * B

    def delta(self, adapter: str) -> Tensor:
        """s·B·(diag(b)·R·diag(a) - I)·A."""
        A, turn, B = self.change(adapter)
        return B.to(turn.dtype) @ turn @ A.to(turn.dtype)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y and what the delta adds, without building it."""
        A, turn, B = self.change(adapter)
        x = self.drop_out(adapter, x).to(turn.dtype)
        return y + x @ A.to(turn.dtype).mT @ turn.mT @ B.to(turn.dtype).mT


class PsoftModel(BaseTuner):
    """A model with PSOFT adapters."""

    tuner_layer_cls = PsoftLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.PSOFT, PsoftConfig, PsoftModel)
