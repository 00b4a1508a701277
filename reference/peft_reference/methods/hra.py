"""HRA: W' = W·H₁·…·H_r, reflections Hᵢ = I - 2·uᵢuᵢᵀ / ‖uᵢ‖².

Yuan et al., "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
Adaptation", https://arxiv.org/abs/2405.17484. The chain is I - U·T⁻¹·Uᵀ, where T is the upper triangle of
UᵀU with half of its diagonal: two thin products instead of r reflections. Equal neighbours undo each other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..errors import UnsupportedOptionError
from ..injection import BaseTuner
from ..operators import Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import random
from .rotations import TurnedLayer, precise

__all__ = ["HRAConfig", "HRAModel"]


@dataclass
class HRAConfig(PeftConfig):
    """HRA's options, in PEFT's order."""

    r: int = 8  # the number of reflections
    apply_GS: bool = False  # reflect in the orthonormal vectors that Gram and Schmidt make of the u
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    init_weights: bool = True  # pairs of equal vectors, an identity; else all random
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: str = "none"  # which base biases to train and save: none, all, hra_only
    modules_to_save: list[str] | None = None


class HRALayer(TurnedLayer):
    """A layer with HRA adapters: `hra_u` has the vectors as columns, (inputs, r)."""

    prefix = "hra_"
    slots: ClassVar[dict[str, type]] = {"hra_r": dict, "hra_apply_GS": dict, "hra_u": nn.ParameterDict}
    hra_apply_GS: dict[str, bool]
    hra_u: nn.ParameterDict
    adapter_layer_names = ("hra_u",)
    matrix_slots = adapter_layer_names

    @classmethod
    def check(cls, config: HRAConfig, base: Any, op: type[Operator], name: str) -> None:
        """r has to be positive."""
        super().check(config, base, op, name)
        if config.r <= 0:
            raise ValueError(f"`r` should be positive, got {config.r}.")
        if config.bias not in ("none", "all", "hra_only"):
            raise UnsupportedOptionError(f"bias={config.bias!r} is not known: use none, all or hra_only.")

    def create(self, config: HRAConfig, name: str) -> dict[str, Any]:
        """Pairs of equal vectors; a warning for an odd r, which leaves one alone, so that all are random.

        Orthonormal vectors are never equal, so that nothing is paired for them.
        """
        r, paired = config.r, config.init_weights and not config.apply_GS
        if config.init_weights and r % 2:
            warnings.warn(f"r={r} vectors cannot be paired: the adapter is no identity.", stacklevel=7)
            paired = False
        u = random(self.inputs, r // 2 if paired else r)
        u = nn.Parameter(u.detach().repeat_interleave(2, 1)) if paired else u
        return {"hra_r": r, "hra_apply_GS": config.apply_GS, "hra_u": u}

    def turn(self, adapter: str, rows: Tensor, transposed: bool = False, drop: bool = False) -> Tensor:
        """Rows times I - U·T⁻¹·Uᵀ, or its transpose, in the type of u."""
        u = precise(self.hra_u[adapter])
        if self.hra_apply_GS[adapter]:
            u = torch.linalg.qr(u)[0]
        gram = u.mT @ u
        middle = torch.triu(gram, 1) + torch.diag(gram.diagonal() / 2)
        right = torch.linalg.solve_triangular(middle, u.mT, upper=True)  # T⁻¹·Uᵀ
        left, right = (right.mT, u.mT) if transposed else (u, right)
        dtype = self.hra_u[adapter].dtype
        rows = rows.to(dtype)
        return rows - rows @ left.to(dtype) @ right.to(dtype)


class HRAModel(BaseTuner):
    """A model with HRA adapters."""

    tuner_layer_cls = HRALayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.HRA, HRAConfig, HRAModel)
