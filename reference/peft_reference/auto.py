"""A saved adapter and the base model that its config names, in one call."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Sequence
from typing import Any, ClassVar

from .config import PeftConfig
from .model import PeftModel
from .tasks import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)

IMPORT_ALLOWLIST = ("transformers", "diffusers", "lerobot", "megatron-core")  # PEFT's


class _BaseAutoPeftModel:
    """Loads with `from_pretrained`; there are no objects of these classes (OSError)."""

    _target_class: ClassVar[str | None] = None  # transformers' class for the base model
    _target_peft_class: ClassVar[type[PeftModel]] = PeftModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise OSError(f"{name} is not instantiated: call {name}.from_pretrained.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Load the base model that an adapter's config names, and the adapter (of this `revision`) onto it.

        `kwargs` that neither `PeftModel.from_pretrained` nor the Hub know go to the base model. The class of
        the base model is found through the task; without one, it is imported as `auto_mapping` says, if its
        library is in `import_allowlist` (default: `IMPORT_ALLOWLIST`). Raises ValueError for a task that is
        not this class's, for a class that cannot be found or may not be imported, and for a config that names
        no base model; and as `PeftConfig.from_pretrained` and `PeftModel.from_pretrained`.
        """
        own, for_base = cls._divided(kwargs)
        if config is None:
            config = PeftConfig.from_pretrained(pretrained_model_name_or_path, revision=revision, **own)
        base_class = cls._base_class(config, import_allowlist)
        if config.base_model_name_or_path is None:
            raise ValueError(f"The config of {pretrained_model_name_or_path} names no base model.")
        base = base_class.from_pretrained(
            config.base_model_name_or_path, revision=config.revision or "main", **for_base
        )
        return cls._target_peft_class.from_pretrained(
            base,
            pretrained_model_name_or_path,
            adapter_name=adapter_name,
            is_trainable=is_trainable,
            config=config,
            revision=revision,
            **own,
        )

    @staticmethod
    def _divided(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what is for the adapter, what is for the base model)."""
        from huggingface_hub import hf_hub_download

        known = {
            *inspect.signature(PeftModel.from_pretrained).parameters,
            *inspect.signature(hf_hub_download).parameters,
            *("torch_device", "ignore_mismatched_sizes"),
        }
        own = {name: value for name, value in kwargs.items() if name in known}
        return own, {name: value for name, value in kwargs.items() if name not in known}

    @classmethod
    def _base_class(cls, config: PeftConfig, import_allowlist: Sequence[str] | None) -> Any:
        task = getattr(config.task_type, "value", config.task_type)
        if cls._target_class is not None:
            wanted = cls._target_peft_class if task is None else MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task]
            if wanted is not cls._target_peft_class:
                raise ValueError(
                    f"The adapter is for the task {task}, which is a {wanted.__name__}; {cls.__name__} loads "
                    f"a {cls._target_peft_class.__name__}."
                )
            return getattr(importlib.import_module("transformers"), cls._target_class)
        if task is not None:
            raise ValueError(
                f"{cls.__name__} is for adapters without a task; this one has {task}: use the "
                "class of that task."
            )
        mapping = config.auto_mapping or {}
        library, name = mapping.get("parent_library"), mapping.get("base_model_class")
        if not library or not name:
            raise ValueError(
                "The config has neither a task nor an auto_mapping that names the base model's class."
            )
        allowed = IMPORT_ALLOWLIST if import_allowlist is None else import_allowlist
        if not {library, library.partition(".")[0]} & {*allowed}:
            raise ValueError(
                f"The config wants to import '{library}', which is not in the import allowlist {[*allowed]}. "
                "If that is safe, name it in `import_allowlist`."
            )
        found = getattr(importlib.import_module(library), name, None)
        if not hasattr(found, "from_pretrained"):
            raise ValueError(f"'{library}' has no model class {name!r} that can be loaded.")
        return found


class AutoPeftModel(_BaseAutoPeftModel):
    """For adapters without a task: the base model is of the class that their config records."""


class AutoPeftModelForCausalLM(_BaseAutoPeftModel):
    """For language models."""

    _target_class = "AutoModelForCausalLM"
    _target_peft_class = PeftModelForCausalLM


class AutoPeftModelForSeq2SeqLM(_BaseAutoPeftModel):
    """For encoder-decoder language models."""

    _target_class = "AutoModelForSeq2SeqLM"
    _target_peft_class = PeftModelForSeq2SeqLM


class AutoPeftModelForSequenceClassification(_BaseAutoPeftModel):
    """For classifiers of sequences."""

    _target_class = "AutoModelForSequenceClassification"
    _target_peft_class = PeftModelForSequenceClassification


class AutoPeftModelForTokenClassification(_BaseAutoPeftModel):
    """For classifiers of tokens."""

    _target_class = "AutoModelForTokenClassification"
    _target_peft_class = PeftModelForTokenClassification


class AutoPeftModelForQuestionAnswering(_BaseAutoPeftModel):
    """For models that find answers in a text."""

    _target_class = "AutoModelForQuestionAnswering"
    _target_peft_class = PeftModelForQuestionAnswering


class AutoPeftModelForFeatureExtraction(_BaseAutoPeftModel):
    """For models that give the features of a text."""

    _target_class = "AutoModel"
    _target_peft_class = PeftModelForFeatureExtraction
