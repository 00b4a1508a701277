"""Every step of the language, performed on the reference: what it does, and what its record says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_conformance import models
from peft_conformance.damage import DAMAGES
from peft_conformance.driver import STEPS
from peft_conformance.implementations import Implementation
from peft_conformance.language import find_specs_dir
from programs import MODELS, inject, lora, make, program, wrap

Perform = Callable[[dict[str, Any]], dict[str, Any]]


def tensor(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(t for t in record["tensors"] if t["name"] == name)


def module(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in record["modules"] if m["name"] == name)


WITH_WEIGHTS = [name for name, declaration in MODELS.items() if not declaration.get("weightless")]


def test_every_step_of_the_schema_is_known_to_the_driver() -> None:
    schema = json.loads((find_specs_dir() / "schema" / "clauses.schema.json").read_text("utf-8"))
    words = {key for entry in schema["$defs"]["step"]["oneOf"] for key in entry["required"]}
    assert words == set(STEPS)


def test_models_are_the_same_for_the_same_seed_and_leave_the_generators_alone() -> None:
    before = torch.get_rng_state()
    for name in WITH_WEIGHTS:
        declaration = MODELS[name]
        one, same, other = (models.build(declaration, seed=seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(one[key], same[key]) for key in one), name
        if name != "one-norm":  # which begins as ones and zeros
            assert any(not torch.equal(one[key], other[key]) for key in one), name
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_a_model_and_its_source_have_the_same_weights_and_outputs(name: str) -> None:
    scope: dict[str, Any] = {"torch": torch}
    exec(models.source(MODELS[name]), scope)
    ours, theirs = models.build(MODELS[name], seed=5), scope["build_model"](5).eval()
    assert str(ours) == str(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    for name_of_input in MODELS[name]["inputs"]:
        tensors = models.make_input(MODELS[name], name_of_input, seed=2)
        texts = models.input_source(MODELS[name], name_of_input, seed=2)
        scope = {"torch": torch}
        exec("drawn = [" + ", ".join(texts.values()) + "]", scope)
        drawn: Any = scope["drawn"]
        assert list(tensors) == list(texts)
        assert all(torch.equal(a, b) for a, b in zip(tensors.values(), drawn, strict=True))
        # One tensor cannot be query and key of two sizes: that model is only ever refused.
        if None in tensors and name != "cross-sized-attention":
            one, other = ours(tensors[None]), theirs(tensors[None])
            assert torch.equal(getattr(one, "logits", one), getattr(other, "logits", other))


def test_a_weightless_model_has_its_true_shapes_and_no_memory() -> None:
    config = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32}
    spec = {"class": "LlamaForCausalLM", "config_class": "LlamaConfig", "config": config}
    model = models.build({"transformers": spec, "inputs": {}, "weightless": True})
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.lm_head.weight.shape == (32000, 4096)


def test_tied_parameters_are_one_tensor() -> None:
    declaration = {
        "chain": [
            ["tokens", "Embedding", {"num_embeddings": 6, "embedding_dim": 4}],
            ["head", "Linear", {"in_features": 4, "out_features": 6, "bias": False}],
        ],
        "tied": [["tokens.weight", "head.weight"]],
        "inputs": {"default": {"kind": "ids", "shape": [2], "high": 6}},
    }
    scope: dict[str, Any] = {"torch": torch}
    exec(models.source(declaration), scope)
    for model in (models.build(declaration), scope["build_model"](0)):
        assert model.head.weight is model.tokens.weight


def test_a_chain_holds_known_classes_only() -> None:
    with pytest.raises(models.ModelError, match=r"cannot hold 'Bilinear'.*Linear"):
        models.build({"chain": [["x", "Bilinear", {}]]})


def test_make_model_has_the_dtype_device_and_mode_that_were_asked_for(perform: Perform) -> None:
    record = perform(program([make(dtype="bfloat16", device="meta", training=True)]))["entities"]["m"]
    assert {(t["dtype"], t["device"], t["digest"]) for t in record["tensors"]} == {("bfloat16", "meta", None)}
    assert all(m["training"] for m in record["modules"])
    assert not any(m["training"] for m in perform(program([make()]))["entities"]["m"]["modules"])


def test_inject_leaves_a_full_record_of_the_model(perform: Perform) -> None:
    seen = perform(program([inject()], given=[make()]))
    record = seen["entities"]["m"]
    assert record["object"] == seen["entities"]["result"]["object"]
    assert record["class"] == "One"
    assert tensor(record, "layer.lora_A.default.weight")["shape"] == [4, 8]
    assert tensor(record, "layer.lora_B.default.weight")["zero"] is True
    assert tensor(record, "layer.base_layer.weight")["requires_grad"] is False
    layer = module(record, "layer")["adapter"]
    assert layer["active"] == ["default"]
    assert layer["adapters"] == ["default"]
    assert layer["scaling"] == {"default": 1.5}
    assert layer["r"] == {"default": 4}
    assert layer["disabled"] is False
    assert record["peft_config"]["default"]["fields"]["target_modules"] == ["layer"]


def test_a_tensor_is_the_same_object_before_and_after_it_is_wrapped(perform: Perform) -> None:
    seen = perform(program([inject()], given=[make(), {"capture": {"id": "before", "of": "m"}}]))
    before = tensor(seen["captures"]["before"], "layer.weight")
    after = tensor(seen["entities"]["m"], "layer.base_layer.weight")
    assert (before["object"], before["storage"], before["digest"]) == (
        after["object"], after["storage"], after["digest"],
    )  # fmt: skip
    assert before["requires_grad"] is True
    assert seen["frame"]["before"]["entities"]["m"] == seen["captures"]["before"]
    assert seen["frame"]["after"]["entities"]["m"] == seen["entities"]["m"]


def test_forward_records_input_and_output_values(perform: Perform) -> None:
    forwards = [
        {"forward": {"id": name, "of": "m", "input_seed": seed}}
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    seen = perform(program(forwards, given=[make(dtype="float64")]))
    records, tensors = seen["entities"], seen["tensors"]
    assert records["a"]["kind"] == "tensor"
    assert records["a"]["dtype"] == "float64"
    assert records["a"]["of"] == "m"
    assert tensors["a"].shape == (5, 12)
    assert tensors[records["a"]["input"]].shape == (5, 8)
    assert records["a"]["digest"] == records["b"]["digest"] != records["c"]["digest"]


def test_forward_of_a_transformers_model_gives_its_logits(perform: Perform) -> None:
    seen = perform(program([make("tiny-gpt2"), {"forward": {"id": "y", "of": "m"}}]))
    assert seen["entities"]["y"]["shape"] == [2, 7, 32]


@pytest.mark.parametrize("output", ["logits", "loss"])
def test_forward_gives_the_wanted_part_of_an_output(perform: Perform, output: str) -> None:
    forward = {"forward": {"id": "y", "of": "m", "input": "labelled", "output": output}}
    seen = perform(program([make("tiny-bert-seqcls"), forward]))
    assert seen["entities"]["y"]["shape"] == ([2, 3] if output == "logits" else [])


def test_generate_gives_the_prompt_and_as_many_tokens_as_wanted(perform: Perform) -> None:
    steps = [
        {"generate": {"id": "named", "of": "m", "new_tokens": 3}},
        {"generate": {"id": "placed", "of": "m", "new_tokens": 3, "positional": True}},
    ]
    seen = perform(program(steps, given=[make("tiny-llama")]))
    tensors = seen["tensors"]
    assert tensors["named"].shape == (2, 10)
    assert torch.equal(tensors["named"], tensors["placed"])
    assert seen["frame"]["before"] == seen["frame"]["after"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_changes_what_trains_and_nothing_else(perform: Perform, checkpointing: bool) -> None:
    steps = [
        {"capture": {"id": "before", "of": "m"}},
        {"train": {"of": "pm", "input": "labelled", "gradient_checkpointing": checkpointing}},
    ]
    given = [make("tiny-llama"), wrap(target="q_proj")]
    seen = perform(program(steps, given=given))
    before, after = seen["captures"]["before"]["tensors"], seen["entities"]["m"]["tensors"]
    changed = {
        b["name"].split(".")[-3] for a, b in zip(before, after, strict=True) if a["digest"] != b["digest"]
    }
    assert changed == {"lora_A", "lora_B"}
    assert seen["steps"][-1]["printed"] == ""
    assert seen["entities"]["m"]["modules"][0]["training"]


def test_backward_leaves_gradients(perform: Perform) -> None:
    steps = [inject(), {"perturb": {"of": "m"}}, {"backward": {"of": "m"}}]
    record = perform(program(steps, given=[make()]))["entities"]["m"]
    assert tensor(record, "layer.lora_A.default.weight")["grad"] == "nonzero"
    assert tensor(record, "layer.base_layer.weight")["grad"] == "none"


def test_perturb_changes_only_its_part_and_only_in_place(perform: Perform) -> None:
    steps = [
        inject(),
        inject(adapter_name="other"),
        {"capture": {"id": "zero", "of": "m"}},
        {"perturb": {"of": "m", "adapter": "default"}},
        {"capture": {"id": "one", "of": "m"}},
        {"perturb": {"of": "m", "part": "base", "seed": 1}},
    ]
    seen = perform(program(steps, given=[make()]))
    zero, one, two = seen["captures"]["zero"], seen["captures"]["one"], seen["entities"]["m"]

    def changed(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
        return {
            s["name"] for s, t in zip(a["tensors"], b["tensors"], strict=True) if s["digest"] != t["digest"]
        }

    assert changed(zero, one) == {"layer.lora_A.default.weight", "layer.lora_B.default.weight"}
    assert changed(one, two) == {"layer.base_layer.weight", "layer.base_layer.bias"}
    assert [t["object"] for t in zero["tensors"]] == [t["object"] for t in two["tensors"]]
    assert [t["storage"] for t in zero["tensors"]] == [t["storage"] for t in two["tensors"]]


def test_perturb_reaches_copies_of_modules_to_save(perform: Perform) -> None:
    config = lora(target_modules=["lin0"], modules_to_save=["lin1"])
    steps = [
        {"call": "get_peft_model", "args": {"model": "m", "peft_config": config}, "as": "pm"},
        {"capture": {"id": "before", "of": "pm"}},
        {"perturb": {"of": "pm", "part": "aux"}},
    ]
    seen = perform(program(steps, given=[make("mlp")]))
    before, after = seen["captures"]["before"], seen["entities"]["pm"]
    pairs = zip(before["tensors"], after["tensors"], strict=True)
    changed = [s["name"] for s, t in pairs if s["digest"] != t["digest"]]
    assert changed
    assert all("modules_to_save.default" in name for name in changed)


def test_perturbing_what_is_not_there_is_no_mistake_of_ours(reference: Implementation) -> None:
    seen = reference.execute(program([make(), {"perturb": {"of": "m"}}, {"forward": {"id": "y", "of": "m"}}]))
    error = seen["steps"][1]["error"]
    assert (error["type"], error["mro"], error["origin"]) == ("Missing", ["Missing"], "implementation")
    assert "no adapter tensors" in error["message"]
    assert len(seen["steps"]) == 2


def test_state_dicts_are_edited_without_touching_the_original(perform: Perform) -> None:
    steps = [
        wrap(),
        {"call": "get_peft_model_state_dict", "args": {"model": "pm"}, "as": "sd"},
        {
            "edit_state_dict": {
                "id": "plain",
                "of": "sd",
                "strip_prefix": "base_model.model.",
                "add_prefix": "x.",
            }
        },
        {
            "edit_state_dict": {
                "id": "fewer",
                "of": "sd",
                "drop": [".*lora_B.*"],
                "fill": 2,
                "dtype": "bfloat16",
            }
        },
        {"edit_state_dict": {"id": "kept", "of": "sd", "keep": [".*lora_B.*"], "fill": "nan"}},
        {"edit_state_dict": {"id": "none", "of": "sd", "fill": "none"}},
        {
            "edit_state_dict": {
                "id": "more",
                "of": "sd",
                "insert": {"extra": {"shape": [2, 3], "fill": "normal"}},
            }
        },
    ]
    records = perform(program(steps, given=[make()]))["entities"]

    def keys(name: str) -> list[str]:
        return [t["name"] for t in records[name]["tensors"]]

    a, b = "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"
    assert keys("sd") == [a, b]
    assert keys("plain") == ["x.layer.lora_A.weight", "x.layer.lora_B.weight"]
    assert [t["storage"] for t in records["plain"]["tensors"]] == [
        t["storage"] for t in records["sd"]["tensors"]
    ]
    assert keys("fewer") == [a]
    assert records["fewer"]["tensors"][0]["dtype"] == "bfloat16"
    assert keys("kept") == [b]
    assert records["kept"]["tensors"][0]["finite"] is False
    assert [t["dtype"] for t in records["none"]["tensors"]] == [None, None]
    assert keys("more") == [a, b, "extra"]
    assert records["more"]["tensors"][2]["shape"] == [2, 3]
    assert records["more"]["tensors"][2]["zero"] is False


def test_dropping_a_key_that_is_not_there_names_those_that_are(reference: Implementation) -> None:
    steps = [
        wrap(),
        {"call": "get_peft_model_state_dict", "args": {"model": "pm"}, "as": "sd"},
        {"edit_state_dict": {"id": "x", "of": "sd", "drop": ["nothing"]}},
    ]
    error = reference.execute(program(steps, given=[make()]))["steps"][-1]["error"]
    assert error["type"] == "Missing"
    assert "layer.lora_A.weight" in error["message"]


def test_an_empty_state_dict_is_still_a_state_dict(perform: Perform) -> None:
    steps = [
        wrap(),
        {"call": "get_peft_model_state_dict", "args": {"model": "pm"}, "as": "sd"},
        {"edit_state_dict": {"id": "empty", "of": "sd", "drop": [".*"]}},
        {
            "call": "set_peft_model_state_dict",
            "args": {"model": "pm", "peft_model_state_dict": "empty"},
            "as": "outcome",
        },
    ]
    records = perform(program(steps, given=[make()]))["entities"]
    assert records["empty"]["kind"] == "state_dict"
    assert records["empty"]["tensors"] == []
    assert records["outcome"]["kind"] == "outcome"
    assert "base_model.model.layer.lora_A.default.weight" in records["outcome"]["missing_keys"]


def test_folders_are_written_edited_and_read(perform: Perform) -> None:
    steps = [
        wrap(),
        {"make_folder": {"id": "folder"}},
        {"call": "PeftModel.save_pretrained", "on": "pm", "args": {"save_directory": "folder"}},
        {"capture": {"id": "saved", "of": "folder"}},
        {
            "edit_file": {
                "folder": "folder",
                "file": "adapter_config.json",
                "set_fields": {"r": 9},
                "remove_fields": ["bias"],
            }
        },
        {"edit_file": {"folder": "folder", "file": "adapter_model.safetensors", "truncate": 20}},
        {"edit_file": {"folder": "folder", "file": "notes/new.txt", "write": "hello"}},
    ]
    seen = perform(program(steps, given=[make()]))
    saved, edited = seen["captures"]["saved"]["files"], seen["entities"]["folder"]["files"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= saved.keys()
    assert [t["shape"] for t in saved["adapter_model.safetensors"]["tensors"]] == [[4, 8], [12, 4]]
    assert saved["adapter_config.json"]["json"]["r"] == 4
    assert edited["adapter_config.json"]["json"]["r"] == 9
    assert "bias" not in edited["adapter_config.json"]["json"]
    assert edited["adapter_model.safetensors"]["size"] == 20
    assert "unreadable" in edited["adapter_model.safetensors"]
    assert edited["notes/new.txt"]["size"] == 5


def test_a_saved_folder_loads_by_its_path(perform: Perform) -> None:
    steps = [
        wrap(),
        {"perturb": {"of": "pm"}},
        {"forward": {"id": "before", "of": "pm"}},
        {"make_folder": {"id": "folder"}},
        {"call": "PeftModel.save_pretrained", "on": "pm", "args": {"save_directory": "folder"}},
        {"make_model": {"id": "n", "model": "one-linear"}},
        {"call": "PeftModel.from_pretrained", "args": {"model": "n", "model_id": "folder"}, "as": "loaded"},
        {"forward": {"id": "after", "of": "loaded"}},
        {"call": "load_peft_weights", "args": {"model_id": "folder"}, "as": "weights"},
        {
            "call": "PeftConfig.from_pretrained",
            "args": {"pretrained_model_name_or_path": "folder"},
            "as": "config",
        },
        {"read": {"id": "rank", "of": "folder", "path": "[adapter_config.json][r]"}},
    ]
    seen = perform(program(steps, given=[make()]))
    assert torch.equal(seen["tensors"]["before"], seen["tensors"]["after"])
    assert seen["entities"]["weights"]["kind"] == "state_dict"
    assert seen["entities"]["config"]["kind"] == "config"
    assert seen["entities"]["config"]["fields"]["r"] == 4
    assert seen["entities"]["rank"]["value"] == 4


def test_deleting_a_file_that_is_not_there_names_those_that_are(reference: Implementation) -> None:
    steps = [
        {"make_folder": {"id": "folder"}},
        {"edit_file": {"folder": "folder", "file": "a.txt", "write": ""}},
        {"edit_file": {"folder": "folder", "file": "b.txt", "delete": True}},
    ]
    assert "it holds: a.txt" in reference.execute(program(steps))["steps"][-1]["error"]["message"]


def test_set_tensor_fills_in_place_or_replaces_the_data(perform: Perform) -> None:
    steps = [
        {"capture": {"id": "before", "of": "m"}},
        {"set_tensor": {"of": "m", "name": "layer.bias", "fill": 0.25}},
        {"set_tensor": {"of": "m", "name": "layer.weight", "fill": 0, "shape": [0]}},
        {"read": {"id": "bias", "of": "m", "path": "layer.bias"}},
    ]
    seen = perform(program(steps, given=[make()]))
    before, after = seen["captures"]["before"], seen["entities"]["m"]
    assert tensor(before, "layer.bias")["storage"] == tensor(after, "layer.bias")["storage"]
    assert torch.equal(seen["tensors"]["bias"], torch.full((12,), 0.25))
    assert tensor(after, "layer.weight")["shape"] == [0]


def test_set_tensor_can_change_the_dtype(perform: Perform) -> None:
    steps = [{"set_tensor": {"of": "m", "name": "layer.weight", "fill": 1, "dtype": "float8_e4m3fn"}}]
    record = tensor(perform(program(steps, given=[make()]))["entities"]["m"], "layer.weight")
    assert (record["dtype"], record["finite"], record["zero"]) == ("float8_e4m3fn", True, False)


def test_a_captured_tensor_keeps_the_values_it_had(perform: Perform) -> None:
    steps = [
        {"read": {"id": "weight", "of": "m", "path": "layer.weight"}},
        {"capture": {"id": "before", "of": "weight"}},
        {"set_tensor": {"of": "m", "name": "layer.weight", "fill": 7}},
    ]
    seen = perform(program(steps, given=[make()]))
    before, after = seen["captures"]["before"]["values"], seen["entities"]["weight"]["values"]
    assert not (seen["tensors"][before] == 7).any()
    assert (seen["tensors"][after] == 7).all()


def test_captures_with_values_keep_every_tensor(perform: Perform) -> None:
    steps = [inject(), {"capture": {"id": "c", "of": "m", "values": True}}, {"perturb": {"of": "m"}}]
    seen = perform(program(steps, given=[make()], values=("m",)))
    key = tensor(seen["captures"]["c"], "layer.lora_B.default.weight")["values"]
    last = tensor(seen["entities"]["m"], "layer.lora_B.default.weight")["values"]
    assert not seen["tensors"][key].any()
    assert seen["tensors"][last].any()


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [
        ("peft_config[default].r", "value", 4),
        ("peft_config[default].peft_type", "value", "LORA"),
        ("peft_config[default].target_modules", "value", ["layer"]),
        ("layer.lora_A[default].weight.dtype", "value", "float32"),
        ("layer.lora_A[default].weight.shape[0]", "value", 4),
        ("layer.lora_A[default].weight", "tensor", None),
        ("layer.lora_A[default]", "object", None),
        ("peft_config[default]", "config", None),
        ("training", "value", False),
    ],
)
def test_read_follows_attributes_and_items(perform: Perform, path: str, kind: str, value: object) -> None:
    record = perform(program([inject(), {"read": {"id": "x", "of": "m", "path": path}}], given=[make()]))[
        "entities"
    ]["x"]
    assert record["kind"] == kind
    assert record.get("value") == value


def test_a_read_enum_tells_its_class(perform: Perform) -> None:
    step = {"read": {"id": "x", "of": "m", "path": "peft_config[default].peft_type"}}
    record = perform(program([inject(), step], given=[make()]))["entities"]["x"]
    assert record["class"] == "PeftType"
    assert "Enum" in record["mro"]


def test_what_is_written_may_be_a_folders_path(perform: Perform) -> None:
    steps = [
        {"make_folder": {"id": "folder"}},
        {"write": {"of": "m", "path": "note", "value": "folder"}},
        {"read": {"id": "note", "of": "m", "path": "note"}},
    ]
    written = perform(program(steps, given=[make()]))["entities"]["note"]["value"]
    assert Path(written).is_absolute()
    assert Path(written).name == "folder"


def test_write_and_set_mode_change_the_entity(perform: Perform) -> None:
    steps = [
        {"write": {"of": "m", "path": "layer.note", "value": [1]}},
        {"set_mode": {"of": "m", "training": True}},
        {"read": {"id": "note", "of": "m", "path": "layer.note"}},
    ]
    records = perform(program(steps, given=[make()]))["entities"]
    assert records["note"]["value"] == [1]
    assert all(m["training"] for m in records["m"]["modules"])


@pytest.mark.parametrize(
    ("name", "kind", "first"),
    [
        ("functional.set_adapter", "callable", "model"),
        ("PeftModel.add_adapter", "callable", "adapter_name"),
        ("PeftModel.from_pretrained", "callable", "model"),
        ("PeftConfig.from_pretrained", "callable", "pretrained_model_name_or_path"),
        ("LoraConfig", "callable", "task_type"),
        ("functional", "object", None),
    ],
)
def test_look_up_gives_the_signature_that_callers_see(
    perform: Perform, name: str, kind: str, first: str | None
) -> None:
    record = perform(program([{"look_up": {"id": "f", "name": name}}]))["entities"]["f"]
    assert record["kind"] == kind
    if first is None:
        assert "set_adapter" in record["exports"]
    else:
        assert record["parameters"][0]["name"] == first


def test_look_up_records_defaults_and_kinds(perform: Perform) -> None:
    record = perform(program([{"look_up": {"id": "f", "name": "functional.set_adapter"}}]))["entities"]["f"]
    by_name = {p["name"]: p for p in record["parameters"]}
    assert by_name["model"] == {"name": "model", "kind": "positional-or-keyword", "required": True}
    assert by_name["inference_mode"]["default"] is False
    assert by_name["layer_cls"]["default"] == {"class": "BaseTunerLayer"}


def test_a_name_that_is_not_offered_says_so(reference: Implementation) -> None:
    error = reference.execute(program([{"look_up": {"id": "f", "name": "functional.frobnicate"}}]))["steps"][
        0
    ]["error"]
    assert error["message"] == "reference does not offer functional.frobnicate"
    assert (error["type"], error["mro"], error["origin"]) == (
        "MissingFunction",
        ["MissingFunction"],
        "implementation",
    )


def test_within_runs_its_steps_inside_the_context(perform: Perform) -> None:
    forward = {"forward": {"id": "inside", "of": "pm"}}
    steps = [
        {"forward": {"id": "bare", "of": "m"}},
        wrap(),
        {"perturb": {"of": "pm"}},
        {"within": {"context": "disable_adapter", "on": "pm", "steps": [forward]}},
        {"forward": {"id": "outside", "of": "pm"}},
    ]
    seen = perform(program(steps, given=[make()]))
    assert torch.equal(seen["tensors"]["inside"], seen["tensors"]["bare"])
    assert not torch.equal(seen["tensors"]["outside"], seen["tensors"]["bare"])
    assert [step["index"] for step in seen["steps"]] == [0, 0, 1, 2, 3, "3.0", 4]


def test_within_can_be_left_by_an_exception(perform: Perform) -> None:
    inner = {"forward": {"id": "inside", "of": "pm"}}
    steps = [
        wrap(),
        {"within": {"context": "disable_adapter", "on": "pm", "steps": [inner], "interrupt": True}},
        {"read": {"id": "disabled", "of": "m", "path": "layer.disable_adapters"}},
    ]
    assert perform(program(steps, given=[make()]))["entities"]["disabled"]["value"] is False


def test_methods_of_the_tuner_are_reached_through_the_wrapper(perform: Perform) -> None:
    steps = [
        wrap(),
        {
            "call": "PeftModel.add_adapter",
            "on": "pm",
            "args": {"adapter_name": "b", "peft_config": lora(target_modules=["layer"])},
        },
        {"call": "BaseTuner.set_adapter", "on": "pm", "args": {"adapter_name": ["default", "b"]}},
        {"capture": {"id": "both", "of": "pm"}},
        {"call": "BaseTuner.merge_adapter", "on": "pm", "args": {"adapter_names": ["b"]}},
        {"capture": {"id": "merged", "of": "pm"}},
        {"call": "PeftModel.get_nb_trainable_parameters", "on": "pm", "as": "numbers"},
        {"call": "PeftModel.print_trainable_parameters", "on": "pm", "label": "printing"},
        {"call": "BaseTuner.merge_and_unload", "on": "pm", "as": "plain"},
        {"forward": {"id": "y", "of": "plain"}},
    ]
    seen = perform(program(steps, given=[make()]))
    name = "base_model.model.layer"
    assert module(seen["captures"]["both"], name)["adapter"]["active"] == ["default", "b"]
    assert module(seen["captures"]["merged"], name)["adapter"]["merged"] == ["b"]
    assert seen["entities"]["numbers"]["value"] == [160, 268]
    assert "trainable" in next(s for s in seen["steps"] if s["label"] == "printing")["printed"]
    assert module(seen["entities"]["plain"], "layer")["class"] == "Linear"


def test_seed_makes_initial_weights_repeat(perform: Perform) -> None:
    steps = [
        {"seed": 7},
        inject(),
        {"make_model": {"id": "n", "model": "one-linear"}},
        {"seed": 7},
        {**inject("n"), "as": "other"},
    ]
    records = perform(program(steps, given=[make()]))["entities"]
    digests = [tensor(records[id], "layer.lora_A.default.weight")["digest"] for id in ("m", "n")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("config", ["none", "not-a-config", "unknown"])
def test_special_configs_are_refused_and_the_case_goes_on(reference: Implementation, config: str) -> None:
    steps = [
        {"call": "inject_adapter_in_model", "args": {"peft_config": "c", "model": "m"}, "attempt": True},
        {"forward": {"id": "y", "of": "m"}},
    ]
    seen = reference.execute(program(steps, given=[make(), {"make_config": {"id": "c", "config": config}}]))
    error = seen["steps"][2]["error"]
    assert error["origin"] == "implementation"
    assert "Exception" in error["mro"]
    assert "y" in seen["entities"]


def test_a_config_made_by_a_step_is_the_very_object_that_is_stored(perform: Perform) -> None:
    config = {"id": "c", "config": "LORA", **lora(target_modules=["layer"])["config"]}
    steps = [
        {"call": "inject_adapter_in_model", "args": {"peft_config": "c", "model": "m"}},
        {"read": {"id": "stored", "of": "m", "path": "peft_config[default]"}},
    ]
    records = perform(program(steps, given=[make(), {"make_config": config}]))["entities"]
    assert records["stored"]["object"] == records["c"]["object"]


def test_an_error_that_nobody_expects_ends_the_steps_but_not_the_records(reference: Implementation) -> None:
    steps = [inject(target="nowhere"), {"forward": {"id": "y", "of": "m"}}]
    seen = reference.execute(program(steps, given=[make()]))
    error = seen["steps"][-1]["error"]
    assert error["origin"] == "implementation"
    assert "ValueError" in error["mro"]
    assert "peft_reference" in error["traceback"]
    assert len(seen["steps"]) == 2
    assert seen["entities"]["m"]["kind"] == "model"


def test_a_mistake_in_the_specs_is_told_as_ours(reference: Implementation) -> None:
    seen = reference.execute(
        program([{**inject("nobody"), "attempt": True}, {"forward": {"id": "y", "of": "m"}}], given=[make()])
    )
    assert seen["steps"][-1]["error"]["origin"] == "driver"
    assert len(seen["steps"]) == 2


def test_observations_are_json(perform: Perform) -> None:
    steps = [
        wrap(),
        {"set_tensor": {"of": "m", "name": "layer.base_layer.bias", "fill": "nan"}},
        {"forward": {"id": "y", "of": "pm"}},
    ]
    seen = perform(program(steps, given=[make()]))
    tensors = seen.pop("tensors")
    assert json.loads(json.dumps(seen, allow_nan=False)) == seen
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())


def test_the_same_program_gives_the_same_observation_twice(perform: Perform) -> None:
    steps = program([wrap(), {"forward": {"id": "y", "of": "pm"}}], given=[make("deep", training=True)])
    steps["when"][0]["args"]["peft_config"] = lora(target_modules=["q"], lora_dropout=0.5)
    first, second = perform(steps), perform(steps)
    assert torch.equal(first.pop("tensors")["y"], second.pop("tensors")["y"])
    assert first == second


SAVED = {"call": "PeftModel.save_pretrained", "on": "pm", "args": {"save_directory": "folder"}}
LOAD_WEIGHTS = {"call": "load_peft_weights", "args": {"model_id": "folder"}, "attempt": True, "label": "load"}
CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
UNLOADABLE = {  # damage -> the file that it is made for
    **dict.fromkeys(
        [name for name in DAMAGES if name.startswith(("header", "dtype", "shape", "offsets"))], WEIGHTS
    ),
    **dict.fromkeys(["cut-short", "with-more-behind", "empty", "text", "folder", "link-to-itself"], WEIGHTS),
    **dict.fromkeys([name for name in DAMAGES if name.startswith(("saved", "pickle"))], PICKLED),
    **dict.fromkeys([name for name in DAMAGES if name.startswith("json")], CONFIG),
    **dict.fromkeys(["utf-16", "byte-order-mark", "latin-1"], CONFIG),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_cannot_be_read(reference: Implementation, damage: str) -> None:
    file = UNLOADABLE[damage]
    saving = {**SAVED, "args": {**SAVED["args"], "safe_serialization": file != PICKLED}}
    given = [make(), wrap(), {"make_folder": {"id": "folder"}}, saving]
    reading = {"call": "PeftConfig.from_pretrained", "attempt": True, "label": "load"}
    reading |= {"args": {"pretrained_model_name_or_path": "folder"}}
    load = reading if file == CONFIG else LOAD_WEIGHTS
    whole = reference.execute(program([load], given=given))
    assert whole["steps"][-1]["error"] is None
    edit = {"edit_file": {"folder": "folder", "file": file, "damage": damage}}
    broken = reference.execute(program([load], given=[*given, edit]))
    assert file.partition(".")[0] in broken["steps"][-1]["error"]["message"]
    assert "executed" not in broken["entities"]["folder"]["files"]


def test_a_folder_can_hold_a_base_model(perform: Perform) -> None:
    model = {"make_model": {"id": "m", "model": "tiny-bert"}}
    read = {"read": {"id": "name", "of": "m", "path": "name_or_path"}}
    seen = perform(program([read], given=[model, {"make_folder": {"id": "base", "model": "m"}}]))
    assert {"config.json", "model.safetensors"} <= set(seen["entities"]["base"]["files"])
    assert seen["entities"]["name"]["value"].endswith("base")


def test_a_compiled_model_has_the_other_one_inside(perform: Perform) -> None:
    seen = perform(program([{"compile": {"id": "c", "of": "m"}}], given=[make()]))
    names = [t["name"] for t in seen["entities"]["c"]["tensors"]]
    assert names
    assert all(name.startswith("_orig_mod.") for name in names)


def test_an_adapter_can_be_called_like_a_path(reference: Implementation) -> None:
    step = {**wrap(), "attempt": True}
    step["args"] = {**step["args"], "adapter_name": {"inside": "folder"}}
    seen = reference.execute(program([step], given=[make(), {"make_folder": {"id": "folder"}}]))
    error = seen["steps"][-1]["error"]
    name = next(iter(seen["entities"]["pm"]["peft_config"])) if error is None else error["message"]
    assert "folder" in name


def test_a_model_card_is_data_and_lines(perform: Perform) -> None:
    reads = [
        {"read": {"id": "library", "of": "folder", "path": "[README.md].metadata[library_name]"}},
        {"read": {"id": "lines", "of": "folder", "path": "[README.md].lines"}},
    ]
    seen = perform(program([SAVED, *reads], given=[make(), wrap(), {"make_folder": {"id": "folder"}}]))
    assert seen["entities"]["library"]["value"] == "peft"
    assert "library_name: peft" in seen["entities"]["lines"]["value"]
