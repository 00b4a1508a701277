"""Weights that sit in several modules, as an embedding and an output head often share one, and adapters that
follow them.

An adapter of a follower has no weights of its own: it uses its leader's, and the leader alone merges them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import BaseTunerLayer
from .tokens import TrainableTokensWrapper
from .wrappers import ModulesToSaveWrapper


def base_module(module: nn.Module) -> nn.Module:
    """The module as it was before anything was put around it."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    if isinstance(module, TrainableTokensWrapper):
        module = module.token_adapter
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def tied_groups(modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """The names of modules that have one weight in common, group by group; embeddings lead their groups."""
    groups: dict[int, list[str]] = {}
    seen: dict[int, set[int]] = {}  # a module that sits in two places is one module
    for name, module in modules.items():
        base = base_module(module)
        weight = base._parameters.get("weight")
        if weight is not None and id(base) not in seen.setdefault(id(weight), set()):
            seen[id(weight)].add(id(base))
            groups.setdefault(id(weight), []).append(name)
    return [
        sorted(names, key=lambda name: not isinstance(base_module(modules[name]), nn.Embedding))
        for names in groups.values()
        if len(names) > 1
    ]


class Ties:
    """The tied groups of a model, and which adapted modules follow which."""

    def __init__(self, modules: Mapping[str, nn.Module], ensure: bool) -> None:
        self.groups = tied_groups(modules)
        self.ensure = ensure
        if ensure and not self.groups:
            warnings.warn("ensure_weight_tying=True, but the model has no tied weights.", stacklevel=6)

    def follow(self, chosen: dict[str, nn.Module], modules: Mapping[str, nn.Module]) -> dict[str, str]:
        """Follower -> leader among `chosen`, to which all that are tied to one of them are added from
        `modules`; a warning, and none, if that is not asked for.
        """
        leaders: dict[str, str] = {}
        for group in self.groups:
            members = [name for name in group if name in modules]
            if not any(name in chosen for name in members):
                continue
            if not self.ensure:
                warnings.warn(
                    f"{group} have one tied weight, and adapters that are separate: merging one changes all. "
                    "ensure_weight_tying=True makes them one adapter.",
                    stacklevel=6,
                )
                continue
            chosen.update((name, modules[name]) for name in members)
            leaders.update(dict.fromkeys(members[1:], members[0]))
        return leaders

    def follow_tokens(
        self, indices: dict[str, list[int]], modules: Mapping[str, nn.Module]
    ) -> dict[str, str]:
        """Follower -> leader among the modules with trainable tokens. Tied rows stay tied: modules that are
        tied to one that is named are added, unless others of the group have tokens of their own.

        ValueError if tying is asked for and the tokens differ.
        """
        leaders: dict[str, str] = {}
        for group in self.groups:
            named = [name for name in group if name in indices]
            if any(indices[name] != indices[named[0]] for name in named):
                if self.ensure:
                    raise ValueError(
                        f"{named} are tied, and trainable_token_indices gives them other tokens."
                    )
            elif named and (self.ensure or named[0] == group[0]):
                followers = [name for name in group if name in modules and name != named[0]]
                indices.update(dict.fromkeys(followers, indices[named[0]]))
                leaders.update(dict.fromkeys(followers, named[0]))
        return leaders


class TiedFactor(nn.Module):
    """A factor of one layer that is another layer's, transposed: never a copy, whatever happens to that one.

    It has no parameter of its own, so that the one that is there is trained, counted and moved once.
    """

    bias = None

    def __init__(self, owner: nn.ParameterDict, adapter: str) -> None:
        super().__init__()
        self._source = (owner, adapter)  # in a tuple: the owner has its place in the model elsewhere

    @property
    def weight(self) -> Tensor:
        """The factor, as a view of the owner's."""
        owner, adapter = self._source
        return owner[adapter].t()

    def forward(self, x: Tensor) -> Tensor:
        """x·Wᵀ."""
        return F.linear(x, self.weight)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Give the values to the owner: a checkpoint has both factors, and they agree."""
        value = state_dict.get(f"{prefix}weight")
        if value is None:
            return
        owner, adapter = self._source
        if owner[adapter].device.type == "meta":
            owner[adapter] = nn.Parameter(value.t().contiguous(), owner[adapter].requires_grad)
        else:
            with torch.no_grad():
                owner[adapter].copy_(value.t())
