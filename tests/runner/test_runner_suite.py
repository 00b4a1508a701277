"""The runner on specs that must pass and specs that must fail."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from peft_conformance import report, run  # noqa: F401 - torch cannot be imported anew in each inner pytest
from peft_conformance.language import validator
from suite_runs import ALONE, SPECS, SUITE, Outcome, arguments, run_suite

pytest_plugins = ["pytester"]


MUST_FAIL = {
    "bad.value[dtype=float32]:returns-something": "fail",
    "bad.value[dtype=float32]:frozen": "fail",
    "bad.value[dtype=float32]:frame": "pass",
    "bad.dependant[dtype=bfloat16]:same": "blocked",
    "bad.dependant[dtype=bfloat16]:frame": "blocked",
    "bad.empty:nothing": "fail",
    "bad.no-error:raises": "fail",
    "bad.frame:frame": "fail",
    "bad.frame:frozen": "pass",
    "bad.missing-function:returns-nothing": "error",
    "good.pictured:picture": "fail",  # no snapshot is stored
}
MUST_PASS = {
    "good.freezes[dtype=float32]:frozen": "pass",
    "good.freezes[dtype=bfloat16]:returns-nothing": "pass",
    "good.freezes[dtype=bfloat16]:frame": "pass",
    "good.refuses:raises": "pass",
    "good.refuses:says-which": "pass",
    "good.refuses:frame": "pass",
    "good.prints:words": "pass",
    "good.recorded:wrong": "info",
    "good.warned:wrong": "warn",
    "good.on-devices[device=cpu]:there": "pass",
}


@pytest.mark.parametrize(("check", "verdict"), {**MUST_FAIL, **MUST_PASS}.items())
def test_each_check_has_the_verdict_that_it_must_have(whole: Outcome, check: str, verdict: str) -> None:
    assert whole.verdicts[check] == verdict


def test_red_checks_and_no_others_fail_the_run(whole: Outcome) -> None:
    assert whole.status == pytest.ExitCode.TESTS_FAILED
    assert whole.red == {check for check, verdict in whole.verdicts.items() if verdict in report.RED}


def test_header_says_what_is_measured_with_what(whole: Outcome) -> None:
    whole.lines.fnmatch_lines(
        ["implementation: tiny 1.0 · API level 1.0 · in process · torch * cpu · transformers * · python 3.*"]
    )


def test_table_counts_verdicts_per_profile(whole: Outcome) -> None:
    counts = Counter(row["verdict"] for row in whole.results.rows if row["profile"] == "model")
    whole.lines.fnmatch_lines(
        [
            "warn `good.warned:wrong`: expected *, observed *",
            "profile * pass  fail  warn  info  error  blocked  unsupported  not-applicable  not-run",
            f"model * {counts['pass']} * {counts['fail']} * 2 * 0",
            "used by app * 7 * 0 * 2 * 0 * 2",
            "2 not-applicable: at other API levels than 1.0",
            "2 not-run: no cuda",
            "2 unsupported: later: the tiny implementation will never have it",
        ]
    )


def test_failure_prints_promise_source_values_place_and_script(whole: Outcome) -> None:
    whole.lines.fnmatch_lines(
        [
            "_* bad.value?dtype=float32?:frozen *_",
            "MUST  The flag is false although true was asked for.",
            "      The guide to the tiny implementation: Freezing, sentence 1",
            "      decided: The guide is silent about wrong clauses, so this one is wrong on purpose.",
            "      because: A check may give a reason of its own.",
            'expected  {"requires_grad": false}',
            'observed  ?"layer.weight: requires_grad true", "layer.bias: requires_grad true"?',
            "specs/api/must_fail.yaml:22",
            "    - id: frozen",
            "      because: A check may give a reason of its own.",
            "      all: {of: m, role: base, have: {requires_grad: false}}",
            "reproduce:",
            "    import tiny as peft",
        ]
    )
    assert "Traceback" not in whole.text


def test_observed_source_names_who_relies_on_it(whole: Outcome) -> None:
    whole.lines.fnmatch_lines(["_* good.pictured:picture *_", "MUST *", "      observed in 1.0"])


def test_each_case_is_executed_once_whatever_its_checks_and_workers(whole: Outcome) -> None:
    calls = Counter((whole.folder / "calls.log").read_text().split())
    # bad.value and good.freezes at two points each, bad.frame, bad.no-error. A worker that has to judge the
    # dependant of bad.value executes that too, should the other worker have got it.
    assert calls.pop("a") in (6, 7)
    assert calls == {"unknown": 1, "loud": 1}


def test_report_follows_its_schema(whole: Outcome) -> None:
    lines = (whole.folder / "report" / "results.jsonl").read_text("utf-8").splitlines()
    check = validator("results.schema.json")
    assert [error.message for line in lines for error in check.iter_errors(json.loads(line))] == []


def test_summary_lists_what_is_not_a_plain_pass(whole: Outcome) -> None:
    summary = (whole.folder / "report" / "summary.md").read_text("utf-8")
    assert "| functional |" in summary
    assert "- fail `bad.empty:nothing`: expected " in summary
    assert "- warn `good.warned:wrong`: expected " in summary
    assert (
        "- blocked `bad.dependant[dtype=bfloat16]:same`: needs bad.value, and bad.value[dtype=bfloat16]:"
        in summary
    )


def test_last_failed_runs_the_red_checks_again(whole: Outcome) -> None:
    again = run_suite(whole.folder, "tiny", "--lf", "-q")
    assert again.red == whole.red
    again.lines.fnmatch_lines([f"{len(whole.red)} failed, * deselected*"])


def test_node_ids_can_be_pasted_back(whole: Outcome) -> None:
    line = next(text for text in whole.text.splitlines() if "good.freezes[dtype=bfloat16]:frozen " in text)
    node = next(word for word in line.split() if word.endswith(":frozen"))
    again = run_suite(whole.folder, "tiny", "-v", suite=(node,))
    again.lines.fnmatch_lines(["*::good.freezes?dtype=bfloat16?:frozen* PASSED *", "*1 passed*"])


@pytest.mark.parametrize(
    ("selection", "selected"),
    [
        (["-k", "good.refuses and says-which"], ["good.refuses:says-which"]),
        (["-k", "must_pass and model"], [f"good.refuses:{c}" for c in ("says-which", "raises", "frame")]),
        (["--profile=model", "-k", "says or no-error"], ["bad.no-error", "good.refuses:says-which"]),
        (["--profile=app", "-k", "good"], ["good.freezes[dtype=bfloat16]", "good.prints", "good.on-devices"]),
        (["--profile=app", "--matrix=smoke", "-k", "frozen"], ["good.freezes[dtype=bfloat16]:frozen"]),
        (["--matrix=smoke", "-k", "frozen and good"], ["good.freezes[dtype=float32]:frozen"]),
    ],
    ids=["check", "topic and profile", "profile", "consumer", "consumer and matrix", "matrix"],
)
def test_selection(tiny_here: pytest.Pytester, selection: list[str], selected: list[str]) -> None:
    result = tiny_here.runpytest_inprocess(*SUITE, *arguments("tiny"), "--collect-only", "-q", *selection)
    ids = [line.partition("::")[2] for line in result.outlines if "::" in line]
    assert ids
    assert all(any(name in id for name in selected) for id in ids)
    assert all(any(name in id for id in ids) for name in selected)


def test_known_failure_is_xfailed_with_its_reason(known: Outcome) -> None:
    assert known.verdicts["bad.value[dtype=float32]:returns-something"] == "expected-failure"
    assert "2 xfailed" in known.text
    known.lines.fnmatch_lines(["profile * expected  stale  changed *"])


def test_known_failure_that_was_to_be_reviewed_is_told_and_not_red(known: Outcome) -> None:
    line = "2001-01-01 bad.value:returns-something: returns nothing where a list is asked for"
    known.lines.fnmatch_lines(["known failures to be reviewed by now: 1", f"  {line}"])
    assert known.results.overdue == [line]
    summary = (known.folder / "report" / "summary.md").read_text("utf-8")
    assert f"## Known failures to review\n\n- {line}\n" in summary


def test_known_failure_that_holds_is_stale(known: Outcome) -> None:
    assert known.verdicts["good.freezes[dtype=bfloat16]:frozen"] == "stale"
    assert "good.freezes[dtype=bfloat16]:frozen" in known.red
    known.lines.fnmatch_lines(["verdict   stale", "detail    holds now; remove the expectation: *"])


def test_known_failure_that_fails_otherwise_is_changed(known: Outcome) -> None:
    assert known.verdicts["bad.frame:frame"] == "changed"
    known.lines.fnmatch_lines(["verdict   changed", "detail    known to end otherwise: *"])


def test_expectation_of_nothing_is_red_and_named(known: Outcome) -> None:
    assert "expectation-1:bad.nowhere:frozen" in known.red
    assert [end["name"] for end in known.results.loose_ends] == ["expectation-1:bad.nowhere:frozen"]
    known.lines.fnmatch_lines(["*because   the clause has been renamed since"])


def test_hang_is_an_error_and_the_run_goes_on(tmp_path: Path) -> None:
    impatient = run_suite(tmp_path, "impatient", "-q", "-k", "bad.hangs or good.refuses")
    assert impatient.red == {"bad.hangs:returns-nothing", "bad.hangs:frame"}
    impatient.lines.fnmatch_lines(["observed  timeout: *", "2 failed, 3 passed*"])


def test_death_is_an_error_and_the_run_goes_on(apart: Outcome) -> None:
    assert apart.verdicts["bad.dies:returns-nothing"] == "error"
    assert apart.verdicts["good.refuses:raises"] == "pass"
    apart.lines.fnmatch_lines(["implementation: apart 1.0 · * · own process · *"])
    apart.lines.fnmatch_lines(["observed  died: *exit status 7*"])


def test_death_of_a_worker_is_told_once_and_the_run_goes_on(fragile: Outcome) -> None:
    assert fragile.status == pytest.ExitCode.TESTS_FAILED
    assert fragile.red == {"bad.dies:returns-nothing"}
    assert set(fragile.verdicts.values()) == {"pass"}
    assert [end["name"] for end in fragile.results.loose_ends] == ["bad.dies:returns-nothing"]
    fragile.lines.fnmatch_lines(
        ["worker 'gw?' crashed while running *bad.dies:returns-nothing*", "1 failed, 3 passed*"]
    )


def test_print_outs_disturb_nobody(apart: Outcome) -> None:
    assert apart.verdicts["good.prints:words"] == "pass"


@pytest.fixture
def own_specs(tmp_path: Path) -> Path:
    """A copy of the specs, to store snapshots in or to spoil."""
    return shutil.copytree(SPECS, tmp_path / "specs")


@pytest.fixture
def tiny_here(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A pytest in this process that can import our implementations; for runs that execute nothing."""
    monkeypatch.syspath_prepend(SPECS.with_name("implementations"))
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    return pytester


def test_snapshots_are_stored_compared_and_cleared_away(own_specs: Path, tmp_path: Path) -> None:
    stored = run_suite(
        tmp_path, "tiny", "-q", "-k", "pictured", "--snapshot-update", "-W", "error", specs=own_specs
    )
    assert stored.status == pytest.ExitCode.OK, stored.text
    file = own_specs / "__snapshots__" / "good.pictured--picture.txt"
    assert file.read_text("utf-8").split() == ["model", "adapter_names", "requires_grad", "=", "true"]
    (file.parent / "good.gone--picture.txt").write_text("left over", "utf-8")
    compared = run_suite(tmp_path, "tiny", "-q", "-k", "pictured or snapshot", specs=own_specs)
    assert compared.red == {"snapshot:good.gone--picture"}
    file.write_text("another\n", "utf-8")
    changed = run_suite(tmp_path, "known", "-q", "-k", "pictured or snapshot", specs=own_specs)
    assert changed.red == {"good.pictured:picture"}  # what is left over is the baseline's business
    changed.lines.fnmatch_lines(
        ["expected  another", "observed  model", "          adapter_names", "detail *"]
    )


REFUSALS = {
    "no implementation": (None, [], "ERROR: say which implementation is measured: --impl NAME*"),
    "unknown": ("referense", [], "ERROR: *unknown implementation 'referense'; did you mean 'reference'?*"),
    "import failure": (
        "broken",
        [],
        "ERROR: *module 'broken' cannot be imported: RuntimeError: the broken *",
    ),
    "profile": (
        "tiny",
        ["--profile=functionl"],
        "ERROR: --profile: unknown profile 'functionl'; did you mean 'functional'?*",
    ),
    "consumer": (
        "tiny",
        ["--profile=ap"],
        "ERROR: *'ap'; did you mean 'app'?; choose from functional, model, app",
    ),
    "record": ("tiny", ["--record"], "ERROR: --record needs --report DIR: *"),
    "API level": ("tiny", ["--api-level=new"], "ERROR: --api-level 'new' is no version; *"),
    "snapshots": (
        "apart",
        ["--snapshot-update"],
        "ERROR: --snapshot-update is for the baseline only: apart *",
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_wrong_use_is_one_clear_message(tiny_here: pytest.Pytester, fault: str) -> None:
    implementation, more, message = REFUSALS[fault]
    result = tiny_here.runpytest_inprocess(*SUITE, *arguments(implementation), *more)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])
    assert "Traceback" not in result.stderr.str()


def test_malformed_spec_is_told_with_file_and_line(tiny_here: pytest.Pytester, own_specs: Path) -> None:
    file = own_specs / "api" / "must_pass.yaml"
    file.write_text(file.read_text("utf-8").replace("level: MAY", "level: MIGHT"), "utf-8")
    result = tiny_here.runpytest_inprocess(*SUITE, *arguments("tiny", own_specs))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the specs cannot be used", f"{file}:*'MIGHT' is not one of MUST*"])


@pytest.mark.parametrize("selection", ["no-such-check", "good.not-offered"])
def test_run_that_judges_nothing_says_so_and_is_not_green(tiny_here: pytest.Pytester, selection: str) -> None:
    result = tiny_here.runpytest_inprocess(*SUITE, *arguments("tiny"), "-q", "-k", selection)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["NOTHING WAS JUDGED: *"])


def test_other_runs_are_not_disturbed(tiny_here: pytest.Pytester) -> None:
    tiny_here.makepyfile("import sys\n\ndef test_light(): assert 'peft_conformance.run' not in sys.modules")
    result = tiny_here.runpytest_subprocess(*arguments(None)[:-2])
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*conformance of*")
    result.stdout.no_fnmatch_line("implementation:*")


@pytest.mark.parametrize("said", [None, "0"])
def test_the_hub_is_not_asked_unless_somebody_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if said:
        monkeypatch.setenv("HF_HUB_OFFLINE", said)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "asks.py").write_text(
        "import os\n\nraise ValueError('HF_HUB_OFFLINE=' + os.environ['HF_HUB_OFFLINE'])\n"
    )
    outcome = run_suite(tmp_path, "asks")
    assert f"HF_HUB_OFFLINE={said or 1}" in outcome.text
