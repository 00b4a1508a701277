"""Scripts that reproduce: they fail on a wrong implementation and end quietly on a right one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft_conformance.cases import Case, Check, Clause, Variant, Verdict
from peft_conformance.implementations import Implementation
from peft_conformance.judge import WORDS, judge
from peft_conformance.language import Suite, find_specs_dir, load_suite
from peft_conformance.script import CHECKS, STEPS, reproduce
from programs import BROKEN, MODELS, Step, inject, lora, make, program, wrap

FORWARD = {"forward": {"id": "y", "of": "m"}}
STATE = {"call": "get_peft_model_state_dict", "args": {"model": "m"}, "as": "sd"}
ATTEMPT = {**inject(target="nowhere"), "attempt": True, "label": "step", "as": "nothing"}
ADAPTERS = [
    {"of": "m", "role": "adapter"},
    {"of": "m", "role": "base", "aspects": ["requires_grad"]},
    {"global": "rng"},
]
LOAD = {
    "call": "set_peft_model_state_dict",
    "args": {"model": "m", "peft_model_state_dict": "sd"},
    "as": "outcome",
}
MISFIT = {
    "call": "set_peft_model_state_dict",
    "args": {"model": "pm", "peft_model_state_dict": "sd", "ignore_mismatched_sizes": True},
    "label": "step",
}
STEP_INJECT = {**inject(), "label": "step"}
WRAPPED = [make(), wrap(), {"call": "get_peft_model_state_dict", "args": {"model": "pm"}, "as": "live"}]
OTHER_SHAPE = {"base_model.model.layer.lora_B.weight": {"shape": [12, 5], "fill": 1}}

# Check word -> body, steps of `when` and of `given`; each fails on broken/wrong and passes on the reference.
SITUATIONS: dict[str, tuple[Any, list[Step], list[Step]]] = {
    "same_object": (["result", "m"], [inject()], [make()]),
    "different_objects": (["sd", "again"], [inject(), STATE, {**STATE, "as": "again"}], [make()]),
    "all": ({"of": "m", "role": "base", "have": {"requires_grad": False}}, [inject()], [make()]),
    "none": ({"of": "m", "role": "base", "have": {"requires_grad": True}}, [inject()], [make()]),
    "modules": (
        {"of": "m", "adapted": True, "have": {"training": False, "scaling": {"default": 1.5}}},
        [inject()],
        [make()],
    ),
    "keys": (
        {"of": "sd", "no_match": r".*\.default\..*", "contain": ["layer.lora_A.weight"]},
        [inject(), STATE],
        [make()],
    ),
    "same": (
        {"left": "before", "right": "m", "role": "base", "aspects": ["values", "dtype", "identity"]},
        [inject()],
        [make(), {"capture": {"id": "before", "of": "m"}}],
    ),
    "equal": (
        {"of": "answer", "to": None},
        [
            inject(),
            {"call": "set_adapter", "args": {"model": "m", "adapter_name": "default"}, "as": "answer"},
        ],
        [make()],
    ),
    "instance": ({"of": "pm", "of_class": "PeftModel", "exactly": True}, [wrap()], [make()]),
    "close": (
        {"left": "before", "right": "y"},
        [inject(), FORWARD],
        [make(), {"forward": {"id": "before", "of": "m"}}],
    ),
    "differ": (
        {"left": "y", "right": "after"},
        [
            inject(),
            STATE,
            FORWARD,
            {"edit_state_dict": {"id": "filled", "of": "sd", "fill": 0.25}},
            {**LOAD, "args": {"model": "m", "peft_model_state_dict": "filled"}},
            {"forward": {"id": "after", "of": "m"}},
        ],
        [make()],
    ),
    "formula": (
        {"output": "y", "of": "state", "module": "layer", "adapters": ["default"]},
        [
            inject(),
            {"perturb": {"of": "m", "seed": 3}},
            {"capture": {"id": "state", "of": "m", "values": True}},
            FORWARD,
        ],
        [make()],
    ),
    "relation": (
        {
            "of": "state",
            "before": "first",
            "module": "layer",
            "adapter": "default",
            "left": "W + s * (B @ A)",
            "right": "transpose(transpose(W0))",
        },
        [inject(), {"capture": {"id": "state", "of": "m", "values": True}}],
        [make(), {"capture": {"id": "first", "of": "m", "values": True}}],
    ),
    "combination": (
        {
            "of": "state",
            "module": "layer",
            "adapter": "sum",
            "adapters": ["default"],
            "weights": [0.5],
            "kind": "cat",
        },
        [
            wrap(),
            {"perturb": {"of": "m", "seed": 3}},
            {
                "call": "LoraModel.add_weighted_adapter",
                "on": "pm",
                "args": {"adapters": ["default"], "weights": [0.5], "adapter_name": "sum"},
            },
            {"capture": {"id": "state", "of": "pm", "values": True}},
        ],
        [make()],
    ),
    "signature": (
        {
            "of": "function",
            "parameters": [
                {"name": "peft_config", "required": True},
                {"name": "model"},
                {"name": "adapter_name", "default": "default"},
                {"name": "low_cpu_mem_usage", "default": False},
                {"name": "state_dict", "default": None},
            ],
        },
        [{"look_up": {"id": "function", "name": "inject_adapter_in_model"}}],
        [],
    ),
    "shapes": (
        {"of": "sd", "module": "lin0", "exactly": {"lora_A.weight": [4, 8], "lora_B.weight": [12, 4]}},
        [inject(), STATE],
        [make()],
    ),
    "snapshot": ({"of": "sd", "view": "state_dict"}, [inject(), STATE], [make()]),
    "warns": (
        {"step": "step", "category": "UserWarning"},
        [MISFIT],
        [*WRAPPED, {"edit_state_dict": {"id": "sd", "of": "live", "insert": OTHER_SHAPE}}],
    ),
    "silent": ({"step": "step"}, [STEP_INJECT], [make()]),
    "raises": ({"step": "step", "error": "ValueError"}, [ATTEMPT], [make()]),
    "raised": ({"step": "step", "mentions": ["nowhere"]}, [ATTEMPT], [make()]),
    "printed": (
        {"step": "step", "mentions": ["trainable params"]},
        [{"call": "PeftModel.print_trainable_parameters", "on": "pm", "label": "step"}],
        [make(), wrap()],
    ),
    "frame": ({"modifies": ADAPTERS}, [inject()], [make()]),
}


def case_of(word: str, body: Any, when: list[Step], given: list[Step]) -> Case:
    """A case with one check of this word, and the derived `raises` where a step attempts something."""
    check = Check("check", word, body, "MUST", 1)
    raises = Check("raises", "raises", {"step": "step", "error": "ValueError"}, "MUST", 1)
    attempts = word != "raises" and any(step.get("attempt") for step in when)
    checks = (check, raises) if attempts else (check,)
    clause = Clause(
        f"script.{word.replace('_', '-')}",
        "MUST",
        "It is as it should be, whatever that means here.",
        ({"observed": "here"},),
        ">=0",
        "functional",
        "script",
        Path(__file__),
        1,
        (),
        (),
        (),
        (Variant(">=0", checks),),
    )
    steps = program(when, given=given)
    made = [step["make_model"]["model"] for step in [*given, *when] if "make_model" in step]
    steps["models"] = {name: MODELS[name] for name in made}
    return Case(clause, {}, steps, checks)


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(find_specs_dir())


@pytest.fixture(scope="module")
def wrong() -> Iterator[Implementation]:
    sys.path.insert(0, str(BROKEN))
    yield Implementation("wrong", "wrong", isolated=False).start()
    sys.path.remove(str(BROKEN))


def verdict_on(
    implementation: Implementation, case: Case, suite: Suite, snapshots: dict[str, str]
) -> Verdict:
    observation = implementation.execute(case.program)
    assert observation["crash"] is None
    assert [s["error"] for s in observation["steps"] if s["error"] and s["error"]["origin"] == "driver"] == []
    return judge(case, observation, suite, snapshots)[0]


def run(module: str, scripts: dict[str, Path]) -> dict[str, tuple[int, str]]:
    """Exit status and stderr of each script, run where `module` can be imported."""
    runner = Path(__file__).with_name("run_scripts.py")
    paths = os.pathsep.join([str(BROKEN), *sys.path])
    command = [sys.executable, str(runner), module, *map(str, scripts.values())]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    ended = json.loads(done.stdout.splitlines()[-1])
    return {name: tuple(ended[str(path)]) for name, path in scripts.items()}


@pytest.fixture(scope="module")
def ended(
    reference: Implementation, wrong: Implementation, suite: Suite, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, tuple[int, str]]]:
    """How the script for each check word ended, on the wrong implementation and on the reference."""
    folder = tmp_path_factory.mktemp("scripts")
    scripts: dict[str, dict[str, Path]] = {"wrong": {}, "peft_reference": {}}
    for word, (body, when, given) in SITUATIONS.items():
        case = case_of(word, body, when, given)
        stored = {"check": str(verdict_on(reference, case, suite, {}).observed)} if word == "snapshot" else {}
        assert verdict_on(reference, case, suite, stored).verdict == "pass", word
        verdict = verdict_on(wrong, case, suite, stored)
        assert verdict.verdict == "fail", (word, verdict)
        text = reproduce(case, verdict, wrong)
        for module in scripts:
            scripts[module][word] = folder / f"{word}-{module}.py"
            scripts[module][word].write_text(text.replace("import wrong", f"import {module}"))
    return {module: run(module, paths) for module, paths in scripts.items()}


def test_every_word_has_a_situation() -> None:
    assert set(SITUATIONS) == set(CHECKS)
    assert set(WORDS) <= set(CHECKS)


@pytest.mark.parametrize("word", SITUATIONS)
def test_the_script_fails_as_the_check_failed(
    ended: dict[str, dict[str, tuple[int, str]]], word: str
) -> None:
    status, said = ended["wrong"][word]
    assert status == 1, said
    assert "AssertionError" in said


@pytest.mark.parametrize("word", SITUATIONS)
def test_the_script_ends_quietly_where_the_promise_is_kept(
    ended: dict[str, dict[str, tuple[int, str]]], word: str
) -> None:
    status, said = ended["peft_reference"][word]
    assert status == 0, said


def test_every_step_can_be_written(reference: Implementation, suite: Suite, tmp_path: Path) -> None:
    """A script with every step of the language ends quietly on the reference."""
    config = {"id": "config", "config": "LORA", **lora(target_modules=["layer"], r=2)["config"]}
    steps: list[Step] = [
        {"seed": 3},
        {"call": "get_peft_model", "args": {"model": "m", "peft_config": "config"}, "as": "pm"},
        {"perturb": {"of": "pm", "adapter": "default", "seed": 1}},
        {"perturb": {"of": "pm", "part": "base"}},
        {"call": "get_peft_model_state_dict", "args": {"model": "pm"}, "as": "live"},
        {
            "edit_state_dict": {
                "id": "sd",
                "of": "live",
                "keep": [".*"],
                "drop": [".*lora_B.*"],
                "fill": "normal",
                "strip_prefix": "base_model.",
                "add_prefix": "base_model.",
                "dtype": "float64",
                "insert": {"more": {"shape": [2], "fill": "nan"}, "scalar": {}},
            }
        },
        {"set_tensor": {"of": "sd", "name": "more", "fill": 2, "shape": [3], "dtype": "bfloat16"}},
        {"set_tensor": {"of": "m", "name": "layer.base_layer.bias", "fill": 0.5}},
        {"write": {"of": "m", "path": "layer.note", "value": {"a": [1]}}},
        {"read": {"id": "note", "of": "m", "path": "layer.note[a][0]"}},
        {"set_mode": {"of": "pm", "training": True}},
        {"backward": {"of": "pm"}},
        {"make_folder": {"id": "folder"}},
        {"call": "PeftModel.save_pretrained", "on": "pm", "args": {"save_directory": "folder"}},
        {
            "edit_file": {
                "folder": "folder",
                "file": "adapter_config.json",
                "set_fields": {"lora_alpha": 7},
                "remove_fields": ["bias"],
            }
        },
        {"edit_file": {"folder": "folder", "file": "x.txt", "write": "abc"}},
        {"edit_file": {"folder": "folder", "file": "x.txt", "truncate": 1}},
        {"read": {"id": "text", "of": "folder", "path": "[x.txt]"}},
        {"edit_file": {"folder": "folder", "file": "x.txt", "delete": True}},
        {"read": {"id": "alpha", "of": "folder", "path": "[adapter_config.json][lora_alpha]"}},
        {"read": {"id": "file", "of": "folder", "path": "[adapter_model.safetensors]"}},
        {"make_model": {"id": "n", "model": "one-linear", "dtype": "bfloat16", "training": True, "seed": 4}},
        {"call": "PeftModel.from_pretrained", "args": {"model": "n", "model_id": "folder"}, "as": "loaded"},
        {"capture": {"id": "before", "of": "loaded"}},
        {"look_up": {"id": "function", "name": "functional.set_adapter"}},
        {"look_up": {"id": "module", "name": "functional"}},
        {
            "within": {
                "context": "disable_adapter",
                "on": "pm",
                "interrupt": True,
                "steps": [{"forward": {"id": "inside", "of": "pm", "input_seed": 2}}],
            }
        },
        {"call": "set_adapter", "args": {"model": "pm", "adapter_name": "default", "layer_cls": "LoraLayer"}},
        {**ATTEMPT, "args": {**ATTEMPT["args"], "model": "n"}},
        {"make_model": {"id": "lm", "model": "tiny-llama"}},
        {
            "call": "get_peft_model",
            "args": {
                "model": "lm",
                "peft_config": lora(target_modules=["q_proj"], task_type={"public": "TaskType.CAUSAL_LM"}),
            },
            "as": "wrapped-lm",
        },
        {"generate": {"id": "tokens", "of": "wrapped-lm", "positional": True}},
        {"train": {"of": "wrapped-lm", "input": "labelled", "steps": 1}},
        {"compile": {"id": "compiled", "of": "n"}},
        {"forward": {"id": "same", "of": "compiled"}},
        {"read": {"id": "card", "of": "folder", "path": "[README.md].metadata[library_name]"}},
        {"edit_file": {"folder": "folder", "file": "adapter_model.safetensors", "damage": "shape-negative"}},
        {"make_model": {"id": "bert", "model": "tiny-bert"}},
        {"make_folder": {"id": "base", "model": "bert"}},
        {**wrap("bert", "query"), "as": "wrapped-bert"},
        {"make_folder": {"id": "tuned"}},
        {
            "call": "PeftModel.save_pretrained",
            "on": "wrapped-bert",
            "args": {"save_directory": "tuned"},
        },
        {
            "call": "AutoPeftModel.from_pretrained",
            "args": {"pretrained_model_name_or_path": "tuned"},
            "as": "auto",
        },
        {"forward": {"id": "features", "of": "auto"}},
        {"make_config": {"id": "none", "config": "none"}},
        {"make_config": {"id": "strange", "config": "not-a-config"}},
        {"make_config": {"id": "unknown", "config": "unknown"}},
    ]
    assert {next(word for word in STEPS if word in step) for step in steps} | {
        "make_model",
        "forward",
    } == set(STEPS)
    case = case_of("equal", {"of": "alpha", "to": 7}, steps, [make(), {"make_config": config}])
    observation = reference.execute(case.program)
    assert [s["error"] for s in observation["steps"] if s["error"]][1:] == []
    verdict = judge(case, observation, suite, {})[0]
    assert verdict.verdict == "pass"
    path = tmp_path / "script.py"
    path.write_text(reproduce(case, verdict, reference))
    status, said = run("peft_reference", {"script": path})["script"]
    assert status == 0, said


@pytest.mark.parametrize(
    ("word", "body"), [("same_object", ["result", "m"]), ("frame", {"modifies": [{"global": "rng"}]})]
)
def test_a_step_that_fails_unexpectedly_fails_the_script_in_the_same_way(
    reference: Implementation, suite: Suite, tmp_path: Path, word: str, body: Any
) -> None:
    case = case_of(word, body, [inject(target="nowhere")], [make()])
    verdict = verdict_on(reference, case, suite, {})
    assert verdict.verdict == "error"
    path = tmp_path / "script.py"
    path.write_text(reproduce(case, verdict, reference))
    status, said = run("peft_reference", {"script": path})["script"]
    assert status == 1
    assert "nowhere" in said


def test_a_script_says_what_it_shows_and_how_to_get_there(wrong: Implementation, suite: Suite) -> None:
    body, when, given = SITUATIONS["all"]
    case = case_of("all", body, when, given)
    text = reproduce(case, verdict_on(wrong, case, suite, {}), wrong)
    assert text.startswith("# script.all:check\n# It is as it should be")
    assert "import wrong as peft" in text
    assert "peft_conformance" not in text
    assert max(map(len, text.splitlines()[:12])) <= 120
