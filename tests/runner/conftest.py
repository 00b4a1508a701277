"""Runs of the suite that many tests look at, each done once."""

from __future__ import annotations

import json

import pytest
from filelock import FileLock
from suite_runs import Once, Outcome, run_suite


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Run the suite once for all tests that want the same run, whichever worker they are on."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def run(name: str, implementation: str, *more: str) -> Outcome:
        folder = shared / f"runner-{name}"
        kept = folder / "outcome.json"
        with FileLock(shared / f"runner-{name}.lock"):
            if not kept.is_file():
                folder.mkdir()
                outcome = run_suite(folder, implementation, *more)
                kept.write_text(json.dumps([outcome.status, outcome.text]), "utf-8")
        return Outcome(*json.loads(kept.read_text("utf-8")), folder)

    return run


@pytest.fixture(scope="session")
def whole(once: Once) -> Outcome:
    """All of our specs on the tiny implementation, two workers, with a report and a recording."""
    return once("whole", "tiny", "-n2", "--report=report", "--record", "-v")


@pytest.fixture(scope="session")
def known(once: Once) -> Outcome:
    """An implementation with known failures: one as expected, one stale, one changed, one of nothing."""
    selection = "bad.value or bad.frame or good.freezes or expectation"
    return once("known", "known", "--report=report", "--record", "-k", selection)


@pytest.fixture(scope="session")
def apart(once: Once) -> Outcome:
    """An implementation in a process of its own that dies and prints."""
    return once("apart", "apart", "--report=report", "--record", "-k", "dies or prints or refuses")


@pytest.fixture(scope="session")
def fragile(once: Once) -> Outcome:
    """An implementation that kills the worker that it runs in."""
    selection = "dies or refuses"
    return once("fragile", "fragile", "-n2", "-q", "--report=report", "--record", "-k", selection)
