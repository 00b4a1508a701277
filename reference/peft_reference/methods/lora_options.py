"""The options of LoRA's initialisers, as classes of their own, and the rules between them."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from .lora_init import changes_base

__all__ = ["EvaConfig", "LoftQConfig", "LoraGAConfig"]

T = TypeVar("T")


@dataclass
class LoftQConfig:
    """What LoftQ quantises to."""

    loftq_bits: int = 4  # 2, 4 or 8
    loftq_iter: int = 1  # how often quantisation and decomposition alternate


@dataclass
class EvaConfig:
    """How EVA reads the data; ValueError for values out of range."""

    rho: float = 2.0  # a layer gets at most rho·r components; 1 keeps every rank as it is
    tau: float = 0.99  # components whose cosine with those before the last batch exceeds this have converged
    use_label_mask: bool = True  # leave out positions whose label is `label_mask_value`
    label_mask_value: int = -100
    whiten: bool = False  # divide each component by the root of its singular value
    adjust_scaling_factors: bool = True  # let alpha follow the rank, so that the scaling stays

    def __post_init__(self) -> None:
        if self.rho < 1:
            raise ValueError(f"rho should be at least 1, got {self.rho}.")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau should be between 0 and 1, got {self.tau}.")


@dataclass
class CordaConfig:
    """How CorDA decomposes."""

    cache_file: str | None = None  # where the decomposition is kept between runs
    covariance_file: str | None = None  # where the covariance is kept between runs
    corda_method: str = "ipm"  # instruction-previewed, or 'kpm', knowledge-preserved
    verbose: bool = False
    use_float16_for_covariance: bool = False
    prune_temporary_fields: bool = True


@dataclass
class LoraGAConfig:
    """Which part of the gradient's SVD LoRA-GA takes, and how large."""

    direction: str = "ArB2r"  # or ArBr, A2rBr, random
    scale: str = "stable"  # or weight_svd, gd_scale, unit
    stable_gamma: int = 16


def settle_options(config: Any) -> None:
    """The rules between `init_lora_weights` and the options of single initialisers, when a config is made.

    Warns of options that are ignored, supplies defaults for EVA and CorDA. ValueError if LoftQ's or LoRA-GA's
    are missing, or LoftQ's cannot be.
    """
    name = str(config.init_lora_weights).lower()
    for option, kind in (("eva", EvaConfig), ("corda", CordaConfig), ("lora_ga", LoraGAConfig)):
        field = f"{option}_config"
        value = getattr(config, field)
        if isinstance(value, dict):  # as it is in a file
            setattr(config, field, from_dict(kind, value))
        elif value is None and name == option and option != "lora_ga":
            warnings.warn(f"init_lora_weights='{name}' without `{field}`: defaults are used.", stacklevel=4)
            setattr(config, field, kind())
        if value is not None and name != option:
            warnings.warn(f"`{field}` is ignored unless init_lora_weights='{option}'.", stacklevel=4)
    if isinstance(config.loftq_config, LoftQConfig):
        config.loftq_config = asdict(config.loftq_config)
    if name != "loftq" and config.loftq_config:
        warnings.warn("`loftq_config` is ignored unless init_lora_weights='loftq'.", stacklevel=4)
        config.loftq_config = {}
    if changes_base(config) and config.use_rslora and (config.rank_pattern or config.alpha_pattern):
        warnings.warn(
            f"use_rslora with rank_pattern or alpha_pattern: what init_lora_weights={name!r} does to "
            "the base weights cannot be converted away when the adapter is saved "
            "(path_initial_model_for_weight_conversion).",
            stacklevel=4,
        )
    if name == "loftq":
        if not config.loftq_config:
            raise ValueError("init_lora_weights='loftq' needs a `loftq_config`.")
        options = LoftQConfig(**config.loftq_config)
        if options.loftq_bits not in (2, 4, 8) or options.loftq_iter < 1:
            raise ValueError(
                f"LoftQ takes loftq_bits of 2, 4 or 8 and loftq_iter of 1 or more, got {options}."
            )


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """An object of a class of options, as a file has it: fields that its constructor lacks are set after."""
    later = {f.name for f in fields(kind) if not f.init}  # type: ignore[arg-type]
    made = kind(**{name: value for name, value in values.items() if name not in later})
    vars(made).update({name: value for name, value in values.items() if name in later})
    return made
