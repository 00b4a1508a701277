"""Verdicts of two sides beside each other: what turned red or green, what came or ended with an API level.

Known failures count as what they are: a release that fails a promise does so whether or not somebody has
written that down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peft_conformance import plain

RED, GREEN = ("fail", "error"), ("pass",)
STATES = {
    **dict.fromkeys(RED, "red"),
    **dict.fromkeys(GREEN, "green"),
    "warn": "warning",
    "blocked": "blocked",
}

# What may have become of a check, the most telling first, with the heading that it stands under.
TURNS = {
    "red": "Turned red",
    "red-otherwise": "Red in another way",
    "blocked": "Blocked now: a prerequisite is red",
    "warning": "Turned into a warning",
    "green": "Turned green",
    "ended-broken": "Promises of the earlier level that ended, and are no longer kept",
    "new-red": "Promises of the later level, red",
    "new-green": "Promises of the later level, kept",
    "ended-kept": "Promises of the earlier level that ended, and are still kept",
}
TELLING = ("red", "red-otherwise", "blocked", "warning", "green", "ended-broken", "new-red")


@dataclass
class Turn:
    """What became of one check of a clause at some points of its matrix."""

    turn: str
    clause: str
    check: str
    level: str
    text: str  # the clause's sentence
    points: list[str]  # check ids
    example: str
    expected: Any
    was: Any  # observed on the left, where there was something to observe
    now: Any
    because: str | None = None  # of a known failure, on the side that is red

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))


Row = Mapping[str, Any]


def state(row: Row) -> str | None:
    """`red`, `green`, `warning` or `blocked`, known failures not considered; None where nothing is judged."""
    return STATES.get(row.get("judged") or row["verdict"])


def turns(
    left: Iterable[Row], right: Iterable[Row], ended: Mapping[str, Row], texts: Mapping[str, str]
) -> list[Turn]:
    """What became of each check, grouped by clause and check.

    `ended` has, for checks of the left level that the right one does not know, how the right side does there.
    """
    rows = [{row["id"]: row for row in side} for side in (left, right)]
    groups: dict[tuple[str, str, str], list[tuple[str, Row | None, Row | None]]] = defaultdict(list)
    for id in [*rows[0], *(id for id in rows[1] if id not in rows[0])]:
        was, now = rows[0].get(id), rows[1].get(id)
        turn = _turn(was, now if now is not None else ended.get(id), now is None)
        if turn is not None:
            some = was if was is not None else now
            assert some is not None
            groups[turn, some["clause"], some["check"]].append(
                (id, was, now if now is not None else ended.get(id))
            )
    found = [_grouped(*key, members, texts) for key, members in groups.items()]
    return sorted(found, key=lambda t: (list(TURNS).index(t.turn), -len(t.points), t.clause, t.check))


def _turn(was: Row | None, now: Row | None, has_ended: bool) -> str | None:
    before, after = (state(row) if row is not None else None for row in (was, now))
    if was is None:
        return {"red": "new-red", "green": "new-green"}.get(after or "")
    if has_ended:
        return {"red": "ended-broken", "green": "ended-kept"}.get(after or "") if before == "green" else None
    if before == after:
        differs = before == "red" and now is not None and not _same(was["observed"], now["observed"])
        return "red-otherwise" if differs else None
    if after == "green":
        return "green" if before in ("red", "warning") else None
    return after if before in ("green", "red", "warning") else None


def _same(was: Any, now: Any) -> bool:
    """Whether two observed values are the same but for what differs between any two runs."""
    if isinstance(was, str) and isinstance(now, str):
        return plain.message(was) == plain.message(now)
    return plain.equal(was, now)


def _grouped(
    turn: str,
    clause: str,
    check: str,
    members: list[tuple[str, Row | None, Row | None]],
    texts: Mapping[str, str],
) -> Turn:
    example, was, now = members[0]
    shown = now if now is not None else was
    assert shown is not None
    red = next((r for r in (now, was) if r is not None and state(r) != "green"), None)
    known = red is not None and red["verdict"] == "expected-failure"
    return Turn(
        turn, clause, check, shown["level"], texts.get(clause, ""),
        points=sorted(id for id, _, _ in members),
        example=example,
        expected=shown["expected"],
        was=was["observed"] if was is not None else None,
        now=now["observed"] if now is not None else None,
        because=red["detail"] if known and red is not None else None,
    )  # fmt: skip


def cases(found: Iterable[Turn]) -> dict[str, set[str]]:
    """The checks that tell of something, by the case that they belong to."""
    result: dict[str, set[str]] = defaultdict(set)
    for turn in found:
        for id in turn.points if turn.turn in TELLING else ():
            result[id.rpartition(":")[0]].add(f"{turn.clause}:{turn.check}")
    return result


def totals(found: Iterable[Turn]) -> dict[str, dict[str, int]]:
    """How many checks took each turn, and in how many clauses."""
    result: dict[str, dict[str, int]] = {}
    for turn in TURNS:
        these = [t for t in found if t.turn == turn]
        if these:
            clauses = len({t.clause for t in these})
            result[turn] = {"checks": sum(len(t.points) for t in these), "clauses": clauses}
    return result
