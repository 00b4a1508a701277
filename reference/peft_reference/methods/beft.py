"""BEFT: b' = b + β; nothing but a bias is trained.

Huang et al., "BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data Regimes",
https://arxiv.org/abs/2509.15974: the bias of the value projection is the one worth training.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import normal, zeros

__all__ = ["BeftConfig", "BeftModel"]


@dataclass
class BeftConfig(PeftConfig):
    """BEFT's options, in PEFT's order."""

    target_modules: list[str] | set[str] | str | None = None  # by default the value projection
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # zeros; else N(0, 1)


class BeftLayer(BaseTunerLayer):
    """A layer with BEFT adapters. One without a bias can have them, but they cannot be merged."""

    prefix = "beft_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {"beft_bias": nn.ParameterDict}
    beft_bias: nn.ParameterDict
    adapter_layer_names = ("beft_bias",)

    def create(self, config: BeftConfig, name: str) -> dict[str, Any]:
        """β: (1, out)."""
        if self.bias is None:
            warnings.warn(f"'{name}' has no bias: its BEFT adapter cannot be merged.", stacklevel=6)
        shape = (1, self.out_features)
        return {"beft_bias": zeros(*shape) if config.init_weights else normal(*shape)}

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + β."""
        return y + self.beft_bias[adapter][0]

    def check_mergeable(self, adapter: str) -> None:
        """ValueError if there is no bias to merge into."""
        if self.bias is None:
            raise ValueError(f"The base layer has no bias that '{adapter}' could be merged into.")

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same weight; b + β."""
        return weight, None if bias is None else bias + self.beft_bias[adapter][0]

    def delta(self, adapter: str) -> Tensor:
        """Nothing: (out, in) of zeros."""
        return self.op.canonical(self.weight).new_zeros(self.out_features, self.in_features)


class BeftModel(BaseTuner):
    """A model with BEFT adapters."""

    tuner_layer_cls = BeftLayer
    target_module_mapping = defaults.VALUE


register_peft_method(PeftType.BEFT, BeftConfig, BeftModel)
