"""Which tensor is whose: from the cards, whatever the names look like."""

from __future__ import annotations

from typing import Any

import pytest
from peft_conformance.roles import card_of, pair, select, tags, unwrapped
from scenes import CARDS, adapted_model, config, folder, layer, model, module, plain_model, state_dict, tensor


def roles(record: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {t["name"]: (tag.role, tag.adapter) for t, tag in tags(record, CARDS)}


def adapted(*names: str, configs: dict | None = None) -> dict[str, tuple[str, str | None]]:
    return roles(model([tensor(name) for name in names], [layer("x", "default")], configs))


def test_a_model_without_adapters_is_all_base() -> None:
    assert set(roles(plain_model()).values()) == {("base", None)}


def test_adapters_are_told_apart_by_name() -> None:
    found = roles(adapted_model("default", "other"))
    assert found["linear.lora_A.default.weight"] == ("trainable", "default")
    assert found["linear.lora_B.other.weight"] == ("trainable", "other")
    assert found["linear.base_layer.weight"] == ("base", None)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("x.lora_embedding_A.default", "trainable"),  # a parameter that stands in the slot itself
        ("x.lora_B.default.bias", "trainable"),
        ("x.base_layer.out_proj.lora_A.default.weight", "trainable"),
        ("x.odd_mask.default", "frozen"),
        ("x.odd_norm.default", "saved-buffer"),
        ("x.odd_count.default", "unsaved"),
        ("odd_bank.default.weight", "saved-buffer"),
        ("x.lora_A.default.bias", "base"),  # no card has it
        ("x.lora_embedding_A.default.weight", "base"),
        ("lora_head.weight", "base"),
        ("default.weight", "base"),
        ("default_block.default.weight", "base"),
        ("lora_A.weight", "base"),
        ("odd_scale.weight", "base"),  # a layer called like a slot; the slot would be on an adapted layer
        ("x.lora_head.default.weight", "base"),
        ("x.modules_to_save.default.weight", "base"),  # nothing there wraps a module
        ("weight", "base"),
    ],
)
def test_cards_decide_not_prefixes(name: str, role: str) -> None:
    assert adapted(name)[name][0] == role


def test_an_adapter_may_be_called_like_a_slot_or_a_weight() -> None:
    found = adapted("x.lora_A.lora_A.weight", "x.lora_A.weight.weight", "x.odd_scale.odd_mask")
    assert found == {
        "x.lora_A.lora_A.weight": ("trainable", "lora_A"),
        "x.lora_A.weight.weight": ("trainable", "weight"),
        "x.odd_scale.odd_mask": ("trainable", "odd_mask"),
    }


def test_the_config_of_an_adapter_says_which_card_reads_its_tensors() -> None:
    odd = {"kind": "config", "class": "OddConfig", "fields": {}}
    configs = {"default": config(), "other": odd}
    found = adapted("x.lora_A.default.weight", "x.lora_A.other.weight", "x.odd_mask.other", configs=configs)
    assert found["x.lora_A.other.weight"] == ("base", None)  # ODD has no such tensor
    assert found["x.odd_mask.other"] == ("frozen", "other")


def test_a_leftover_of_a_deleted_adapter_is_still_an_adapters() -> None:
    found = adapted("x.lora_A.gone.weight", configs={"default": config()})
    assert found["x.lora_A.gone.weight"] == ("trainable", "gone")


def test_modules_to_save_are_aux_and_what_they_stand_for_is_base() -> None:
    record = model(
        [tensor("head.original_module.weight"), tensor("head.modules_to_save.default.weight")],
        [
            module("head", "Wrapper"),
            module("head.original_module"),
            module("head.modules_to_save", "ModuleDict"),
        ],
    )
    assert roles(record) == {
        "head.original_module.weight": ("base", None),
        "head.modules_to_save.default.weight": ("aux", "default"),
    }
    (_, base), (_, aux) = tags(record, CARDS)
    assert (base.name, base.module, aux.module) == ("head.weight", "head", "head")


def test_checkpoint_keys_name_no_adapter() -> None:
    names = (
        "base_model.model.x.lora_A.weight",
        "x.lora_embedding_B",
        "x.lora_A.default.weight",
        "lora_head.weight",
    )
    found = roles(state_dict(*names))
    assert list(found.values()) == [
        ("trainable", None),
        ("trainable", None),
        ("trainable", "default"),
        ("base", None),
    ]


def test_saved_is_all_of_an_adapter_but_its_bookkeeping() -> None:
    names = ("x.odd_scale", "x.odd_mask", "x.odd_norm", "x.odd_count", "x.weight")
    tagged = tags(state_dict(*names), CARDS)
    assert [t["name"] for t, tag in tagged if tag.has_role("saved")] == [*names[:3]]
    assert [t["name"] for t, tag in tagged if tag.has_role("adapter")] == [*names[:4]]


def test_what_a_model_has_once_is_taken_once_and_by_its_key_in_a_checkpoint() -> None:
    places = ("base_model.model.x.odd_bank.default.weight", "base_model.odd_bank.default.weight")
    record = model([tensor(name, object="#bank") for name in places], [], {"default": config()})
    record["peft_config"]["default"] = {"kind": "config", "class": "OddConfig", "fields": {}}
    ((found, tag),) = tags(record, CARDS)
    assert (found["name"], tag.bare, tag.tensor) == (
        places[1],
        "base_model.odd_bank.weight",
        "odd_bank.weight",
    )
    assert (tag.shared, tag.has_role("shared"), tag.role, tag.adapter) == (
        True,
        True,
        "saved-buffer",
        "default",
    )
    copies = model([tensor(name) for name in places], [], record["peft_config"])
    assert len(tags(copies, CARDS)) == 2  # two tensors are not one
    ((_, saved),) = tags(state_dict("base_model.odd_bank.weight"), CARDS)
    assert (saved.bare, saved.shared) == (tag.bare, True)


@pytest.mark.parametrize("name", ["base_model.odd_parts.default.q", "base_model.odd_parts.q.default"])
def test_what_groups_of_layers_share_has_the_groups_name(name: str) -> None:
    configs = {"default": {"kind": "config", "class": "OddConfig", "fields": {}}}
    ((_, tag),) = tags(model([tensor(name)], [], configs), CARDS)
    assert (tag.tensor, tag.adapter, tag.bare) == ("odd_parts.<group>", "default", "base_model.odd_parts.q")
    assert tags(state_dict("base_model.odd_parts.q"), CARDS)[0][1].tensor == "odd_parts.<group>"
    assert tags(state_dict("base_model.odd_parts.q.r.weight"), CARDS)[0][1].role == "base"


@pytest.mark.parametrize(("keep", "role"), [(True, "saved-buffer"), (False, "unsaved")])
def test_the_config_may_say_that_a_tensor_is_not_saved(keep: bool, role: str) -> None:
    configs = {"default": {"kind": "config", "class": "OddConfig", "fields": {"keep": keep}}}
    ((_, tag),) = tags(model([tensor("base_model.odd_basis.default")], [], configs), CARDS)
    assert tag.role == role


def test_a_key_that_could_be_read_both_ways_is_a_checkpoints() -> None:
    """AdaLoRA's `lora_A` of an adapter called weight, or LoRA's `lora_A.weight`."""
    cards = {**CARDS, "ADALORA": {**CARDS["ODD"], "tensors": {"lora_A": {"shape": [4], "role": "trainable"}}}}
    read = [
        tags(state_dict(name), cards)[0][1] for name in ("x.lora_A.weight", "x.lora_A.default", "x.lora_A")
    ]
    assert [(tag.tensor, tag.adapter) for tag in read] == [
        ("lora_A.weight", None),
        ("lora_A", "default"),
        ("lora_A", None),
    ]


def test_card_of_goes_by_type_then_by_class() -> None:
    assert card_of(config(), CARDS)["method"] == "LORA"
    assert card_of({"class": "OddConfig", "fields": {}}, CARDS)["method"] == "ODD"
    assert card_of({"class": "NewConfig", "fields": {"peft_type": "NEW"}}, CARDS) is None


def test_only_what_wrapping_put_into_a_path_is_taken_out_of_it() -> None:
    modules = {m["name"]: m for m in [layer("x", "a"), module("y"), module("y.base_layer")]}
    assert unwrapped("x.base_layer.weight", modules) == "x.weight"
    assert unwrapped("y.base_layer.weight", modules) == "y.base_layer.weight"
    assert unwrapped("x.base_layer.weight", None) == "x.weight"


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        ({}, 8),
        ({"role": "adapter"}, 4),
        ({"role": "trainable", "adapter": "other"}, 2),
        ({"adapter": "default"}, 2),
        ({"role": "frozen"}, 0),
        ({"role": "base"}, 4),
        ({"role": "base", "adapter": "default"}, 0),
        ({"module": "linear"}, 6),
        ({"module": "lin"}, 0),
        ({"name": r".*\.weight"}, 7),
        ({"kind": "buffer"}, 0),
    ],
)
def test_a_selection_takes_what_fits_all_of_it(selection: dict[str, str], count: int) -> None:
    assert len(select(tags(adapted_model("default", "other"), CARDS), selection)) == count


def test_in_a_state_dict_an_adapter_selects_all_that_is_not_base() -> None:
    record = state_dict("x.lora_A.weight", "x.lora_B.default.weight", "x.lora_B.other.weight", "head.weight")
    chosen = select(tags(record, CARDS), {"adapter": "default"})
    assert [t["name"] for t, _ in chosen] == ["x.lora_A.weight", "x.lora_B.default.weight"]


def test_the_tensors_of_a_folder_are_those_of_all_its_files() -> None:
    record = folder(a__safetensors={"tensors": [tensor("x.lora_A.weight")]}, b__json={})
    assert roles(record) == {"x.lora_A.weight": ("trainable", None)}


def names(pairs: list) -> list[tuple[str, str]]:
    return [(a["name"], b["name"]) for (a, _), (b, _) in pairs]


def test_pairs_go_by_object_and_place_then_place_then_object_then_checkpoint_name() -> None:
    left = [
        tensor("x.base_layer.weight", object="#1"),
        tensor("y.weight", object="#2"),
        tensor("z.weight", object="#3"),
    ]
    right = [
        tensor("y.weight", object="#9"),
        tensor("moved.weight", object="#3"),
        tensor("x.weight", object="#1"),
    ]
    wrapped, flat = model(left, [layer("x", "a")]), model(right, [])
    pairs, gone, new = pair(tags(wrapped, CARDS), tags(flat, CARDS))
    assert names(pairs) == [
        ("x.base_layer.weight", "x.weight"),
        ("y.weight", "y.weight"),
        ("z.weight", "moved.weight"),
    ]
    assert (gone, new) == ([], [])
    saved = state_dict("base_model.model.linear.lora_A.weight", "other")
    pairs, gone, new = pair(tags(saved, CARDS), tags(adapted_model(), CARDS))
    assert names(pairs) == [("base_model.model.linear.lora_A.weight", "linear.lora_A.default.weight")]
    assert [t["name"] for t, _ in gone] == ["other"]
    assert len(new) == 5


def test_tied_tensors_are_paired_name_by_name() -> None:
    record = model([tensor("a.weight", object="#1"), tensor("b.weight", object="#1")], [])
    assert names(pair(tags(record, CARDS), tags(record, CARDS))[0]) == [
        ("a.weight", "a.weight"),
        ("b.weight", "b.weight"),
    ]


def test_a_tensor_that_a_checkpoint_calls_otherwise_is_the_same_tensor() -> None:
    entry = {"role": "trainable", "shape": ["out"], "saved_as": "odd_length"}
    cards = {
        **CARDS,
        "LENGTH": {
            "method": "LENGTH",
            "config": {"class": "LengthConfig"},
            "tensors": {"odd_length.weight": entry},
        },
    }
    length = {"kind": "config", "class": "LengthConfig", "fields": {}}
    live = model([tensor("x.odd_length.a.weight")], [layer("x", "a")], {"a": length})
    ((_, there),) = tags(live, cards)
    ((_, saved),) = tags(state_dict("x.odd_length"), cards)
    assert (there.role, there.adapter, there.tensor) == ("trainable", "a", "odd_length.weight")
    assert (saved.role, saved.adapter) == ("trainable", None)
    assert there.bare == saved.bare == "x.odd_length"


def test_trained_rows_are_aux_below_a_token_adapter_only() -> None:
    names = ("embed.token_adapter.trainable_tokens_delta.default", "embed.token_adapter.base_layer.weight")
    record = model([tensor(name) for name in (*names, "trainable_tokens_delta.default")], [], None)
    assert roles(record) == {
        names[0]: ("aux", "default"),
        names[1]: ("base", None),
        "trainable_tokens_delta.default": ("base", None),
    }
    saved = state_dict("embed.token_adapter.trainable_tokens_delta")
    assert set(roles(saved).values()) == {("aux", None)}


def test_tensors_are_read_with_the_cards_that_are_given_each_time() -> None:
    """What is kept of the last cards is not used for others, even of the same methods."""
    record = state_dict("x.lora_A.weight")
    frozen = {"LORA": {**CARDS["LORA"], "tensors": {"lora_A.weight": {"shape": [1], "role": "frozen"}}}}
    found = [tags(record, cards)[0][1].role for cards in (CARDS, frozen, {}, CARDS)]
    assert found == ["trainable", "frozen", "base", "trainable"]
