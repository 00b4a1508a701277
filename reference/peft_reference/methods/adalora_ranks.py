"""AdaLoRA's budget: how important each triplet is, how many may stay, which entries of E become zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import named_holders

FACTORS = ("lora_A", "lora_B", "lora_E")


def key_of(name: str) -> str:
    """What `rank_pattern` calls the matrices of a module."""
    return f"{name}.lora_E"


class RankAllocator:
    """The rank of one adapter over all its layers, between `init_r` and `target_r` on average.

    `global_step` counts training steps. Sections and equations are those of arXiv 2303.10512.
    """

    def __init__(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.model, self.config, self.adapter_name = model, config, adapter_name
        self.importance: dict[Tensor, Tensor] = {}  # smoothed |w·∂L/∂w| of each parameter, equation 9
        self.uncertainty: dict[Tensor, Tensor] = {}  # smoothed distance from it, equation 10

    def layers(self) -> dict[str, Any]:
        """The layers that have the adapter, by name, in the model's order."""
        return {
            name: layer
            for name, layer in named_holders(self.model)
            if hasattr(layer, "lora_E") and layer.has_adapter(self.adapter_name)
        }

    def budget_schedule(self, step: int) -> tuple[int, bool]:
        """How many triplets may stay after `step`, and whether this is a step to prune: equation 12."""
        config, n = self.config, len(self.layers())
        first, last = config.init_r * n, config.target_r * n
        end = config.total_step - config.tfinal
        if step <= config.tinit:
            return first, False
        if step > end:
            return last, True
        left = 1 - (step - config.tinit) / (end - config.tinit)
        return int(last + (first - last) * left**3), step % config.deltaT == 0

    def step(self, global_step: int) -> None:
        """What one training step does; RuntimeError, before anything changes, if gradients are missing."""
        end = self.config.total_step - self.config.tfinal
        if global_step > end:
            if self.config.rank_pattern:
                self._keep(self.config.rank_pattern)
            return
        if global_step < end:
            self._follow_gradients()
        budget, due = self.budget_schedule(global_step)
        if due or global_step == end:
            pattern = self._choose(budget)
            self._keep(pattern)
            if global_step == end:
                self._finish(pattern)

    @torch.no_grad()
    def _follow_gradients(self) -> None:
        factors = [getattr(layer, s)[self.adapter_name] for layer in self.layers().values() for s in FACTORS]
        if any(p.grad is None for p in factors):
            raise RuntimeError("There are no gradients: allocate after backward, before they are cleared.")
        for p in factors:
            seen = (p * p.grad).abs()
            smooth = self.importance.get(p, torch.zeros_like(p))
            smooth = self.config.beta1 * smooth + (1 - self.config.beta1) * seen
            doubt = self.uncertainty.get(p, torch.zeros_like(p))
            self.importance[p] = smooth
            self.uncertainty[p] = self.config.beta2 * doubt + (1 - self.config.beta2) * (seen - smooth).abs()

    def _score(self, p: Tensor) -> Tensor:
        return self.importance[p] * self.uncertainty[p]  # equation 11

    @torch.no_grad()
    def _choose(self, budget: int) -> dict[str, list[bool]]:
        """Which triplets of each layer are among the `budget` most important ones: equation 8."""
        scores = {}
        for name, layer in self.layers().items():
            a, b, e = (self._score(getattr(layer, slot)[self.adapter_name]) for slot in FACTORS)
            scores[key_of(name)] = e.view(-1) + a.mean(1) + b.mean(0)
        every = torch.cat(list(scores.values()))
        dropped = len(every) - budget
        limit = every.kthvalue(dropped).values if dropped > 0 else every.new_tensor(-1.0)
        return {key: (score > limit).tolist() for key, score in scores.items()}

    @torch.no_grad()
    def _keep(self, pattern: dict[str, list[bool]]) -> None:
        for name, layer in self.layers().items():
            e = layer.lora_E[self.adapter_name]
            if len(pattern[key_of(name)]) == len(e):  # else the others are gone already
                e[~torch.tensor(pattern[key_of(name)], device=e.device)] = 0

    def _finish(self, pattern: dict[str, list[bool]]) -> None:
        self.config.rank_pattern = pattern
        for name, layer in self.layers().items():
            kept = torch.tensor(pattern[key_of(name)], device=layer.weight.device)
            layer.kept[self.adapter_name] = kept.nonzero().flatten()
        self.importance.clear()
        self.uncertainty.clear()

    def orthogonality(self) -> Tensor:
        """How far A·Aᵀ and Bᵀ·B are from I: the mean of the Frobenius norms over all matrices."""
        layers = self.layers().values()
        pairs = [(layer.lora_A[self.adapter_name], layer.lora_B[self.adapter_name]) for layer in layers]
        grams = [gram for a, b in pairs for gram in (a @ a.t(), b.t() @ b)]
        norms = [torch.linalg.norm(g - torch.eye(len(g), dtype=g.dtype, device=g.device)) for g in grams]
        return torch.stack(norms).mean()
