"""The suite, run in this process on the reference or on a fake of it; verdicts by `clause:check`.

One case of each clause is run, the first of its matrix or the first that fits the fake's `points`. What a run
found is kept in a folder that the test processes share, so that each fake is run once, whoever asks first.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from peft_conformance.cases import Case
from peft_conformance.expand import expand
from peft_conformance.implementations import Implementation, resolve
from peft_conformance.judge import judge
from peft_conformance.language import Suite, find_specs_dir, load_suite
from peft_conformance.run import snapshot_file

from .fake import Fake

REFERENCE = "reference"
PATIENCE = 300.0  # seconds that another process may take for one fake


@dataclass(frozen=True)
class Result:
    """What a run found."""

    verdicts: dict[str, list[str]]  # clause:check -> the verdicts of the cases that were run
    told: dict[str, str] = field(
        default_factory=dict
    )  # clause:check -> what was seen instead, of all that is not a pass
    ours: tuple[str, ...] = ()  # cases that ended in a mistake of the driver or the judge

    def failed(self) -> list[str]:
        """The checks that some case failed."""
        return [id for id, found in self.verdicts.items() if "fail" in found]

    def noticed(self, pattern: str) -> list[str]:
        """The checks that match and that some case failed, or warned of where they are a SHOULD."""
        return [
            id
            for id, found in self.verdicts.items()
            if {"fail", "warn"} & {*found} and fnmatchcase(id, pattern)
        ]


@cache
def suite() -> Suite:
    """The specs of this checkout."""
    return load_suite(find_specs_dir())


@cache
def reference() -> Implementation:
    """The reference, in this process."""
    found = resolve(REFERENCE)
    if found.isolated:
        raise AssertionError("fakes change the reference in this process, so it has to run here")
    return found


@cache
def cases() -> dict[str, list[Case]]:
    """Every case by its clause, in the order of the matrix, but those for a device that may be absent."""
    implementation = reference()
    every = expand(
        suite(), api_level=implementation.api_level, offers=implementation.offers, lacks=implementation.lacks
    ).cases
    by_clause: dict[str, list[Case]] = {}
    for case in every:
        if case.axes.get("device", "cpu") == "cpu":
            by_clause.setdefault(case.clause.id, []).append(case)
    return by_clause


def selected(
    points: Iterable[Mapping[str, Any]] = ({},), caught_by: Collection[str] = ("*:*",)
) -> list[Case]:
    """For each clause that `caught_by` concerns and each point, the first case that has the point's values.

    A pattern concerns all clauses of its topic, which is what ids begin with; without a topic, as in
    `*:raises`, the clauses that have such a check. An axis that a clause does not have, or a value that it
    does not take, is passed over.
    """
    chosen: dict[str, Case] = {}
    for clause, of_clause in cases().items():
        if not any(_concerns(pattern, clause, of_clause[0]) for pattern in caught_by):
            continue
        for point in points:
            fitting = (
                c
                for c in of_clause
                if all(repr(c.axes[a]) == repr(v) for a, v in point.items() if a in c.axes)
            )
            case = next(fitting, of_clause[0])
            chosen[case.id] = case
    return list(chosen.values())


def _concerns(pattern: str, clause: str, case: Case) -> bool:
    topic = pattern.partition(":")[0].partition(".")[0]
    if "*" not in topic:
        return clause.partition(".")[0] == topic
    return any(fnmatchcase(f"{clause}:{check.id}", pattern) for check in case.checks)


def demanded() -> list[str]:
    """`clause:check` of every MUST and MUST NOT check that the reference is judged on."""
    return [
        f"{clause}:{check.id}"
        for clause, of_clause in cases().items()
        for check in of_clause[0].checks
        if check.level.startswith("MUST")
    ]


def perform(fake: Fake | None, chosen: Iterable[Case]) -> Result:
    """Run and judge these cases on the reference, or on a fake of it."""
    if fake is None:
        return _judged(chosen)
    with fake.installed():
        return _judged(chosen)


def _judged(chosen: Iterable[Case]) -> Result:
    implementation = reference()
    verdicts: dict[str, list[str]] = {}
    told: dict[str, str] = {}
    ours: list[str] = []
    for case in chosen:
        observation = implementation.execute(case.program)
        ours += [
            f"{case.id}: {s['error']['message']}"
            for s in observation["steps"]
            if (s["error"] or {}).get("origin") == "driver"
        ]
        for verdict in judge(case, observation, suite(), snapshots=_stored(case)):
            id = f"{case.clause.id}:{verdict.check}"
            verdicts.setdefault(id, []).append(verdict.verdict)
            if verdict.verdict not in ("pass", "info", "warn"):
                told[id] = f"{verdict.verdict} in {case.id}: {verdict.observed} ({verdict.detail})"
    return Result(verdicts, told, tuple(ours))


@cache
def _snapshots() -> Path:
    import peft_conformance

    return Path(peft_conformance.__file__).parent / "__snapshots__"


def _stored(case: Case) -> dict[str, str]:
    files = {c.id: _snapshots() / snapshot_file(case, c) for c in case.checks if c.word == "snapshot"}
    return {check: file.read_text(encoding="utf-8") for check, file in files.items() if file.is_file()}


def shared(fake: Fake, folder: Path) -> Result:
    """The fake's result from the folder; if it is not there, the fake is run, here or by who came first."""
    file, claim = folder / f"{fake.name}.json", folder / f"{fake.name}.claim"
    started = time.monotonic()
    while not file.exists():
        if claimed(claim):
            result = perform(fake, selected(fake.points, fake.caught_by))
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(vars(result)), encoding="utf-8")
            part.replace(file)
            return result
        if time.monotonic() - started > PATIENCE:
            raise TimeoutError(f"another process has not finished {fake.name}")
        time.sleep(0.05)
    return Result(**json.loads(file.read_text(encoding="utf-8")))


def claimed(claim: Path) -> bool:
    """Whether this process is the first to ask."""
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
