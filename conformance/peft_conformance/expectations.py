"""Known failures of an implementation: what they turn a verdict into, and which of them no check answers to.

An entry expects one outcome, for a reason that was looked into; anything else at the same place is news.
Entries are those of `implementations/<name>.yaml`, as they stand there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from packaging.specifiers import SpecifierSet

from peft_conformance import plain
from peft_conformance.cases import Verdict, plain_text

Entry = Mapping[str, Any]
JUDGED = {"pass", "info", "fail", "warn", "error"}  # what an expectation can say something about
OUTCOMES = {"fail": "fail", "warn": "fail", "error": "error"}  # verdict -> the outcome that an entry names


def apply(verdict: Verdict, entries: Sequence[Entry], version: str) -> Verdict:
    """The verdict in the light of the known failures of `version`.

    `expected-failure` when an entry says just this; `changed` when entries speak of this check and none says
    this; `stale` when the check holds though an entry says that it fails. Without an entry, and where nothing
    was judged (blocked, unsupported, not-run, ...), the verdict is returned as it is.
    """
    if verdict.verdict not in JUDGED:
        return verdict
    about = [
        entry
        for entry in entries
        if _applies(entry, version) and _matches(entry, verdict.case, verdict.check)
    ]
    if not about:
        return verdict
    for entry in about:
        if _foretells(entry, verdict):
            return replace(verdict, verdict="expected-failure", detail=entry["because"])
    said = "; or ".join(_said(entry) for entry in about)
    if verdict.verdict in OUTCOMES:
        detail = f"known to end otherwise: {said}. {verdict.detail}".rstrip()
        return replace(verdict, verdict="changed", detail=detail)
    return replace(verdict, verdict="stale", detail=f"holds now; remove the expectation: {said}")


def unmatched(entries: Sequence[Entry], checks: Iterable[str], version: str) -> list[Entry]:
    """The entries for `version` that speak of none of `checks`, ids such as `a.b[dtype=float32]:frozen`."""
    split = [check.rpartition(":")[::2] for check in checks]
    return [
        e
        for e in entries
        if _applies(e, version) and not any(_matches(e, case, check) for case, check in split)
    ]


def _applies(entry: Entry, version: str) -> bool:
    return SpecifierSet(entry.get("versions", "")).contains(version, prereleases=True)


def _matches(entry: Entry, case: str, check: str) -> bool:
    """Whether an entry speaks of this check: its clause, its check id, and for every axis that it names the
    value, or one of the values.
    """
    clause, _, axes = case.removesuffix("]").partition("[")
    wanted = entry["match"]
    return (
        wanted["clause"] == clause
        and wanted["check"] == check
        and all(
            any(_at(axes, axis, value) for value in (values if isinstance(values, list) else [values]))
            for axis, values in wanted.get("axes", {}).items()
        )
    )


def _at(axes: str, axis: str, value: Any) -> bool:
    """Whether the axes of a case, as its id writes them, have this value."""
    return bool(re.search(rf"(^|,){re.escape(f'{axis}={plain_text(value)}')}(,[a-z][\w-]*=|$)", axes))


def _foretells(entry: Entry, verdict: Verdict) -> bool:
    if OUTCOMES.get(verdict.verdict) != entry["outcome"]:
        return False
    if "observed" in entry and not plain.equal(entry["observed"], verdict.observed):
        return False
    return "like" not in entry or re.search(entry["like"], plain.text(verdict.observed, 1000)) is not None


def _said(entry: Entry) -> str:
    named = [f"{word} {plain.text(entry[word])}" for word in ("observed", "like") if word in entry]
    return ", ".join([entry["outcome"], *named]) + f" ({entry['because']})"
