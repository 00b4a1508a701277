"""LoRA's options, all of PEFT's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar

from ..config import PeftConfig
from ..errors import UnsupportedOptionError
from ..registry import TaskType
from . import lora_init, lora_options
from .lora_arrow import ArrowConfig
from .lora_bdlora import BdLoraConfig
from .lora_kasa import KasaConfig
from .lora_monteclora import MontecloraConfig
from .lora_variant import VARIANTS, LoraVariant
from .lora_velora import VeloraConfig

__all__ = ["LoraConfig", "LoraRuntimeConfig"]


@dataclass
class LoraRuntimeConfig:
    """Choices for one run, never saved."""

    ephemeral_gpu_offload: bool = False


@dataclass
class LoraConfig(PeftConfig):
    """LoRA's options, all of PEFT's and in PEFT's order. Those in `_not_offered` are refused unless unset."""

    r: int = 8  # the rank
    target_modules: list[str] | set[str] | str | None = (
        None  # names, dotted suffixes, a regex or 'all-linear'
    )
    exclude_modules: list[str] | set[str] | str | None = None  # names, dotted suffixes or a regex
    lora_alpha: int | float = 8
    lora_dropout: float = 0.0  # on the adapter's input, while training
    fan_in_fan_out: bool = (
        False  # whether the base weight is stored (in, out): corrected by what the layer is
    )
    bias: str = "none"  # which base biases to train and save: none, all, lora_only (of the adapted layers)
    use_rslora: bool = False  # s = alpha / √r
    modules_to_save: list[str] | None = None  # modules to train and save whole
    # True: B = 0; 'gaussian': A ~ N(0, 1/r²), B = 0; False: both random; for the others see lora_init.py
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None  # indices of the layers to adapt
    layers_pattern: list[str] | str | None = None  # what the list of layers is called
    rank_pattern: dict | None = field(default_factory=dict)  # regex for names -> rank
    alpha_pattern: dict | None = field(default_factory=dict)  # regex for names -> alpha
    megatron_config: dict | None = None
    megatron_core: str | None = "megatron.core"  # only with megatron_config
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    loftq_config: dict | lora_options.LoftQConfig = field(default_factory=dict)  # kept as a dict
    eva_config: lora_options.EvaConfig | None = None
    corda_config: lora_options.CordaConfig | None = None
    lora_ga_config: lora_options.LoraGAConfig | None = None
    use_dora: bool = False
    velora_config: VeloraConfig | None = None
    alora_invocation_tokens: list[int] | None = None
    use_qalora: bool = False  # acts on layers quantised by GPTQ only, which are none of the reference's
    qalora_group_size: int = 16  # how many inputs QA-LoRA pools
    monteclora_config: MontecloraConfig | None = None
    layer_replication: list[tuple[int, int]] | None = None
    runtime_config: LoraRuntimeConfig = field(default_factory=LoraRuntimeConfig)  # never saved
    lora_bias: bool = False  # B has a bias
    target_parameters: list[str] | None = None
    use_bdlora: BdLoraConfig | None = None
    arrow_config: ArrowConfig | None = None
    kasa_config: KasaConfig | None = None
    ensure_weight_tying: bool = False

    _not_saved: ClassVar[frozenset[str]] = frozenset({"runtime_config"})
    _not_offered: ClassVar[tuple[str, ...]] = ("megatron_config",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_parameters, str):
            raise TypeError("`target_parameters` should be a list of names, not a string.")
        if self.lora_bias and (self.use_dora or self.init_lora_weights not in (True, False)):
            raise ValueError(
                "lora_bias=True needs use_dora=False and "
                f"init_lora_weights=True or False, got use_dora={self.use_dora} and "
                f"init_lora_weights={self.init_lora_weights}."
            )
        if self.use_dora and self.megatron_config:
            raise ValueError(
                "DoRA is not made for Megatron's layers: use_dora=True excludes megatron_config."
            )
        lora_options.settle_options(self)
        for option, kind in _VARIANT_OPTIONS.items():
            if isinstance(value := getattr(self, option), dict):  # as it is in a file
                setattr(self, option, lora_options.from_dict(kind, value))
        if self.alora_invocation_tokens and self.task_type != TaskType.CAUSAL_LM:
            warnings.warn("aLoRA is made for causal language models: task_type='CAUSAL_LM'.", stacklevel=3)

    @property
    def variant(self) -> type[LoraVariant] | None:
        """What the options make of LoRA: None for LoRA itself. ValueError for two variants at once."""
        wanted = [option for option in VARIANTS if getattr(self, option)]
        if len(wanted) > 1:
            raise ValueError(f"LoRA variants exclude each other: choose one of {', '.join(wanted)}.")
        return VARIANTS[wanted[0]] if wanted else None

    @property
    def changes_base(self) -> bool:
        """Whether the base weight becomes another: a residual of `init_lora_weights`, or KaSA's."""
        return lora_init.changes_base(self) or self.kasa_config is not None

    def validate(self) -> None:
        """Refuse what is not implemented, or not an option at all."""
        for option in self._not_offered:
            if getattr(self, option):
                raise UnsupportedOptionError(
                    f"LoRA's option {option}={getattr(self, option)!r} is not implemented in the reference."
                )
        if self.runtime_config.ephemeral_gpu_offload:
            raise UnsupportedOptionError("LoRA's ephemeral_gpu_offload is not implemented in the reference.")
        if self.bias not in ("none", "all", "lora_only"):
            raise NotImplementedError(f"bias={self.bias!r} is not implemented: use none, all or lora_only.")
        lora_init.init_name(self)


_VARIANT_OPTIONS = {
    "velora_config": VeloraConfig,
    "monteclora_config": MontecloraConfig,
    "use_bdlora": BdLoraConfig,
    "arrow_config": ArrowConfig,
    "kasa_config": KasaConfig,
}
