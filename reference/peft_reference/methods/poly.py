"""Poly: y' = y + x·Aₜ·Bₜ / r, where the task t of each sample mixes the skills: Aₜ = Σₖ gₖAₖ, Bₜ = Σₖ gₖBₖ.

Ponti et al., "Combining Modular Skills in Multitask Learning", https://arxiv.org/abs/2202.13914: g is the
sigmoid of the task's logits, made to sum to one; while training the logits get noise (a relaxed Bernoulli
variable). With more than one split (Caccia et al., "Multi-Head Adapter Routing for Cross-Task
Generalization", https://arxiv.org/abs/2211.03831) each part of the inputs and outputs has its own mixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["PolyConfig", "PolyModel"]

_tasks: ContextVar[Tensor | None] = ContextVar("tasks", default=None)


@contextmanager
def tasks(task_ids: Any) -> Iterator[None]:
    """Within, in this thread, the samples of a batch belong to these tasks; None for none that are known."""
    token = _tasks.set(None if task_ids is None else torch.as_tensor(task_ids).reshape(-1))
    try:
        yield
    finally:
        _tasks.reset(token)


@dataclass
class PolyConfig(PeftConfig):
    """Poly's options, in PEFT's order."""

    r: int = 8
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # B = 0; else random as A is
    poly_type: str = "poly"  # no other is known
    n_tasks: int = 1
    n_skills: int = 4
    n_splits: int = 1


class Router(nn.Module):
    """Which skills each task uses: `module_logits` (tasks, splits·skills)."""

    def __init__(self, config: PolyConfig) -> None:
        super().__init__()
        self.splits = config.n_splits
        logits = torch.empty(config.n_tasks, config.n_splits * config.n_skills)
        self.module_logits = nn.Parameter(logits.uniform_(-1e-3, 1e-3))

    def forward(self, samples: int) -> Tensor:
        """(samples, splits, skills), which sum to one over the skills. ValueError without tasks, for a task
        that is not there, and for a number of tasks that does not fit.
        """
        ids, known = _tasks.get(), len(self.module_logits)
        if ids is None:
            raise ValueError("`task_ids` should not be None: pass the task of each sample to the model.")
        if ids.is_floating_point() or not ((ids >= 0) & (ids < known)).all():
            raise ValueError(f"`task_ids` should be whole numbers below {known}, got {ids.tolist()}.")
        if samples % len(ids):
            raise ValueError(f"`task_ids` has {len(ids)} tasks for a batch of {samples} samples.")
        ids = ids.repeat_interleave(samples // len(ids))  # generation works on copies of each sample
        z = self.module_logits[ids.to(self.module_logits.device)].unflatten(1, (self.splits, -1))
        if self.training:
            z = z + torch.logit(torch.rand_like(z, dtype=torch.float32), eps=1e-6).to(z.dtype)
        g = z.sigmoid()
        return g / g.sum(-1, keepdim=True)


class PolyLayer(BaseTunerLayer):
    """A linear layer with Poly adapters: `poly_lora_A` (splits, skills, in / splits, r), `poly_lora_B`
    (splits, skills, r, out / splits).
    """

    prefix = "poly_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "n_tasks", "n_skills", "n_splits", "poly_type"), dict),
        "poly_router": nn.ModuleDict,
        "poly_lora_A": nn.ParameterDict,
        "poly_lora_B": nn.ParameterDict,
    }
    r: dict[str, int]
    poly_router: nn.ModuleDict
    poly_lora_A: nn.ParameterDict
    poly_lora_B: nn.ParameterDict
    adapter_layer_names = ("poly_lora_A", "poly_lora_B", "poly_router")

    @classmethod
    def check(cls, config: PolyConfig, base: Any, op: type[Operator], name: str) -> None:
        """Sizes are positive, the splits divide inputs and outputs, the type is known."""
        if config.poly_type != "poly":
            raise ValueError(f"poly_type={config.poly_type!r} is not known: 'poly' is.")
        for field in ("r", "n_tasks", "n_skills", "n_splits"):
            if getattr(config, field) <= 0:
                raise ValueError(f"`{field}` should be positive, got {getattr(config, field)}.")
        sizes = op.features(base)
        if any(size % config.n_splits for size in sizes):
            raise ValueError(f"n_splits={config.n_splits} does not divide the sizes of '{name}', {sizes}.")

    def create(self, config: PolyConfig, name: str) -> dict[str, Any]:
        """A random as a linear layer is, B zero unless the config says otherwise."""
        both, splits = (config.n_splits, config.n_skills), config.n_splits
        A = torch.empty(*both, self.in_features // splits, config.r)
        B = torch.zeros(*both, config.r, self.out_features // splits)
        for factor in (A,) if config.init_weights else (A, B):
            bound = factor.shape[-2] ** -0.5
            nn.init.uniform_(factor, -bound, bound)
        numbers = {slot: getattr(config, slot) for slot, kind in self.slots.items() if kind is dict}
        return numbers | {
            "poly_router": Router(config),
            "poly_lora_A": nn.Parameter(A),
            "poly_lora_B": nn.Parameter(B),
        }

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + x·Aₜ·Bₜ / r with the task of each sample."""
        g = self.poly_router[adapter](len(x))
        A = torch.einsum("bsk,skir->bsir", g, self.poly_lora_A[adapter]).flatten(1, 2)
        B = torch.einsum("bsk,skro->brso", g, self.poly_lora_B[adapter]).flatten(2)
        h = torch.einsum("b...i,bir->b...r", x.to(A.dtype), A)
        return y + torch.einsum("b...r,bro->b...o", h, B) / self.r[adapter]

    def check_mergeable(self, adapter: str) -> None:
        """NotImplementedError: each task has a weight of its own."""
        raise NotImplementedError("Poly cannot be merged: what it adds depends on the task.")

    def check_per_sample(self, adapter: str) -> None:
        """ValueError: the tasks say already what is meant for which sample."""
        raise ValueError("Poly cannot use different adapters for the samples of a batch: use `task_ids`.")


class PolyModel(BaseTuner):
    """A model with Poly adapters, whose `forward` and `generate` take `task_ids`, [batch]."""

    tuner_layer_cls = PolyLayer
    target_module_mapping = defaults.ATTENTION
    takes_task_ids = True

    def forward(self, *args: Any, task_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """The adapted model's output; ValueError, while adapters act, without a task for each sample."""
        with tasks(task_ids):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, task_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """What the model's own `generate` returns."""
        model: Any = self.model
        with tasks(task_ids):
            return model.generate(*args, **kwargs)


register_peft_method(PeftType.POLY, PolyConfig, PolyModel)
