"""Clauses become cases: every point, every pair, one; programs without expectations; ids of their own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft_conformance.cases import Case, Clause
from peft_conformance.consumers import selected
from peft_conformance.expand import Expansion, expand, fill, points, select
from peft_conformance.language import Suite, find_specs_dir, load_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    specs = corpus.base_specs(tmp_path_factory.mktemp("expand"))
    for file in corpus.ACCEPTED.glob("*.yaml"):
        corpus.add(specs, file)
    return load_suite(specs)


@pytest.fixture(scope="module")
def ours() -> Suite:
    return load_suite(find_specs_dir())


@pytest.fixture
def expanded(suite: Suite) -> Callable[..., Expansion]:
    def run(clause: str, api_level: str = "0.20.0", **options: Any) -> Expansion:
        return expand(suite, clauses=[clause], **{"api_level": api_level, **options})

    return run


# points


def test_full_is_the_product_without_the_excluded_points(expanded: Callable[..., Expansion]) -> None:
    cases = expanded("axes.everywhere").cases
    types_on_devices = 3 * 2 - 2  # float16 and bfloat16 not on the cpu
    low_name_mode = 2 * 2 * 3 - 1  # three axes at once
    assert len(cases) == 2 * 2 * types_on_devices * low_name_mode
    assert not [c for c in cases if c.axes["dtype"] != "float32" and c.axes["device"] == "cpu"]
    assert not [c for c in cases if (c.axes["low"], c.axes["name"], c.axes["mode"]) == (True, "other", 1)]


def test_smoke_is_one_case_and_pairwise_far_fewer_than_full(expanded: Callable[..., Expansion]) -> None:
    sizes = {m: len(expanded("axes.everywhere", matrix=m).cases) for m in ("smoke", "pairwise", "full")}
    assert sizes["smoke"] == 1
    assert 6 <= sizes["pairwise"] < sizes["full"] / 8


axes_strategy = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def clause_with(matrix: dict[str, tuple[Any, ...]], exclude: tuple[dict[str, Any], ...] = ()) -> Clause:
    return Clause(
        *("x.y", "MUST", "text", (), ">=0", "functional", "topic", Path("x.yaml"), 1, (), (), (), ()),
        matrix=matrix,
        exclude=exclude,
    )


@given(data=st.data(), sizes=axes_strategy)
def test_pairwise_covers_every_pair_that_a_point_has(data: st.DataObject, sizes: list[int]) -> None:
    matrix = {f"a{i}": tuple(f"v{j}" for j in range(size)) for i, size in enumerate(sizes)}
    choices = {
        axis: st.sampled_from(values) | st.lists(st.sampled_from(values)) for axis, values in matrix.items()
    }
    whens = data.draw(st.lists(st.fixed_dictionaries({}, optional=choices).filter(bool), max_size=3))
    clause = clause_with(matrix, tuple({"when": when} for when in whens))
    cases = [Case(clause, point, {}, ()) for point in points(clause)]
    chosen = select(cases, "pairwise")

    def pairs(cases: list[Case]) -> set[Any]:
        return {
            pair for case in cases for pair in itertools.combinations(case.axes.items(), min(2, len(sizes)))
        }

    assert pairs(chosen) == pairs(cases)
    assert [c.id for c in chosen] == [c.id for c in cases if c in chosen]  # in the order of the full matrix
    assert len({c.id for c in chosen}) == len(chosen)


@given(sizes=axes_strategy)
def test_case_ids_are_unique(sizes: list[int]) -> None:
    matrix = {f"a{i}": (True, 1.5, "x", 2)[:size] for i, size in enumerate(sizes)}
    ids = [Case(clause_with(matrix), point, {}, ()).id for point in points(clause_with(matrix))]
    assert len(set(ids)) == len(ids)
    assert len(ids) == len(list(itertools.product(*matrix.values())))


def test_ids_name_axes_in_alphabetical_order_and_spell_values_as_yaml_does(
    expanded: Callable[..., Expansion],
) -> None:
    first = expanded("axes.everywhere").cases[0]
    assert first.id == (
        "axes.everywhere[device=cpu,dtype=float32,low=true,method=lora,mode=train,model=mlp,name=default]"
    )
    assert expanded("base.good").cases[0].id == "base.good"


# ranges, capabilities


def test_a_clause_outside_the_api_level_is_counted_and_not_run(expanded: Callable[..., Expansion]) -> None:
    result = expanded("axes.everywhere", api_level="0.17.1", matrix="smoke")
    assert result.cases == []
    assert [(s.verdict, s.reason) for s in result.skipped] == [
        ("not-applicable", "API level 0.17.1 is not in >=0.18")
    ]


def test_a_method_leaves_its_set_with_the_api_level(expanded: Callable[..., Expansion]) -> None:
    assert {c.axes["method"] for c in expanded("axes.everywhere", api_level="0.20.0").cases} == {
        "lora",
        "vera",
    }
    young = expanded("axes.everywhere", api_level="0.21.2")
    assert {c.axes["method"] for c in young.cases} == {"lora"}
    assert {(s.case.axes["method"], s.reason) for s in young.skipped} == {
        ("vera", "VERA is not in the set 'injectable' at API level 0.21.2")
    }


def test_a_method_that_a_level_does_not_have_is_not_applicable(expanded: Callable[..., Expansion]) -> None:
    result = expanded("law.identity", api_level="0.13", lacks={})
    assert {c.axes["method"] for c in result.cases} == {"lora", "vera"}
    assert expanded("base.good", api_level="0.12").skipped[0].verdict == "not-applicable"


@pytest.mark.parametrize(
    ("offers", "lacks", "reason"),
    [
        ({"functional"}, {}, "method-lora is not offered"),
        ({"functional", "method-lora"}, {}, "method-vera is not offered"),
        ("all", {"method-vera": "not written yet"}, "method-vera: not written yet"),
    ],
)
def test_a_capability_that_is_not_offered_is_unsupported(
    expanded: Callable[..., Expansion], offers: Any, lacks: dict[str, str], reason: str
) -> None:
    result = expanded("axes.everywhere", offers=offers, lacks=lacks, matrix="smoke")
    assert result.cases == []
    assert [(s.verdict, s.reason) for s in result.skipped] == [("unsupported", reason)]


def test_methods_and_models_bring_their_capabilities(expanded: Callable[..., Expansion]) -> None:
    methods = {c.axes["method"]: c.requires for c in expanded("law.identity").cases}
    assert methods["vera"] == ("method-vera",)
    assert methods["lora"] == ("method-lora",)


def test_profiles_select(suite: Suite) -> None:
    only = expand(suite, api_level="0.20", where=selected(suite, ["checkpoint"]))
    assert {c.clause.id for c in only.cases} == {"words.all"}
    both = expand(suite, api_level="0.20", where=selected(suite, ["checkpoint", "functional"]))
    assert {c.clause.profile for c in both.cases} == {"checkpoint", "functional"}


@pytest.mark.parametrize(
    ("level", "check"), [("0.18.1", "finite"), ("0.19.1", "finite"), ("0.20", "finite"), ("0.20.1", "zero")]
)
def test_the_variant_of_the_api_level_is_taken(
    expanded: Callable[..., Expansion], level: str, check: str
) -> None:
    (case,) = expanded("ranges.tiled", api_level=level).cases
    assert [c.id for c in case.checks] == [check, "frame"]
    assert expanded("ranges.tiled", api_level="0.19.0").cases == []


# programs


def test_axes_are_filled_in_everywhere(expanded: Callable[..., Expansion]) -> None:
    case = expanded("axes.everywhere").cases[-1]
    assert case.axes == {
        "method": "vera",
        "model": "deep",
        "dtype": "float16",
        "device": "cuda",
        "low": False,
        "name": "other",
        "mode": 2.5,
    }
    text = json.dumps([case.program, [c.body for c in case.checks]])
    assert "axis" not in text
    checks = {c.id: c.body for c in case.checks}
    assert checks["mode"] == {"of": "mode", "to": 2.5}
    assert checks["active"]["have"] == {"active": ["other"]}
    assert checks["frame"] == {"modifies": [{"of": "m", "role": "adapter", "adapter": "other"}]}


def test_configs_carry_class_and_fields_over_the_cards_use(expanded: Callable[..., Expansion]) -> None:
    program = expanded("axes.everywhere").cases[0].program
    assert program["given"][1] == {
        "make_config": {
            "id": "cfg",
            "config": "LORA",
            "class": "LoraConfig",
            "fields": {"r": "train", "lora_alpha": 6, "target_modules": ["lin0"]},
        },
        "label": "cfg",
        "index": 1,
    }
    call = expanded("base.good").cases[0].program["when"][0]
    assert call["args"]["peft_config"] == {
        "config": {"class": "LoraConfig", "fields": {"r": 4, "lora_alpha": 6, "target_modules": ["lin0"]}}
    }
    odd = expanded("words.all").cases[0].program["given"][3]
    assert odd["make_config"] == {"id": "bad", "config": "not-a-config"}


def test_a_program_expects_nothing(expanded: Callable[..., Expansion]) -> None:
    case = expanded("axes.everywhere").cases[0]
    switch = case.program["when"][2]
    assert switch == {
        "call": "set_adapter",
        "args": {"model": "m", "adapter_name": "nobody"},
        "attempt": True,
        "label": "switch",
        "index": 2,
    }
    assert "raises" not in json.dumps(case.program)
    (raises,) = [c for c in case.checks if c.word == "raises"]
    assert (raises.id, raises.body, raises.level) == (
        "raises",
        {"step": "switch", "error": "ValueError"},
        "SHOULD",
    )
    assert case.clause.file.read_text("utf-8").split("\n")[raises.line - 1].strip() == "- call: set_adapter"


def test_steps_inside_within_are_indexed_below_it(expanded: Callable[..., Expansion]) -> None:
    when = expanded("words.all").cases[0].program["when"]
    block = next(step for step in when if "within" in step)
    (inner,) = block["within"]["steps"]
    assert when[block["index"]] is block
    assert (inner["index"], inner["label"]) == (f"{block['index']}.0", "disabled")


def test_a_program_names_what_the_driver_needs(expanded: Callable[..., Expansion]) -> None:
    program = expanded("words.all").cases[0].program
    assert program["case"] == "words.all"
    assert set(program["models"]) == {"mlp", "tiny-bert"}
    assert program["values"] == ["before", "after"]
    assert program["operations"]["PeftModel.save_pretrained"]["path"] == "PeftModel.save_pretrained"
    assert {"lora_A", "lora_embedding_B", "vera_lambda_d", "prompt_embeddings"} <= set(program["slots"])
    assert program["prefixes"] == ["lora_", "prompt_tuning_", "vera_lambda_"]


def test_the_frame_is_judged_as_strictly_as_the_clause(expanded: Callable[..., Expansion]) -> None:
    levels = {
        clause: next(c.level for c in expanded(clause).cases[0].checks if c.id == "frame")
        for clause in ("base.good", "axes.everywhere", "words.all")
    }
    assert levels == {"base.good": "MUST", "axes.everywhere": "MUST", "words.all": "MAY"}


def test_filling_copies(suite: Suite) -> None:
    raw = suite.clause("axes.everywhere").given[0]
    before = json.dumps(raw)
    fill(raw, {"model": "mlp", "dtype": "float32", "device": "cpu", "low": True})["make_model"]["id"] = (
        "other"
    )
    assert json.dumps(raw) == before


# our own specs


@pytest.mark.parametrize("level", ["0.13.2", "0.18.1", "0.21.2"])
def test_our_programs_are_json_and_their_ids_unique(ours: Suite, level: str) -> None:
    result = expand(ours, api_level=level, matrix="pairwise")
    ids = [c.id for c in result.cases] + [s.case.id for s in result.skipped]
    assert len(set(ids)) == len(ids)
    for case in result.cases:
        assert json.loads(json.dumps(case.program)) == case.program
        assert len({c.id for c in case.checks}) == len(case.checks)


# laws on methods that cannot be injected


def program(ours: Suite, law: str, method: str, api_level: str = "0.21.2") -> Case:
    cases = expand(ours, api_level=api_level, clauses=[law]).cases
    return next(case for case in cases if case.axes["method"] == method)


def test_a_law_reaches_what_cannot_be_injected_through_a_peft_model(ours: Suite) -> None:
    case = program(ours, "law.inactive", "vera")
    calls = [step for part in ("given", "when") for step in case.program[part] if "call" in step]
    assert [step["call"] for step in calls] == [
        "get_peft_model",
        "PeftModel.add_adapter",
        "BaseTuner.set_adapter",  # what is injected is active
        "BaseTuner.set_adapter",
    ]
    assert (calls[0]["as"], calls[0]["args"]["model"], calls[0]["args"]["adapter_name"]) == (
        *("peft-m", "m"),
        "first",
    )
    assert calls[0]["args"]["autocast_adapter_dtype"] is False  # as injection leaves it
    assert all(step["on"] == "peft-m" for step in calls[1:])
    assert {step["call"] for step in calls} <= case.program["operations"].keys()
    assert "peft-model" in case.requires
    used = [step["perturb"]["of"] for step in case.program["given"] if "perturb" in step]
    assert used == ["peft-m"]
    frame = next(check for check in case.checks if check.word == "frame").body["modifies"]
    assert [entry.get("of") for entry in frame] == ["m", "peft-m", None]


def test_the_same_law_injects_where_the_api_level_can(ours: Suite) -> None:
    case = program(ours, "law.inactive", "vera", api_level="0.20.0")
    assert "inject_adapter_in_model" in case.program["operations"]


def test_an_injection_that_fails_leaves_the_model_to_the_checks(ours: Suite) -> None:
    case = program(ours, "law.unsupported-layer", "vera")
    (step,) = [step for step in case.program["when"] if "call" in step]
    assert (step["call"], step["attempt"]) == ("get_peft_model", True)
    assert [check.body["of"] for check in case.checks if check.id == "not-adapted"] == ["m"]


def test_the_keys_of_a_state_dict_need_injection(ours: Suite) -> None:
    skipped = expand(ours, api_level="0.21.2", clauses=["law.inject-from-state"]).skipped
    reasons = {s.case.axes["method"]: s.reason for s in skipped if s.verdict == "not-applicable"}
    assert reasons["vera"] == "VERA cannot be injected at API level 0.21.2"
