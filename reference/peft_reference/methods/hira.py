"""HiRA: W' = W + W ⊙ (B·A) with A (r, in, *kernel) and B (out, r).

Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models", ICLR 2025,
https://openreview.net/forum?id=TwJrTz9cRS. The elementwise product with W lifts the rank of the change, and
is why it has to be built: there are no factors that an input could pass one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import OPERATORS, Embedding, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import dropout, normal, random, rank_of, zeros

__all__ = ["HiraConfig", "HiraModel"]


@dataclass
class HiraConfig(PeftConfig):
    """HiRA's options, in PEFT's order."""

    r: int = 32  # the rank of B·A
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    hira_dropout: float = 0.0  # of the adapter's input
    fan_in_fan_out: bool = False  # whether the base stores (in, out): corrected by what the layer is
    modules_to_save: list[str] | None = None
    init_weights: bool | str | None = (
        True  # True: B = 0; 'gaussian': A from N(0, 1/r²); False: all from N(0, 1)
    )
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict | None = field(default_factory=dict)  # regex for names -> rank


class HiraLayer(BaseTunerLayer):
    """A layer with HiRA adapters, two bare matrices each."""

    prefix = "hira_"
    operators = OPERATORS
    adapter_layer_names = ("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B")
    slots: ClassVar[dict[str, type]] = {
        "r": dict,
        "hira_dropout": nn.ModuleDict,
        **dict.fromkeys(adapter_layer_names, nn.ParameterDict),
    }
    dropout_slot = "hira_dropout"

    @classmethod
    def check(cls, config: HiraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank is positive, the initialisation known, and a convolution has no groups."""
        rank_of(config, name)
        if config.init_weights not in (True, False, None, "gaussian"):
            raise ValueError(f"init_weights={config.init_weights!r} is not known: use a bool or 'gaussian'.")
        if getattr(base, "groups", 1) > 1:
            raise NotImplementedError(f"HiRA cannot adapt '{name}', a convolution with groups={base.groups}.")

    def create(self, config: HiraConfig, name: str) -> dict[str, Any]:
        """A and B, one of which is zero unless the config says otherwise: an embedding's A, else B."""
        r = rank_of(config, name)
        n_out, n_in, *kernel = self.op.canonical(self.weight).shape
        shape_A, shape_B = (r, n_in, *kernel), (n_out, r, *(1 for _ in kernel))
        contents = {"r": r, "hira_dropout": dropout(config.hira_dropout)}
        if self.op is Embedding:
            A = zeros(*shape_A) if config.init_weights else normal(*shape_A)
            return contents | {"hira_embedding_A": A, "hira_embedding_B": normal(*shape_B)}
        if not config.init_weights:
            return contents | {"hira_A": normal(*shape_A), "hira_B": normal(*shape_B)}
        A = normal(*shape_A, std=1 / r) if config.init_weights == "gaussian" else random(*shape_A)
        return contents | {"hira_A": A, "hira_B": zeros(*shape_B)}

    def delta(self, adapter: str) -> Tensor:
        """W ⊙ (B·A), of the base weight alone whatever else is merged into it."""
        kind = "hira_embedding" if self.op is Embedding else "hira"
        A, B = (getattr(self, f"{kind}_{letter}")[adapter] for letter in "AB")
        weight = self.unmerged_weight
        return weight * (B.flatten(1) @ A.flatten(1)).view(weight.shape)  # (out, r) @ (r, in·kernel)


class HiraModel(BaseTuner):
    """A model with HiRA adapters."""

    tuner_layer_cls = HiraLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.HIRA, HiraConfig, HiraModel)
