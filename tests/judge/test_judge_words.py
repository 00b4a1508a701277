"""Every check word: an observation on which it passes, and for each way to be wrong one on which it fails."""
# The tables read best with a row on a line.
# ruff: noqa: E501

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import scenes
import torch
from peft_conformance.judge import WORDS
from scenes import (
    adapted_model,
    ask,
    config,
    error,
    folder,
    function,
    layer,
    model,
    module,
    observation,
    output,
    parameter,
    plain_model,
    state_dict,
    step,
    tensor,
    value,
    warning,
)

TRAINS = {"of": "m", "role": "trainable", "adapter": "default", "have": {"requires_grad": True}}


def seen(**entities: Any) -> dict[str, Any]:
    return observation(entities)


def changed(record: dict[str, Any], name: str, /, **facts: Any) -> dict[str, Any]:
    """A copy of a record in which one tensor or module has other facts."""
    record = copy.deepcopy(record)
    for item in (*record.get("tensors", ()), *record.get("modules", ())):
        if item["name"] == name:
            item.update(facts)
    return record


A, B = "linear.lora_A.default.weight", "linear.lora_B.default.weight"
META = {"device": "meta", "digest": None}
SIGNATURE = [
    {"name": "model", "required": True},
    {"name": "dtype", "default": None},
    {"name": "strict", "default": True},
]
FUNCTION = function(parameter("model"), parameter("dtype", default=None), parameter("strict", default=True))
WARNED = observation(steps=[step("inject", warnings=[warning("key linear.weight is unused")])])
RAISED = observation(steps=[step("inject", error=error())])
PRINTED = observation(steps=[step("count", printed="trainable params: 80\n")])

PASS = {
    "same_object": [(["a", "b"], seen(a=plain_model(), b=adapted_model()))],
    "different_objects": [(["a", "b"], seen(a=plain_model(), b=config()))],
    "equal": [
        ({"of": "v", "to": None}, seen(v=value(None))),
        ({"of": "v", "to": ["a", 1]}, seen(v=value(["a", 1.0]))),
        ({"of": "v", "to": {"r": 4}}, seen(v=value({"r": 4}))),
    ],
    "instance": [
        ({"of": "c", "of_class": "PeftConfig"}, seen(c=config())),
        ({"of": "c", "of_class": "tuners.lora.LoraConfig", "exactly": True}, seen(c=config())),
        ({"of": "c", "of_class": "Module", "not": True}, seen(c=config())),
    ],
    "all": [
        (TRAINS, seen(m=adapted_model())),
        ({"of": "m", "role": "base", "have": {"requires_grad": False, "dtype": "float32", "device": "cpu"}},
         seen(m=adapted_model())),
        ({"of": "m", "name": "linear.*", "have": {"shape": [4, 4], "grad": "none", "values": "nonzero"}},
         seen(m=adapted_model())),
        ({"of": "m", "module": "linear", "role": "base", "have": {"values": "finite"}}, seen(m=adapted_model())),
        ({"of": "m", "name": "head.weight", "have": {"grad": "not-none"}},
         seen(m=changed(plain_model(), "head.weight", grad="zero"))),
        ({"of": "m", "kind": "buffer", "have": {"dtype": "float32"}, "may_be_empty": "not every method has buffers"},
         seen(m=adapted_model())),
        ({"of": "sd", "role": "adapter", "have": {"device": "cuda"}},
         seen(sd=state_dict("linear.lora_A.weight", device="cuda:0"))),
    ],
    "none": [
        ({"of": "m", "role": "adapter"}, seen(m=plain_model())),
        ({"of": "m", "have": {"device": "meta"}}, seen(m=adapted_model())),
    ],
    "modules": [
        ({"of": "m", "adapted": True, "have": {"active": ["default"], "merged": [], "disabled": False, "adapted": True,
                                                "scaling": {"default": 1.5}, "rank": {"default": 4},
                                                "adapters": ["other", "default"]}},
         seen(m=adapted_model("default", "other"))),
        ({"of": "m", "name": "head|embedding", "have": {"adapted": False, "training": True}}, seen(m=adapted_model())),
        ({"of": "m", "name": "", "have": {"class": "DummyModel"}}, seen(m=plain_model())),
    ],
    "keys": [
        ({"of": "sd", "exactly": ["b", "a"]}, seen(sd=state_dict("a", "b"))),
        ({"of": "sd", "exactly": []}, seen(sd=state_dict())),
        ({"of": "sd", "contain": ["a"], "lack": ["c"], "match": "[ab]", "no_match": "c.*"}, seen(sd=state_dict("a", "b"))),
        ({"of": "sd", "same_as": "v"}, seen(sd=state_dict("a", "b"), v=value({"b": 1, "a": 2}))),
        ({"of": "sd", "fewer_than": "m"}, seen(sd=state_dict("a"), m=plain_model())),
        ({"of": "f", "exactly": ["adapter.json"]}, seen(f=folder(adapter__json={}))),
        ({"of": "c", "contain": ["r"]}, seen(c=config())),
        ({"of": "v", "exactly": ["a"]}, seen(v=value(["a"]))),
    ],
    "same": [
        ({"left": "a", "right": "b", "role": "base", "aspects": ["identity", "storage", "values", "shape", "dtype", "device"]},
         seen(a=plain_model(), b=adapted_model())),
        ({"left": "a", "right": "b", "role": "base", "aspects": ["training"]}, seen(a=plain_model(), b=adapted_model())),
        ({"left": "a", "right": "b", "aspects": ["keys", "values", "requires_grad", "active", "fields"]},
         seen(a=adapted_model(), b=adapted_model())),
        ({"left": "a", "right": "b", "role": "adapter", "adapter": "default", "aspects": ["storage"]},
         seen(a=state_dict("linear.lora_A.weight", storage="#s"),
              b=changed(changed(adapted_model(), A, storage="#s"), B, name="linear.x"))),
        ({"left": "a", "right": "b", "aspects": ["files", "fields", "values"]},
         seen(a=folder(x__json={"json": {"r": 4}}, y__safetensors={"tensors": [tensor("k", object="#1")]}),
              b=folder(x__json={"json": {"r": 4}}, y__safetensors={"tensors": [tensor("k", object="#2")]}))),
        ({"left": "a", "right": "b", "aspects": ["values"]}, seen(a=state_dict("k", **META), b=state_dict("k", **META))),
    ],
    "shapes": [
        ({"of": "sd", "module": "linear", "exactly": {"lora_A.weight": [4, 6]}},
         seen(sd=state_dict("linear.lora_A.weight", shape=[4, 6]))),
        ({"of": "sd", "module": "linear", "exactly": {"lora_A.weight": [4, "?"]}},
         seen(sd=state_dict("linear.lora_A.weight", shape=[4, 6]))),
    ],
    "signature": [
        ({"of": "f", "contains": SIGNATURE[::-1], "only": True}, seen(f=FUNCTION)),
        ({"of": "f", "parameters": SIGNATURE}, seen(f=FUNCTION)),
        ({"of": "f", "parameters": [{"name": "args", "kind": "var-positional"}]},
         seen(f=function(parameter("args", "var-positional")))),
        ({"of": "f", "contains": [{"name": "strict", "default": True}, {"name": "model"}]},
         seen(f=FUNCTION)),
    ],
    "warns": [
        ({"step": "inject"}, WARNED),
        ({"step": "inject", "category": "UserWarning", "mentions": ["Linear.Weight", "unused"]}, WARNED),
    ],
    "silent": [
        ({"step": "inject"}, observation(steps=[step("inject")])),
        ({"step": "inject", "category": "FutureWarning"}, WARNED),
        ({"step": "inject", "mentions": ["bias"]}, WARNED),
    ],
    "raises": [
        ({"step": "inject", "error": "ValueError"}, RAISED),
        ({"step": "inject", "error": "Exception"}, RAISED),
        ({"step": 0, "error": "ValueError"}, observation(steps=[step(phase="given"), step(error=error())])),
    ],
    "printed": [
        ({"step": "count", "mentions": ["80"]}, PRINTED),
        ({"step": "count", "exactly": "trainable params: 80"}, PRINTED),
    ],
    "frame": [({"modifies": []}, seen(m=plain_model()))],
}  # fmt: skip

FAIL = {
    "same_object": [
        (["a", "b"], seen(a=plain_model(), b=config()), "a (DummyModel); b (LoraConfig)"),
        (["a", "b", "c"], seen(a=config(), b=config(), c=value(None)), "a (LoraConfig) is b (LoraConfig); c (NoneType)"),
    ],
    "different_objects": [
        (["a", "b", "c"], seen(a=config(), b=plain_model(), c=config()), "a (LoraConfig) is c (LoraConfig); b (DummyModel)"),
    ],
    "equal": [
        ({"of": "v", "to": None}, seen(v=value([])), []),
        ({"of": "v", "to": 1}, seen(v=value(True)), True),
        ({"of": "v", "to": [1, 2]}, seen(v=value([2, 1])), [2, 1]),
        ({"of": "v", "to": {"r": 4}}, seen(v=value({"r": 4, "s": 1})), {"r": 4, "s": 1}),
        ({"of": "v", "to": "4"}, seen(v=value(4)), 4),
        ({"of": "v", "to": None}, seen(v=plain_model()), "a model of class DummyModel"),
    ],
    "instance": [
        ({"of": "c", "of_class": "Module"}, seen(c=config()), "LoraConfig"),
        ({"of": "c", "of_class": "PeftConfig", "exactly": True}, seen(c=config()), "LoraConfig"),
        ({"of": "c", "of_class": "PeftConfig", "not": True}, seen(c=config()), "LoraConfig"),
    ],
    "all": [
        (TRAINS, seen(m=plain_model()), "no tensor selected"),
        (TRAINS, seen(m=changed(adapted_model(), A, requires_grad=False)), [f"{A}: requires_grad false"]),
        ({**TRAINS, "have": {"dtype": "bfloat16", "device": "cuda"}}, seen(m=adapted_model()),
         [f"{A}: dtype float32, device cpu", f"{B}: dtype float32, device cpu"]),
        ({**TRAINS, "have": {"shape": [4]}}, seen(m=changed(adapted_model(), B, shape=[4])), [f"{A}: shape [4, 4]"]),
        ({**TRAINS, "have": {"grad": "nonzero"}}, seen(m=changed(adapted_model(), A, grad="nonzero")), [f"{B}: grad none"]),
        ({**TRAINS, "have": {"grad": "not-none"}}, seen(m=changed(adapted_model(), A, grad="zero")), [f"{B}: grad none"]),
        ({**TRAINS, "have": {"values": "zero"}}, seen(m=changed(adapted_model(), B, zero=True)), [f"{A}: values not zero"]),
        ({**TRAINS, "have": {"values": "nonzero"}}, seen(m=changed(adapted_model(), B, zero=True)),
         [f"{B}: values not nonzero"]),
        ({**TRAINS, "have": {"values": "finite"}}, seen(m=changed(adapted_model(), B, finite=False)),
         [f"{B}: values not finite"]),
        ({**TRAINS, "have": {"values": "not-finite"}}, seen(m=changed(adapted_model(), B, finite=False)),
         [f"{A}: values not not-finite"]),
        ({"of": "sd", "have": {"requires_grad": False}}, seen(sd=state_dict("a")), ["a: requires_grad null"]),
        ({"of": "sd", "have": {"dtype": "float32"}}, seen(sd=state_dict("a", dtype=None)), ["a: dtype null"]),
        ({"of": "m", "have": {"requires_grad": True}}, seen(m=adapted_model("a", "b")),
         ["embedding.weight: requires_grad false", "linear.base_layer.weight: requires_grad false",
          "linear.base_layer.bias: requires_grad false", "linear.lora_A.b.weight: requires_grad false",
          "linear.lora_B.b.weight: requires_grad false", "and 1 more"]),
    ],
    "none": [
        ({"of": "m", "role": "adapter"}, seen(m=adapted_model()), [A, B]),
        ({"of": "m", "have": {"device": "meta"}}, seen(m=changed(adapted_model(), A, device="meta")), [A]),
        ({"of": "m", "adapter": "gone"}, seen(m={**adapted_model("gone"), "peft_config": {}}),
         ["linear.lora_A.gone.weight", "linear.lora_B.gone.weight"]),
    ],
    "modules": [
        ({"of": "m", "name": "nothing", "have": {"adapted": True}}, seen(m=adapted_model()), "no module selected"),
        ({"of": "m", "name": "head", "have": {"adapted": True}}, seen(m=adapted_model()), ["head: adapted false"]),
        ({"of": "m", "name": "linear", "have": {"adapted": False}}, seen(m=adapted_model()), ["linear: adapted true"]),
        ({"of": "m", "name": "head", "have": {"class": "Conv1D", "training": False}}, seen(m=plain_model()),
         ["head: class Linear, training true"]),
        ({"of": "m", "adapted": True, "have": {"active": ["b"]}}, seen(m=adapted_model("a")), ['linear: active ["a"]']),
        ({"of": "m", "adapted": True, "have": {"merged": ["a"]}}, seen(m=adapted_model("a")), ["linear: merged []"]),
        ({"of": "m", "adapted": True, "have": {"disabled": True}}, seen(m=adapted_model("a")), ["linear: disabled false"]),
        ({"of": "m", "adapted": True, "have": {"adapters": ["a", "b"]}}, seen(m=adapted_model("a")), ['linear: adapters ["a"]']),
        ({"of": "m", "adapted": True, "have": {"scaling": {"a": 2}}}, seen(m=adapted_model("a")), ['linear: scaling {"a": 1.5}']),
        ({"of": "m", "adapted": True, "have": {"rank": {"b": 4}}}, seen(m=adapted_model("a")), ['linear: rank {"a": 4}']),
        ({"of": "m", "name": "head", "have": {"scaling": {"a": 1.5}}}, seen(m=adapted_model("a")), ["head: scaling null"]),
        ({"of": "m", "name": "head", "have": {"active": []}}, seen(m=adapted_model("a")), ["head: active null"]),
    ],
    "keys": [
        ({"of": "sd", "exactly": ["a", "c"]}, seen(sd=state_dict("a", "b")), ["missing: c", "extra: b"]),
        ({"of": "sd", "exactly": []}, seen(sd=state_dict("a")), ["extra: a"]),
        ({"of": "sd", "same_as": "m"}, seen(sd=state_dict("a"), m=model([tensor("b")], [])), ["missing: b", "extra: a"]),
        ({"of": "sd", "contain": ["c"]}, seen(sd=state_dict("a")), ["missing: c"]),
        ({"of": "sd", "lack": ["a"]}, seen(sd=state_dict("a")), ["extra: a"]),
        ({"of": "sd", "match": "a"}, seen(sd=state_dict("a", "ab")), ["no match: ab"]),
        ({"of": "sd", "match": "a"}, seen(sd=state_dict()), ["no key at all"]),
        ({"of": "sd", "no_match": ".*default.*"}, seen(sd=state_dict("x.default.y")), ["match: x.default.y"]),
        ({"of": "sd", "fewer_than": "v"}, seen(sd=state_dict("a"), v=value({"a": 1})), ["1 keys, v has 1"]),
    ],
    "same": [
        ({"left": "a", "right": "b", "role": "base", "aspects": ["identity"]},
         seen(a=plain_model(), b=changed(adapted_model(), "linear.base_layer.weight", object="#new")),
         ["linear.weight: identity other"]),
        ({"left": "a", "right": "b", "role": "base", "aspects": ["storage"]},
         seen(a=plain_model(), b=changed(adapted_model(), "head.weight", storage="#new")), ["head.weight: storage other"]),
        ({"left": "a", "right": "b", "role": "base", "aspects": ["values"]},
         seen(a=plain_model(), b=changed(adapted_model(), "head.weight", digest="new")), ["head.weight: values other"]),
        ({"left": "a", "right": "b", "aspects": ["values"]},  # equal bytes of another type are other values
         seen(a=state_dict("k"), b=state_dict("k", dtype="int32")), ["k: values other"]),
        ({"left": "a", "right": "b", "role": "base", "aspects": ["dtype", "shape", "device", "requires_grad"]},
         seen(a=plain_model(), b=changed(plain_model(), "head.weight", dtype="bfloat16", shape=[1], device="meta",
                                         requires_grad=False)),
         ["head.weight: dtype float32 ≠ bfloat16", "head.weight: shape [4, 4] ≠ [1]", "head.weight: device cpu ≠ meta",
          "head.weight: requires_grad true ≠ false"]),
        ({"left": "a", "right": "b", "aspects": ["requires_grad"]}, seen(a=state_dict("k"), b=state_dict("k")),
         ["k: requires_grad not recorded"]),
        ({"left": "a", "right": "b", "role": "aux", "aspects": ["values"]}, seen(a=plain_model(), b=plain_model()),
         ["no tensor selected"]),
        ({"left": "a", "right": "b", "aspects": ["values"]}, seen(a=state_dict("k", "l"), b=state_dict("l", "n")),
         ["k: only left", "n: only right"]),
        ({"left": "a", "right": "b", "aspects": ["keys"]}, seen(a=state_dict("k", "l"), b=state_dict("l", "n")),
         ["k: only left", "n: only right"]),
        ({"left": "a", "right": "b", "aspects": ["files", "fields"]},
         seen(a=folder(x__json={"json": {"r": 4}}), b=folder(x__json={"json": {"r": 8}}, y__txt={})),
         ["y.txt: only right", "x.json.r: 4 ≠ 8"]),
        ({"left": "a", "right": "b", "aspects": ["files"]}, seen(a=plain_model(), b=plain_model()), ["no file on either side"]),
        ({"left": "a", "right": "b", "aspects": ["fields"]}, seen(a=config(r=2), b=config(r=4)), ["r: 2 ≠ 4"]),
        ({"left": "a", "right": "b", "aspects": ["fields"]},
         seen(a=adapted_model(), b={**adapted_model(), "peft_config": {"default": config(r=2)}}), ["default.r: 4 ≠ 2"]),
        ({"left": "a", "right": "b", "aspects": ["training"]},
         seen(a=plain_model(), b=changed(plain_model(), "head", training=False)), ["head: true ≠ false"]),
        ({"left": "a", "right": "b", "aspects": ["active"]},
         seen(a=adapted_model(), b=changed(adapted_model(), "linear", adapter=layer("linear", "default", active=[])["adapter"])),
         ['linear: {"active": ["default"], "disabled": false} ≠ {"active": [], "disabled": false}']),
        ({"left": "a", "right": "b", "aspects": ["active"]}, seen(a=plain_model(), b=plain_model()),
         ["no module on either side"]),
    ],
    "shapes": [
        ({"of": "sd", "module": "linear", "exactly": {"lora_A.weight": [6, 4]}},
         seen(sd=state_dict("linear.lora_A.weight", shape=[4, 6])), ["lora_A.weight: [4, 6] ≠ [6, 4]"]),
        ({"of": "sd", "module": "linear", "exactly": {"lora_A.weight": [4]}},
         seen(sd=state_dict("linear.lora_A.weight", shape=[4, 6])), ["lora_A.weight: [4, 6] ≠ [4]"]),
        ({"of": "sd", "module": "linear", "exactly": {"lora_B.weight": [4, 6]}},
         seen(sd=state_dict("linear.lora_A.weight", shape=[4, 6])),
         ["missing: lora_B.weight", "extra: lora_A.weight [4, 6]"]),
    ],
    "signature": [
        ({"of": "f", "contains": SIGNATURE[:2], "only": True}, seen(f=FUNCTION), ["model", "dtype = null", "strict = true"]),
        ({"of": "f", "parameters": SIGNATURE[:2]}, seen(f=FUNCTION), ["model", "dtype = null", "strict = true"]),
        ({"of": "f", "parameters": SIGNATURE}, seen(f=function(*FUNCTION["parameters"][:2])), ["model", "dtype = null"]),
        ({"of": "f", "parameters": [SIGNATURE[0], SIGNATURE[2], SIGNATURE[1]]}, seen(f=FUNCTION),
         ["model", "dtype = null", "strict = true"]),
        ({"of": "f", "parameters": SIGNATURE[:1]}, seen(f=function(parameter("model", default=None))), ["model = null"]),
        ({"of": "f", "contains": [{"name": "strict", "default": 1}]}, seen(f=FUNCTION), ["strict = true"]),
        ({"of": "f", "contains": [{"name": "model", "default": None}]}, seen(f=FUNCTION), ["model"]),
        ({"of": "f", "contains": [{"name": "other"}]}, seen(f=FUNCTION), []),
        ({"of": "f", "contains": [{"name": "strict", "kind": "keyword-only"}]}, seen(f=FUNCTION), ["strict = true"]),
    ],
    "warns": [
        ({"step": "inject"}, observation(steps=[step("inject")]), "no warning"),
        ({"step": "inject", "category": "FutureWarning"}, WARNED, ["UserWarning: key linear.weight is unused"]),
        ({"step": "inject", "mentions": ["unused", "bias"]}, WARNED, ["UserWarning: key linear.weight is unused"]),
    ],
    "silent": [
        ({"step": "inject"}, WARNED, ["UserWarning: key linear.weight is unused"]),
        ({"step": "inject", "category": "UserWarning", "mentions": ["unused"]}, WARNED,
         ["UserWarning: key linear.weight is unused"]),
    ],
    "raises": [
        ({"step": "inject", "error": "KeyError"}, RAISED, "ValueError: no such adapter"),
        ({"step": "inject", "error": "ValueError"}, observation(steps=[step("inject")]), "nothing raised"),
        ({"step": 0, "error": "ValueError"}, observation(steps=[step(phase="given"), step()]), "nothing raised"),
    ],
    "printed": [
        ({"step": "count", "mentions": ["81"]}, PRINTED, "trainable params: 80"),
        ({"step": "count", "exactly": "trainable params: 8"}, PRINTED, "trainable params: 80"),
        ({"step": "count", "exactly": "x"}, observation(steps=[step("count")]), ""),
    ],
    "frame": [
        ({"modifies": []}, observation({"m": changed(plain_model(), "head", training=False)}, before={"m": plain_model()}),
         ["m: head: training true → false"]),
    ],
}  # fmt: skip


def cases(table: dict[str, list[tuple]]) -> list[Any]:
    return [
        pytest.param(word, *row, id=f"{word}-{i}")
        for word, rows in table.items()
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize(("word", "body", "seen"), cases(PASS))
def test_what_holds_passes(word: str, body: Any, seen: dict[str, Any]) -> None:
    verdict = ask(word, body, seen)
    assert (verdict.verdict, verdict.detail if verdict.verdict == "error" else "") == ("pass", ""), verdict


@pytest.mark.parametrize(("word", "body", "seen", "observed"), cases(FAIL))
def test_what_does_not_hold_fails_and_says_what_was_seen(
    word: str, body: Any, seen: dict[str, Any], observed: Any
) -> None:
    verdict = ask(word, body, seen)
    assert verdict.verdict == "fail", verdict
    assert verdict.observed == observed
    assert repr(verdict.expected) != repr(observed)


# --- raised, which needs a step that may fail; snapshot; close, differ and formula, which need numbers


def raised(mentions: list[str], steps: list[dict[str, Any]]) -> scenes.Verdict:
    checks = [
        scenes.Check("raises", "raises", {"step": "inject", "error": "ValueError"}, "MUST", 1),
        scenes.Check("raised", "raised", {"step": "inject", "mentions": mentions}, "MUST", 1),
    ]
    return scenes.judge(scenes.case(*checks), observation(steps=steps), scenes.SUITE)[1]


def test_raised_looks_for_words_in_the_message() -> None:
    assert raised(["Adapter", "such"], [step("inject", error=error())]).verdict == "pass"
    other = raised(["adapter", "rank"], [step("inject", error=error())])
    assert (other.verdict, other.observed) == ("fail", "ValueError: no such adapter")
    nothing = raised(["adapter"], [step("inject")])
    assert (nothing.verdict, nothing.observed) == ("fail", "nothing raised")


TREE = """\
(root): DummyModel
embedding: Embedding weight [4, 4]
linear: adapted
linear: lora_A.weight[default] [4, 4]
linear: lora_A.weight[other] [4, 4]
linear: lora_B.weight[default] [4, 4]
linear: lora_B.weight[other] [4, 4]
linear.base_layer: Linear weight [4, 4] bias [4, 4]
head: Linear weight [4, 4]
"""


def test_a_snapshot_is_compared_as_text_and_shown_as_it_is() -> None:
    entities = seen(m=adapted_model("default", "other"), sd=state_dict("b", "a", dtype="float16"), f=FUNCTION)
    tree = {"of": "m", "view": "module_tree"}
    assert ask("snapshot", tree, entities, snapshots={"check": TREE}).verdict == "pass"
    other = ask("snapshot", tree, entities, snapshots={"check": TREE.replace("head", "lm_head")})
    assert (other.verdict, other.observed) == ("fail", TREE)
    assert "+head: Linear" in other.detail
    assert ask("snapshot", tree, entities, snapshots={}).verdict == "fail"
    assert ask("snapshot", tree, entities, snapshots=None).verdict == "info"
    table = ask("snapshot", {"of": "sd", "view": "state_dict"}, entities)
    assert table.observed == "a [4, 4] float16\nb [4, 4] float16\n"
    assert (
        ask("snapshot", {"of": "f", "view": "signature"}, entities).observed
        == "model\ndtype = null\nstrict = true\n"
    )


def test_the_module_tree_has_no_class_names_of_the_implementation_inside_adapted_layers() -> None:
    ours, theirs = adapted_model(), adapted_model()
    for m in theirs["modules"]:
        if m["name"].startswith("linear") and "base_layer" not in m["name"]:
            m["class"] = f"Their{m['class']}"
    theirs["modules"].insert(3, module("linear.helper", "Helper"))
    views = [ask("snapshot", {"of": "m", "view": "module_tree"}, seen(m=m)).observed for m in (ours, theirs)]
    assert views[0] == views[1]


BASE = torch.tensor([[1.0, -2.0, 0.0, 4.0], [0.5, 0.25, 8.0, -1.0]])


def near(word: str, left: torch.Tensor, right: torch.Tensor, tolerance: str = "forward", **facts: Any) -> Any:
    records = {
        side: output(side, str(t.dtype).removeprefix("torch."), **facts)
        for side, t in (("a", left), ("b", right))
    }
    entities = observation(records, tensors={"a": left, "b": right})
    verdict = ask(word, {"left": "a", "right": "b", "tolerance": tolerance}, entities)
    return verdict.verdict, verdict.observed


@pytest.mark.parametrize(
    ("left", "right", "close", "differ"),
    [
        pytest.param(BASE, BASE.clone(), True, False, id="equal"),
        pytest.param(BASE, BASE + 1e-6, True, False, id="rounded"),
        pytest.param(BASE, BASE + 5e-5, False, False, id="between-close-and-different"),
        pytest.param(BASE, BASE + torch.eye(4)[:2] * 1e-2, False, True, id="one-value"),
        pytest.param(BASE, BASE[:1], False, False, id="other-shape"),
        pytest.param(BASE, BASE * math.nan, False, False, id="nan"),
        pytest.param(BASE * math.nan, BASE * math.nan, False, False, id="nan-on-both-sides"),
        pytest.param(BASE / 0.0, BASE / 0.0, False, False, id="zero-over-zero"),
        pytest.param(BASE[:, :1] / 0.0, BASE[:, :1] / 0.0, True, False, id="equal-infinities"),
        pytest.param(BASE[:, :1] / 0.0, -BASE[:, :1] / 0.0, False, True, id="opposite-infinities"),
        pytest.param(BASE, BASE[:, :1] / 0.0 * torch.ones(4), False, True, id="infinity-against-numbers"),
        pytest.param(BASE, (BASE * 1.01).bfloat16(), True, False, id="coarser-type-decides"),
        pytest.param(BASE.double(), BASE.double() + 1e-7, False, True, id="finer-type-decides"),
    ],
)
def test_close_and_differ_leave_room_between_them(
    left: torch.Tensor, right: torch.Tensor, close: bool, differ: bool
) -> None:
    assert near("close", left, right)[0] == ("pass" if close else "fail")
    assert near("differ", left, right)[0] == ("pass" if differ else "fail")


def test_what_close_and_differ_observed_is_the_same_on_every_machine() -> None:
    assert near("close", BASE, BASE + 1) == ("fail", ["not close"])
    assert near("close", BASE, BASE[:1]) == ("fail", ["shape [2, 4] ≠ [1, 4]"])
    assert near("differ", BASE, BASE) == ("fail", "close")
    assert near("differ", BASE, BASE * math.nan) == ("fail", "not finite")


def test_exact_compares_bits_and_types() -> None:
    assert near("close", BASE, BASE.clone(), "exact")[0] == "pass"
    assert near("close", BASE * math.nan, BASE * math.nan, "exact")[0] == "pass"
    assert near("close", BASE, BASE + 1e-6, "exact")[0] == "fail"
    assert near("close", BASE, BASE.double(), "exact")[0] == "fail"
    assert near("close", torch.zeros(()), -torch.zeros(()), "exact")[0] == "fail"
    assert (
        near("close", torch.tensor([1, 2]), torch.tensor([1, 2]))[0] == "pass"
    )  # no class has a width for int64
    assert near("close", torch.tensor([1, 2]), torch.tensor([1, 3]))[0] == "fail"
    assert near("differ", BASE, BASE + 1e-6, "exact")[0] == "pass"


def test_a_device_can_have_wider_limits() -> None:
    assert near("close", BASE, BASE + 5e-5, device="cpu")[0] == "fail"
    assert near("close", BASE, BASE + 5e-5, device="cuda:0")[0] == "pass"


def test_single_samples_of_a_batch_are_compared() -> None:
    other = BASE.clone()
    other[1] += 1
    entities = observation({"a": output("a"), "b": output("b")}, tensors={"a": BASE, "b": other})
    found = {i: ask("close", {"left": "a", "right": "b", "samples": [i]}, entities) for i in range(3)}
    assert [verdict.verdict for verdict in found.values()] == ["pass", "fail", "error"]
    assert "has no sample 2" in found[2].observed
    assert ask("differ", {"left": "a", "right": "b", "samples": [1]}, entities).verdict == "pass"
    assert ask("differ", {"left": "a", "right": "b", "samples": [0]}, entities).verdict == "fail"


def test_models_and_state_dicts_are_compared_tensor_by_tensor() -> None:
    left, right = state_dict("k", "l", values="a"), state_dict("l", "k", values="a")
    body = {"left": "x", "right": "y"}
    entities = observation({"x": left, "y": right}, tensors={"a": BASE, "b": BASE + 1})
    assert ask("close", body, entities).verdict == "pass"
    right["tensors"][0]["values"] = "b"
    verdict = ask("close", body, entities)
    assert (verdict.verdict, verdict.observed) == ("fail", ["l: not close"])
    assert ask("differ", body, entities).verdict == "pass"
    right["tensors"].pop()
    assert ask("close", body, entities).verdict == "error"


def test_every_word_of_the_judge_is_shown_to_pass_and_to_fail() -> None:
    elsewhere = {"raised", "close", "differ", "formula", "relation", "combination"}
    assert PASS.keys() | elsewhere == WORDS.keys()
    assert FAIL.keys() | elsewhere == WORDS.keys()
