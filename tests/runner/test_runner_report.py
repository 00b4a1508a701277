"""Reports: written whole, read back, and a damaged one is refused with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft_conformance.report import (
    FILE,
    PART,
    Results,
    Stream,
    brief,
    comparison,
    digest,
    plain,
    read,
    read_partial,
    resumable,
    text_table,
)
from suite_runs import Outcome

HEADER = {
    "implementation": {"name": "mine", "version": "1", "module": "mine", "api_level": "1", "isolated": False},
    "torch": "2",
    "transformers": None,
    "python": "3.11",
    "device": "cpu",
    "matrix": "full",
    "profiles": [],
}


def row(check: str, verdict: str, **more: Any) -> dict[str, Any]:
    case, _, name = check.partition(":")
    clause = case.partition("[")[0]
    empty = {"consumers": [], "expected": None, "observed": None, "detail": "", "seconds": 0.1, "axes": {}}
    known = {"id": check, "case": case, "clause": clause, "check": name, "level": "MUST", "profile": "model"}
    return {**empty, **known, "verdict": verdict, **more}


@pytest.fixture
def results() -> Results:
    not_run = {"profile": "checkpoint", "consumers": ["app"], "verdict": "not-run", "reason": "no cuda"}
    left_out = [{**not_run, "checks": 7}]
    rows = [
        row("b.b:two", "fail", expected=[1], observed=float("nan")),
        row("a.a:one", "pass", consumers=["app"]),
    ]
    return Results(HEADER, rows, [{"name": "snapshot:gone", "complaint": "delete it"}], left_out)


def test_what_is_written_is_read_back(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "deep" / "report")
    again = read(tmp_path / "deep" / "report" / "results.jsonl")
    assert again.header == HEADER
    assert [entry["id"] for entry in again.rows] == ["a.a:one", "b.b:two"]
    assert again.rows[1]["observed"] == "nan"
    assert (again.loose_ends, again.left_out) == (results.loose_ends, results.left_out)
    assert sorted(path.name for path in (tmp_path / "deep" / "report").iterdir()) == [
        "badge-app.json",
        "badge-checkpoint.json",
        "badge-model.json",
        "results.jsonl",
        "summary.md",
    ]


def test_order_of_arrival_does_not_show(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "one")
    results.rows.reverse()
    results.write(tmp_path / "two")
    assert (tmp_path / "one" / "results.jsonl").read_bytes() == (
        tmp_path / "two" / "results.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-1], "results.jsonl:4: the footer is missing: the file is cut off"),
        (lambda lines: [*lines[:2], lines[2][:30]], "results.jsonl:3: no JSON object"),
        (lambda lines: [*lines[:2], *lines[3:]], "the footer counts 2 checks, 1 are there"),
        (lambda lines: lines[1:], "results.jsonl:1: expected the header line"),
        (lambda lines: [], "results.jsonl:1: expected the header line"),
        (
            lambda lines: [lines[0].replace('"1.0"', '"9.0"'), *lines[1:]],
            "format '9.0'; this version reads '1.0'",
        ),
    ],
    ids=["no footer", "half a line", "a check less", "no header", "empty", "another format"],
)
def test_damaged_report_is_refused(results: Results, tmp_path: Path, damage: Any, message: str) -> None:
    results.write(tmp_path)
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(damage(file.read_text("utf-8").splitlines())), "utf-8")
    with pytest.raises(ValueError, match=r"results\.jsonl") as caught:
        read(file)
    assert message in str(caught.value)


def test_table_shows_only_verdicts_that_were_given(results: Results) -> None:
    assert text_table(results.table()) == [
        "profile      pass  fail  not-run",
        "checkpoint      0     0        7",
        "model           1     1        0",
        "used by app     1     0        7",
    ]
    assert results.reasons() == ["7 not-run: no cuda"]


def test_brief_says_what_counts_for_each_verdict() -> None:
    failed = row("a.a:one", "fail", expected=["x → y"], observed="some\nthing", detail="2 differ")
    assert brief(failed) == 'expected ["x → y"], observed some thing'
    assert brief(row("a.a:one", "blocked", detail="needs b.b")) == "needs b.b"


def test_digest_has_one_line_for_all_cases_of_a_check() -> None:
    rows = [row(f"a.a[x={n}]:one", "warn") for n in (1, 2, 3)]
    assert digest([*rows, row("b.b:two", "blocked", detail="needs a.a")]) == [
        "warn `a.a[x=1]:one` and 2 more: expected null, observed null",
        "blocked `b.b:two`: needs a.a",
    ]


def test_plain_keeps_what_json_can_hold() -> None:
    value = {1: (True, None), "set": {"b", "a"}, "number": float("-inf"), "path": Path("x")}
    assert plain(value) == {"1": [True, None], "set": ["a", "b"], "number": "-inf", "path": repr(Path("x"))}


@pytest.fixture
def stream(results: Results, tmp_path: Path) -> Iterator[Stream]:
    """The report of a run that has had two checks and a loose end, and goes on."""
    (tmp_path / FILE).write_text("what an earlier run has left")
    stream = Stream(Results({**results.header, "total": 3}, left_out=results.left_out), tmp_path)
    stream.open()
    for kind, lines in (("check", results.rows), ("loose-end", results.loose_ends)):
        for line in lines:
            stream.add(kind, line)
    yield stream
    stream.close()


@pytest.mark.usefixtures("stream")
def test_rows_are_there_while_a_run_goes_on(results: Results, tmp_path: Path) -> None:
    assert [file.name for file in tmp_path.iterdir()] == [PART]
    found = read_partial(tmp_path / PART)
    assert (found.complete, found.header["total"]) == (False, 3)
    assert [row["id"] for row in found.rows] == ["b.b:two", "a.a:one"]
    assert found.loose_ends == results.loose_ends
    with pytest.raises(ValueError, match="the footer is missing"):
        read(tmp_path / PART)


@pytest.mark.usefixtures("stream")
def test_last_line_of_a_killed_run_may_be_cut_off_but_no_other(tmp_path: Path) -> None:
    part = tmp_path / PART
    text = part.read_text("utf-8")
    part.write_text(text[:-10], "utf-8")
    assert (len(read_partial(part).rows), read_partial(part).loose_ends) == (2, [])
    part.write_text(text.replace('{"kind": "check", ', "", 1), "utf-8")
    with pytest.raises(ValueError, match=r"part:2: no JSON object"):
        read_partial(part)


def test_end_of_a_run_puts_the_report_in_the_place_of_the_part(
    results: Results, stream: Stream, tmp_path: Path
) -> None:
    stream.results.rows += results.rows
    stream.results.complete, stream.results.seconds = False, 1.25
    stream.close()
    assert not (tmp_path / PART).exists()
    found = read(tmp_path / FILE)
    assert (found.complete, found.seconds) == (False, 1.2)
    assert "INCOMPLETE: 2 of 3 checks have a verdict" in (tmp_path / "summary.md").read_text("utf-8")


@pytest.mark.parametrize(("change", "taken"), [({}, 2), ({"matrix": "smoke"}, 0), ({"torch": "3"}, 0)])
def test_only_the_same_run_is_gone_on_with(
    results: Results, stream: Stream, tmp_path: Path, change: dict[str, str], taken: int
) -> None:
    assert resumable(tmp_path / "elsewhere", HEADER) == []
    assert len(resumable(tmp_path, {**HEADER, **change})) == taken
    stream.results.rows += results.rows
    stream.close()
    assert len(resumable(tmp_path, {**HEADER, **change})) == taken


def test_badge_counts_and_is_green_only_where_nothing_is_known_to_fail() -> None:
    verdicts = {"a": ["pass"], "b": ["pass", "expected-failure"], "c": ["pass", "stale"]}
    rows = [
        row(f"{p}.x:{n}", v, profile=p, consumers=["me"])
        for p, given in verdicts.items()
        for n, v in enumerate(given)
    ]
    badges = Results(HEADER, rows).badges()
    assert badges["b"] == {
        "schemaVersion": 1,
        "label": "mine 1 b",
        "message": "1 pass, 1 expected",
        "color": "yellow",
    }
    assert {name: badge["color"] for name, badge in badges.items()} == {
        "a": "brightgreen",
        "b": "yellow",
        "c": "red",
        "me": "red",
    }
    part = Results(HEADER, rows[:1], complete=False).badges()
    assert (part["a"]["color"], part["a"]["message"]) == ("lightgrey", "incomplete: 1 pass")


def test_comparison_has_a_row_for_each_implementation_and_profile() -> None:
    table = comparison([("one 1", {"a": {"pass": 2}, "b": {"stale": 1, "info": 0}}), ("two 2", {})])
    assert text_table(table) == [
        "implementation  profile  pass  fail  stale",
        "one 1           a           2     0      0",
        "                b           0     0      1",
        "two 2           -           0     0      0",
    ]


def test_the_seconds_of_a_case_count_once_for_its_profile() -> None:
    spent = [("a", "model", 1.5), ("a", "model", 1.5), ("b", "model", 2), ("c", "x", 3)]
    rows = [{"case": case, "profile": profile, "seconds": seconds} for case, profile, seconds in spent]
    results = Results({}, rows, start_up=0.75)
    assert results.times() == {"start-up": 0.8, "model": 3.5, "x": 3.0}
    assert results.time_line() == "seconds: start-up 0.8, model 3.5, x 3.0"
    assert Results({}).times() == {}


def test_a_run_tells_what_its_seconds_went_into(whole: Outcome) -> None:
    times = whole.results.times()
    assert list(times) == ["start-up", "functional", "model"]
    assert 0 < times["start-up"] <= (whole.results.seconds or 0)  # read back from the footer
    told = [line for line in whole.text.splitlines() if line.startswith("seconds: start-up ")]
    assert len(told) == 1
    assert told[0] in (whole.folder / "report" / "summary.md").read_text("utf-8")
