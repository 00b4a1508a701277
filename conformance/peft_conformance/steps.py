"""How steps are read: in which order, by which word, under which name, and what configs they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SPECIAL = {"second", "init_off", "init_on"}  # what a config may be for, besides being the method's
NOT_WORDS = {
    "args",
    "as",
    "on",
    "label",
    "raises",
    "index",
    "attempt",
}  # keys of a step beside the one that names it


def flat(steps: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Steps in order, those inside `within` after the step that holds them."""
    for step in steps:
        yield step
        if "within" in step:
            yield from flat(step["within"]["steps"])


def step_word(step: Mapping[str, Any]) -> str:
    """The key that names what a step does."""
    return next(key for key in step if key not in NOT_WORDS)


def step_options(step: dict[str, Any]) -> dict[str, Any]:
    """The mapping that carries a step's `label` and `raises`: the step of a call, the body of any other."""
    body = step[step_word(step)]
    return body if isinstance(body, dict) else step


def step_label(step: dict[str, Any]) -> str | None:
    """The name under which checks speak of a step: its label, or the entity that it makes."""
    options = step_options(step)
    return options.get("label") or step.get("as") or options.get("id")


def is_config(value: dict[str, Any]) -> bool:
    """Whether a mapping of a step makes a config."""
    return "config" in value and value.keys() <= {"id", "config", "fields", *SPECIAL}


def configs(value: Any) -> Iterator[dict[str, Any]]:
    """Every config in a step or a list of steps, made by `make_config` or on the spot."""
    if isinstance(value, dict):
        if is_config(value):
            yield value
        for item in value.values():
            yield from configs(item)
    elif isinstance(value, list):
        for item in value:
            yield from configs(item)
