"""What changes for somebody who moves from one implementation to another: `compare` is the way in.

Each side is judged by its own API level; observations are compared for the programs of both levels, since
what the earlier level promised is what its users rely on. One execution of a program serves every question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from peft_conformance.cases import Case
from peft_conformance.diff import findings, surfaces, verdicts
from peft_conformance.diff.changes import changes
from peft_conformance.diff.sides import Progress, Side
from peft_conformance.diff.timeline import Story
from peft_conformance.expand import Matrix, select
from peft_conformance.judge import judge
from peft_conformance.observations import digest

FORMAT = "1.0"


@dataclass
class Difference:
    """Everything that a comparison found; `left` is what one comes from, `right` what one moves to."""

    left: dict[str, Any]  # headers of the recordings
    right: dict[str, Any]
    selection: dict[str, Any]
    notes: list[str]  # what a reader should know before the rest
    compared: int  # programs that both sides performed
    not_compared: dict[str, int]  # reason -> programs
    turns: list[verdicts.Turn]
    surface: list[surfaces.Finding]
    findings: list[findings.Finding]

    @property
    def red(self) -> bool:
        """Whether something turned red."""
        return any(turn.turn in ("red", "blocked") for turn in self.turns)

    def plain(self) -> dict[str, Any]:
        """As `specs/schema/diff.schema.json` describes it."""
        return {
            "format": FORMAT,
            "left": _side(self.left),
            "right": _side(self.right),
            "selection": self.selection,
            "notes": self.notes,
            "compared": self.compared,
            "not_compared": self.not_compared,
            "turned_red": self.red,
            "verdicts": [turn.plain() for turn in self.turns],
            "surface": [finding.plain() for finding in self.surface],
            "observations": [finding.plain() for finding in self.findings],
        }


def _side(header: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: header["implementation"][key] for key in ("name", "version", "module", "api_level")}
    return known | {key: header[key] for key in ("torch", "transformers", "python", "device")}


@dataclass(frozen=True)
class Plan:
    """The cases that each side is judged by, at its own level, and the programs that both are to perform."""

    left: list[Case]
    right: list[Case]

    @property
    def programs(self) -> list[Case]:
        """One case for each program."""
        return list({(case.id, digest(case.program)): case for case in (*self.right, *self.left)}.values())


def plan(left: Side, right: Side, matrix: Matrix, patterns: Sequence[str] = ()) -> Plan:
    """Which cases are looked at: those of the right level, and of the left level what the right one lacks.

    A smaller matrix is chosen for the right level; the left one then has the same points, so that a case that
    both levels have is compared and not replaced by a neighbour.
    """
    chosen = {side: _by_clause(side, patterns) for side in (left, right)}
    of_right = [case for cases in chosen[right].values() for case in select(cases, matrix)]
    wanted = {case.id for case in of_right}
    known = {case.id for cases in chosen[right].values() for case in cases}
    of_left: list[Case] = []
    for cases in chosen[left].values():
        of_left += [case for case in cases if case.id in wanted]
        of_left += select([case for case in cases if case.id not in known], matrix)
    return Plan(of_left, of_right)


def _by_clause(side: Side, patterns: Sequence[str]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in side.cases:
        if not patterns or any(
            fnmatchcase(case.clause.id, f"{p}*") or fnmatchcase(case.id, p) for p in patterns
        ):
            groups[case.clause.id].append(case)
    return groups


def compare(
    left: Side,
    right: Side,
    matrix: Matrix = "smoke",
    patterns: Sequence[str] = (),
    progress: Progress = lambda side, done, total: None,
) -> Difference:
    """Perform what is missing, judge both sides, and compare what they did."""
    chosen = plan(left, right, matrix, patterns)
    programs = chosen.programs
    with ThreadPoolExecutor(2) as pool:  # each side has a process of its own
        try:
            for done in [pool.submit(side.complete, programs, progress) for side in (left, right)]:
                done.result()
        finally:
            left.stopped = right.stopped = True
    of_left, of_right = _rows(left, chosen.left), _rows(right, chosen.right)
    there = {row["id"] for row in of_right}
    ended = _ended(
        right, [c for c in chosen.left if any(f"{c.id}:{check.id}" not in there for check in c.checks)]
    )
    texts = {clause.id: clause.text for side in (left, right) for clause in side.suite.clauses}
    apart = Counter[str]()
    seen, compared = [], defaultdict[str, list[Mapping[str, Any]]](list)
    for case in programs:
        reason = next((f"{s.name}: {why}" for s in (left, right) if (why := s.cannot(case))), None)
        if reason:
            apart[reason] += 1
            continue
        compared[case.clause.id].append(case.axes)
        story = Story(case.program, right.suite.cards)
        for change in changes(story, left.observation(case), right.observation(case)):
            methods = story.methods_with(change.slots)
            seen.append(findings.Seen(case.id, case.clause.id, case.axes, methods, change))
    turned = verdicts.turns(of_left, of_right, ended, texts)
    return Difference(
        left.header,
        right.header,
        {"matrix": matrix, "profiles": list(right.profiles), "clauses": list(patterns)},
        _notes(left, right),
        sum(map(len, compared.values())),
        dict(sorted(apart.items())),
        turned,
        surfaces.differences(left.recording.surface, right.recording.surface),
        findings.findings(seen, compared, verdicts.cases(turned)),
    )


def _rows(side: Side, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The verdicts of a side at its own level, as rows of a report."""
    return [
        side.run.row(case, check, side.run.verdict(case, check))
        for case in cases
        if not side.cannot(case)
        for check in case.checks
    ]


def _ended(side: Side, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """How a side does at cases of the other level: promises that it does not make."""
    rows = {}
    for case in cases:
        if side.cannot(case):
            continue
        for verdict in judge(case, side.observation(case), side.suite, snapshots=side.run.stored(case)):
            check = next(c for c in case.checks if c.id == verdict.check)
            row = {
                "clause": case.clause.id,
                "check": check.id,
                "level": check.level,
                "detail": verdict.detail,
            }
            row |= {"verdict": verdict.verdict, "expected": verdict.expected, "observed": verdict.observed}
            rows[f"{case.id}:{check.id}"] = row
    return rows


def _notes(left: Side, right: Side) -> list[str]:
    """What else differs between the two sides, and may be the cause."""
    notes = []
    for package in ("transformers", "torch", "python", "device"):
        was, now = left.header[package], right.header[package]
        if was != now:
            notes.append(
                f"They ran with another {package}: {was} and {now}; differences may come from there."
            )
    for side in (left, right):
        if side.live is None:
            notes += [f"{side.name}: {note}" for note in side.recording.notes]
        if side.recording.surface is None:
            notes.append(
                f"{side.name}: the recording holds no surface; names and signatures are not compared."
            )
    return notes
