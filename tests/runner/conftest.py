"""The fixture that shares one run of the suite among many tests."""

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
