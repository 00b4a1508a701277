"""What lint says of known failures: each fault with its line, and what is overdue without failing."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from peft_conformance import cli
from peft_conformance.language import Suite, load_suite
from peft_conformance.lint_expectations import lint_expectations
from suite_runs import SPECS
from test_runner_cli import invoke

TODAY = date(2026, 11, 22)
HEAD = 'schema: "1.0"\nname: mine\nmodule: tiny\napi_level: package\nexpectations:\n'
ENTRY = """\
  - match: {clause: bad.value, check: frozen, axes: {dtype: float32}}
    versions: ">=1"
    outcome: fail
    observed: null
    because: the flag stays as it was
    review_by: 2027-06-30
"""


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(SPECS)


def faults(folder: Path, suite: Suite, *entries: str, today: date = TODAY) -> list[str]:
    file = folder / "mine.yaml"
    file.write_text(HEAD + "".join(entries), "utf-8")
    found, late = lint_expectations(file, suite, today)
    return [f"{fault.line}: {fault.text}" for fault in found] + [f"late {e.line}: {e.text}" for e in late]


def test_a_sound_entry_has_no_fault(tmp_path: Path, suite: Suite) -> None:
    assert faults(tmp_path, suite, ENTRY) == []
    derived = ENTRY.replace("check: frozen", "check: [frozen, frame]")
    raises = ENTRY.replace("bad.value", "bad.no-error").replace("frozen, axes: {dtype: float32}", "raises")
    assert faults(tmp_path, suite, derived, raises) == []


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "the flag stays as it was",
            "TODO say why",
            "10: `because` still says TODO: look into it and say why",
        ),
        ("bad.value", "bad.valu", "6: unknown clause 'bad.valu'; did you mean 'bad.value'?"),
        ("frozen", "frozn", "6: bad.value has no check 'frozn'; did you mean 'frozen'?"),
        ("frozen", "raises", "6: bad.value has no check 'raises'"),
        ("dtype", "dtpe", "6: bad.value has no axis 'dtpe'; did you mean 'dtype'?"),
        (
            "float32",
            "[float32, float31]",
            "6: axis 'dtype' of bad.value has no value 'float31'; did you mean 'float32'?",
        ),
        (">=1", "<0.1", "6: bad.value is of API >=0.1, so that it never meets versions <0.1"),
        (">=1", "newest", "7: versions: 'newest' is not a PEP 440 range"),
        ("2027-06-30", "2027-06-31", "11: review_by: '2027-06-31' is not a day of the calendar"),
    ],
)
def test_a_fault_is_told_with_its_line(
    tmp_path: Path, suite: Suite, right: str, wrong: str, message: str
) -> None:
    assert faults(tmp_path, suite, ENTRY.replace(right, wrong, 1)) == [message]


def test_an_entry_that_repeats_another_is_told(tmp_path: Path, suite: Suite) -> None:
    point = "bad.value[dtype=float32]:frozen"
    assert faults(tmp_path, suite, ENTRY, ENTRY) == [
        f"12: {point} is foretold by the entry on line 6 already"
    ]
    wider = ENTRY.replace(", axes: {dtype: float32}", "")
    assert faults(tmp_path, suite, ENTRY, wider) == [
        f"6: {point} is foretold by the entry on line 12 already"
    ]
    later = ENTRY.replace(">=1", ">=2")
    assert faults(tmp_path, suite, later, ENTRY) == [
        f"6: {point} is foretold by the entry on line 12 already"
    ]
    for other in ("float32", "null", ">=1"):
        changed = ENTRY.replace(other, {"float32": "bfloat16", "null": "1", ">=1": "<1"}[other])
        assert faults(tmp_path, suite, ENTRY, changed) == []


def test_what_was_to_be_reviewed_is_told_and_is_no_fault(tmp_path: Path, suite: Suite) -> None:
    assert faults(tmp_path, suite, ENTRY, today=date(2027, 6, 30)) == []
    assert faults(tmp_path, suite, ENTRY, today=date(2027, 7, 1)) == [
        "late 6: 2027-06-30 bad.value[dtype=float32]:frozen: the flag stays as it was"
    ]


def test_the_command_takes_descriptions(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "load_suite", lambda folder: suite)
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD + ENTRY.replace("2027", "2001"), "utf-8")
    done = invoke("lint", str(file))
    assert done.exit_code == 0, done.output
    assert f"{file}:6: to be reviewed by 2001-06-30 bad.value[dtype=float32]:frozen" in done.stderr
    file.write_text(HEAD + ENTRY.replace("the flag", "TODO the flag"), "utf-8")
    done = invoke("lint", str(file))
    assert done.exit_code == 1
    assert f"{file}:10: `because` still says TODO" in done.stdout
