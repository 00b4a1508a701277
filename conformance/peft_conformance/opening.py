"""What a run is asked for, and what it knows before its first case.

The latter is kept for the next process that asks the same of the same files: under `pytest -n` the controller
performs nothing and, knowing this, need not import the implementation and torch before its workers begin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from peft_conformance.cases import Case, Matrix
from peft_conformance.environments import ImplementationError
from peft_conformance.fingerprint import implementation_code, snapshots_digest
from peft_conformance.implementations import find
from peft_conformance.report import Results
from peft_conformance.schemas import find_specs_dir
from peft_conformance.suite_cache import Shelf

if TYPE_CHECKING:
    from peft_conformance.run import Run

SNAPSHOTS = "__snapshots__"  # the folder of stored snapshots, beside the specs or this package


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    implementation: str | None
    device: str = "cpu"
    api_level: str | None = None
    profiles: tuple[str, ...] = ()
    matrix: Matrix = "full"
    isolate: bool = False
    specs: Path | None = None
    update_snapshots: bool = False
    selection: str = ""  # what -k and node ids select
    changed: str | None = None  # only clauses that have changed since this git revision
    clauses: Collection[str] | None = None  # which those are, where another process has found out


@dataclass(frozen=True)
class Opening:
    """The report before its first row, and the cases that import what takes long."""

    results: Results
    importing: frozenset[str]


def of(run: Run) -> Opening:
    """What a run knows that has begun."""
    return Opening(run.results(), frozenset(case.id for case in run.cases if _imports_much(case)))


def _imports_much(case: Case) -> bool:
    """Whether a case needs transformers or torch's compiler, seconds of imports each."""
    return "transformers" in case.requires or any("compile" in step for step in case.clause.steps)


def shelf(options: Options) -> Shelf | None:
    """Where the opening of a run lies that is asked for like this; None where it has to be found out.

    It holds as long as these are the same: the specs and our own code, the snapshots, the implementation's
    description and code, what is installed and where, the day.
    """
    asked = replace(options, selection="")
    if asked != Options(options.implementation, matrix=options.matrix, profiles=options.profiles):
        return None
    try:
        implementation = find(options.implementation or "")
    except ImplementationError:
        return None
    installed = [(place, os.stat(place).st_mtime_ns) for place in sys.path if place.endswith("-packages")]
    snapshots = snapshots_digest(Path(__file__).parent / SNAPSHOTS)
    code = implementation_code(implementation)
    facts = (implementation, code, snapshots, sys.path, installed, date.today())
    return Shelf("openings", find_specs_dir(), asked, facts)


def kept(options: Options, where: Shelf | None) -> Opening | None:
    """What an earlier process has kept there."""
    found: Opening | None = where.get() if where else None
    if found is not None:
        found.results.header["selection"] = options.selection
    return found
