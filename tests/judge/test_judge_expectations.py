"""Known failures: the foretold is expected, what came otherwise has changed, what holds again is stale."""

from __future__ import annotations

import copy
from datetime import date
from typing import Any

import pytest
from peft_conformance.cases import Verdict
from peft_conformance.expectations import KnownFailures, overdue, review_lines

ENTRY = {
    "match": {"clause": "delete.last", "check": "returns-none"},
    "outcome": "fail",
    "observed": [],
    "because": "returns an empty list",
    "review_by": "2027-06-30",
}
CASE = "delete.last[dtype=bfloat16,flag=true,method=lora]"


def entry(**changes: Any) -> dict[str, Any]:
    return {**ENTRY, **changes}


def verdict(
    word: str = "fail", observed: Any = None, case: str = CASE, check: str = "returns-none"
) -> Verdict:
    return Verdict(case, check, word, None, [] if observed is None else observed, "seen")


def apply(verdict: Verdict, entries: list[dict[str, Any]], version: str) -> Verdict:
    return KnownFailures(entries, version).apply(verdict)


def outcome(entries: list[dict[str, Any]], word: str = "fail", version: str = "0.21.2", **facts: Any) -> str:
    return apply(verdict(word, **facts), entries, version).verdict


def test_what_was_foretold_is_an_expected_failure_with_its_reason() -> None:
    result = apply(verdict(), [ENTRY], "0.21.2")
    assert (result.verdict, result.detail, result.observed) == (
        "expected-failure",
        "returns an empty list",
        [],
    )


def test_a_warning_can_be_foretold_too() -> None:
    assert outcome([ENTRY], "warn") == "expected-failure"


@pytest.mark.parametrize("observed", [[0], "", False, {}, "nothing"])
def test_another_observation_has_changed(observed: Any) -> None:
    result = apply(verdict(observed=observed), [ENTRY], "0.21.2")
    assert result.verdict == "changed"
    assert "known to end otherwise: fail, observed []" in result.detail


def test_without_observed_any_observation_will_do() -> None:
    anything = {key: item for key, item in ENTRY.items() if key != "observed"}
    assert outcome([anything], observed="x") == "expected-failure"


def test_a_failure_is_no_error_and_an_error_no_failure() -> None:
    assert outcome([ENTRY], "error") == "changed"
    failing = entry(outcome="error", like="TypeError")
    del failing["observed"]
    assert outcome([failing], "error", observed="TypeError: boom") == "expected-failure"
    assert outcome([failing], "error", observed="KeyError: boom") == "changed"
    assert outcome([failing], "fail", observed="TypeError: boom") == "changed"
    failing["like"] = r"TypeError: .* arguments?"
    assert outcome([failing], "error", observed="TypeError: 3 arguments") == "expected-failure"


@pytest.mark.parametrize("word", ["pass", "info"])
def test_what_holds_again_is_stale(word: str) -> None:
    result = apply(verdict(word), [ENTRY], "0.21.2")
    assert result.verdict == "stale"
    assert "remove the expectation" in result.detail


@pytest.mark.parametrize("word", ["blocked", "unsupported", "not-applicable", "not-run"])
def test_what_was_not_judged_stays_as_it_is(word: str) -> None:
    assert apply(verdict(word), [ENTRY], "0.21.2") == verdict(word)


@pytest.mark.parametrize(
    "change",
    [
        {"match": {"clause": "delete.lasting", "check": "returns-none"}},
        {"match": {"clause": "delete.last", "check": "returns"}},
        {"versions": "<0.21"},
        {"match": {**ENTRY["match"], "axes": {"dtype": "float32"}}},
        {"match": {**ENTRY["match"], "axes": {"device": "cpu"}}},
        {"match": {**ENTRY["match"], "axes": {"method": "lor"}}},
        {"match": {**ENTRY["match"], "axes": {"method": ["lor", "loha"]}}},
        {"match": {**ENTRY["match"], "axes": {"type": "bfloat16"}}},
    ],
)
def test_an_entry_about_something_else_changes_nothing(change: dict[str, Any]) -> None:
    assert apply(verdict(), [entry(**change)], "0.21.2") == verdict()
    assert apply(verdict("pass"), [entry(**change)], "0.21.2") == verdict("pass")


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"dtype": "bfloat16"},
        {"flag": True},
        {"method": "lora", "flag": True},
        {"dtype": "bfloat16", "method": "lora"},
        {"method": ["loha", "lora"]},
    ],
)
def test_axes_are_matched_as_a_subset(axes: dict[str, Any]) -> None:
    assert outcome([entry(match={**ENTRY["match"], "axes": axes})]) == "expected-failure"


def test_an_axis_value_may_hold_commas() -> None:
    axes = {"names": "a,b", "x": "c"}
    matching = entry(match={**ENTRY["match"], "axes": axes})
    assert outcome([matching], case="delete.last[names=a,b,x=c]") == "expected-failure"
    assert outcome([matching], case="delete.last[names=a,x=c]") == "fail"


@pytest.mark.parametrize(
    ("versions", "applies"), [(">=0.18", True), ("", True), ("==0.21.*", True), (">0.21.2", False)]
)
def test_versions_are_ranges(versions: str, applies: bool) -> None:
    assert outcome([entry(versions=versions)]) == ("expected-failure" if applies else "fail")


def test_pre_releases_are_in_a_range() -> None:
    assert outcome([entry(versions=">=0.21")], version="0.22.0.dev0") == "expected-failure"


def test_any_of_several_entries_may_be_the_one() -> None:
    entries = [entry(observed="x"), ENTRY]
    assert outcome(entries) == "expected-failure"
    assert outcome(entries, observed="y") == "changed"
    assert outcome(entries, "pass") == "stale"


def test_entries_that_no_check_answers_to_are_found() -> None:
    ids = [f"{CASE}:returns-none", "delete.other:returns-none"]
    other = entry(match={"clause": "delete.renamed", "check": "returns-none"})
    narrow = entry(match={**ENTRY["match"], "axes": {"dtype": "float32"}})
    old = entry(match={"clause": "delete.removed", "check": "x"}, versions="<0.20")
    found = KnownFailures([ENTRY, other, narrow, old], "0.21.2").unmatched(ids)
    assert [entry for _, entry in found] == [other, narrow]
    assert [str(place) for place, _ in found] == [
        "delete.renamed:returns-none",
        "delete.last[dtype=float32]:returns-none",
    ]


def test_one_place_of_several_that_no_check_answers_to_is_found() -> None:
    match = [{**ENTRY["match"], "check": ["returns-none", "gone"]}, {"clause": "delete.b", "check": "frame"}]
    found = KnownFailures([entry(match=match)], "0.21.2").unmatched([f"{CASE}:returns-none"])
    assert [str(place) for place, _ in found] == ["delete.last:gone", "delete.b:frame"]


def test_applying_changes_no_input() -> None:
    entries, given = [copy.deepcopy(ENTRY)], verdict()
    apply(given, entries, "0.21.2")
    assert (entries, given) == ([ENTRY], verdict())


@pytest.mark.parametrize(
    ("word", "observed", "judged"),
    [("warn", [], "warn"), ("error", "E", "error"), ("pass", None, "pass"), ("blocked", None, None)],
)
def test_what_was_judged_before_is_kept(word: str, observed: Any, judged: str | None) -> None:
    assert apply(verdict(word, observed), [ENTRY], "0.21.2").judged == judged
    assert apply(verdict(word, observed), [], "0.21.2").judged is None


def test_an_entry_may_speak_of_several_checks_and_clauses() -> None:
    match = [
        {"clause": "delete.last", "check": ["returns-none", "frame"], "axes": {"flag": True}},
        {"clause": "delete.other", "check": "frame"},
    ]
    assert outcome([entry(match=match)]) == "expected-failure"
    assert outcome([entry(match=match)], check="frame") == "expected-failure"
    assert outcome([entry(match=match)], case="delete.other") == "fail"
    assert outcome([entry(match=match)], case="delete.other", check="frame") == "expected-failure"
    assert outcome([entry(match=match)], case="delete.last[flag=false]", check="frame") == "fail"


def test_an_entry_is_overdue_the_day_after_its_review_date() -> None:
    entries = [entry(review_by="2027-07-01", because="later"), ENTRY]
    assert overdue(entries, date(2027, 6, 30)) == []
    assert overdue(entries, date(2027, 7, 1)) == [ENTRY]
    match = [{**ENTRY["match"], "axes": {"dtype": ["float32", "bfloat16"]}}, {"clause": "a.b", "check": "c"}]
    assert review_lines([*overdue(entries, date(2028, 1, 1)), entry(match=match)]) == [
        "2027-06-30 delete.last:returns-none: returns an empty list",
        "2027-06-30 delete.last[dtype=float32|bfloat16]:returns-none and 1 more: returns an empty list",
        "2027-07-01 delete.last:returns-none: later",
    ]


def test_an_axis_may_list_several_values() -> None:
    match = {**ENTRY["match"], "axes": {"method": ["lora", "ia3"], "flag": True}}
    assert outcome([entry(match=match)]) == "expected-failure"
    assert outcome([entry(match={**match, "axes": {"method": ["ia3", "lor"]}})]) == "fail"
