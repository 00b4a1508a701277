"""Fixes that upstream's release notes list, and the checks that turned from red to green with them.

`fixes.yaml` is the list, `faults` what lint says of it, `page` the same for people, and `seen` compares it
with what runs of the releases found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from peft_conformance import committed
from peft_conformance.cases import Case, Matrix
from peft_conformance.expand import expand
from peft_conformance.language import SpecErrors, Suite, schema_errors
from peft_conformance.reading import Map, SpecError, closest, read_yaml

BROKEN = frozenset({"fail", "error", "changed", "expected-failure"})  # verdicts of a check that does not hold
HEAD = """# Fixes that the suite shows

Written by `peft-conformance fixes` from [`conformance/fixes.yaml`](../conformance/fixes.yaml); do not edit.

Each is listed in the notes of an upstream release. Its checks fail on the release before and pass on the one
after; `peft-conformance fixes --committed` compares them with the committed results, and
`peft-conformance fixes REPORT...` with reports.
"""


@dataclass(frozen=True)
class Fixes:
    """The file, checked against its schema."""

    file: Path
    implementation: str
    pulls: str  # what a pull request's number is put behind
    entries: tuple[Map, ...]


def find_fixes() -> Path:
    """The list of the checkout that this package lies in, or the one inside an installed wheel."""
    here = Path(__file__).resolve().parent
    return next(f for f in (here / "fixes.yaml", here.parent / "fixes.yaml") if f.is_file())


def load_fixes(file: Path) -> Fixes:
    """Read the list. Raises SpecErrors."""
    data = read_yaml(file)
    if errors := schema_errors(file, data, "fixes.schema.json"):
        raise SpecErrors(errors)
    return Fixes(file, data["implementation"], data["pulls"], tuple(data["fixes"]))


def faults(fixes: Fixes, suite: Suite) -> list[SpecError]:
    """What its schema does not see: order, releases that make no sense, checks that do not exist there."""
    found: list[SpecError] = []
    order = [(Version(fix["release"]), fix["pull"]) for fix in fixes.entries]
    if order != sorted(order):
        line = next(f.line for f, a, b in zip(fixes.entries[1:], order, order[1:], strict=False) if a > b)
        found.append(SpecError(fixes.file, line, "fixes are sorted by release, then by pull request"))
    for fix in fixes.entries:
        before, release, after = (Version(fix[key]) for key in ("before", "release", "after"))
        if not before < release <= after:
            said = f"{fix['before']} < {fix['release']} <= {fix['after']}"
            found.append(SpecError(fixes.file, fix.line, f"before < release <= after does not hold: {said}"))
    for level, wanted in _by_level(fixes).items():
        there = _checks_at(suite, level, wanted)
        for check, line in wanted.items():
            if check not in there:
                near = closest(check, there)
                found.append(SpecError(fixes.file, line, f"no check {check!r} at API level {level}", near))
    return found


def _by_level(fixes: Fixes) -> dict[str, dict[str, int]]:
    """The checks that are spoken of at each level, with their lines."""
    levels: dict[str, dict[str, int]] = {}
    for fix in fixes.entries:
        for key in ("before", "after"):
            checks = fix["checks"]
            levels.setdefault(fix[key], {}).update(zip(checks, checks.lines, strict=True))
    return levels


def _checks_at(
    suite: Suite, level: str, wanted: Iterable[str], matrix: Matrix = "full"
) -> dict[str, tuple[Case, str]]:
    """All checks of the clauses that are spoken of, at one API level: id -> case and the check's own id."""
    named = {check.partition(":")[0].partition("[")[0] for check in wanted}
    cases = expand(suite, api_level=level, matrix=matrix, clauses=named).cases
    return {f"{case.id}:{check.id}": (case, check.id) for case in cases for check in case.checks}


def page(fixes: Fixes) -> str:
    """docs/fixes.md."""
    return "\n".join([HEAD, *_tables(fixes)]).rstrip() + "\n"


def _tables(fixes: Fixes) -> Iterator[str]:
    releases = dict.fromkeys(fix["release"] for fix in fixes.entries)
    yield f"{len(fixes.entries)} fixes in {len(releases)} releases.\n"
    for release in releases:
        yield f"## {release}\n"
        yield "| what was wrong | fails on | passes on | check |\n|---|---|---|---|"
        for fix in fixes.entries:
            if fix["release"] == release:
                pull = f"[#{fix['pull']}]({fixes.pulls}{fix['pull']})"
                checks = "<br>".join(f"`{check}`".replace("|", "\\|") for check in fix["checks"])
                yield f"| {fix['text']} {pull} | {fix['before']} | {fix['after']} | {checks} |"
        yield ""


def of_committed(fixes: Fixes, suite: Suite) -> dict[str, dict[str, str]]:
    """What the committed results of each release say of the checks that are spoken of."""
    files = committed.committed()
    verdicts: dict[str, dict[str, str]] = {}
    for level, wanted in _by_level(fixes).items():
        if file := files.get((fixes.implementation, level)):
            document = committed.read(file)
            there = _checks_at(suite, level, wanted, document["matrix"])
            said = {
                check: committed.verdict_of(document, case.clause.id, name, case.axes)
                for check, (case, name) in there.items()
                if check in wanted
            }
            verdicts[level] = {check: verdict for check, verdict in said.items() if verdict}
    return verdicts


def seen(fixes: Fixes, verdicts: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[Map, str, list[str]]]:
    """For each fix `shown`, `not shown` or `no run`, and what speaks against it.

    `verdicts` are those of each release by the id of the check. A check that a run has not made, since its
    matrix was smaller, says nothing; a fix is shown when at least one check was made by both runs.
    """
    for fix in fixes.entries:
        runs = [(fix[key], verdicts.get(fix[key], {}), key == "before") for key in ("before", "after")]
        made = [c for c in fix["checks"] if all(c in found for _, found, _ in runs)]
        against = [
            f"{release}: {check} is {found[check]}"
            for check in made
            for release, found, broken in runs
            if found[check] not in (BROKEN if broken else {"pass"})
        ]
        yield fix, "not shown" if against else "shown" if made else "no run", against
