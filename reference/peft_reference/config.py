"""What an adapter is, as data: dataclasses that become `adapter_config.json` and come back from it."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .registry import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, TaskType

CONFIG_NAME = "adapter_config.json"
PEFT_VERSION = (
    "0.21.0+reference"  # written into files: the API level this reference claims, and who wrote them
)

Config = TypeVar("Config", bound="PeftConfig")


@dataclass
class PeftConfig:
    """The fields that every method has.

    Raises ValueError for an unknown `task_type` or fields that exclude each other, TypeError (Python's own)
    for an unknown field.
    """

    task_type: str | TaskType | None = None
    peft_type: str | PeftType | None = None  # set by the subclass, cannot be chosen
    auto_mapping: dict | None = None  # class and module of the base model, when there is no task
    peft_version: str | None = None  # what wrote the config
    base_model_name_or_path: str | None = None
    revision: str | None = None  # of the base model
    inference_mode: bool = False  # nothing trains

    _not_saved: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise ValueError(
                f"task_type={self.task_type!r} is none of {', '.join(t.value for t in TaskType)}."
            )
        if self.peft_version is None:
            self.peft_version = PEFT_VERSION

        self._check_targets()

    def _check_targets(self) -> None:
        """The rules for the fields with which most methods say what they adapt: lists become sets, as in
        PEFT.
        """
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name, None), (list, tuple)):
                setattr(self, name, set(getattr(self, name)))
        for name in ("layers_to_transform", "layers_pattern"):
            if (
                isinstance(getattr(self, "target_modules", None), str)
                and getattr(self, name, None) is not None
            ):
                raise ValueError(f"`{name}` needs a list of `target_modules`, not a regex.")
        if getattr(self, "layers_pattern", None) and getattr(self, "layers_to_transform", None) is None:
            raise ValueError(
                "`layers_pattern` needs `layers_to_transform`: when it is given, that must be too."
            )

    @property
    def is_prompt_learning(self) -> bool:
        """True for the methods that prepend trained vectors instead of adapting layers."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """True for adaption prompt only."""
        return False

    def validate(self) -> None:
        """Raise if this combination of fields cannot be injected. Called before anything changes."""

    def to_dict(self) -> dict[str, Any]:
        """All saved fields as plain data."""
        return {name: value for name, value in asdict(self).items() if name not in self._not_saved}

    def to_json(self) -> str:
        """The text of `adapter_config.json`: keys sorted, indent 2, sets as sorted lists."""
        data = {name: sorted(v) if isinstance(v, set) else v for name, v in self.to_dict().items()}
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `adapter_config.json` into `save_directory`; AssertionError (as PEFT) if that is a file."""
        from .saving import write_files

        if os.path.isfile(save_directory):
            raise AssertionError(f"{save_directory} is a file, and a config is saved in a folder.")
        write_files(Path(save_directory), {CONFIG_NAME: self.to_json()})

    @classmethod
    def from_dict(cls: type[Config], data: dict[str, Any], where: str = "the given dict") -> Config:
        """Build the config class that `peft_type` names.

        Fields that this version does not know are dropped with a warning, so that files of newer releases
        load. Raises TypeError when `peft_type` is missing, ValueError when it is unknown or a field cannot
        be used.
        """
        data = dict(data)
        peft_type = data.pop("peft_type", None)
        if peft_type is None and cls is PeftConfig:
            raise TypeError(f"The config in {where} has no `peft_type` to say which method it is for.")
        if peft_type is not None and peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
            known = ", ".join(t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING)
            raise ValueError(f"Unknown PEFT type passed: {peft_type} (in {where}). Known: {known}.")
        config_cls: Any = cls if peft_type is None else PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]
        known_fields = {f.name for f in fields(config_cls)} - config_cls._not_saved
        unknown = sorted(set(data) - known_fields)
        if unknown:
            warnings.warn(
                f"{config_cls.__name__} has no fields {unknown}, found in {where}: left out. A newer "
                "version may have written them.",
                stacklevel=2,
            )
        return config_cls(**{name: value for name, value in data.items() if name in known_fields})

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Build the config class named by `peft_type=`, with the other arguments as its fields."""
        return PeftConfig.from_dict(kwargs, "the given arguments")

    @classmethod
    def from_json_file(cls, path_json_file: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
        """The plain dict in a config file; ValueError if it is not a JSON object."""
        try:
            data = json.loads(Path(path_json_file).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path_json_file} is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path_json_file} should hold a JSON object, found {type(data).__name__}.")
        return data

    @classmethod
    def from_pretrained(
        cls: type[Config],
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Config:
        """Read `adapter_config.json` from a folder or the Hub; values cannot be overridden by `kwargs`.

        Raises ValueError when there is no such file or it is no JSON object, and as `from_dict`.
        """
        from .saving import find_file

        path = find_file(pretrained_model_name_or_path, CONFIG_NAME, subfolder=subfolder, **kwargs)
        if path is None:
            raise ValueError(f"There is no {CONFIG_NAME} in '{pretrained_model_name_or_path}'.")
        return cls.from_dict(cls.from_json_file(path), str(path))


@dataclass
class PromptLearningConfig(PeftConfig):
    """The fields shared by the prompt-learning methods. The reference knows them in order to refuse them."""

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    @property
    def is_prompt_learning(self) -> bool:
        """True."""
        return True


def get_peft_config(config_dict: dict[str, Any]) -> PeftConfig:
    """The config object that a plain dict with `peft_type` describes."""
    return PeftConfig.from_dict(config_dict)
