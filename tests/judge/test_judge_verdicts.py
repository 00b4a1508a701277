"""From a finding to a verdict: levels, crashes, steps that failed, checks on nothing; nothing is changed."""

from __future__ import annotations

import copy
import json

import pytest
from peft_conformance.cases import Check
from peft_conformance.judge import judge
from scenes import SUITE, adapted_model, ask, case, error, observation, output, plain_model, step, value

EQUAL = {"of": "v", "to": 1}
RIGHT, WRONG = observation({"v": value(1)}), observation({"v": value(2)})


@pytest.mark.parametrize(
    ("level", "right", "wrong"),
    [
        ("MUST", "pass", "fail"),
        ("MUST NOT", "pass", "fail"),
        ("SHOULD", "pass", "warn"),
        ("SHOULD NOT", "pass", "warn"),
        ("MAY", "info", "info"),
        ("UNSPECIFIED", "info", "info"),
    ],
)
def test_the_level_decides_what_a_finding_means(level: str, right: str, wrong: str) -> None:
    assert ask("equal", EQUAL, RIGHT, level).verdict == right
    verdict = ask("equal", EQUAL, WRONG, level)
    assert (verdict.verdict, verdict.observed) == (wrong, 2)


@pytest.mark.parametrize("level", ["MUST", "SHOULD", "MAY"])
def test_after_a_crash_every_check_is_an_error(level: str) -> None:
    crashed = observation({"v": value(1)}, crash={"kind": "died", "message": "signal 11"})
    verdict = ask("equal", EQUAL, crashed, level)
    assert (verdict.verdict, verdict.observed) == ("error", "died: signal 11")
    assert ask("raises", {"step": "a", "error": "ValueError"}, crashed, level).verdict == "error"


def checks() -> list[Check]:
    return [
        Check("raises-a", "raises", {"step": "a", "error": "ValueError"}, "MUST", 1),
        Check("raises-b", "raises", {"step": "b", "error": "ValueError"}, "MUST", 2),
        Check("equal", "equal", EQUAL, "MUST", 3),
    ]


def verdicts(*steps: dict) -> list[str]:
    return [v.verdict for v in judge(case(*checks()), observation({"v": value(1)}, steps=list(steps)), SUITE)]


def test_errors_that_had_to_come_leave_the_rest_to_be_judged() -> None:
    assert verdicts(step("a", error=error()), step("b", 1, error=error())) == ["pass", "pass", "pass"]


def test_a_step_that_did_not_raise_fails_alone() -> None:
    assert verdicts(step("a"), step("b", 1, error=error())) == ["fail", "pass", "pass"]


def test_another_class_of_error_fails_alone() -> None:
    assert verdicts(step("a", error=error("KeyError")), step("b", 1, error=error())) == [
        "fail",
        "pass",
        "pass",
    ]


def test_an_error_nobody_expects_ends_the_case_but_for_errors_before_it() -> None:
    boom = step(index=1, error=error("TypeError", "boom"))
    assert verdicts(step("a", error=error()), boom) == ["pass", "error", "error"]
    assert verdicts(step("a"), boom) == ["fail", "error", "error"]
    by_index = [Check("raises", "raises", {"step": 0, "error": "TypeError"}, "MUST", 1)]  # means `when`
    given = observation(steps=[step(phase="given", error=error("TypeError"))])
    assert judge(case(*by_index), given, SUITE)[0].verdict == "error"
    *_, last = judge(case(*checks()), observation({"v": value(1)}, steps=[boom]), SUITE)
    assert (last.observed, last.at) == ("TypeError: boom", {"step": 1})


def test_what_is_missing_satisfies_no_raises() -> None:
    missing = error("MissingFunction", "fork does not offer set_adapter", mro=["MissingFunction"])
    assert verdicts(step("a", error=missing)) == ["error", "error", "error"]


def test_an_error_of_the_driver_is_ours_even_where_an_error_was_expected() -> None:
    ours = observation({"v": value(1)}, steps=[step("a", error=error(origin="driver"))])
    for verdict in judge(case(*checks()), ours, SUITE):
        assert verdict.verdict == "error"
        assert "our own mistake" in verdict.detail


@pytest.mark.parametrize(
    ("word", "body", "says"),
    [
        ("equal", {"of": "nothing", "to": 1}, "our own mistake: no step made 'nothing'"),
        ("all", {"of": "v", "have": {"dtype": "float32"}}, "v is a value of class int, which has no tensors"),
        ("modules", {"of": "v", "have": {"adapted": True}}, "our own mistake: v is a value of class int"),
        ("keys", {"of": "v", "exactly": []}, "v is a value of class int, which has no keys"),
        ("signature", {"of": "v", "parameters": []}, "v is a value of class int, which has no signature"),
        ("snapshot", {"of": "v", "view": "module_tree"}, "which has no tensors"),
        ("instance", {"of": "file", "of_class": "dict"}, "whose ancestors are not recorded"),
        ("same_object", ["v", "file"], "file is a folder, which has no identity"),
        ("warns", {"step": "nowhere"}, "our own mistake: the case came to no step 'nowhere'"),
        ("close", {"left": "y", "right": "y", "tolerance": "loose"}, "no tolerance class is called 'loose'"),
        (
            "close",
            {"left": "m", "right": "m"},
            "were not recorded: our own mistake: capture it with `values: true`",
        ),
        ("close", {"left": "meta", "right": "meta"}, "were not recorded: it is on the meta device"),
        ("close", {"left": "y", "right": "m"}, "y and m hold other tensors"),
    ],
)
def test_a_check_with_nothing_to_judge_on_is_an_error_that_says_why(
    word: str, body: object, says: str
) -> None:
    entities = {
        "v": value(1),
        "m": plain_model(),
        "y": output("y"),
        "meta": output("z", device="meta", values=None),
        "sd": {"kind": "state_dict", "object": "#1", "class": "dict", "tensors": []},
        "file": {"kind": "folder", "files": {}},
    }
    verdict = ask(word, body, observation(entities))
    assert verdict.verdict == "error"
    assert says in str(verdict.observed)


def test_a_capture_is_preferred_to_the_state_at_the_end() -> None:
    seen = observation({"v": value(2)}, captures={"v": value(1)})
    assert ask("equal", EQUAL, seen).verdict == "pass"


def test_an_axis_can_be_what_is_expected() -> None:
    body = {"of": "v", "to_axis": "count"}
    assert ask("equal", body, RIGHT, axes={"count": 1}).verdict == "pass"
    assert ask("equal", body, RIGHT, axes={"count": 2}).verdict == "fail"


def test_what_was_observed_carries_no_address_no_path_and_no_token() -> None:
    message = "no file /tmp/tmpab12/x/adapter.json for <object at 0x7f00deadbeef> and C:\\temp\\y\\z.bin"
    seen = observation(steps=[step("a", error=error("OSError", message))])
    verdict = ask("raises", {"step": "a", "error": "ValueError"}, seen)
    assert verdict.observed == "OSError: no file <path> for <object at <address>> and <path>"
    order = observation(steps=[step("a", error=error("KeyError", "no {'b', 'a'} in {'c'}"))])
    assert (
        ask("raises", {"step": "a", "error": "ValueError"}, order).observed
        == "KeyError: no {'a', 'b'} in {'c'}"
    )
    names = ask("same_object", ["a", "b"], observation({"a": plain_model(), "b": value(None)}))
    assert "#" not in str(names.observed)


def test_judging_changes_nothing_and_says_the_same_twice() -> None:
    seen = observation(
        {"m": adapted_model("a", "b"), "v": value([1])}, before={"m": plain_model(), "v": value([2])}
    )
    body = {"of": "m", "role": "adapter", "have": {"requires_grad": True}}
    asked = case(
        Check("all", "all", body, "MUST", 1),
        Check(
            "frame",
            "frame",
            {"modifies": [{"of": "m", "role": "base", "aspects": ["requires_grad"]}]},
            "MUST",
            2,
        ),
        Check("tree", "snapshot", {"of": "m", "view": "module_tree"}, "MUST", 3),
        Check("keys", "keys", {"of": "m", "exactly": ["x"]}, "MUST", 4),
    )
    before = copy.deepcopy((seen, asked, SUITE.cards))
    first = judge(asked, seen, SUITE, {"tree": "x"})
    assert (seen, asked, SUITE.cards) == before
    assert judge(asked, copy.deepcopy(seen), SUITE, {"tree": "x"}) == first


STRANGE = [
    None,
    True,
    3,
    1.5,
    "nan",
    [],
    ["default", 1],
    {},
    {"default": None},
    {"default": "nan"},
    [["a"], {"b": 1}],
]


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
@pytest.mark.parametrize(
    "place", ["active", "merged", "disabled", "scaling", "r", "active_adapter", "active_adapters", "fields"]
)
def test_whatever_an_implementation_says_of_itself_is_judged(place: str, strange: object) -> None:
    """These values are the implementation's own, so they may be anything JSON can hold."""
    m = adapted_model()
    layer = next(module["adapter"] for module in m["modules"] if module["adapter"])
    if place == "fields":
        m["peft_config"]["default"] = {
            "kind": "value",
            "object": "#1",
            "class": "dict",
            "mro": ["dict"],
            "value": strange,
        }
    else:
        (layer if place in layer else m)[place] = strange
    have = {
        "active": ["default"],
        "merged": [],
        "scaling": {"default": 1.5},
        "rank": {"default": 4},
        "disabled": False,
    }
    asked = case(
        Check("modules", "modules", {"of": "m", "adapted": True, "have": have}, "MUST", 1),
        Check("frame", "frame", {"modifies": []}, "MUST", 2),
        Check("same", "same", {"left": "m", "right": "n", "aspects": ["active", "fields"]}, "MUST", 3),
        Check(
            "all",
            "all",
            {"of": "m", "role": "adapter", "adapter": "default", "have": {"dtype": "float32"}},
            "MUST",
            4,
        ),
    )
    seen = observation({"m": m, "n": adapted_model()}, before={"m": adapted_model()})
    verdicts = [v.verdict for v in judge(asked, seen, SUITE)]
    assert verdicts[1] == "fail" or (place, strange) == ("merged", [])
    assert "error" not in verdicts


def test_verdicts_are_plain_data() -> None:
    for level in ("MUST", "MAY"):
        verdict = ask("all", {"of": "m", "have": {"shape": [1]}}, observation({"m": adapted_model()}), level)
        json.dumps([verdict.expected, verdict.observed, verdict.detail, verdict.at], allow_nan=False)
