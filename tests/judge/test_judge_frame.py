"""The frame: every single change is seen, and only what names it allows it."""
# The tables read best with a row on a line.
# ruff: noqa: E501

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_conformance.frame import violations
from scenes import (
    CARDS,
    GLOBALS,
    adapted_model,
    config,
    folder,
    layer,
    model,
    module,
    output,
    parameter,
    plain_model,
    state_dict,
    tensor,
    value,
)

Entities = dict[str, Any]


def frame(before: Entities, after: Entities, globals_after: dict[str, Any] = GLOBALS) -> dict[str, Any]:
    return {
        "before": {"entities": before, "globals": GLOBALS},
        "after": {"entities": after, "globals": globals_after},
    }


def entities() -> Entities:
    return {
        "m": adapted_model("default", "other") | {"active_adapter": "default"},
        "sd": state_dict("x", "y"),
        "c": config("own"),
        "f": folder(a__json={}, b__safetensors={}),
        "v": value(["default"]),
        "y": output("out"),
    }


@dataclass(frozen=True)
class Mutation:
    """One change of one entity, the line that tells it, and the entry of `modifies` that allows it and little else."""

    line: str
    entry: dict[str, Any]
    apply: Callable[[Entities], None]

    @property
    def place(self) -> str:
        """What it touches: two mutations of other places do not get in each other's way."""
        entity, what = self.line.split(": ")[:2]
        return entity if entity in ("sd", "f") else f"{entity} {what.partition('[')[0]}"


def find(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(
        item for item in (*record.get("tensors", ()), *record.get("modules", ())) if item["name"] == name
    )


def put(entity: str, *path: Any, to: Any) -> Callable[[Entities], None]:
    """Sets a field; a tensor or module is gone to by its name in angle brackets."""

    def apply(entities: Entities) -> None:
        target = entities[entity]
        for part in path[:-1]:
            target = find(target, part[1:-1]) if str(part).startswith("<") else target[part]
        target[path[-1]] = to

    return apply


def drop(entity: str, place: str, name: str) -> Callable[[Entities], None]:
    def apply(entities: Entities) -> None:
        entities[entity][place].remove(find(entities[entity], name))

    return apply


def mutations() -> list[Mutation]:
    found = []
    base, adapter, other = (
        "linear.base_layer.weight",
        "linear.lora_A.default.weight",
        "linear.lora_A.other.weight",
    )
    words = {
        "object": ("presence", "replaced by another tensor", "#new"),
        "kind": ("presence", "parameter → buffer", "buffer"),
        "storage": ("storage", "storage changed", "#s-new"),
        "digest": ("values", "values changed", "new"),
        "dtype": ("dtype", "dtype float32 → bfloat16", "bfloat16"),
        "device": ("device", "device cpu → meta", "meta"),
        "shape": ("shape", "shape [4, 4] → [2, 8]", [2, 8]),
        "requires_grad": ("requires_grad", "requires_grad {} → null", None),
        "grad": ("grad", "grad none → zero", "zero"),
    }
    for name, role in (
        (base, {"role": "base"}),
        (adapter, {"role": "trainable", "adapter": "default"}),
        (other, {"adapter": "other"}),
    ):
        for field, (aspect, what, to) in words.items():
            said = f"m: {name}: {what}".format("true" if name == adapter else "false")
            entry = {"of": "m", "aspects": [aspect], "name": name, **role}
            found.append(Mutation(said, entry, put("m", f"<{name}>", field, to=to)))
    for field in ("digest", "storage", "dtype"):
        aspect, what, to = words[field]
        found.append(
            Mutation(f"sd: x: {what}", {"of": "sd", "aspects": [aspect]}, put("sd", "<x>", field, to=to))
        )
        found.append(Mutation(f"y: {what}", {"of": "y", "aspects": [aspect]}, put("y", field, to=to)))
    for name in ("", "linear", "linear.base_layer", "linear.lora_A.default", "head"):
        for field, aspect, what, to in (
            ("training", "training", "training true → false", False),
            ("hooks", "hooks", "hooks 0 → 2", 2),
            ("class", "structure", "class {} → Other", "Other"),
        ):
            cls = find(adapted_model(), name)["class"]
            said = f"m: {name or '(root)'}: {what.format(cls)}"
            found.append(
                Mutation(said, {"of": "m", "aspects": [aspect]}, put("m", f"<{name}>", field, to=to))
            )
    for field, aspect, what, to in (
        ("active", "activation", 'active ["default"] → ["other"]', ["other"]),
        ("disabled", "activation", "disabled false → true", True),
        ("merged", "merging", 'merged [] → ["other"]', ["other"]),
        (
            "scaling",
            "scaling",
            'scaling {"default": 1.5, "other": 1.5} → {"default": 1.5, "other": 2}',
            {"default": 1.5, "other": 2},
        ),
        (
            "r",
            "scaling",
            'r {"default": 4, "other": 4} → {"default": 4, "other": 8}',
            {"default": 4, "other": 8},
        ),
    ):
        entry = {"of": "m", "aspects": [aspect]}
        found.append(Mutation(f"m: linear: {what}", entry, put("m", "<linear>", "adapter", field, to=to)))
    activation, configs = ({"of": "m", "aspects": [aspect]} for aspect in ("activation", "config"))
    return [
        *found,
        Mutation("m: active_adapter: default → other", activation, put("m", "active_adapter", to="other")),
        Mutation(
            'm: active_adapters: absent → ["other"]', activation, put("m", "active_adapters", to=["other"])
        ),
        Mutation(
            "m: peft_config[other][r]: 4 → 8", configs, put("m", "peft_config", "other", "fields", "r", to=8)
        ),
        Mutation(
            "m: peft_config[other]: replaced by another config",
            configs,
            put("m", "peft_config", "other", "object", to="#new"),
        ),
        Mutation("m: peft_config[new]: new", configs, put("m", "peft_config", "new", to=config("new"))),
        Mutation("m: peft_config[other]: gone", configs, lambda all: all["m"]["peft_config"].pop("other")),
        Mutation("m: head: gone", {"of": "m", "aspects": ["structure"]}, drop("m", "modules", "head")),
        Mutation(
            "m: head: replaced by another module",
            {"of": "m", "aspects": ["structure"]},
            put("m", "<head>", "object", to="#new"),
        ),
        Mutation(
            "m: tail: new module",
            {"of": "m", "aspects": ["structure"]},
            lambda all: all["m"]["modules"].append(module("tail")),
        ),
        Mutation(
            "m: linear.base_layer.extra: new module",
            {"of": "m", "aspects": ["structure"]},
            lambda all: all["m"]["modules"].insert(4, module("linear.base_layer.extra")),
        ),
        Mutation(
            "m: linear.lora_A.default: replaced by another module",
            {"of": "m", "aspects": ["structure"]},
            put("m", "<linear.lora_A.default>", "object", to="#new"),
        ),
        Mutation(
            "m: linear: adapter third new",
            {"of": "m", "aspects": ["structure"]},
            put("m", "<linear>", "adapter", "adapters", to=["default", "other", "third"]),
        ),
        Mutation(
            "m: head.weight: gone", {"of": "m", "aspects": ["presence"]}, drop("m", "tensors", "head.weight")
        ),
        Mutation(
            "m: tail.weight: new",
            {"of": "m", "name": "tail.*"},
            lambda all: all["m"]["tensors"].append(tensor("tail.weight")),
        ),
        Mutation("sd: y: gone", {"of": "sd", "aspects": ["keys"]}, lambda all: all["sd"]["tensors"].pop()),
        Mutation(
            "sd: z: new",
            {"of": "sd", "aspects": ["keys"]},
            lambda all: all["sd"]["tensors"].append(state_dict("z")["tensors"][0]),
        ),
        Mutation(
            "sd: order of the keys changed",
            {"of": "sd", "aspects": ["keys"]},
            lambda all: all["sd"]["tensors"].reverse(),
        ),
        Mutation(
            "sd: x: replaced by another tensor",
            {"of": "sd", "aspects": ["presence"]},
            put("sd", "<x>", "object", to="#new"),
        ),
        Mutation("c: r: 4 → 8", {"of": "c", "aspects": ["fields"]}, put("c", "fields", "r", to=8)),
        Mutation("c: new: new", {"of": "c"}, put("c", "fields", "new", to=None)),
        Mutation(
            "f: a.json: changed",
            {"of": "f", "aspects": ["values"]},
            put("f", "files", "a.json", "digest", to="new"),
        ),
        Mutation(
            "f: a.json: gone", {"of": "f", "aspects": ["keys"]}, lambda all: all["f"]["files"].pop("a.json")
        ),
        Mutation("f: c.txt: new", {"of": "f"}, put("f", "files", "c.txt", to={"digest": "x"})),
        Mutation('v: value: ["default"] → []', {"of": "v"}, put("v", "value", to=[])),
    ]


MUTATIONS = mutations()


def test_nothing_changed_is_nothing_to_tell() -> None:
    assert violations([], frame(entities(), entities()), CARDS) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m.line for m in MUTATIONS])
def test_a_change_is_told_unless_it_is_named(mutation: Mutation) -> None:
    after = entities()
    mutation.apply(after)
    seen = frame(entities(), after)
    assert violations([], seen, CARDS) == [mutation.line]
    assert violations([mutation.entry], seen, CARDS) == []
    assert violations([{"of": mutation.entry["of"]}], seen, CARDS) == []
    others = [{"of": id} for id in entities() if id != mutation.entry["of"]]
    assert violations([*others, {"global": "rng"}], seen, CARDS) == [mutation.line]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=5, unique_by=lambda m: m.place), st.data())
def test_of_several_changes_those_that_are_not_named_are_told(
    drawn: list[Mutation], data: st.DataObject
) -> None:
    entries = [m.entry for m in data.draw(st.lists(st.sampled_from(drawn), unique_by=lambda m: m.line))]
    after, alone = entities(), set()
    for mutation in drawn:
        mutation.apply(after)
        only = entities()
        mutation.apply(only)
        alone.update(violations(entries, frame(entities(), only), CARDS))
    assert violations(entries, frame(entities(), after), CARDS) == sorted(alone)


@pytest.mark.parametrize("name", GLOBALS)
def test_global_state_is_part_of_the_frame(name: str) -> None:
    seen = frame({}, {}, {**GLOBALS, name: "changed"})
    assert violations([], seen, CARDS) == [f"{name} changed"]
    assert violations([{"global": name}], seen, CARDS) == []
    assert violations([{"global": other} for other in GLOBALS if other != name], seen, CARDS) == [
        f"{name} changed"
    ]


def test_an_entity_that_is_gone_or_another_thing_is_told() -> None:
    assert violations([], frame({"c": config()}, {}), CARDS) == ["c: gone"]
    assert violations([], frame({"c": config()}, {"c": value(None)}), CARDS) == ["c: config → value"]
    assert violations([{"of": "c"}], frame({"c": config()}, {}), CARDS) == []


def test_other_things_are_compared_as_a_whole() -> None:
    thing = {"kind": "object", "object": "#1", "class": "Linear", "mro": ["Linear"], "text": "Linear()"}
    assert violations([], frame({"o": thing}, {"o": {**thing, "text": "Linear(bias=False)"}}), CARDS) == []
    assert violations([], frame({"o": thing}, {"o": {**thing, "class": "Conv"}}), CARDS) == [
        "o: class: Linear → Conv"
    ]
    call = {"kind": "callable", "object": "#f", "name": "f", "module": "lib", "parameters": [parameter("a")]}
    assert len(violations([], frame({"f": call}, {"f": {**call, "parameters": []}}), CARDS)) == 1


# --- Adapters come and go


INJECTS = [{"of": "m", "role": "adapter"}, {"of": "m", "role": "base", "aspects": ["requires_grad"]}]


def test_injecting_is_allowed_to_wrap_and_to_add_and_to_freeze() -> None:
    seen = frame({"m": plain_model()}, {"m": adapted_model()})
    assert violations(INJECTS, seen, CARDS) == []
    assert violations(INJECTS[:1], seen, CARDS) == [
        f"m: {name}: requires_grad true → false"
        for name in ("embedding.weight", "head.weight", "linear.base_layer.bias", "linear.base_layer.weight")
    ]
    alone = violations(INJECTS[1:], seen, CARDS)
    assert "m: linear: now linear.base_layer" in alone
    assert "m: linear.lora_A.default.weight: new" in alone
    assert "m: peft_config[default]: new" in alone


@pytest.mark.parametrize(
    ("what", "change"),
    [
        (
            "m: linear.base_layer.weight: replaced by another tensor",
            put("m", "<linear.base_layer.weight>", "object", to="#x"),
        ),
        (
            "m: linear.base_layer.weight: values changed",
            put("m", "<linear.base_layer.weight>", "digest", to="x"),
        ),
        ("m: linear: replaced by another module", put("m", "<linear.base_layer>", "object", to="#x")),
        ("m: head: training true → false", put("m", "<head>", "training", to=False)),
        ("m: lora_head: new module", lambda all: all["m"]["modules"].append(module("lora_head"))),
        ("m: lora_head.weight: new", lambda all: all["m"]["tensors"].append(tensor("lora_head.weight"))),
        ("m: head.weight: gone", lambda all: all["m"]["tensors"].pop()),
    ],
)
def test_injecting_is_not_allowed_to_touch_anything_else(
    what: str, change: Callable[[Entities], None]
) -> None:
    after = {"m": adapted_model()}
    change(after)
    assert what in violations(INJECTS, frame({"m": plain_model()}, after), CARDS)


SECOND = [{"of": "m", "role": "adapter", "adapter": "other"}]


def test_a_second_adapter_comes_and_goes_without_the_first() -> None:
    one, two = {"m": adapted_model("default")}, {"m": adapted_model("default", "other")}
    assert violations(SECOND, frame(one, two), CARDS) == []
    assert violations(SECOND, frame(two, one), CARDS) == []
    others = violations([{"of": "m", "role": "adapter", "adapter": "third"}], frame(one, two), CARDS)
    assert "m: linear: adapter other new" in others
    assert "m: linear.lora_A.other: new module" in others


def test_the_last_adapter_goes_and_the_layer_with_it() -> None:
    seen = frame({"m": adapted_model()}, {"m": plain_model()})
    entry = {"of": "m", "role": "adapter", "adapter": "default"}
    freed = {"of": "m", "role": "base", "aspects": ["requires_grad"]}
    assert violations([entry, freed], seen, CARDS) == []
    assert "m: linear.base_layer: now linear" in violations([freed], seen, CARDS)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        (
            'm: linear: active ["default"] → ["other"]',
            put("m", "<linear>", "adapter", "active", to=["other"]),
        ),
        (
            'm: linear: active ["default"] → ["default", "other"]',
            put("m", "<linear>", "adapter", "active", to=["default", "other"]),
        ),
        (
            'm: linear: scaling {"default": 1.5} → {"default": 3}',
            put("m", "<linear>", "adapter", "scaling", to={"default": 3, "other": 1}),
        ),
        (
            "m: linear.lora_A.default.weight: values changed",
            put("m", "<linear.lora_A.default.weight>", "digest", to="x"),
        ),
        (
            "m: linear.lora_A.default.weight: requires_grad true → false",
            put("m", "<linear.lora_A.default.weight>", "requires_grad", to=False),
        ),
        (
            "m: linear.lora_A.default: replaced by another module",
            put("m", "<linear.lora_A.default>", "object", to="#x"),
        ),
        ("m: linear.lora_A: replaced by another module", put("m", "<linear.lora_A>", "object", to="#x")),
        ("m: linear: replaced by another module", put("m", "<linear>", "object", to="#x")),
        ("m: peft_config[default][r]: 4 → 8", put("m", "peft_config", "default", "fields", "r", to=8)),
    ],
)
def test_adding_a_second_adapter_leaves_the_first_alone(
    what: str, change: Callable[[Entities], None]
) -> None:
    after = {"m": adapted_model("default", "other")}
    change(after)
    assert what in violations(SECOND, frame({"m": adapted_model("default")}, after), CARDS)


def test_deleting_the_active_adapter_need_not_name_that_it_is_no_longer_active() -> None:
    before, after = adapted_model("default", "other"), adapted_model("other")
    find(after, "linear")["adapter"]["active"] = []
    for name in ("linear.lora_A.other.weight", "linear.lora_B.other.weight"):
        find(after, name)["requires_grad"] = False
    entry = [{"of": "m", "role": "adapter", "adapter": "default"}]
    assert violations(entry, frame({"m": before}, {"m": after}), CARDS) == []
    find(after, "linear")["adapter"]["active"] = ["other"]
    assert violations(entry, frame({"m": before}, {"m": after}), CARDS) == [
        'm: linear: active [] → ["other"]'
    ]


def saving_model(wrapped: bool) -> dict[str, Any]:
    head = [tensor("head.weight")]
    modules = [module("head")]
    if wrapped:
        head = [
            tensor(
                "head.original_module.weight",
                object="#head.weight",
                storage="#s-head.weight",
                digest="d-head.weight",
            ),
            tensor("head.modules_to_save.default.weight"),
        ]
        modules = [
            module("head", "Wrapper", object="#w"),
            module("head.original_module", object="#m-head"),
            module("head.modules_to_save", "ModuleDict"),
            module("head.modules_to_save.default"),
        ]
    return model(head, modules, {"default": config()} if wrapped else None)


def test_modules_to_save_are_wrapped_under_the_name_of_aux() -> None:
    seen = frame({"m": saving_model(False)}, {"m": saving_model(True)})
    assert violations([{"of": "m", "role": "aux"}], seen, CARDS) == []
    assert violations([{"of": "m", "role": "adapter"}], seen, CARDS) == [
        "m: head.modules_to_save.default.weight: new"
    ]


# --- Two entities that share what they are made of


def outer(inner: dict[str, Any]) -> dict[str, Any]:
    """A PeftModel around a model: the same tensors and modules under longer names."""
    inner = copy.deepcopy(inner)
    for item in (*inner["tensors"], *inner["modules"]):
        item["name"] = f"base_model.model.{item['name']}".rstrip(".")
    top = [module("", "PeftModel", object="#pm"), module("base_model", "LoraModel")]
    return {**inner, "object": "#pm", "class": "PeftModel", "modules": top + inner["modules"]}


def test_what_one_entity_may_change_another_that_shares_it_may_too() -> None:
    before, after = adapted_model(), adapted_model()
    name = "linear.lora_A.default.weight"
    find(after, name).update(digest="new", grad="zero")
    find(after, "linear")["adapter"]["merged"] = ["default"]
    after["peft_config"]["default"]["fields"]["r"] = 8
    seen = frame({"m": before, "pm": outer(before)}, {"m": after, "pm": outer(after)})
    entries = [
        {"of": "pm", "role": "adapter", "aspects": ["values", "grad"]},
        {"of": "pm", "aspects": ["merging", "config"]},
    ]
    assert violations(entries, seen, CARDS) == []
    told = violations(entries[:1], seen, CARDS)
    assert told == [
        'm: linear: merged [] → ["default"]',
        "m: peft_config[default][r]: 4 → 8",
    ]  # told once, not twice


def test_an_alias_of_changed_values_is_allowed_to_change_with_them() -> None:
    name = "linear.lora_A.default.weight"
    alias = [state_dict("x", storage=f"#s-{name}", digest=digest) for digest in ("d", "new")]
    before, after = ({"m": adapted_model(), "sd": sd} for sd in alias)
    find(after["m"], name)["digest"] = "new"
    assert (
        violations([{"of": "m", "role": "adapter", "aspects": ["values"]}], frame(before, after), CARDS) == []
    )
    assert len(violations([], frame(before, after), CARDS)) == 2


def test_a_tensor_that_may_not_change_may_not_become_one_that_may() -> None:
    after = adapted_model()
    find(after, "linear.base_layer.weight")["object"] = "#linear.lora_A.default.weight"
    told = violations([{"of": "m", "role": "adapter"}], frame({"m": adapted_model()}, {"m": after}), CARDS)
    assert told == ["m: linear.base_layer.weight: replaced by another tensor"]


def test_a_config_shared_with_the_model_may_change_as_the_models_config() -> None:
    before, after = ({"m": adapted_model(), "c": config()} for _ in range(2))
    for record in (after["c"], after["m"]["peft_config"]["default"]):
        record["fields"]["inference_mode"] = True
    assert violations([{"of": "m", "aspects": ["config"]}], frame(before, after), CARDS) == []
    assert violations([{"of": "c", "aspects": ["fields"]}], frame(before, after), CARDS) == []
    assert violations(INJECTS, frame(before, after), CARDS) == [
        "c: inference_mode: new",
        "m: peft_config[default][inference_mode]: new",
    ]


def test_a_layer_adapted_in_place_is_an_adapter_coming() -> None:
    before, after = plain_model(), plain_model()
    find(after, "linear").update(adapter=layer("x", "default")["adapter"])
    seen = frame({"m": before}, {"m": after})
    assert violations([], seen, CARDS) == ["m: linear: adapted in place"]
    assert violations([{"of": "m", "role": "adapter"}], seen, CARDS) == []


def test_looking_changes_nothing() -> None:
    before, after = entities(), entities()
    for mutation in MUTATIONS[:10]:
        mutation.apply(after)
    seen = frame(before, after)
    kept = copy.deepcopy(seen)
    violations([m.entry for m in MUTATIONS], seen, CARDS)
    assert seen == kept


def test_what_an_adapters_layers_share_comes_and_goes_with_it() -> None:
    """Containers beside the model that a PeftModel holds, as those of groups of layers are."""
    place = "base_model.odd_parts.other"
    parts = [module("base_model.model.x"), module("base_model.odd_parts"), module(place)]
    before, after = model([], parts[:2]), model([], parts)
    adds = [{"of": "m", "role": "adapter", "adapter": "other"}]
    assert violations(adds, frame({"m": before}, {"m": after}), CARDS) == []
    adds = [{"of": "m", "role": "adapter", "adapter": "default"}]
    assert violations(adds, frame({"m": before}, {"m": after}), CARDS) == [f"m: {place}: new module"]
    inside = model([], [*parts[:2], module("base_model.model.x.other")])
    (line,) = violations(adds, frame({"m": before}, {"m": inside}), CARDS)
    assert "new module" in line
