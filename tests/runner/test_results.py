"""Committed results: written from a report, read back, compared; and what is committed is up to date."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft_conformance import committed, upkeep
from peft_conformance.committed import Document, Unfit
from peft_conformance.expand import expand
from peft_conformance.language import Suite, find_specs_dir, load_suite
from peft_conformance.report import Results, markdown_table
from suite_runs import SPECS

README = Path(__file__).resolve().parents[2] / "README.md"
DTYPES = {"bad.value[dtype=bfloat16]:frozen": "fail", "bad.value[dtype=float32]:frozen": "blocked"}


@pytest.fixture(scope="module")
def tiny_suite() -> Suite:
    return load_suite(SPECS)


@pytest.fixture
def results(tiny_suite: Suite) -> Results:
    """A report of the runner's own specs, as the reference would have it."""
    cases = expand(tiny_suite, api_level="1.0").cases
    rows = [
        {
            "id": f"{case.id}:{check.id}",
            "clause": case.clause.id,
            "check": check.id,
            "profile": case.clause.profile,
            "axes": case.axes,
            "verdict": DTYPES.get(f"{case.id}:{check.id}", "pass"),
        }
        for case in cases
        if "cuda" not in case.axes.values()
        for check in case.checks
    ]
    header = {
        "implementation": {"name": "reference", "version": "1.0", "api_level": "1.0"},
        **{"torch": "2", "transformers": None, "device": "cpu", "suite": "0" * 12, "status": "built"},
        **{"matrix": "full", "profiles": [], "selection": "", "total": len(rows)},
    }
    left_out = [{"profile": "functional", "verdict": "not-run", "reason": "no cuda", "checks": 2}]
    return Results(header, rows, left_out=left_out)


@pytest.fixture
def document(results: Results, tiny_suite: Suite) -> Document:
    return committed.compact(results, tiny_suite)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(committed, "folder", lambda: tmp_path)
    return tmp_path


def test_file_says_of_each_check_what_the_report_says(
    results: Results, document: Document, place: Path
) -> None:
    file = committed.write(document)
    assert file == place / "reference" / "1.0.json"
    again = committed.read(file)
    assert again == document
    for row in results.rows:
        assert committed.verdict_of(again, row["clause"], row["check"], row["axes"]) == row["verdict"]
    assert committed.verdict_of(again, "bad.value", "no-such-check", {}) is None


def test_a_clause_is_a_line_and_order_of_arrival_does_not_show(
    results: Results, document: Document, tiny_suite: Suite
) -> None:
    text = committed.render(document)
    assert '\n  "good.refuses": {"checks": {"frame": 1, "raises": 1, "says-which": 1}},\n' in text
    results.rows.reverse()
    assert committed.render(committed.compact(results, tiny_suite)) == text


def test_points_that_are_not_run_are_named(document: Document) -> None:
    checks = document["clauses"]["good.on-devices"]["checks"]
    assert checks["there"] == {"not-run": [{"device": "cuda"}], "pass": 1}


def test_fresh_file_has_no_fault_without_known_failures(document: Document, tiny_suite: Suite) -> None:
    assert upkeep.faults(document, tiny_suite) == []


def _without_a_clause(document: Document) -> None:
    del document["clauses"]["good.refuses"]


def _with_an_unknown_clause(document: Document) -> None:
    document["clauses"]["good.gone"] = {"checks": {}}


def _with_a_point_less(document: Document) -> None:
    document["clauses"]["good.freezes"]["checks"]["frozen"] = 1


def _with_another_sum(document: Document) -> None:
    document["counts"]["model"]["pass"] += 1


def _with_an_unknown_failure(document: Document) -> None:
    document["clauses"]["good.refuses"]["checks"]["frame"] = {"expected-failure": 1}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_a_clause, "good.refuses is not in the file"),
        (_with_an_unknown_clause, "good.gone is in the file"),
        (_with_a_point_less, "good.freezes:frozen: 1 points in the file, 2 in the suite"),
        (_with_another_sum, "model, pass: "),
        (_with_an_unknown_failure, "good.refuses:frame is an expected failure in the file, and no known one"),
    ],
    ids=lambda value: getattr(value, "__name__", "")[1:],
)
def test_what_is_out_of_date_is_named(
    document: Document, tiny_suite: Suite, spoil: Callable[[Document], None], words: str
) -> None:
    spoil(document)
    assert any(words in fault for fault in upkeep.faults(document, tiny_suite))


@pytest.mark.parametrize("verdicts", [1, {"fail": 1}, {"expected-failure": 1}, {"blocked": 1}], ids=str)
def test_known_failure_that_the_file_does_not_show_is_named(
    document: Document, tiny_suite: Suite, monkeypatch: pytest.MonkeyPatch, verdicts: Any
) -> None:
    entry = {"match": {"clause": "good.refuses", "check": "raises"}, "outcome": "fail", "because": "it is so"}
    known = committed.describe(committed.described()["reference"])
    monkeypatch.setattr(upkeep, "describe", lambda _: replace(known, expectations=(entry,)))
    document["clauses"]["good.refuses"]["checks"]["raises"] = verdicts
    shown = "good.refuses:raises is a known failure, and the file does not show it (it is so)"
    hidden = verdicts in (1, {"fail": 1})
    assert (shown in upkeep.faults(document, tiny_suite, count=False)) is hidden


def test_report_is_compared_check_by_check(results: Results, document: Document) -> None:
    assert upkeep.differences(document, results) == []
    for row in results.rows:
        if row["clause"] == "good.freezes" and row["check"] == "frozen":
            row["verdict"] = "fail"
    gone = results.rows.pop(
        next(n for n, row in enumerate(results.rows) if row["id"] == "good.refuses:frame")
    )
    assert upkeep.differences(document, results) == [
        "good.freezes:frozen[dtype=bfloat16|float32]: committed pass, now fail",
        f"{gone['clause']}:frame: committed at 1 points, now at 0",
    ]
    results.header["selection"] = "good.freezes"  # of a part, what is missing says nothing
    assert len(upkeep.differences(document, results)) == 1


def test_report_of_another_matrix_is_not_compared(results: Results, document: Document) -> None:
    results.header["matrix"] = "smoke"
    (line,) = upkeep.differences(document, results)
    assert line.startswith("committed at the full matrix, and this report is of the smoke one")


@pytest.mark.parametrize(
    ("header", "complete", "words"),
    [
        ({"profiles": ["model"]}, True, "is not of all profiles"),
        ({}, False, "is incomplete"),
        ({"implementation": {"name": "mine", "version": "1", "api_level": "1.0"}}, True, "no description"),
    ],
    ids=["profile", "incomplete", "nobody's"],
)
def test_part_of_a_report_is_not_committed(
    results: Results, tiny_suite: Suite, header: dict[str, Any], complete: bool, words: str
) -> None:
    results.header |= header
    results.complete = complete
    with pytest.raises(Unfit, match=words):
        committed.compact(results, tiny_suite)


def test_report_of_another_suite_is_not_committed(results: Results, tiny_suite: Suite) -> None:
    left_out, results.left_out = results.left_out, []
    with pytest.raises(Unfit, match="2 of ours have no verdict where it counts 0 as not run"):
        committed.compact(results, tiny_suite)
    results.left_out = left_out
    results.rows.append({**results.rows[0], "id": "good.gone:frame"})
    with pytest.raises(Unfit, match="1 of its checks are none of ours"):
        committed.compact(results, tiny_suite)


def test_report_of_some_clauses_brings_their_lines_up_to_date(
    results: Results, document: Document, tiny_suite: Suite, place: Path
) -> None:
    results.header["selection"] = "good.freezes"
    with pytest.raises(Unfit, match="is committed yet: run the whole suite"):
        upkeep.update(results, tiny_suite)
    committed.write(document)
    results.rows = [{**row, "verdict": "fail"} for row in results.rows if row["clause"] == "good.freezes"]
    again = upkeep.update(results, tiny_suite)
    assert again["clauses"].pop("good.freezes")["checks"]["frozen"] == {"fail": 2}
    assert again["counts"]["functional"]["fail"] == 7
    del document["clauses"]["good.freezes"]
    assert again["clauses"] == document["clauses"]
    whole = results.rows
    for part in ("float32]:", ":frozen"):
        results.rows = [row for row in whole if part in row["id"]]
        with pytest.raises(Unfit, match=r"a part of good.freezes is not in the report"):
            upkeep.update(results, tiny_suite)


def test_clause_that_nobody_ran_stays_missing(
    results: Results, document: Document, tiny_suite: Suite, place: Path
) -> None:
    del document["clauses"]["good.refuses"]
    committed.write(document)
    results.header["selection"] = "good.freezes"
    results.rows = [row for row in results.rows if row["clause"] == "good.freezes"]
    again = upkeep.update(results, tiny_suite)
    assert "good.refuses is not in the file" in upkeep.faults(again, tiny_suite)


def test_environment_that_was_not_built_is_committed_as_such(results: Results, tiny_suite: Suite) -> None:
    results.header |= {"status": "not-built", "reason": "no wheel"}
    results.rows, results.complete = [], False
    document = committed.compact(results, tiny_suite)
    assert (document["status"], document["reason"], document["clauses"]) == ("not-built", "no wheel", {})
    assert document["counts"]["functional"] == {"not-run": 2}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-10], "Expecting"),
        (lambda text: text.replace('"status"', '"state"'), "'status' is a required property"),
        (lambda text: text.replace('"version": "1.0"', '"version": "2.0"'), "the wrong place"),
    ],
    ids=["cut off", "schema", "place"],
)
def test_damaged_file_is_refused(
    document: Document, place: Path, damage: Callable[[str], str], words: str
) -> None:
    file = committed.write(document)
    file.write_text(damage(file.read_text("utf-8")), "utf-8")
    with pytest.raises(Unfit, match=words):
        committed.read(file)


def test_boxes_hold_the_same_points() -> None:
    axes = {"a": ["x", "y|z", "x,y"], "b": [True, False, None], "c": [1, 1.5]}
    every = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    assert committed.boxes(every) == [{"a": ["x", "x,y", "y|z"], "b": [False, None, True], "c": [1, 1.5]}]
    for number in range(1, len(every)):
        some = [point for place, point in enumerate(every) if (place * 7 + number) % 5 < 3]
        boxes = committed.boxes(some)
        again = [point for box in boxes for point in committed.points_of(box)]
        assert len(again) == len(some)
        assert sorted(map(str, again)) == sorted(map(str, some))
        assert len(boxes) < len(some)


# --- what is committed


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(find_specs_dir())


@pytest.mark.parametrize(
    "file", committed.committed().values(), ids=lambda file: f"{file.parent.name} {file.stem}"
)
def test_committed_results_are_up_to_date(suite: Suite, file: Path) -> None:
    """Points are counted for the reference alone, which has most of them: to expand the suite takes time."""
    document = committed.read(file)
    assert upkeep.faults(document, suite, count=file.parent.name == "reference") == []
    assert file.stat().st_size < 400_000


def test_readme_has_the_table_of_what_is_committed() -> None:
    text = README.read_text("utf-8")
    block = text.partition("<!-- results -->\n")[2].partition("<!-- /results -->")[0]
    assert block.strip() == markdown_table(committed.table()).strip()


def test_table_has_the_baseline_first_and_then_the_newest(document: Document, place: Path) -> None:
    for name, version in (("peft", "0.9.1"), ("peft", "0.10.0"), ("reference", "1.0")):
        document["implementation"] = {"name": name, "version": version, "api_level": version}
        committed.write(document)
    assert [row[0] for row in committed.table() if row[0]] == [
        "implementation",
        "reference 1.0",
        "peft 0.10.0",
        "peft 0.9.1",
    ]


def test_files_are_json(document: Document) -> None:
    assert json.loads(committed.render(document)) == document
