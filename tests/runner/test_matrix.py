"""`peft-conformance matrix`: real processes on the tiny implementation, interrupted by a real signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peft_conformance import report
from peft_conformance.implementations import ImplementationError
from peft_conformance.matrix import INTERRUPTED, RED, all_releases, plan
from suite_runs import IMPLEMENTATIONS, SPECS

COMMAND = (sys.executable, "-c", "from peft_conformance.cli import app; app()", "matrix")
SLOW = """schema: "1.0"
name: slow
module: tiny
api_level: "1.0"
offers: [short-limit]
lacks: {later: the tiny implementation will never have it}
"""


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    paths = [str(IMPLEMENTATIONS), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TINY_LOG": str(folder / "calls.log")}
    return subprocess.Popen(
        [*COMMAND, *words, "--output=out", f"--specs={SPECS}"],
        cwd=folder,
        env={**variables, "TERM": "dumb", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def described_here(name: str) -> str:
    return str(IMPLEMENTATIONS / f"{name}.yaml")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """One implementation that can be measured and one that cannot be imported, at once."""
    folder = tmp_path_factory.mktemp("both")
    words = (described_here("tiny"), described_here("broken"), "--jobs=2", "-k", "good.freezes or bad.frame")
    process = start(folder, *words)
    text = process.communicate()[0]
    return folder, process.returncode, text


def test_one_table_tells_of_all(both: tuple[Path, int, str]) -> None:
    folder, status, text = both
    assert status == RED, text
    matrix = json.loads((folder / "out" / "matrix.json").read_text("utf-8"))
    found = {run["report"]: run for run in matrix["runs"]}
    assert found["tiny"]["counts"]["functional"]["fail"] == found["tiny"]["red"] == 1
    assert found["tiny"]["complete"]
    markdown = (folder / "out" / "matrix.md").read_text("utf-8")
    assert "| tiny 1.0 | functional |" in markdown
    assert "- fail `bad.frame:frame`" in markdown
    assert "tiny 1.0        functional" in text


def test_what_cannot_be_built_is_not_run_with_its_reason(both: tuple[Path, int, str]) -> None:
    folder, _, text = both
    results = report.read(folder / "out" / "broken" / "results.jsonl")
    assert (results.built, results.complete, results.rows) == (False, False, [])
    assert "cannot be imported" in results.header["reason"]
    assert all(set(count) <= {"not-run", "not-applicable"} for count in results.counts().values())
    assert results.counts()["functional"]["not-run"] > 0
    assert {badge["color"] for badge in results.badges().values()} == {"lightgrey"}
    assert "cannot be imported" in (folder / "out" / "matrix.md").read_text("utf-8")
    assert "broken.yaml: not run: " in text


def test_without_a_terminal_progress_is_plain_lines(both: tuple[Path, int, str]) -> None:
    assert "tiny.yaml: begins\n" in both[2]
    assert "\x1b" not in both[2]


def test_interrupted_run_is_usable_and_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW, "utf-8")
    # One worker, which comes to the case that hangs after all the others.
    words = ("slow.yaml", "--jobs=1", "-k", "bad.value or bad.hangs")
    process = start(tmp_path, *words)
    part = tmp_path / "out" / "slow" / report.PART
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (part.is_file() and len(report.read_partial(part).rows) == 6):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text = process.communicate()[0]
    assert process.returncode == INTERRUPTED, text
    assert "INCOMPLETE, 6 of 8" in text
    assert "the same command goes on from here" in text
    interrupted = report.read(tmp_path / "out" / "slow" / report.FILE)
    assert (interrupted.complete, len(interrupted.rows), interrupted.header["total"]) == (False, 6, 8)
    assert "INCOMPLETE: 6 of 8 checks" in (tmp_path / "out" / "slow" / "summary.md").read_text("utf-8")
    assert "- `slow.yaml`: INCOMPLETE" in (tmp_path / "out" / "matrix.md").read_text("utf-8")

    again = start(tmp_path, *words, TINY_HANG="0")
    text = again.communicate()[0]
    assert again.returncode == RED, text
    results = report.read(tmp_path / "out" / "slow" / report.FILE)
    assert (results.complete, len(results.rows)) == (True, 8)
    assert all(row in results.rows for row in interrupted.rows)
    assert (tmp_path / "calls.log").read_text().split().count(
        "a"
    ) == 2  # once at each point, before the signal


def test_wrong_name_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ImplementationError, match="did you mean 'reference'"):
        plan(["peft", "referense"], tmp_path)
    with pytest.raises(ImplementationError, match=r"is no version"):
        plan(["peft==new"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_longest_runs_come_first_each_once(tmp_path: Path) -> None:
    runs = plan(["peft==0.9.0", "reference", "peft==0.21.2", "reference"], tmp_path)
    assert [run.folder.name for run in runs] == ["reference", "peft==0.21.2", "peft==0.9.0"]


def test_two_implementations_never_share_a_folder(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "fork" / "fork").mkdir(parents=True)
        (tmp_path / folder / "fork" / "fork" / "__init__.py").touch()
    with pytest.raises(ImplementationError, match="same folder"):
        plan([str(tmp_path / "one" / "fork"), str(tmp_path / "two" / "fork")], tmp_path)


def test_all_releases_are_the_baseline_and_what_is_covered() -> None:
    names = all_releases()
    assert names[0] == "reference"
    assert {"peft==0.18.1", "peft==0.21.2"} < set(names)
