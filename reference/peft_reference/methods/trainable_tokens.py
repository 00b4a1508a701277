"""Trainable tokens: W'[i] = t_i for every chosen token i, and W' = W elsewhere.

The rows of an embedding that belong to some tokens are trained, as of tokens that were added; what an adapted
layer does is in `tokens.py`, since adapters of other methods can train tokens, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..matching import model_type, own_embedding
from ..operators import Operator
from ..registry import PeftType, register_peft_method
from ..tokens import TrainableTokensLayer
from ..tying import Ties

__all__ = ["TrainableTokensConfig", "TrainableTokensModel"]


@dataclass
class TrainableTokensConfig(PeftConfig):
    """The options of trainable tokens, in PEFT's order."""

    token_indices: list[int] = field(default_factory=list)
    target_modules: list[str] | set[str] | str | None = None  # by default the model's input embedding
    init_weights: bool = True  # as the base's rows; else N(0, 1)


class TokensLayer(TrainableTokensLayer):
    """A layer with trained rows of several adapters, which act together as long as they share no token."""

    @classmethod
    def check(cls, config: TrainableTokensConfig, base: Any, op: type[Operator], name: str) -> None:
        """Every token must have a row."""
        cls.check_tokens(config.token_indices, base.weight, name)

    def create(self, config: TrainableTokensConfig, name: str) -> dict[str, Any]:
        """The rows: (tokens, dim)."""
        return self.create_rows(config.token_indices, config.init_weights)

    def check_set_adapter(self, adapter_names: list[str]) -> None:
        """ValueError if two of these adapters have rows for one token."""
        owners: dict[int, str] = {}
        for name in filter(self.has_adapter, adapter_names):
            for index in set(self.token_indices[name]):
                if index in owners:
                    raise ValueError(
                        f"Adapters '{owners[index]}' and '{name}' have a row for token {index}: only one of "
                        "them can act."
                    )
                owners[index] = name

    def mergeable_adapters(self, adapter_names: list[str] | None = None) -> list[str]:
        """As for any layer; ValueError also if adapters that would be merged share a token."""
        names = super().mergeable_adapters(adapter_names)
        self.check_set_adapter([*self.merged_adapters, *names])
        return names


class TrainableTokensModel(BaseTuner):
    """A model with trainable tokens."""

    tuner_layer_cls = TokensLayer

    @classmethod
    def default_targets(
        cls, model: nn.Module, modules: Mapping[str, nn.Module]
    ) -> Mapping[str, Collection[str] | str]:
        """The input embedding, or what is called `embed_tokens`."""
        return {model_type(model): own_embedding(model, dict(modules))}

    @classmethod
    def follow_ties(
        cls, ties: Ties, config: Any, targets: dict[str, nn.Module], modules: Mapping[str, nn.Module]
    ) -> dict[str, str]:
        """An output head that is tied to an embedding has the same rows."""
        indices = dict.fromkeys(targets, config.token_indices)
        leaders = ties.follow_tokens(indices, modules)
        targets.update((name, modules[name]) for name in indices)
        return leaders


register_peft_method(PeftType.TRAINABLE_TOKENS, TrainableTokensConfig, TrainableTokensModel)
