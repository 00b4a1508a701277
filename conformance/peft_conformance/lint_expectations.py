"""What a schema cannot see of known failures: places that no clause has, missing reasons, repetition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

from peft_conformance import plain
from peft_conformance.cases import Clause, plain_text
from peft_conformance.expectations import Place, overdue, places, review_lines
from peft_conformance.language import Suite
from peft_conformance.propose import TODO
from peft_conformance.ranges import contains, probes
from peft_conformance.reading import Map, Seq, SpecError, SpecErrors, closest, read_yaml
from peft_conformance.schemas import schema_errors
from peft_conformance.steps import flat, step_label, step_options


def is_description(file: Path) -> bool:
    """Whether a file describes an implementation: only these name a module."""
    try:
        return file.is_file() and "module" in read_yaml(file)
    except SpecErrors:
        return False


def lint_expectations(file: Path, suite: Suite, today: date) -> tuple[list[SpecError], list[SpecError]]:
    """The faults of a description, and those of its known failures that were to be reviewed by now."""
    try:
        data = read_yaml(file)
    except SpecErrors as unreadable:
        return unreadable.errors, []
    if errors := schema_errors(file, data, "implementation.schema.json"):
        return errors, []
    entries = data.get("expectations", Seq(1))
    clauses = {clause.id: clause for clause in suite.clauses}
    by_release = data["api_level"] == "package"
    found = [fault for entry in entries for fault in _faults(file, entry, clauses, by_release)]
    late = [
        SpecError(file, entry.line, review_lines([entry])[0]) for entry in entries if overdue([entry], today)
    ]
    return sorted({*found, *_repetitions(file, entries)}), late


def _faults(file: Path, entry: Map, clauses: Mapping[str, Clause], by_release: bool) -> Iterator[SpecError]:
    for key in ("because", "evidence"):
        if str(entry.get(key, "")).startswith(TODO):
            yield SpecError(file, entry.lines[key], f"`{key}` still says {TODO}: look into it and say why")
    for place in places(entry):
        clause = clauses.get(place.clause)
        if clause is None:
            message = f"unknown clause {place.clause!r}"
            yield SpecError(file, entry.line, message, closest(place.clause, clauses))
            continue
        checks = _checks(clause)
        if place.check not in checks:
            message = f"{clause.id} has no check {place.check!r}"
            yield SpecError(file, entry.line, message, closest(place.check, checks))
        yield from _axis_faults(file, entry, place, clause)
        if by_release and not _meet(entry.get("versions", ""), clause.api):
            message = (
                f"{clause.id} is of API {clause.api}, so that it never meets versions {entry['versions']}"
            )
            yield SpecError(file, entry.line, message)


def _checks(clause: Clause) -> set[str]:
    """The ids of a clause's checks in any API range, the derived ones too."""
    named = {check.id for variant in clause.variants for check in variant.checks}
    raising = [(i, step) for i, step in enumerate(flat(clause.when)) if "raises" in step_options(step)]
    derived = {"raises"} if len(raising) == 1 else {f"raises-{step_label(s) or i}" for i, s in raising}
    return {*named, *derived, "frame"}


def _axis_faults(file: Path, entry: Map, place: Place, clause: Clause) -> Iterator[SpecError]:
    for axis, values in place.axes.items():
        if axis not in clause.matrix:
            message = f"{clause.id} has no axis {axis!r}"
            yield SpecError(file, entry.line, message, closest(axis, clause.matrix))
            continue
        known = [plain_text(value) for value in clause.matrix[axis]]
        for value in values:
            if plain_text(value) not in known:
                message = f"axis {axis!r} of {clause.id} has no value {plain_text(value)!r}"
                yield SpecError(file, entry.line, message, closest(plain_text(value), known))


def _meet(one: str, other: str) -> bool:
    return any(contains(one, version) and contains(other, version) for version in probes(one, other))


def _repetitions(file: Path, entries: list[Map]) -> Iterator[SpecError]:
    """Places about which an earlier or later entry says the same, for all their cases and versions."""
    there: dict[tuple[str, str], list[tuple[Place, Map]]] = {}
    for entry in entries:
        for place in places(entry):
            there.setdefault((place.clause, place.check), []).append((place, entry))
    for found in there.values():
        for at, (place, entry) in enumerate(found):
            for other_at, (other, by) in enumerate(found):
                if at != other_at and _says_all(by, other, entry, place):
                    if _says_all(entry, place, by, other) and at < other_at:
                        continue  # each says what the other does: the second is the one too many
                    message = f"{place} is foretold by the entry on line {by.line} already"
                    yield SpecError(file, entry.line, message)
                    break


def _says_all(by: Map, wide: Place, entry: Map, narrow: Place) -> bool:
    """Whether an entry foretells at one place all that another foretells at its own."""
    alike = all(plain.equal(by.get(key), entry.get(key)) for key in ("outcome", "observed", "like"))
    inside = all(
        axis in narrow.axes and set(map(plain_text, narrow.axes[axis])) <= set(map(plain_text, values))
        for axis, values in wide.axes.items()
    )
    one, other = by.get("versions", ""), entry.get("versions", "")
    return alike and inside and all(contains(one, v) for v in probes(one, other) if contains(other, v))
