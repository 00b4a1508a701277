"""`action.yml`: its metadata, and its steps run with bash as a workflow runs them, GitHub's files faked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft_conformance import action
from suite_runs import ALONE, IMPLEMENTATIONS, PLUGINS, SPECS

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
SELECTED = f"{' '.join(PLUGINS)} --specs={SPECS} -oaddopts= -q"


def expanded(text: str, inputs: Mapping[str, str]) -> str:
    """A value with its expressions filled in; those that a composite action has are inputs and its path."""
    known = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.action_path": str(ROOT)}
    return re.sub(r"\$\{\{\s*([^}]+?)\s*\}\}", lambda match: known[match[1]], str(text))


class Outcome:
    """How a step ended, and what it left in the files of the workflow."""

    def __init__(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        self.status, self.text = done.returncode, done.stdout + done.stderr
        self.summary = (folder / "summary").read_text("utf-8")
        lines = (folder / "output").read_text("utf-8").splitlines()
        self.outputs = dict(line.split("=", 1) for line in lines)


def run_step(name: str, folder: Path, **inputs: str) -> Outcome:
    """Run one step's script as the runner does: `bash -eo pipefail`, its inputs in the environment."""
    chosen = {key: spec.get("default", "") for key, spec in ACTION["inputs"].items()}
    chosen |= {key.replace("_", "-"): value for key, value in inputs.items()}
    step = STEPS[name]
    (folder / "summary").touch()
    (folder / "output").touch()
    binaries = folder / "bin"  # `python` as actions/setup-python provides it
    binaries.mkdir(exist_ok=True)
    if not (binaries / "python").exists():
        (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (binaries / "python").chmod(0o755)
    paths = [str(IMPLEMENTATIONS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        **ALONE,
        **{key: expanded(value, chosen) for key, value in step.get("env", {}).items()},
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "TINY_LOG": str(folder / "calls.log"),
    }
    script = folder / "step.sh"
    script.write_text(expanded(step["run"], chosen))
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Outcome(done, folder)


def run_suite(folder: Path, **inputs: str) -> Outcome:
    """Run the step that runs the suite, on the tiny implementation unless the inputs say otherwise."""
    return run_step("Run the suite", folder, **{"impl": described("tiny"), **inputs})


def described(name: str) -> str:
    return str(IMPLEMENTATIONS / f"{name}.yaml")


def test_the_metadata_has_what_a_composite_action_needs() -> None:
    assert ACTION["name"]
    assert ACTION["description"]
    assert ACTION["runs"]["using"] == "composite"
    for step in ACTION["runs"]["steps"]:
        assert ("run" in step) != ("uses" in step)
        if "run" in step:
            assert step["shell"] == "bash"  # a composite action has no default shell
        else:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@\w[\w.]*", step["uses"])
    for spec in ACTION["inputs"].values():
        assert spec["description"]
        assert spec.get("required") or isinstance(spec["default"], str)
    assert [name for name, spec in ACTION["inputs"].items() if spec.get("required")] == ["impl"]


def test_expressions_name_inputs_and_steps_that_there_are() -> None:
    inputs = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text("utf-8")))
    assert inputs == set(ACTION["inputs"])
    ids = {step["id"] for step in ACTION["runs"]["steps"] if "id" in step}
    output = re.compile(r"\$\{\{ steps\.(\w+)\.outputs\.([\w-]+) \}\}")
    named = {output.fullmatch(spec["value"]) for spec in ACTION["outputs"].values()}
    assert None not in named
    assert {match[1] for match in named if match} <= ids
    written = {line.partition("=")[0] for line in action.outputs(None, Path(), passed=False).splitlines()}
    assert {match[2] for match in named if match} <= written


def test_no_input_becomes_a_piece_of_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_a_passing_run(tmp_path: Path) -> None:
    found = run_suite(tmp_path, matrix="full", extra_args=f"{SELECTED} -k 'good.freezes or good.prints'")
    assert found.status == 0, found.text
    assert found.outputs["passed"] == "true"
    assert (found.outputs["red"], found.outputs["judged"]) == ("0", "8")
    assert found.outputs["report"] == str(tmp_path / "conformance-report")
    assert found.summary.startswith("# tiny 1.0")
    assert {f.name for f in (tmp_path / "conformance-report").iterdir()} >= {
        "results.jsonl",
        "summary.md",
        "junit.xml",
    }


def test_a_red_run_says_how_much_is_red(tmp_path: Path) -> None:
    found = run_suite(tmp_path, extra_args=f"{SELECTED} -k 'bad.frame or good.refuses'")
    assert found.status == 1
    assert (found.outputs["passed"], found.outputs["red"]) == ("false", "1")
    assert found.summary.startswith("> **Not passed:** 1 red")
    assert "`bad.frame:frame`" in found.summary


def test_a_consumer_can_be_chosen(tmp_path: Path) -> None:
    found = run_suite(tmp_path, profile="app", matrix="smoke", extra_args=f"{SELECTED} -k good.freezes")
    assert found.status == 0, found.text
    assert found.outputs["judged"] == "3"
    assert "| used by app | 3 |" in found.summary


NEVER_GREEN: dict[str, tuple[dict[str, str], str]] = {
    "mistyped": ({"impl": "referense"}, "unknown implementation 'referense'; did you mean 'reference'?"),
    "cannot be imported": ({"impl": described("broken")}, "module 'broken' cannot be imported"),
    "all left out": ({"extra_args": f"{SELECTED} -k good.not-offered"}, "nothing was judged"),
    "unknown profile": ({"profile": "ap"}, "unknown profile 'ap'; did you mean 'app'?"),
    "quote left open": ({"extra_args": "-k 'good"}, "No closing quotation"),
    "no implementation": ({"impl": ""}, "the input `impl` is empty"),
}


@pytest.mark.parametrize("fault", NEVER_GREEN)
def test_what_cannot_be_measured_is_never_green(tmp_path: Path, fault: str) -> None:
    inputs, words = NEVER_GREEN[fault]
    found = run_suite(tmp_path, **{"extra_args": SELECTED, **inputs})
    assert found.status not in (0, 1), found.text
    assert found.outputs["passed"] == "false"
    assert words in found.text
    assert "::error title=peft-conformance::" in found.text
    assert found.summary.startswith("> **Not passed:** ")


def test_the_report_of_an_earlier_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "conformance-report").mkdir()
    row = {"id": "a.a:b", "case": "a.a", "profile": "model", "verdict": "pass", "seconds": 0.1}
    whole = action.report.Results({"implementation": {"name": "tiny", "version": "1"}}, rows=[row])
    (tmp_path / "conformance-report" / "results.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in whole.lines())
    )
    crashed = run_suite(tmp_path, extra_args=f"{SELECTED} -p no_such_plugin")
    assert crashed.status not in (0, 1)
    assert crashed.outputs["passed"] == "false"


def test_a_mistyped_constraints_file_stops_the_installation(tmp_path: Path) -> None:
    found = run_step("Install the suite", tmp_path, constraints="no-such.txt")
    assert found.status == 1
    assert "no such constraints file: no-such.txt" in found.text


def test_the_installation_takes_the_suite_from_the_actions_own_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    pip = tmp_path / "bin" / "python"
    pip.write_text(
        '#!/bin/sh\necho "$@" >> "$PIP_LOG"\n'
        'for word in "$@"; do [ -f "$word" ] && grep "^torch" "$word" >> "$PIP_LOG"; done; true\n'
    )
    pip.chmod(0o755)
    monkeypatch.setenv("PIP_LOG", str(tmp_path / "pip.log"))
    found = run_step("Install the suite", tmp_path, torch_version="2.4.1", install="-e . 'other>=1'")
    assert found.status == 0, found.text
    first, torch, second = (tmp_path / "pip.log").read_text().splitlines()
    assert first.endswith(f"{ROOT}[peft]")
    assert torch == "torch==2.4.1"
    assert second.endswith("-e . other>=1")


def test_an_incomplete_report_fails() -> None:
    header: dict[str, Any] = {"implementation": {}}
    broken_off = action.report.Results(header, complete=False)
    assert "broken off" in action.complaint(broken_off, 0)
