"""What the page holds: reports beside the suite, as small as JSON makes it.

Texts are kept once (`Texts`). The verdicts of a check are a letter for each point of its clause's matrix,
run-length encoded; only what is not a plain pass has its values, one entry for all points that agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from peft_conformance.cases import Check, Clause, Verdict, plain_text
from peft_conformance.expand import case_of, expand
from peft_conformance.expectations import KnownFailures
from peft_conformance.implementations import Implementation, ImplementationError, describe, described
from peft_conformance.language import Suite
from peft_conformance.ranges import contains
from peft_conformance.report import (
    FILE,
    PART,
    VERDICTS,
    Results,
    as_text,
    files_at,
    one_line,
    read,
    read_partial,
)
from peft_conformance.script import reproduce
from peft_conformance.steps import configs

LETTERS = dict(zip(VERDICTS, "pfwiekscbuan", strict=True))  # verdict -> how the page writes it
ABSENT = "-"  # at a point that a report does not have
WITH_SCRIPT = ("fail", "error", "changed", "warn", "expected-failure")
REASONED = ("expected-failure", "changed", "stale", "blocked")  # their detail is the reason
VALUES = 5  # different outcomes of one check that are told apart; the rest is counted
LONGEST = 3000  # characters of a value


@dataclass
class Texts:
    """Texts by number: each is kept once, however often it is said."""

    numbers: dict[str, int] = field(default_factory=dict)

    def __call__(self, text: str) -> int:
        """The text's number."""
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]}… and {len(text) - LONGEST} characters more, in results.jsonl"
        return self.numbers.setdefault(text, len(self.numbers))

    def blocks(self, text: str) -> list[int]:
        """A long text by its paragraphs: scripts have most of theirs in common."""
        return [self.numbers.setdefault(block, len(self.numbers)) for block in text.split("\n\n")]


@dataclass
class Column:
    """A report as a column of the page: its results, and how its implementation is described, if it is."""

    results: Results
    label: str
    implementation: Implementation

    @cached_property
    def known(self) -> KnownFailures:
        """The known failures of its version, as they are described today."""
        return KnownFailures(self.implementation.expectations, self.implementation.version)

    @property
    def api_level(self) -> str:
        """The API level that it was judged by."""
        return str(self.results.header["implementation"]["api_level"])

    def about(self) -> dict[str, Any]:
        """What the page says of it."""
        header = self.results.header
        return {
            "label": self.label,
            "about": one_line(header).partition(" · ")[2],
            "api": self.api_level,
            "caveats": self.results.caveats(),
            "built": self.results.built,
            "matrix": header["matrix"],
            "profiles": header["profiles"],
            "left": [*self.results.reasons(), *(f"to be reviewed: {line}" for line in self.results.overdue)],
            "ends": [[end["name"], end["complaint"]] for end in self.results.loose_ends],
            "lacks": {
                name.removeprefix("method-"): reason
                for name, reason in self.implementation.lacks.items()
                if name.startswith("method-")
            },
        }


def find_reports(paths: Iterable[Path]) -> list[Results]:
    """The reports at these paths: results files, report folders, and folders of those by name and version.

    Raises ValueError or OSError, naming the path, where there is none or it cannot be read.
    """
    found: list[Results] = []
    for path in paths:
        if not path.is_dir():
            found.append(read(path))
        elif files := files_at(path, partial=True):
            reports = [read_partial(file) if file.name == PART else read(file) for file in files]
            found += sorted(reports, key=_by_name)
        else:
            raise ValueError(f"{path}: no {FILE} there, and in no folder of it")
    return found


def _by_name(results: Results) -> tuple[str, Version]:
    said = results.header["implementation"]
    try:
        return said["name"], Version(str(said["version"]))
    except InvalidVersion:
        return said["name"], Version("0")


def columns(reports: Sequence[Results]) -> list[Column]:
    """A column for each report, with labels that tell them apart."""
    made = []
    for results in reports:
        said = results.header["implementation"]
        label = f"{said['name']} {said['version']}"
        made.append(Column(results, label, _described(said)))
    for label, same in itertools.groupby(sorted(made, key=lambda c: c.label), key=lambda c: c.label):
        for number, column in enumerate(list(same)[1:], 2):
            column.label = f"{label} ({number})"
    return made


def _described(said: Mapping[str, Any]) -> Implementation:
    """The implementation that a report's header speaks of, as far as its description is at hand."""
    facts = {key: said[key] for key in ("version", "api_level", "package", "names") if key in said}
    try:
        if said["name"] in (known := described()):
            return replace(describe(known[said["name"]]), **facts)
    except ImplementationError:
        pass  # a damaged description takes names and links from the page, nothing else
    return Implementation(said["name"], said["module"], **facts)


def collect(suite: Suite, made: Sequence[Column]) -> dict[str, Any]:
    """Everything that the page's script reads."""
    page = Page(suite, made)
    rows = [page.row(clause_id) for clause_id in page.clause_ids()]
    return {
        "columns": [column.about() for column in made],
        "methods": [
            [name.lower(), card.get("title", name), card.get("api", ">=0")]
            for name, card in sorted(suite.cards.items())
        ],
        "absent": [[_lies_in(column, card) for column in made] for _, card in sorted(suite.cards.items())],
        "consumers": sorted(
            {name for c in made for row in c.results.rows for name in row.get("consumers", ())}
        ),
        "clauses": rows,
        "texts": list(page.texts.numbers),
    }


def _lies_in(column: Column, card: Mapping[str, Any]) -> int:
    """1 where the column's API level has no such method."""
    return int(not contains(card.get("api", ">=0"), column.api_level))


class Page:
    """The rows of the page, and the texts that they share."""

    def __init__(self, suite: Suite, made: Sequence[Column]) -> None:
        self.suite, self.columns, self.texts = suite, made, Texts()
        self.clauses = {clause.id: clause for clause in suite.clauses}
        self.found: list[dict[str, list[dict[str, Any]]]] = []  # of each column: clause -> its rows
        for column in made:
            by_clause: dict[str, list[dict[str, Any]]] = {}
            for row in column.results.sorted_rows():
                by_clause.setdefault(row["clause"], []).append(row)
            self.found.append(by_clause)

    def clause_ids(self) -> list[str]:
        """The suite's clauses in the order of their files, then those that only reports know."""
        strangers = sorted({clause for found in self.found for clause in found} - self.clauses.keys())
        return [*self.clauses, *strangers]

    def row(self, clause_id: str) -> dict[str, Any]:
        """A clause with what every column says of it."""
        clause = self.clauses.get(clause_id)
        per_column = [found.get(clause_id, []) for found in self.found]
        everything = [row for rows in per_column for row in rows]
        points = Points(everything)
        checks = list(dict.fromkeys(row["check"] for row in everything))
        levels = {row["check"]: row["level"] for row in everything}
        told = self._told(clause) if clause else self._stranger(everything[0])
        lines = _lines(clause) if clause else {}
        return {
            "id": clause_id,
            **told,
            "axes": points.axes,
            "values": points.values,
            "points": points.encoded(),
            "users": points.users(),
            "of": self._methods(clause, points),
            "speaks": self._speaks(clause),
            "checks": [
                [check, levels[check], *(lines.get(check) or (None, None))]
                for check in _in_order(checks, lines)
            ],
            "cells": [
                self._cell(column, rows, points, _in_order(checks, lines), clause)
                for column, rows in zip(self.columns, per_column, strict=True)
            ],
        }

    # --- what is said of a clause

    def _told(self, clause: Clause) -> dict[str, Any]:
        told = {
            "level": clause.level,
            "text": clause.text,
            "topic": clause.topic,
            "kind": clause.file.parent.name,
            "profile": clause.profile,
            "api": clause.api,
            "file": str(clause.file.relative_to(self.suite.specs.parent)),
            "line": clause.line,
            "sources": [self._source(source) for source in clause.sources],
        }
        return {**told, "decided": clause.decided} if clause.decided else told

    def _source(self, source: Mapping[str, Any]) -> list[int | None]:
        """Document, place and sentence; or what the releases showed."""
        if "observed" in source:
            users = source.get("relied-on-by")
            also = f", relied on by {', '.join(users)}" if users else ""
            return [self.texts(f"observed in {source['observed']}{also}"), None, None]
        document: Mapping[str, Any] = self.suite.sources.get(source["document"], {})
        sentence: Mapping[str, Any] = next(
            (s for s in document.get("sentences", ()) if s["id"] == source["sentence"]), {}
        )
        title = document.get("title", source["document"])
        said = (title, sentence.get("place"), sentence.get("says"))
        return [None if text is None else self.texts(text) for text in said]

    def _stranger(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "level": row["level"],
            "text": "A clause of the report that is not in the specs this page was made with.",
            "topic": "not in these specs",
            "kind": "",
            "profile": row["profile"],
            "api": "",
            "file": "",
            "line": 0,
            "sources": [],
        }

    def _methods(self, clause: Clause | None, points: Points) -> list[Any]:
        """For each axis the method that each of its values names; then the methods of the clause itself."""
        by_axis = [[self._method(value) for value in values] for values in points.values]
        made = configs([*clause.given, *clause.when]) if clause else ()
        return [
            by_axis,
            self._named(config["config"] for config in made if isinstance(config["config"], str)),
        ]

    def _speaks(self, clause: Clause | None) -> list[str]:
        """The methods that a clause's matrix runs over, in whatever report."""
        return self._named(clause.matrix.get("method", ()) if clause else ())

    def _named(self, values: Iterable[str]) -> list[str]:
        return sorted({method for value in values if (method := self._method(value))})

    def _method(self, value: str) -> str | None:
        method = self.suite.method(value)
        return method.card["method"].lower() if method else None

    # --- what a column says of it

    def _cell(
        self,
        column: Column,
        rows: Sequence[Mapping[str, Any]],
        points: Points,
        checks: Sequence[str],
        clause: Clause | None,
    ) -> Any:
        """The verdicts of each check, then the outcomes; without a row, the verdict that there is none of."""
        if not rows:
            return self._no_rows(column, clause)
        by_check: dict[str, list[Mapping[str, Any]]] = {check: [] for check in checks}
        for row in rows:
            by_check[row["check"]].append(row)
        verdicts = [_run_length(points.letters(by_check[check])) for check in checks]
        outcomes = [
            outcome
            for number, check in enumerate(checks)
            for outcome in self._outcomes(column, number, by_check[check], points, clause)
        ]
        return [verdicts, outcomes]

    def _no_rows(self, column: Column, clause: Clause | None) -> list[Any]:
        if not column.results.built:
            return [LETTERS["not-run"], self.texts(column.results.header["reason"])]
        if clause is None:
            return [LETTERS["not-run"], self.texts("this report has no such clause")]
        if not contains(clause.api, column.api_level):
            said = f"promised for API {clause.api}; judged at {column.api_level}"
            return [LETTERS["not-applicable"], self.texts(said)]
        asked = column.results.header["profiles"]
        if asked and clause.profile not in asked:
            return [LETTERS["not-run"], self.texts(f"only {', '.join(asked)} was asked for")]
        implementation = column.implementation
        chosen = expand(
            self.suite,
            api_level=column.api_level,
            matrix="smoke",
            offers=implementation.offers,
            lacks=implementation.lacks,
            clauses={clause.id},
        )
        for skipped in chosen.skipped:
            return [LETTERS[skipped.verdict], self.texts(skipped.reason)]
        reasons = {e["reason"] for e in column.results.left_out if e["verdict"] == "not-run"}
        selection = column.results.header.get("selection") or "not selected"
        said = f"left out of this report: {'; '.join(sorted(reasons)) or selection}"
        return [LETTERS["not-run"], self.texts(said)]

    def _outcomes(
        self,
        column: Column,
        number: int,
        rows: Sequence[Mapping[str, Any]],
        points: Points,
        clause: Clause | None,
    ) -> Iterator[list[Any]]:
        """The outcomes of a check: verdict, points, expected, observed, detail, and what helps to see it."""
        groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        shown: dict[str, int] = {}  # verdict -> how many outcomes it has already
        for row in rows:
            # of passes one stands for all; a detail that is no reason only says how far apart values are
            said = () if row["verdict"] == "pass" else (as_text(row["expected"]), as_text(row["observed"]))
            said += (row["detail"],) if row["verdict"] in REASONED else ()
            groups.setdefault((row["verdict"], *said), []).append(row)
        for (verdict, *_), group in groups.items():
            shown[verdict] = shown.get(verdict, 0) + 1
            if shown[verdict] > VALUES:
                continue
            first = group[0]
            values = [self.texts(as_text(first[key])) for key in ("observed", "detail")]
            in_error = first.get("judged", verdict) == "error"  # and so compared with nothing
            expected = None if in_error else self.texts(as_text(first["expected"]))
            places = [] if verdict == "pass" else [points.number(row) for row in group]
            outcome = [number, LETTERS[verdict], places, expected, *values]
            wanted = verdict in WITH_SCRIPT and shown[verdict] == 1
            script = self._script(column, clause, first) if wanted else None
            known = self._known(column, first) if verdict == "expected-failure" else None
            yield [*outcome, script, known] if script or known else outcome

    def _script(self, column: Column, clause: Clause | None, row: Mapping[str, Any]) -> list[int] | None:
        """The reproducing script of one check, or None where these specs have no such case any more."""
        case = case_of(self.suite, clause, row["case"], column.api_level) if clause else None
        if case is None or row["check"] not in {check.id for check in case.checks}:
            return None
        told = [row[key] for key in ("case", "check", "verdict", "expected", "observed", "detail")]
        return self.texts.blocks(reproduce(case, Verdict(*told), column.implementation))

    def _known(self, column: Column, row: Mapping[str, Any]) -> list[Any]:
        """Review date and link of the known failure that gave this reason, where it is still described."""
        for entry in column.known.about(row["case"], row["check"]):
            if entry["because"] == row["detail"]:
                return [str(entry["review_by"]), entry.get("link")]
        return ["", None]


class Points:
    """The points of a clause's matrix that any report has, numbered; each a value for every axis."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.axes: list[str] = []
        self.values: list[list[str]] = []
        self._numbers: dict[str, int] = {}
        self._points: list[Mapping[str, Any]] = []
        self._relied: list[list[str]] = []  # by point: the consumers that rely on it
        for row in rows:
            if row["case"] not in self._numbers:
                self._numbers[row["case"]] = len(self._points)
                self._points.append(row["axes"])
                self._relied.append(row.get("consumers", []))
        for axes in self._points:
            self.axes += [axis for axis in axes if axis not in self.axes]
        for axis in self.axes:
            self.values.append(list(dict.fromkeys(plain_text(axes.get(axis, "")) for axes in self._points)))

    def encoded(self) -> list[list[int]]:
        """Each point as the number of its value on each axis."""
        columns = [{value: n for n, value in enumerate(values)} for values in self.values]
        return [
            [of[plain_text(axes.get(axis, ""))] for axis, of in zip(self.axes, columns, strict=True)]
            for axes in self._points
        ]

    def users(self) -> dict[str, str]:
        """The consumers that rely on the clause, each with a letter for each point: `y` where it does."""
        names = sorted({name for relied in self._relied for name in relied})
        return {
            name: _run_length("".join("y" if name in relied else ABSENT for relied in self._relied))
            for name in names
        }

    def number(self, row: Mapping[str, Any]) -> int:
        """Which point a row is of."""
        return self._numbers[row["case"]]

    def letters(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """The verdicts of one check, a letter for each point."""
        letters = [ABSENT] * len(self._points)
        for row in rows:
            letters[self.number(row)] = LETTERS[row["verdict"]]
        return "".join(letters)


def _run_length(letters: str) -> str:
    """`pppf` as `3pf`."""
    runs = ((letter, len(list(run))) for letter, run in itertools.groupby(letters))
    return "".join(f"{number if number > 1 else ''}{letter}" for letter, number in runs)


def _lines(clause: Clause) -> dict[str, tuple[int, str | None]]:
    """Where each check stands in the clause's file, and the reason that it gives, in the clause's order."""
    own: dict[str, Check] = {}
    for variant in clause.variants:
        own.update({check.id: check for check in variant.checks if check.id not in own})
    return {
        **{check.id: (check.line, check.because) for check in own.values()},
        "frame": (clause.lines.get("modifies", clause.line), None),
    }


def _in_order(checks: Sequence[str], lines: Mapping[str, Any]) -> list[str]:
    """Checks as their clause lists them; those that it implies come last."""
    order = {check: number for number, check in enumerate(lines)}
    return sorted(checks, key=lambda check: (order.get(check, len(order)), check))
