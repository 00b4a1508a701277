"""Rows of the suite itself: a whole run against the reference with two workers, beside what it may take.

SUITE_PYTHON names the Python of another environment to run it in, as the one of README's first command: where
accelerate is installed, as here, more checks can be run and more is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import Elsewhere, Row

ROOT = Path(__file__).parent.parent
LIMITS = {"smoke": 10.0, "pairwise": 60.0, "full": 180.0}  # seconds, start-up included
WARM = "config_json.lora-fields"  # after a run of this alone, what the suite keeps between processes is there
HERE = ("PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS")  # of whoever starts the benchmarks, not of the suite


@dataclass(frozen=True)
class SuiteRun(Elsewhere):
    """All checks of a matrix."""

    matrix: str

    def seconds(self) -> float:
        """Until the process has ended. Raises RuntimeError where a check is red."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def run(self, *words: str) -> None:
        """pytest as a user starts it."""
        own = {name: value for name, value in os.environ.items() if name not in HERE}
        python = os.environ.get("SUITE_PYTHON", sys.executable)
        command = [python, "-m", "pytest", "conformance", "--impl=reference", "-n2", "-q"]
        command += [f"--matrix={self.matrix}", *words]
        done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")


@dataclass(frozen=True)
class Limit(Elsewhere):
    """The time that a run may take."""

    of: float

    def seconds(self) -> float:
        """Just that."""
        return self.of


def rows() -> Iterator[Row]:
    """A row for each matrix."""
    for matrix in LIMITS:
        prepare = partial(beside_limit, matrix)
        yield Row(
            "suite", "all methods", {"matrix": matrix}, prepare, ("reference", "limit"), 2, memory=False
        )


def beside_limit(matrix: str) -> Mapping[str, Elsewhere]:
    """A run, and what it is held to."""
    run = SuiteRun(matrix)
    run.run("-k", WARM)
    return {"reference": run, "limit": Limit(LIMITS[matrix])}
