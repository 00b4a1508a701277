"""Known failures of an implementation: what they turn a verdict into, and which of them no check answers to.

An entry expects one outcome, for a reason that was looked into; anything else at the same place is news.
Entries are those of `implementations/<name>.yaml`, as they stand there; one entry may name several places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from packaging.version import InvalidVersion, Version

from peft_conformance import plain
from peft_conformance.cases import Verdict, plain_text
from peft_conformance.ranges import contains

Entry = Mapping[str, Any]
JUDGED = {"pass", "info", "fail", "warn", "error"}  # what an expectation can say something about
OUTCOMES = {"fail": "fail", "warn": "fail", "error": "error"}  # verdict -> the outcome that an entry names


@dataclass(frozen=True)
class Place:
    """A check of a clause, at all points of its matrix or at some values of its axes."""

    clause: str
    check: str
    axes: Mapping[str, Sequence[Any]]  # axis -> the values that are meant

    def holds(self, case: str) -> bool:
        """Whether a case of this clause has, for every axis that is named here, one of the values."""
        axes = case.removesuffix("]").partition("[")[2]
        return all(any(_at(axes, axis, v) for v in values) for axis, values in self.axes.items())

    def __str__(self) -> str:
        axes = ",".join(f"{axis}={'|'.join(map(plain_text, v))}" for axis, v in sorted(self.axes.items()))
        return f"{self.clause}{f'[{axes}]' if axes else ''}:{self.check}"


def places(entry: Entry) -> Iterator[Place]:
    """Every place that an entry speaks of, in its own order."""
    for match in _listed(entry["match"]):
        axes = {axis: _listed(values) for axis, values in match.get("axes", {}).items()}
        yield from (Place(match["clause"], check, axes) for check in _listed(match["check"]))


def known_version(version: str | None, api_level: str) -> str:
    """What the `versions` of entries are compared with: the implementation's version, if it is one."""
    try:
        return str(Version(version or ""))
    except InvalidVersion:
        return api_level


def overdue(entries: Iterable[Entry], today: date) -> list[Entry]:
    """The entries that somebody was to look at again before today."""
    return [entry for entry in entries if date.fromisoformat(str(entry["review_by"])) < today]


def review_lines(entries: Iterable[Entry]) -> list[str]:
    """Entries as a list of what to review shows them: the day, the first place, how many more, the reason."""
    lines = []
    for entry in sorted(entries, key=lambda e: str(e["review_by"])):
        first, *more = places(entry)
        others = f" and {len(more)} more" if more else ""
        lines.append(f"{entry['review_by']} {first}{others}: {entry['because']}")
    return lines


class KnownFailures:
    """The entries of a description that speak of one version."""

    def __init__(self, entries: Iterable[Entry], version: str) -> None:
        self.entries = [entry for entry in entries if contains(entry.get("versions", ""), version)]
        self._at: dict[tuple[str, str], list[tuple[Place, Entry]]] = {}
        for entry in self.entries:
            for place in places(entry):
                self._at.setdefault((place.clause, place.check), []).append((place, entry))

    def about(self, case: str, check: str) -> list[Entry]:
        """The entries that speak of this check."""
        there = self._at.get((case.partition("[")[0], check), ())
        return [entry for place, entry in there if place.holds(case)]

    def apply(self, verdict: Verdict) -> Verdict:
        """The verdict in the light of what is known.

        `expected-failure` when an entry says just this; `changed` when entries speak of this check and none
        says this; `stale` when the check holds though an entry says that it fails; `judged` then keeps what
        it was before. Without an entry, and where nothing was judged (blocked, unsupported, not-run, ...),
        the verdict is returned as it is.
        """
        if verdict.verdict not in JUDGED:
            return verdict
        about = self.about(verdict.case, verdict.check)
        if not about:
            return verdict
        verdict = replace(verdict, judged=verdict.verdict)
        for entry in about:
            if foretells(entry, verdict):
                return replace(verdict, verdict="expected-failure", detail=entry["because"])
        said = "; or ".join(_said(entry) for entry in about)
        if verdict.verdict in OUTCOMES:
            detail = f"known to end otherwise: {said}. {verdict.detail}".rstrip()
            return replace(verdict, verdict="changed", detail=detail)
        return replace(verdict, verdict="stale", detail=f"holds now; remove the expectation: {said}")

    def unmatched(self, checks: Iterable[str]) -> list[tuple[Place, Entry]]:
        """The places, with their entries, of none of `checks`, ids such as `a.b[dtype=float32]:frozen`."""
        cases: dict[tuple[str, str], list[str]] = {}
        for case, _, check in (id.rpartition(":") for id in checks):
            cases.setdefault((case.partition("[")[0], check), []).append(case)
        return [
            (place, entry)
            for entry in self.entries
            for place in places(entry)
            if not any(map(place.holds, cases.get((place.clause, place.check), ())))
        ]


def foretells(entry: Entry, verdict: Verdict) -> bool:
    """Whether an entry that speaks of this check expects just this outcome."""
    if OUTCOMES.get(verdict.verdict) != entry["outcome"]:
        return False
    if "observed" in entry and not plain.equal(entry["observed"], verdict.observed):
        return False
    return "like" not in entry or re.search(entry["like"], plain.text(verdict.observed, 1000)) is not None


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _at(axes: str, axis: str, value: Any) -> bool:
    """Whether the axes of a case, as its id writes them, have this value."""
    return bool(re.search(rf"(^|,){re.escape(f'{axis}={plain_text(value)}')}(,[a-z][\w-]*=|$)", axes))


def _said(entry: Entry) -> str:
    named = [f"{word} {plain.text(entry[word])}" for word in ("observed", "like") if word in entry]
    return ", ".join([entry["outcome"], *named]) + f" ({entry['because']})"
