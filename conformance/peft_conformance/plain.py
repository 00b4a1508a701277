"""Plain values (whatever JSON can hold): when two are equal, and how they stand in a line of text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from peft_conformance.cases import Plain

# What differs between two runs of one program: addresses, the order of sets, absolute paths.
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
_SET = re.compile(r"\{('[^']*'(?:, '[^']*')+)\}")
_PATH = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\](?:[\w.+~-]+[/\\])+[\w.+~-]*")


def equal(left: Plain, right: Plain) -> bool:
    """Equality as in JSON: `true` is not 1, 1 is 1.0, and NaN equals NaN since it says the same thing."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right or (left != left and right != right)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    return type(left) is type(right) and bool(left == right)


def text(value: Plain, limit: int = 120) -> str:
    """A value on one line, in JSON's spelling; strings stand bare, long ones end in an ellipsis."""
    line = (
        value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    )
    return line if len(line) <= limit else line[: limit - 1] + "…"


def few(lines: Iterable[str], limit: int = 5) -> list[str]:
    """The first of many lines and how many more there are; the order is the caller's."""
    lines = list(lines)
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more"]


def message(words: str, limit: int = 300) -> str:
    """A message of the implementation without what differs between two runs of the same program."""
    words = _PATH.sub("<path>", _ADDRESS.sub("<address>", " ".join(words.split())))
    return text(_SET.sub(lambda found: "{" + ", ".join(sorted(found[1].split(", "))) + "}", words), limit)
