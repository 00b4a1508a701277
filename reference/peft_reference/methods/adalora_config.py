"""AdaLoRA's options."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from ..errors import UnsupportedOptionError
from .lora_config import LoraConfig

__all__ = ["AdaLoraConfig"]


@dataclass
class AdaLoraConfig(LoraConfig):
    """AdaLoRA's options after LoRA's. ValueError for a schedule without a phase in which the rank shrinks."""

    rank_pattern: dict | None = None  # after training: which triplets each matrix kept
    target_r: int = 8  # the mean rank in the end
    init_r: int = 12  # the rank of each matrix in the beginning, in place of `r`
    tinit: int = 0  # steps before the rank shrinks
    tfinal: int = 0  # steps after it has shrunk
    deltaT: int = 1  # steps between two allocations
    beta1: float = 0.85  # how slowly importance follows the gradients
    beta2: float = 0.85  # how slowly its uncertainty does
    orth_reg_weight: float = 0.5  # of the orthogonality of A and B in the loss
    total_step: int | None = None  # of the training, which has to be known

    _not_offered: ClassVar[tuple[str, ...]] = (
        *LoraConfig._not_offered,
        *("use_rslora", "lora_bias", "target_parameters", "layer_replication", "alpha_pattern"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("velora_config", "alora_invocation_tokens", "use_qalora", "monteclora_config"),
        *("use_bdlora", "arrow_config", "kasa_config"),
    )
    _patterns: ClassVar[tuple[str, ...]] = ()  # `rank_pattern` is not one here

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_dora:
            raise ValueError("AdaLoRA does not support DoRA: use_dora should be False.")
        if not self.total_step or self.total_step < 0:
            raise ValueError(f"`total_step` should be the number of training steps, got {self.total_step}.")
        if self.tinit >= self.total_step - self.tfinal:
            raise ValueError(
                f"tinit={self.tinit} and tfinal={self.tfinal} leave none of the {self.total_step} steps for "
                "budgeting, in which the rank shrinks."
            )
        if self.orth_reg_weight < 0:
            raise ValueError(f"`orth_reg_weight` should not be negative, got {self.orth_reg_weight}.")
        if self.r != LoraConfig.r:
            warnings.warn("`r` is ignored by AdaLoRA: the initial rank is `init_r`.", stacklevel=3)

    def validate(self) -> None:
        """Refuse what LoRA would refuse, and initialisations other than on and off."""
        super().validate()
        if not isinstance(self.init_lora_weights, bool):
            raise UnsupportedOptionError(
                f"init_lora_weights={self.init_lora_weights!r} is not for AdaLoRA: use True or False."
            )
