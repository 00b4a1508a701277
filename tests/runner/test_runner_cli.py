"""The command line, on our own specs and on a spoiled copy of the runner's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from peft_conformance import cli
from peft_conformance.cli import app
from peft_conformance.language import find_specs_dir, load_suite
from suite_runs import ALONE, IMPLEMENTATIONS, PLUGINS, SPECS, arguments
from typer.testing import CliRunner, Result


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Specs with a fault that the schema sees, in one file."""
    folder = shutil.copytree(SPECS, tmp_path / "specs")
    file = folder / "api" / "must_pass.yaml"
    file.write_text(file.read_text("utf-8").replace("profile: model", "profil: model", 1), "utf-8")
    return folder


def test_lint_finds_no_fault_in_our_specs() -> None:
    result = invoke("lint")
    assert (result.exit_code, result.output.partition(" ")[2]) == (0, "clauses, no fault\n"), result.output


def test_lint_tells_file_line_and_what_was_meant(spoiled: Path) -> None:
    result = invoke("lint", str(spoiled))
    assert result.exit_code == 1
    assert f"{spoiled}/api/must_pass.yaml:" in result.output
    assert "unknown key 'profil'" in result.output
    assert "did you mean 'profile'?" in result.output


def test_lint_of_one_file_tells_its_faults_only(spoiled: Path) -> None:
    assert invoke("lint", str(spoiled / "api" / "must_fail.yaml")).exit_code == 0
    assert invoke("lint", str(spoiled / "api" / "must_pass.yaml")).exit_code == 1
    assert invoke("lint", str(spoiled / "api")).exit_code == 1


def test_lint_of_nothing_is_an_error(tmp_path: Path) -> None:
    result = invoke("lint", str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "no such file or folder" in result.output


def test_show_prints_sentence_source_cases_and_yaml() -> None:
    result = invoke("show", "inject.in-place")
    assert result.exit_code == 0
    for words in (
        "MUST",
        "  source   ",
        " cases\n",
        "inject.in-place[",
        "specs/api/",
        "- id: inject.in-place",
    ):
        assert words in result.output


def test_show_of_an_unknown_clause_suggests_one() -> None:
    result = invoke("show", "inject.in-plac")
    assert result.exit_code == 2
    assert "did you mean 'inject.in-place'?" in result.output


def test_list_names_each_clause_with_its_sentence() -> None:
    result = invoke("list")
    assert result.exit_code == 0
    assert "inject.in-place" in result.output


def test_trace_goes_from_sentences_to_clauses_and_back() -> None:
    result = invoke("trace", "functions-for-integration")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    sentence = next(i for i, line in enumerate(lines) if line.startswith("  delete-returns-none  "))
    assert "delete.none-when-last" in lines[sentence + 1]
    clause = next(i for i, line in enumerate(lines) if line.startswith("  delete.none-when-last  "))
    assert "functions-for-integration#delete-returns-none" in lines[clause + 1]


def test_trace_of_all_finds_nothing_untriaged() -> None:
    result = invoke("trace")
    assert result.exit_code == 0, result.output[-2000:]
    assert "UNTRIAGED" not in result.output


def test_trace_fails_on_a_sentence_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite(find_specs_dir())
    sentence = next(s for s in suite.sources["adapter-injection"]["sentences"] if "excluded" in s)
    del sentence["excluded"]
    monkeypatch.setattr(cli, "load_suite", lambda folder: suite)
    result = invoke("trace", "adapter-injection")
    assert result.exit_code == 1
    assert f"1 untriaged: adapter-injection#{sentence['id']}" in result.output


def test_trace_of_something_unknown_suggests_a_name() -> None:
    result = invoke("trace", "adapter-injectio")
    assert result.exit_code == 2
    assert "did you mean 'adapter-injection'?" in result.output


def test_run_hands_further_arguments_to_pytest(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(IMPLEMENTATIONS), os.environ.get("PYTHONPATH", "")])
    )
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    result = invoke(
        "run", *arguments("tiny")[len(PLUGINS) :], *PLUGINS, "--collect-only", "-q", "-k", "good.refuses"
    )
    assert result.exit_code == 0
    assert capfd.readouterr().out.count("::good.refuses:") == 3


NEVER_GREEN = {
    "mistyped": (["--impl=referense"], "unknown implementation 'referense'; did you mean 'reference'?"),
    "missing package": (["--impl=no_such_fork"], "unknown implementation 'no_such_fork'"),
    "nothing selected": ([*arguments("tiny")[len(PLUGINS) :], "-k", "no-such-check"], "NOTHING WAS JUDGED"),
    "all left out": ([*arguments("tiny")[len(PLUGINS) :], "-k", "good.not-offered"], "NOTHING WAS JUDGED"),
}


@pytest.mark.parametrize("fault", NEVER_GREEN)
def test_run_of_what_cannot_be_judged_is_never_green(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    words, message = NEVER_GREEN[fault]
    paths = [str(IMPLEMENTATIONS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    specs = [] if any(word.startswith("--specs") for word in words) else [f"--specs={SPECS}"]
    result = invoke("run", *words, *specs, *PLUGINS, "-q")
    assert result.exit_code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
    said = capfd.readouterr()
    assert message in said.out + said.err


def test_list_of_a_consumer_has_what_it_relies_on_and_show_says_why() -> None:
    listed = invoke("list", "--profile", "serving").output
    assert "get_state_dict.documented-key" in listed
    assert "mixed.create" not in listed
    assert "used by  serving: " in invoke("show", "get_state_dict.documented-key").output
    refused = invoke("list", "--profile", "servin")
    assert refused.exit_code == 2
    assert "did you mean 'serving'?" in refused.output
