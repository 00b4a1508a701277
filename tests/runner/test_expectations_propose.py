"""Proposals: pasted into the description, they leave nothing red, and say nothing of any other check."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft_conformance.cases import Case, plain_text
from peft_conformance.expectations import KnownFailures, known_version, places
from peft_conformance.implementations import describe
from peft_conformance.propose import Proposal, cover, judged, propose
from peft_conformance.report import RED, Results
from peft_conformance.schemas import schema_errors
from suite_runs import IMPLEMENTATIONS, Outcome
from test_runner_cli import invoke
from test_runner_report import HEADER, row

TODAY = date(2026, 11, 22)
MATRIX = {
    "dtype": ["float16", "float32", "float64"],
    "layer": ["one-linear", "one-conv2d", "one-embedding"],
    "method": ["lora", "lora-rslora", "vera", "oft"],
    "flag": [True, False],
}
Judge = Callable[[dict[str, Any]], tuple[str, Any]]  # axes -> verdict and what was observed


def rows_of(clause: str, check: str, judge: Judge, matrix: dict[str, list[Any]] = MATRIX) -> Iterable[Any]:
    for values in itertools.product(*matrix.values()):
        axes = dict(zip(matrix, values, strict=True))
        word, observed = judge(axes)
        point = ",".join(f"{axis}={plain_text(value)}" for axis, value in sorted(axes.items()))
        yield row(f"{clause}[{point}]:{check}", word, axes=axes, observed=observed)


def report(*groups: Iterable[Any], **facts: Any) -> Results:
    return Results({**HEADER, **facts}, [row for group in groups for row in group])


def pasted(proposal: Proposal) -> list[dict[str, Any]]:
    """The entries as a description has them once the text is in it."""
    entries = yaml.safe_load(f"expectations:\n{proposal.text()}")["expectations"] or []
    described = {"schema": "1.0", "name": "a", "module": "a", "api_level": "1.0", "expectations": entries}
    assert schema_errors(Path("a.yaml"), described, "implementation.schema.json") == []
    assert entries == proposal.entries
    return entries


def assert_round_trip(results: Results, known: Iterable[Any] = ()) -> list[dict[str, Any]]:
    """Judge the report again with the proposal pasted in and what is outdated taken out."""
    proposal = propose(results, known, None, TODAY)
    entries = pasted(proposal)
    gone = [what.entry for what in proposal.outdated]
    kept = [
        {**what.entry, "match": {"clause": what.place.clause, "check": what.place.check, "axes": axes}}
        for what in proposal.outdated
        for axes in what.still
    ]
    implementation = results.header["implementation"]
    version = known_version(implementation["version"], implementation["api_level"])
    left = KnownFailures([*(e for e in known if e not in gone), *kept, *entries], version)
    new = KnownFailures(entries, version)
    for each in results.rows:
        again = left.apply(judged(each)).verdict
        assert again not in RED, each["id"]
        if each["verdict"] in ("fail", "error", "changed"):
            assert again == "expected-failure", each["id"]
        else:
            assert new.about(each["case"], each["check"]) == [], each["id"]
            assert again == ("pass" if each["verdict"] == "stale" else each["verdict"]), each["id"]
    return entries


def fork(axes: dict[str, Any]) -> tuple[str, Any]:
    """Several faults at once."""
    if axes["method"] == "vera" and axes["layer"] != "one-linear":
        return "error", f"TypeError: Target module {axes['layer'].title()}(8, 12) is not supported."
    if axes["dtype"] == "float64" and axes["method"].startswith("lora"):
        return "fail", ["output: not close"]
    if axes["method"] == "oft" and axes["flag"]:
        return "fail", [f"{axes['layer']}.0.weight: dtype float32"] * (1 + (axes["dtype"] == "float16"))
    return "pass", "close"


def test_a_fork_with_several_faults_gets_an_entry_for_each() -> None:
    holds = rows_of("law.merge", "frame", lambda axes: ("pass", None))
    entries = assert_round_trip(report(rows_of("law.merge", "merged", fork), holds))
    assert [(e["match"], e["outcome"], e.get("observed", e.get("like"))) for e in entries] == [
        (
            {
                "clause": "law.merge",
                "check": "merged",
                "axes": {"dtype": "float64", "method": ["lora", "lora-rslora"]},
            },
            "fail",
            ["output: not close"],
        ),
        (
            {"clause": "law.merge", "check": "merged", "axes": {"flag": True, "method": "oft"}},
            "fail",
            r".+: dtype float32",
        ),
        (
            {
                "clause": "law.merge",
                "check": "merged",
                "axes": {"layer": ["one-conv2d", "one-embedding"], "method": "vera"},
            },
            "error",
            r"TypeError: Target module .+\(8, 12\) is not supported\.",
        ),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_any_set_of_failures_goes_round(seed: int) -> None:
    chance = random.Random(seed)
    seen = [
        ["output: not close"],
        "close",
        None,
        [],
        {"a": 1},
        "ValueError: 'x' of 3",
        "ValueError: 'y' of 4",
    ]
    words = ["pass", "warn", "info", "blocked", "fail", "fail", "error"]

    def judge(axes: dict[str, Any]) -> tuple[str, Any]:
        word = chance.choice(words)
        return word, None if word == "blocked" else chance.choice(seen)

    rows = [r for check in ("one", "two") for r in rows_of("a.b", check, judge)]
    assert_round_trip(report(chance.sample(rows, 90)))


def test_checks_and_clauses_that_one_error_stops_are_one_entry() -> None:
    def stopped(axes: dict[str, Any]) -> tuple[str, Any]:
        return ("error", "KeyError: 'gone'") if axes["method"] == "vera" else ("pass", None)

    groups = [rows_of(c, k, stopped) for c in ("law.a", "law.b") for k in ("frame", "merged")]
    [entry] = assert_round_trip(report(*groups))
    axes = {"method": "vera"}
    assert entry["match"] == [
        {"clause": "law.a", "check": ["frame", "merged"], "axes": axes},
        {"clause": "law.b", "check": ["frame", "merged"], "axes": axes},
    ]
    assert entry["observed"] == "KeyError: 'gone'"


def test_wrong_values_of_two_clauses_are_two_entries() -> None:
    groups = [rows_of(clause, "same", lambda axes: ("fail", "not close")) for clause in ("law.a", "law.b")]
    entries = assert_round_trip(report(*groups))
    assert [entry["match"] for entry in entries] == [
        {"clause": "law.a", "check": "same"},
        {"clause": "law.b", "check": "same"},
    ]


def test_axis_values_may_be_anything() -> None:
    matrix = {"targets": [["a", "b"], ["c"], "all-linear"], "scale": [1e-5, "1e-5x"], "name": ["no", "0o17"]}

    def judge(axes: dict[str, Any]) -> tuple[str, Any]:
        bad = axes["targets"] == ["a", "b"] and axes["name"] == "0o17"
        return ("fail", "0o17") if bad else ("pass", "")

    assert len(assert_round_trip(report(rows_of("a.b", "c", judge, matrix)))) == 1


def test_what_is_written_is_what_our_reader_reads(tmp_path: Path) -> None:
    rows = [
        row("a.b:c", "fail", observed=["0o17", "no", "1e5", ".5", "null", "2027-01-01", 1e-5, True, "é: x"])
    ]
    file = tmp_path / "a.yaml"
    head = 'schema: "1.0"\nname: a\nmodule: a\napi_level: "1.0"\nexpectations:\n'
    file.write_text(head + propose(report(rows), (), ">=1", TODAY).text(), "utf-8")
    [entry] = describe(file).expectations
    assert entry["observed"] == rows[0]["observed"]
    assert entry["versions"] == ">=1"
    assert entry["review_by"] == "2027-05-21"


OLD = {
    "match": {"clause": "law.merge", "check": "merged", "axes": {"method": ["oft", "vera"]}},
    "outcome": "fail",
    "like": "not close",
    "because": "it was so",
    "review_by": "2027-06-30",
}


def with_known(results: Results, known: list[dict[str, Any]]) -> Results:
    """The report as it would be with these known failures."""
    failures = KnownFailures(known, "1")
    for each in results.rows:
        verdict = failures.apply(judged(each))
        each["verdict"] = verdict.verdict
        if verdict.judged:
            each["judged"] = verdict.judged
    return results


def test_what_holds_now_is_outdated_and_told_where_it_still_is_so() -> None:
    def judge(axes: dict[str, Any]) -> tuple[str, Any]:
        return ("fail", "not close") if axes["method"] == "oft" else ("pass", "close")

    results = with_known(report(rows_of("law.merge", "merged", judge)), [OLD])
    assert assert_round_trip(results, [OLD]) == []
    text = propose(results, [OLD], None, TODAY).text()
    assert text.splitlines() == [
        "# outdated: law.merge[method=oft|vera]:merged holds now in 18 cases: narrow it, or its `versions`; "
        "it is still so at",
        "#   axes: {method: [oft]}",
        "# no candidates: nothing else is red",
    ]


def test_what_fails_in_another_way_is_proposed_anew_and_the_old_entry_is_outdated() -> None:
    def judge(axes: dict[str, Any]) -> tuple[str, Any]:
        return ("error", "KeyError: 1") if axes["method"] in ("oft", "vera") else ("pass", "close")

    results = with_known(report(rows_of("law.merge", "merged", judge)), [OLD])
    [entry] = assert_round_trip(results, [OLD])
    assert (entry["match"], entry["outcome"]) == (OLD["match"], "error")
    [outdated] = propose(results, [OLD], None, TODAY).outdated
    assert (outdated.holds, outdated.otherwise, outdated.still) == (0, 36, [])


def test_a_report_of_some_points_says_so() -> None:
    rows = [row("a.b:c", "fail", observed="not close")]
    assert "# From a smoke run" in propose(report(rows, matrix="smoke"), (), None, TODAY).text()
    assert "From a" not in propose(report(rows), (), None, TODAY).text()


def test_cover_is_as_narrow_as_the_failures_allow() -> None:
    points = [{"a": a, "b": b} for a in "xyz" for b in "123"]
    wanted = [p for p in points if p["a"] == "x" or p["b"] == "1"]
    found = cover(wanted, [p for p in points if p not in wanted])
    assert found == [{"b": ["1"]}, {"a": ["x"]}] or found == [{"a": ["x"]}, {"b": ["1"]}]
    assert cover(points, []) == [{}]
    assert cover([], points) == []


def test_a_real_run_goes_round(whole: Outcome) -> None:
    results = whole.results
    assert {"fail", "error", "warn", "pass", "blocked"} <= {r["verdict"] for r in results.rows}
    entries = assert_round_trip(results)
    assert {place.clause for e in entries for place in places(e)} >= {
        "bad.value",
        "bad.empty",
        "bad.no-error",
    }


def test_the_command_prints_entries_and_what_is_outdated(known: Outcome) -> None:
    file = known.folder / "report" / "results.jsonl"
    before = file.read_bytes()
    done = invoke("propose-expectations", str(file.parent), "--impl", str(IMPLEMENTATIONS / "known.yaml"))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    line = next(n for n, text in enumerate(known_yaml(), 1) if "good.freezes" in text)
    assert f"# outdated: line {line}: good.freezes:frozen holds now in 2 cases: remove it" in done.output
    assert any(
        text.startswith("# outdated: ") and "bad.frame:frame fails otherwise" in text for text in lines
    )
    assert "# unmatched: expectation-1:bad.nowhere:frozen: correct or remove it" in lines
    entries = yaml.safe_load(done.output)
    assert {e["match"]["clause"] for e in entries} == {"bad.value", "bad.frame"}
    assert all(e["because"].startswith("TODO") for e in entries)
    assert file.read_bytes() == before


def known_yaml() -> list[str]:
    return (IMPLEMENTATIONS / "known.yaml").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "No such file"),
        (["broken", "--versions=>=x"], "no PEP 440 range"),
        (["broken"], "the footer is missing"),
        (["whole", "--impl=referense"], "did you mean 'reference'?"),
    ],
)
def test_wrong_use_is_told(tmp_path: Path, words: list[str], message: str) -> None:
    results = report([row("a.b:c", "fail", observed="x")])
    for name in ("whole", "broken"):
        results.write(tmp_path / name)
    file = tmp_path / "broken" / "results.jsonl"
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    done = invoke("propose-expectations", str(tmp_path / words[0]), *words[1:])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split()), done.output


def test_ids_of_the_synthetic_rows_are_those_of_cases() -> None:
    [first, *_] = rows_of("a.b", "c", lambda axes: ("pass", None))
    clause: Any = type("Clause", (), {"id": "a.b"})
    assert Case(clause, first["axes"], {}, ()).id == first["case"]
    json.dumps(first)
