"""One difference between two observations of one program."""

from __future__ import annotations

from dataclasses import dataclass, field

ROUNDING = 1e-5  # of the largest number: what two ways to compute the same may differ by in float32
NOTHING = "nothing"
TIMELESS = (  # what is so whatever was done before
    "files",
    "config",
    "signature",
    "message",
    "values",
    "rounding",
)


@dataclass(frozen=True)
class Change:
    """One difference, in words that fit wherever it occurs; `place` and `slots` are this one's own."""

    kind: str  # a key of findings.KINDS
    subject: str
    was: str
    now: str
    during: tuple[str, ...] = ()  # what was done since the last look
    place: str = field(default="", compare=False)
    slots: frozenset[str] = field(default=frozenset(), compare=False)
