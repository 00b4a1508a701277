"""Methods that do not adapt layers in place: known by their configs, so that they are refused by name.

Prompt methods put trained vectors before the input or into the cache of keys and values; Adaption Prompt
wraps the attention of the last layers, Shadow whole blocks.

A few lines longer than other files: it has the configs of eight methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from ..config import PeftConfig, PromptLearningConfig
from ..registry import PeftType, TaskType, register_peft_method

__all__ = [
    "AdaptionPromptConfig",
    "CPTConfig",
    "CartridgeConfig",
    "MultitaskPromptTuningConfig",
    "MultitaskPromptTuningInit",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptTuningConfig",
    "PromptTuningInit",
    "ShadowConfig",
]


class PromptTuningInit(str, Enum):
    """Where the first prompt vectors come from."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


class MultitaskPromptTuningInit(str, Enum):
    """Where the first prompt vectors come from when several tasks were trained together before."""

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


class PromptEncoderReparameterizationType(str, Enum):
    """What computes the prompt in p-tuning."""

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning, https://arxiv.org/abs/2104.08691.

    ValueError for a prompt that begins as text without the text or the tokenizer, and for options of a
    tokenizer that nothing needs.
    """

    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        from_text = self.prompt_tuning_init == "TEXT"
        for field in ("tokenizer_name_or_path", "prompt_tuning_init_text"):
            if from_text and not getattr(self, field):
                raise ValueError(f"A prompt that begins as text needs `{field}`.")
        if self.tokenizer_kwargs and not from_text:
            raise ValueError("`tokenizer_kwargs` are only for prompt_tuning_init='TEXT'.")


@dataclass
class MultitaskPromptTuningConfig(PromptTuningConfig):
    """Multitask prompt tuning, https://arxiv.org/abs/2303.02861."""

    prompt_tuning_init: MultitaskPromptTuningInit | str = MultitaskPromptTuningInit.RANDOM
    prompt_tuning_init_state_dict_path: str | None = None  # of the tasks that were trained before
    prompt_tuning_init_task: int | None = 0
    num_ranks: int | None = 1
    num_tasks: int | None = 1


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning, https://arxiv.org/abs/2101.00190."""

    init_weights: Literal["zero"] | None = None  # zero: keys and values begin as zeros
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
class CPTConfig(PromptLearningConfig):
    """Context-aware prompt tuning, https://arxiv.org/abs/2410.17222, of causal language models.

    ValueError for another task, and for lists of different lengths. The prompt has as many vectors as
    `cpt_token_ids`; masks that are not given are ones.
    """

    cpt_token_ids: list[int] | None = None  # the context that the prompt begins as
    cpt_mask: list[int] | None = None
    cpt_tokens_type_mask: list[int] | None = None
    opt_weighted_loss_type: Literal["none", "decay"] | None = "none"
    opt_loss_decay_factor: float | None = 1.0
    opt_projection_epsilon: float | None = 0.1
    opt_projection_format_epsilon: float | None = 0.1
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_type != TaskType.CAUSAL_LM:
            raise ValueError(f"CPT is for task_type CAUSAL_LM only, got {self.task_type}.")
        if self.cpt_token_ids is None:
            self.cpt_token_ids = [0]
        self.num_virtual_tokens, self.num_transformer_submodules = len(self.cpt_token_ids), 1
        for field in ("cpt_mask", "cpt_tokens_type_mask"):
            if getattr(self, field) is None:
                setattr(self, field, [1] * self.num_virtual_tokens)
            if len(getattr(self, field)) != self.num_virtual_tokens:
                raise ValueError(f"`{field}` should have the same length as `cpt_token_ids`.")


@dataclass
class CartridgeConfig(PromptLearningConfig):
    """Cartridges, https://arxiv.org/abs/2506.06266. ValueError for more frozen tokens than there are."""

    num_frozen_tokens: int = 1  # the first ones, which are not trained

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frozen_tokens < 0:
            raise ValueError(f"`num_frozen_tokens` should not be negative, got {self.num_frozen_tokens}.")
        if self.num_virtual_tokens is not None and self.num_frozen_tokens > self.num_virtual_tokens:
            raise ValueError(
                f"`num_frozen_tokens` should be at most `num_virtual_tokens`, got {self.num_frozen_tokens} "
                f"of {self.num_virtual_tokens}."
            )


@dataclass
class AdaptionPromptConfig(PeftConfig):
    """LLaMA-Adapter, https://arxiv.org/abs/2303.16199."""

    target_modules: str | None = None
    adapter_len: int | None = None
    adapter_layers: int | None = None  # how many of the last attention layers are adapted

    @property
    def is_adaption_prompt(self) -> bool:
        """True."""
        return True


@dataclass
class ShadowConfig(PeftConfig):
    """ShadowPEFT: a small network beside the model corrects what goes into each block."""

    target_modules: str | list[str] | set[str] | None = None  # blocks; None: all decoder blocks
    exclude_modules: str | list[str] | set[str] | None = None
    r: int = 8
    shadow_alpha: float = 0.1  # strength of the correction
    shadow_dropout: float = 0.2
    init_weights: bool = True
    shadow_model: str = "mirror"  # the model's own architecture, else a model to load
    shadow_num_hidden_layers: int | None = None
    shadow_hidden_size: int | None = None
    shadow_num_attention_heads: int | None = None
    shadow_intermediate_size: int | None = None
    share_embeddings: bool = True
    update_hidden_size: int | None = None
    auxiliary_loss_weight: float = 0.05
    layers_to_transform: list[int] | int | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None


for _peft_type, _config_cls in (
    (PeftType.PROMPT_TUNING, PromptTuningConfig),
    (PeftType.MULTITASK_PROMPT_TUNING, MultitaskPromptTuningConfig),
    (PeftType.P_TUNING, PromptEncoderConfig),
    (PeftType.PREFIX_TUNING, PrefixTuningConfig),
    (PeftType.CPT, CPTConfig),
    (PeftType.CARTRIDGE, CartridgeConfig),
    (PeftType.ADAPTION_PROMPT, AdaptionPromptConfig),
    (PeftType.SHADOW, ShadowConfig),
):
    register_peft_method(_peft_type, _config_cls)
