"""The table of methods: PeftType -> config class, tuner class, prefix. Files in `methods/` add their rows."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PeftConfig
    from .injection import BaseTuner


class PeftType(str, Enum):
    """Every method that PEFT 0.21 knows by name, in PEFT's order."""

    PROMPT_TUNING = "PROMPT_TUNING"
    MULTITASK_PROMPT_TUNING = "MULTITASK_PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    LORA = "LORA"
    ADALORA = "ADALORA"
    ADAMSS = "ADAMSS"
    BOFT = "BOFT"
    ADAPTION_PROMPT = "ADAPTION_PROMPT"
    IA3 = "IA3"
    BEFT = "BEFT"
    LILY = "LILY"
    LOHA = "LOHA"
    LOKR = "LOKR"
    OFT = "OFT"
    POLY = "POLY"
    LN_TUNING = "LN_TUNING"
    VERA = "VERA"
    FROD = "FROD"
    PVERA = "PVERA"
    FOURIERFT = "FOURIERFT"
    GLORA = "GLORA"
    XLORA = "XLORA"
    HRA = "HRA"
    VBLORA = "VBLORA"
    UNILORA = "UNILORA"
    CPT = "CPT"
    MISS = "MISS"
    RANDLORA = "RANDLORA"
    ROAD = "ROAD"
    TRAINABLE_TOKENS = "TRAINABLE_TOKENS"
    HIRA = "HIRA"
    SHIRA = "SHIRA"
    C3A = "C3A"
    WAVEFT = "WAVEFT"
    OSF = "OSF"
    DELORA = "DELORA"
    GRALORA = "GRALORA"
    CARTRIDGE = "CARTRIDGE"
    TINYLORA = "TINYLORA"
    PSOFT = "PSOFT"
    PEANUT = "PEANUT"
    SHADOW = "SHADOW"
    SUPERTUNING = "SUPERTUNING"
    DEFT = "DEFT"


class TaskType(str, Enum):
    """The tasks a config may name."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


# A method from elsewhere has a plain string for its key: a PeftType is one, too.
PEFT_TYPE_TO_CONFIG_MAPPING: dict[PeftType | str, type[PeftConfig]] = {}
PEFT_TYPE_TO_TUNER_MAPPING: dict[PeftType | str, type[BaseTuner]] = {}
PEFT_TYPE_TO_PREFIX_MAPPING: dict[PeftType | str, str] = {}


def method_name(peft_type: Any) -> str:
    """How files and messages call a method."""
    return str(getattr(peft_type, "value", peft_type))


def register_peft_method(
    peft_type: PeftType | str, config_cls: type[PeftConfig], model_cls: type[BaseTuner] | None = None
) -> None:
    """Add a method's row; its configs have this `peft_type`. `model_cls` is None for a method that the
    reference only knows in order to refuse it.
    """
    config_cls.method = peft_type
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls
    if model_cls is not None:
        PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls
        PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = model_cls.prefix


def register_by_name(
    *,
    name: str,
    config_cls: type[PeftConfig],
    model_cls: type[BaseTuner],
    prefix: str | None = None,
    is_mixed_compatible: bool = False,
) -> None:
    """PEFT's `register_peft_method`: add the row of the method that has this name in lower case.

    The prefix is `name_` unless given. Raises ValueError for a name that ends in '_', is not in lower case or
    is not in `PeftType`, KeyError for a method or a prefix that is there already.
    """
    if name.endswith("_") or not name.islower():
        raise ValueError(f"The method's name should be in lower case and not end in '_', got {name!r}.")
    if name.upper() not in PeftType.__members__:
        raise ValueError(f"{name!r} is no method of PeftType.")
    peft_type = PeftType[name.upper()]
    if peft_type in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise KeyError(f"There is a method {name!r} already.")
    prefix = prefix or f"{name}_"
    if prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values():
        raise KeyError(f"There is a method with the prefix {prefix!r} already.")
    register_peft_method(peft_type, config_cls, model_cls)
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = prefix


def tuner_for(config: Any, caller: str) -> type[BaseTuner]:
    """The tuner class that `config` asks for; ValueError, naming `caller`, if none adapts layers."""
    peft_type = getattr(config, "peft_type", None)
    if peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(map(method_name, PEFT_TYPE_TO_TUNER_MAPPING)))
        given = method_name(peft_type) if peft_type is not None else type(config).__name__
        raise ValueError(
            f"Unknown PEFT type passed to `{caller}`: {given}. The reference adapts models with: {known}."
        )
    if peft_type not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise ValueError(
            f"`{caller}` does not support {method_name(peft_type)}: prompt learning and adaption prompt do "
            "not work by adapting layers in place."
        )
    return PEFT_TYPE_TO_TUNER_MAPPING[peft_type]
