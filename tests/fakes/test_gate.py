"""The gate: the suite tells every wrong implementation from the reference, and every MUST check helps to.

Each fake is run once, in whichever process asks first; results travel through a folder that they share.
"""

from __future__ import annotations

import os
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import harness
from .catalogue import FAKES, Fake

LIST = Path(__file__).with_name("survivors.yaml")
SURVIVORS = {  # checks and fakes, each with its reason
    part: {entry[part[:-1]]: entry["because"] for entry in entries}
    for part, entries in yaml.safe_load(LIST.read_text(encoding="utf-8")).items()
}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for results, one for all processes of this test run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "fakes"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("topic", sorted({clause.partition(".")[0] for clause in harness.cases()}))
def test_the_reference_passes_every_check_that_a_fake_is_held_against(topic: str) -> None:
    used = (case for fake in FAKES.values() for case in harness.selected(fake.points, fake.caught_by))
    chosen = {case.id: case for case in used if case.clause.id.partition(".")[0] == topic}
    found = harness.perform(None, chosen.values())
    assert found.told == {}


@pytest.mark.parametrize("fake", FAKES.values(), ids=lambda fake: fake.name)
def test_a_fake_is_caught_by_the_checks_it_names(fake: Fake, results: Path) -> None:
    found = harness.shared(fake, results)
    if fake.name in SURVIVORS["fakes"]:
        assert not found.noticed("*"), f"{fake.name} is caught now: take it out of {LIST.name}"
        return
    missed = [pattern for pattern in fake.caught_by if not found.noticed(pattern)]
    assert not missed, f"{fake.about}\nnot failed: {missed}\ninstead:\n" + "\n".join(found.told.values())
    assert not found.ours, f"{fake.name} ends in mistakes of ours: {found.ours}"


def test_every_must_check_is_failed_by_a_fake(results: Path) -> None:
    failed = {check for fake in FAKES.values() for check in harness.shared(fake, results).failed()}
    demanded = harness.demanded()
    uncaught: dict[str, list[str]] = defaultdict(list)
    for check in demanded:
        if check not in failed and check not in SURVIVORS["checks"]:
            uncaught[check.partition(":")[0]].append(check.partition(":")[2])
    told = "\n".join(f"  {clause}: {', '.join(checks)}" for clause, checks in uncaught.items())
    assert not uncaught, (
        f"MUST checks that no fake fails (`cd tests && python -m fakes CLAUSE` tells more):\n{told}"
    )
    stale = [check for check in SURVIVORS["checks"] if check in failed or check not in demanded]
    assert not stale, f"{LIST.name} has checks that a fake fails, or that are gone: {stale}"


def test_every_survivor_has_a_reason() -> None:
    assert all(len(reason) > 20 for part in SURVIVORS.values() for reason in part.values())
    assert not SURVIVORS["fakes"].keys() - FAKES.keys(), f"{LIST.name} has fakes that are gone"


def test_fakes_leave_no_trace() -> None:
    before = reference_as_it_is()
    for fake in FAKES.values():
        with fake.installed():
            pass
        after = reference_as_it_is()
        changed = [name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)]
        assert not changed, f"{fake.name} leaves changes: {changed[:5]}"


def test_a_fake_changes_the_reference_while_it_is_installed() -> None:
    before = reference_as_it_is()
    for fake in FAKES.values():
        with fake.installed():
            assert any(held is not before.get(name) for name, held in reference_as_it_is().items()), fake.name


def reference_as_it_is() -> dict[str, Any]:
    """Whatever modules, classes and tables of the reference hold, by dotted name."""
    held: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "peft_reference" or not isinstance(module, types.ModuleType):
            continue
        held[f"{name}.__class__"] = type(module)
        for key, value in list(vars(module).items()):
            held[f"{name}.{key}"] = value
            if isinstance(value, type) and value.__module__.startswith("peft_reference"):
                held |= {f"{name}.{key}.{attribute}": inside for attribute, inside in vars(value).items()}
                held.pop(f"{name}.{key}.__annotations__", None)  # looking at a class may make them
            elif isinstance(value, dict) and not key.startswith("__"):
                held |= {f"{name}.{key}[{entry!r}]": inside for entry, inside in value.items()}
    return held
