"""Methods that do not adapt layers in place: known by their configs, so that they are refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..config import PeftConfig, PromptLearningConfig
from ..registry import PeftType, register_peft_method

__all__ = ["AdaptionPromptConfig", "PrefixTuningConfig", "PromptEncoderConfig", "PromptTuningConfig"]


class PromptTuningInit(str, Enum):
    """Where the first prompt vectors come from."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


class PromptEncoderReparameterizationType(str, Enum):
    """What computes the prompt in p-tuning."""

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning, https://arxiv.org/abs/2104.08691."""

    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict | None = None


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning, https://arxiv.org/abs/2101.00190."""

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning, https://arxiv.org/abs/2103.10385."""

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = (
        PromptEncoderReparameterizationType.MLP
    )
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0


@dataclass
class AdaptionPromptConfig(PeftConfig):
    """LLaMA-Adapter, https://arxiv.org/abs/2303.16199."""

    target_modules: str | None = None
    adapter_len: int | None = None
    adapter_layers: int | None = None

    @property
    def is_adaption_prompt(self) -> bool:
        """True."""
        return True


register_peft_method(PeftType.PROMPT_TUNING, PromptTuningConfig)
register_peft_method(PeftType.PREFIX_TUNING, PrefixTuningConfig)
register_peft_method(PeftType.P_TUNING, PromptEncoderConfig)
register_peft_method(PeftType.ADAPTION_PROMPT, AdaptionPromptConfig)
