"""OSF: W' = W - U₀·S₀·V₀ + U·S·V, where U₀·S₀·V₀ is the part of W with its smallest singular values, with
which U, S and V begin; their gradients are orthogonal to the part that is kept.

Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
https://arxiv.org/abs/2504.07097. A checkpoint has U, S and V; the rest is made again from W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import UnsavedBufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..matching import pattern_value
from ..operators import Conv1D, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["OSFConfig", "OSFModel"]


@dataclass
class OSFConfig(PeftConfig):
    """OSF's options, in PEFT's order. Ranks are what is kept: a number, or a share of the smaller side."""

    effective_rank: int | float | None = None  # None: half
    target_modules: list[str] | set[str] | str | None = None
    rank_pattern: dict[str, Any] | None = None  # regex for names -> rank
    init_weights: bool | None = True  # the part of W; False: N(0, 1)
    modules_to_save: list[str] | None = None
    target_svd_config: dict[str, int] | None = None  # means nothing, in PEFT neither


class OSFLayer(BaseTunerLayer):
    """A layer with OSF adapters: U_low (out, n), S_low (n) and V_low (n, in), n = smaller side - rank."""

    prefix = "osf_"
    operators = (Linear, Conv1D)
    adapter_layer_names = ("osf_svd_params",)
    initial = ("_osf_U_low_init", "_osf_S_low_init", "_osf_V_low_init")
    kept = ("_osf_U_high", "_osf_V_high")
    slots: ClassVar[dict[str, type]] = {
        "effective_rank": dict,
        "osf_svd_params": nn.ModuleDict,
        **dict.fromkeys((*initial, *kept), UnsavedBufferDict),
    }
    osf_svd_params: nn.ModuleDict

    @classmethod
    def rank(cls, config: OSFConfig, size: int, name: str) -> int:
        """How many of `size` singular values are kept; ValueError for less than one or a share above 1."""
        wanted = pattern_value(config.rank_pattern, name, config.effective_rank)
        if wanted is None:
            wanted = 0.5
        if isinstance(wanted, float) and wanted > 1:
            raise ValueError(f"effective_rank={wanted} of '{name}' should be a whole number or at most 1.")
        rank = int(wanted * size) if isinstance(wanted, float) else wanted
        if rank < 1:
            raise ValueError(f"effective_rank={wanted} of '{name}' should keep something of {size} values.")
        return min(rank, size)

    @classmethod
    def check(cls, config: OSFConfig, base: Any, op: type[Operator], name: str) -> None:
        """There is a rank."""
        cls.rank(config, min(base.weight.shape), name)

    def create(self, config: OSFConfig, name: str) -> dict[str, Any]:
        """The decomposition of the base weight, in float32 at least."""
        weight = self.unmerged_weight.detach()
        k = self.rank(config, min(weight.shape), name)
        exact = weight if weight.dtype is torch.float64 else weight.float()
        u, s, v = torch.linalg.svd(exact, full_matrices=False)
        low = {"U_low": u[:, k:], "S_low": s[k:], "V_low": v[k:]}
        trained = {key: torch.empty(part.shape, dtype=part.dtype) for key, part in low.items()}  # or on meta
        for key, tensor in trained.items():
            if config.init_weights is False:
                tensor.normal_()
            elif not tensor.is_meta:
                tensor.copy_(low[key])
        fixed = dict(zip((*self.initial, *self.kept), (*low.values(), u[:, :k], v[:k]), strict=True))
        return {
            "effective_rank": k,
            "osf_svd_params": nn.ParameterDict({key: nn.Parameter(trained[key]) for key in sorted(trained)}),
            **{slot: part.to(weight.dtype).contiguous() for slot, part in fixed.items()},
        }

    def factors(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """U (out, n), S (n) and V (n, in), whose gradients leave out what is kept."""
        part: Any = self.osf_svd_params[adapter]
        u, s, v = part["U_low"], part["S_low"], part["V_low"]
        if torch.is_grad_enabled() and u.requires_grad:
            left, right = (getattr(self, slot)[adapter].to(u.dtype) for slot in self.kept)
            u, v = u.view_as(u), v.view_as(v)
            u.register_hook(lambda grad: grad - left @ (left.T @ grad))
            v.register_hook(lambda grad: grad - (grad @ right.T) @ right)
        return u, s, v

    def first_factors(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """U₀, S₀ and V₀."""
        return tuple(getattr(self, slot)[adapter].to(dtype) for slot in self.initial)

    def delta(self, adapter: str) -> Tensor:
        """U·S·V - U₀·S₀·V₀."""
        u, s, v = self.factors(adapter)
        u0, s0, v0 = self.first_factors(adapter, u.dtype)
        return (u * s) @ v - (u0 * s0) @ v0

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The same, applied to x from the right, in products of the trained rank."""
        u, s, v = self.factors(adapter)
        u0, s0, v0 = self.first_factors(adapter, u.dtype)
        x = x.to(u.dtype)
        return y + (F.linear(F.linear(x, v) * s, u) - F.linear(F.linear(x, v0) * s0, u0))


class OSFModel(BaseTuner):
    """A model with OSF adapters."""

    tuner_layer_cls = OSFLayer
    target_module_mapping = defaults.OSF


register_peft_method(PeftType.OSF, OSFConfig, OSFModel)
