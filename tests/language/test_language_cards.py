"""Cards state what is so: the fields and defaults of the reference, ranges that cover every API level."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import peft_reference
import pytest
from peft_conformance.cases import plain_text
from peft_conformance.expand import can_inject, expand
from peft_conformance.language import Suite, find_specs_dir, load_suite


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(find_specs_dir())


def config_classes(suite: Suite) -> list[tuple[Any, Any]]:
    """Each card that lists fields, with the reference's class of that name."""
    cards = [card["config"] for card in suite.cards.values() if "fields" in card["config"]]
    return [(card, cls) for card in cards if (cls := getattr(peft_reference, card["class"], None))]


def test_cards_list_the_fields_of_the_config_in_order(suite: Suite) -> None:
    pairs = config_classes(suite)
    assert pairs
    for card, cls in pairs:
        assert list(card["fields"]) == list(inspect.signature(cls).parameters)


def test_cards_state_the_defaults_of_the_config(suite: Suite) -> None:
    for card, cls in config_classes(suite):
        for field in dataclasses.fields(cls):  # a config that was made may have put another value there
            made = field.default_factory is not dataclasses.MISSING
            value = field.default_factory() if made else field.default
            entry = card["fields"].get(field.name, {})
            if "default" in entry and field.name != "peft_type":  # which the class itself knows
                assert getattr(value, "value", value) == entry["default"], (cls, field.name)


def test_every_card_can_be_used_as_it_says(suite: Suite) -> None:
    for card in suite.cards.values():
        cls = getattr(peft_reference, card["config"]["class"], None)
        if cls is not None and all(map(importlib.util.find_spec, card.get("packages", ()))):
            cls(**card["config"]["use"])


@pytest.mark.parametrize(
    ("method", "level", "expected"),
    [
        ("LORA", "0.5.0", True),
        ("VERA", "0.20.0", True),
        ("VERA", "0.21.2", False),
        ("PROMPT_TUNING", "0.21.2", False),
        ("ADAPTION_PROMPT", "0.5", False),
    ],
)
def test_injectable_follows_the_api_level(suite: Suite, method: str, level: str, expected: bool) -> None:
    assert can_inject(suite.cards[method], level) is expected


POINTS = """
  second: {inference_mode: true}
  points:
    wide: {fields: {feedforward_modules: [layer]}, layers: [Linear], mergeable: false}
"""


@pytest.fixture
def with_points(tmp_path: Path) -> Suite:
    """The suite with a complete card that has a point."""
    specs = shutil.copytree(find_specs_dir(), tmp_path / "specs")
    card = specs / "methods" / "loha.yaml"
    fields, _, facts = re.split(r"  points:\n|^layers:", card.read_text("utf-8"), flags=re.M)
    card.write_text(fields + POINTS.lstrip("\n") + "layers:" + facts, "utf-8")
    return load_suite(specs)


def test_points_of_a_card_join_the_laws_as_methods(with_points: Suite) -> None:
    suite = with_points
    assert {"loha", "loha-wide"} <= {*suite.set_values("law-configs")}
    assert "loha-wide" not in suite.set_values("law-methods")
    assert "loha" in suite.set_values("law-configs", {"mergeable": True})
    assert "loha-wide" not in suite.set_values("law-configs", {"mergeable": True})
    assert "loha" not in suite.set_values("law-configs", {"active_together": ["one", "compose"]})
    assert suite.method("loha-narrow") is None
    cases = {
        case.axes["layer"]: case
        for case in expand(suite, api_level="0.21.2", clauses=["law.gradients"]).cases
        if case.axes["method"] == "loha-wide"
    }
    assert cases.keys() == {"one-linear", "one-linear-biasless"}
    case = cases["one-linear"]
    assert "method-loha" in case.requires
    (made,) = [s["args"]["peft_config"]["config"] for s in case.program["given"] if "call" in s]
    assert made["fields"] == {
        "r": 4,
        "alpha": 6,
        "feedforward_modules": ["layer"],
        "target_modules": ["layer"],
    }


def test_the_config_of_a_second_adapter_has_the_fields_that_its_card_says(with_points: Suite) -> None:
    cases = expand(with_points, api_level="0.21.2", clauses=["law.inactive"]).cases
    case = next(case for case in cases if case.axes["method"] == "loha")
    calls = [
        s["args"]["peft_config"]["config"]["fields"]
        for phase in ("given", "when")
        for s in case.program[phase]
        if s.get("call") == "inject_adapter_in_model"
    ]
    assert [fields.get("inference_mode") for fields in calls] == [None, True]


def test_named_sets_are_drawn_from_the_cards_lora_first(suite: Suite) -> None:
    injectable = suite.set_values("injectable")
    assert injectable[0] == "lora"
    assert list(injectable[1:]) == sorted(injectable[1:])
    assert "prompt_tuning" not in injectable
    assert suite.set_values("devices") == ("cpu", "cuda")


def test_an_unknown_clause_is_answered_with_the_nearest(suite: Suite) -> None:
    assert suite.clause("inject.in-place").topic == "inject_adapter_in_model"
    with pytest.raises(KeyError, match=r"no clause 'inject.in-plase'; did you mean 'inject.in-place'\?"):
        suite.clause("inject.in-plase")


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (False, "false"), (1.5, "1.5"), ("x", "x")])
def test_axis_values_are_spelled_as_in_yaml(value: object, text: str) -> None:
    assert plain_text(value) == text


def test_a_card_that_is_complete_joins_the_laws_on_its_own_layers(tmp_path: Path) -> None:
    specs = shutil.copytree(find_specs_dir(), tmp_path / "specs")
    card = specs / "methods" / "loha.yaml"
    assert "complete: true\n" in card.read_text("utf-8")
    expansion = expand(load_suite(specs), api_level="0.21.2", clauses=["law.forward"])
    layers = {case.axes["layer"] for case in expansion.cases if case.axes["method"] == "loha"}
    assert layers == {"one-linear", "one-linear-biasless", "one-conv1d", "one-conv2d"}
    assert not [s for s in expansion.skipped if s.case.axes["method"] == "loha"]


def test_an_adapter_that_merges_into_a_bias_has_no_merging_laws_without_one(suite: Suite) -> None:
    cases = expand(suite, api_level="0.21.2", clauses=["law.merge", "law.forward"]).cases
    layers = {
        clause: {c.axes["layer"] for c in cases if c.clause.id == clause and c.axes["method"] == "beft"}
        for clause in ("law.merge", "law.forward")
    }
    assert layers == {"law.merge": {"one-linear"}, "law.forward": {"one-linear", "one-linear-biasless"}}
