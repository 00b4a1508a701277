"""How the tests start the suite: in a pytest of its own, on specs and implementations of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peft_conformance import report

HERE = Path(__file__).parent
SPECS = HERE / "specs"
IMPLEMENTATIONS = HERE / "implementations"
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # of the plugins that happen to be installed, only these:
PLUGINS = ("-p", "xdist.plugin", "-p", "syrupy", "-p", "peft_conformance.plugin")
SUITE = ("--pyargs", "peft_conformance.test_conformance")


class Outcome:
    """What a run of pytest printed, how it ended, and the folder it ran in."""

    def __init__(self, status: int, text: str, folder: Path) -> None:
        self.status, self.text, self.folder = status, text, folder

    @property
    def lines(self) -> pytest.LineMatcher:
        return pytest.LineMatcher(self.text.splitlines())

    @property
    def results(self) -> report.Results:
        return report.read(self.folder / "report" / "results.jsonl")

    @property
    def verdicts(self) -> dict[str, str]:
        return {row["id"]: row["verdict"] for row in self.results.rows}

    @property
    def red(self) -> set[str]:
        """The ids that the short summary names."""
        failed = [line for line in self.text.splitlines() if line.startswith("FAILED ")]
        return {line.partition("::")[2].partition(" - ")[0] for line in failed}


def arguments(implementation: str | None, specs: Path | None = SPECS) -> list[str]:
    """The options that name an implementation, one of ours if there is one of that name, and the specs, which
    are the suite's own for None.
    """
    described = IMPLEMENTATIONS / f"{implementation}.yaml"
    chosen = [f"--impl={described if described.is_file() else implementation}"] if implementation else []
    return [*PLUGINS, *([f"--specs={specs}"] if specs else []), *chosen, "-oaddopts="]


def run_suite(
    folder: Path,
    implementation: str,
    *more: str,
    specs: Path | None = SPECS,
    suite: tuple[str, ...] = SUITE,
) -> Outcome:
    """Run the suite from `folder`; what the tiny implementation is asked to do is logged in `calls.log`."""
    paths = [str(IMPLEMENTATIONS), *filter(None, [os.environ.get("PYTHONPATH")])]
    log = str(folder / "calls.log")
    environment = {**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(paths), "TINY_LOG": log}
    command = [sys.executable, "-m", "pytest", *suite, *arguments(implementation, specs), *more]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout + done.stderr, folder)


Once = Callable[..., Outcome]
