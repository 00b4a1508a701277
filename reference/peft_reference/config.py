"""What an adapter is, as data: dataclasses that become `adapter_config.json` and come back from it."""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .registry import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, TaskType, method_name

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
    peft_type: str | PeftType | None = None  # the class says it: a method's config has that method's
    auto_mapping: dict | None = None  # class and module of the base model, when there is no task
    peft_version: str | None = None  # what wrote the config
    base_model_name_or_path: str | None = None
    revision: str | None = None  # of the base model
    inference_mode: bool = False  # nothing trains

    method: ClassVar[PeftType | str | None] = None  # of a registered class
    _not_saved: ClassVar[frozenset[str]] = frozenset()
    _patterns: ClassVar[tuple[str, ...]] = ("rank_pattern", "alpha_pattern")  # fields by patterns for names

    def __post_init__(self) -> None:
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise ValueError(
                f"task_type={self.task_type!r} is none of {', '.join(t.value for t in TaskType)}."
            )
        self.peft_type = self.method or self.peft_type
        if self.peft_version is None:
            self.peft_version = PEFT_VERSION
        self._check_targets()

    def _check_targets(self) -> None:
        """The rules for the fields with which most methods say what they adapt: lists become sets, as in
        PEFT.
        """
        for name in ("target_modules", "exclude_modules"):
            given = getattr(self, name, None)
            if isinstance(given, (list, tuple)):
                setattr(self, name, set(given))
            if isinstance(given, str):
                try:
                    re.compile(given)
                except re.error as error:
                    raise ValueError(f"`{name}`={given!r} is no regular expression: {error}.") from error
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

    @property
    def changes_base(self) -> bool:
        """Whether adapters with this config begin by changing the base weights."""
        return False

    def validate(self) -> None:
        """Raise if this combination of fields cannot be injected. Called before anything changes."""

    def located(self: Config, folder: str | os.PathLike[str], **kwargs: Any) -> Config:
        """This config as read from `folder`, for loading what it names; `kwargs` are `from_pretrained`'s."""
        return self

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
    def from_dict(
        cls: type[Config], data: dict[str, Any], where: str = "the given dict", strict: bool = False
    ) -> Config:
        """Build the config class that `peft_type` names.

        Fields that this version does not know are dropped with a warning, so that files of newer releases
        load. Raises TypeError when `peft_type` is missing, ValueError when it is unknown or a field cannot
        be used; with `strict`, also for values of another type than the field's.
        """
        data = dict(data)
        peft_type = data.pop("peft_type", None)
        if peft_type is None and cls is PeftConfig:
            raise TypeError(f"The config in {where} has no `peft_type` to say which method it is for.")
        config_cls: Any = cls if peft_type is None else PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
        if config_cls is None:
            known = ", ".join(map(method_name, PEFT_TYPE_TO_CONFIG_MAPPING))
            raise ValueError(f"Unknown PEFT type passed: {peft_type} (in {where}). Known: {known}.")
        known_fields = {f.name for f in fields(config_cls)} - config_cls._not_saved
        unknown = sorted(set(data) - known_fields)
        if unknown:
            warnings.warn(
                f"{config_cls.__name__} has no fields {unknown}, found in {where}: left out. A newer "
                "version may have written them.",
                stacklevel=2,
            )
        values = {name: value for name, value in data.items() if name in known_fields}
        if strict:
            _check_types(config_cls, values)
        return config_cls(**config_cls.check_kwargs(**values))

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Build the config class named by `peft_type=`, by default this one, with the other arguments as
        fields.
        """
        return cls.from_dict(kwargs, "the given arguments")

    @classmethod
    def from_json_file(cls, path_json_file: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
        """The plain dict in a config file; ValueError if it is not a JSON object.

        What only Python takes for JSON is refused too: NaN, infinity, and a name given twice.
        """
        try:
            data = json.loads(
                Path(path_json_file).read_text(encoding="utf-8"),
                object_pairs_hook=_without_repeats,
                parse_constant=_no_number,
            )
        except (ValueError, RecursionError) as error:
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
        """Read `adapter_config.json` from a folder or the Hub; `kwargs` go to `hf_hub_download`.

        Values cannot be overridden. Raises ValueError when there is no such file, when it is no JSON object,
        and for a field whose value is not of the field's type; TypeError when it has no `peft_type`.
        """
        from .saving import find_file, naming, not_found

        path = find_file(pretrained_model_name_or_path, CONFIG_NAME, subfolder=subfolder, **kwargs)
        if path is None:
            raise not_found(pretrained_model_name_or_path, CONFIG_NAME, subfolder)
        data = cls.from_json_file(path)
        with naming(path):
            return cls.from_dict(data, str(path), strict=True)

    @staticmethod
    def check_kwargs(**kwargs: Any) -> dict[str, Any]:
        """The given fields; a config class may override this to refuse some before an object is made."""
        return kwargs


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} is given twice")
        found[name] = value
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check_types(config_cls: type, data: dict[str, Any]) -> None:
    """ValueError for a JSON value that cannot be the value of its field."""
    hints = get_type_hints(config_cls)
    for name, value in data.items():
        if not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", hints[name])
            raise ValueError(f"`{name}` cannot be {value!r:.80}: it should be {wanted}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON has the type of a hint, or is how an object of it is written."""
    parts = get_args(hint)
    origin: Any = get_origin(hint) or hint
    if origin is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, set, tuple):
        inner = [part for part in parts if part is not Ellipsis] or [Any]
        return isinstance(value, (list, set, tuple)) and all(
            any(_fits(item, part) for part in inner) for item in value
        )
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, part) for part in parts[1:] for v in value.values())
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if not isinstance(origin, type) or issubclass(origin, Enum):
        return True
    return isinstance(value, origin) or (is_dataclass(origin) and isinstance(value, dict))


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
