"""All fakes, by name."""

from . import (
    activating,
    broad,
    computing,
    filing,
    initialising,
    injecting,
    lora_options,
    mixing,
    models,
    other_methods,
    saving,
    shared,
    state_dicts,
    tasks,
    tokens,
    unloading,
    wrapping,
)
from .fake import FAKES, Fake

__all__ = [
    "FAKES",
    "Fake",
    "activating",
    "broad",
    "computing",
    "filing",
    "initialising",
    "injecting",
    "lora_options",
    "mixing",
    "models",
    "other_methods",
    "saving",
    "shared",
    "state_dicts",
    "tasks",
    "tokens",
    "unloading",
    "wrapping",
]
