"""What the conformance suite does not reach: undoing, odd names, odd orders, copies of tensors."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import peft_reference as peft
import pytest
import torch
from peft_reference.functional import delete_adapter, set_adapter
from torch import nn
from zoo import MLP, assert_same, build, everything, perturb

X = torch.ones(2, 8)


def lora(*targets: str, **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=list(targets), **{"r": 2, **options})


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (lora("nope"), ValueError),
        (lora("lin0", r=0), ValueError),
        (lora("lin0", "lin1", rank_pattern={"lin1": -1}), ValueError),
        (lora("lin0", lora_dropout=1.5), ValueError),
        (lora("lin0", bias="some"), NotImplementedError),
        (lora("lin0", init_lora_weights="best"), ValueError),
        (lora("lin0", init_lora_weights="pissa", r=9), ValueError),
        (lora("lin0", modules_to_save=["default"]), ValueError),
        (lora("lin0", layer_replication=[(0, 1)]), ValueError),
        (lora("lin0", exclude_modules=["lin0"]), ValueError),
        (peft.PromptTuningConfig(num_virtual_tokens=2), ValueError),
        (peft.PeftConfig(peft_type="FOO"), ValueError),
        (peft.PeftConfig(), ValueError),
        ({}, ValueError),
    ],
    ids=[
        *(
            "no-match",
            "rank-zero",
            "negative-pattern",
            "dropout",
            "bias",
            "init",
            "pissa",
            "name-twice",
            "replication",
        ),
        *("all-excluded", "prompt-learning", "unknown-type", "no-type", "no-config"),
    ],
)
@pytest.mark.parametrize(
    "add", [peft.get_peft_model, lambda model, config: peft.inject_adapter_in_model(config, model)]
)
def test_a_refused_config_changes_neither_model_nor_config_nor_rng(add: Any, config: Any, error: Any) -> None:
    model = build()
    before, rng, fields = everything(model), torch.get_rng_state(), repr(config)
    with pytest.raises(error):
        add(model, config)
    assert_same(before, everything(model))
    assert torch.equal(torch.get_rng_state(), rng)
    assert repr(config) == fields


def test_a_warning_turned_into_an_error_changes_nothing() -> None:
    """Warnings come before changes, so that `-W error` cannot leave half of them."""
    model = build()
    before = everything(model)
    with pytest.raises(UserWarning, match="fan_in_fan_out"):  # warnings are errors in these tests
        peft.inject_adapter_in_model(lora("lin0", fan_in_fan_out=True), model)
    assert_same(before, everything(model))
    wrapped = peft.get_peft_model(model, lora("lin0"))
    wrapped.add_adapter("more", lora("lin1"))
    before = everything(wrapped)
    with pytest.raises(UserWarning, match="is active instead"):
        wrapped.delete_adapter("default")
    assert_same(before, everything(wrapped))


def test_injecting_under_an_existing_name_replaces_it_where_it_is_targeted() -> None:
    model = build()
    peft.inject_adapter_in_model(lora("lin0", "lin1"), model)
    kept = model.lin0.lora_A["default"]
    peft.inject_adapter_in_model(lora("lin1", r=5), model)
    assert model.lin0.lora_A["default"] is kept
    assert (model.lin0.r, model.lin1.r) == ({"default": 2}, {"default": 5})


def test_new_layers_follow_the_mode_of_the_model() -> None:
    for training in (True, False):
        model = peft.get_peft_model(
            build().train(training), lora("lin0", lora_dropout=0.5, modules_to_save=["lin1"])
        )
        assert {module.training for module in model.modules()} == {training}


def test_low_memory_loading_does_not_share_memory_with_the_given_tensors() -> None:
    source = peft.inject_adapter_in_model(lora("lin0"), build())
    given = {key: tensor.clone() for key, tensor in peft.get_peft_model_state_dict(source).items()}
    model = peft.inject_adapter_in_model(lora("lin0"), build(), low_cpu_mem_usage=True)
    peft.set_peft_model_state_dict(model, given, low_cpu_mem_usage=True)
    model.lin0.lora_A["default"].weight.data.zero_()
    assert given["lin0.lora_A.weight"].abs().sum() > 0


def test_a_state_dict_with_a_value_that_is_no_tensor_changes_nothing() -> None:
    model = peft.inject_adapter_in_model(lora("lin0"), build())
    before = everything(model)
    with pytest.raises(TypeError, match=r"lin0\.lora_B\.weight.*list"):
        peft.set_peft_model_state_dict(
            model, {"lin0.lora_A.weight": torch.ones(2, 8), "lin0.lora_B.weight": [1.0]}
        )
    assert_same(before, everything(model))


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "_orig_mod.", "_orig_mod.base_model.model."])
def test_keys_from_any_kind_of_model_fit_an_injected_one(prefix: str) -> None:
    source = peft.inject_adapter_in_model(lora("lin0"), build())
    perturb(source)
    state_dict = {prefix + key: tensor for key, tensor in peft.get_peft_model_state_dict(source).items()}
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2), build(), state_dict=state_dict)
    assert peft.set_peft_model_state_dict(model, state_dict).unexpected_keys == []
    torch.testing.assert_close(model(X), source(X))


def test_disabling_puts_trainability_back_and_survives_errors() -> None:
    model = peft.get_peft_model(build(), lora("lin0"))
    perturb(model)
    model.set_requires_grad("default", False)
    adapted = model(X)

    def fail_inside() -> None:
        with model.disable_adapter():
            with model.disable_adapter():
                pass
            assert not torch.allclose(model(X), adapted)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    torch.testing.assert_close(model(X), adapted)
    assert not any(p.requires_grad for p in model.parameters())


def test_the_model_works_after_its_only_adapter_is_deleted() -> None:
    base = build()
    expected = base(X)
    model = peft.get_peft_model(base, lora("lin0", modules_to_save=["lin1"]))
    perturb(model)
    model.delete_adapter("default")
    assert (model.active_adapters, model.active_adapter) == ([], None)
    torch.testing.assert_close(model(X), expected)
    model.add_adapter("next", lora("lin0", r=1))
    model.set_adapter("next")
    assert model.active_adapter == "next"


def test_deleting_the_last_active_adapter_returns_none() -> None:
    model = peft.inject_adapter_in_model(lora("lin0"), build())
    assert delete_adapter(model, "default", prefix="lora_") is None


def test_deleting_activates_the_same_adapter_everywhere() -> None:
    """Layers that lack the newly active adapter must not pick another one."""
    model = peft.inject_adapter_in_model(lora("lin0", "lin1"), build(), "z")
    peft.inject_adapter_in_model(lora("lin0"), model, "a1")
    peft.inject_adapter_in_model(lora("lin1"), model, "b1")
    set_adapter(model, "z")
    with pytest.warns(UserWarning, match="'a1' is active instead"):
        assert delete_adapter(model, "z", prefix="lora_") == ["a1"]
    assert model.lin0.active_adapters == model.lin1.active_adapters == ["a1"]


def test_names_like_the_adapter_and_like_the_prefix_are_nothing_special() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.default = nn.Linear(8, 8)
            self.lora_A = nn.Linear(8, 8)
            self.lora_head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lora_head(self.lora_A(self.default(x)))

    model = peft.get_peft_model(build(Odd), lora("default", "lora_A"))
    perturb(model)
    state_dict = peft.get_peft_model_state_dict(model)
    assert sorted(state_dict) == [
        f"base_model.model.{module}.lora_{slot}.weight" for module in ("default", "lora_A") for slot in "AB"
    ]
    other = peft.inject_adapter_in_model(peft.LoraConfig(r=2), build(Odd), "b9", state_dict=state_dict)
    assert peft.set_peft_model_state_dict(other, state_dict, "b9").unexpected_keys == []
    torch.testing.assert_close(other(X), model(X))


def test_one_module_in_two_places_is_adapted_once_and_saved_under_both_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = MLP()
            self.two = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.two(x)

    model = peft.inject_adapter_in_model(lora("lin0"), build(Twice))
    assert (
        sorted(key.split(".")[0] for key in peft.get_peft_model_state_dict(model))
        == ["one"] * 2 + ["two"] * 2
    )


def test_safe_merge_leaves_every_layer_alone() -> None:
    """The fault is in the last layer: the first ones must not stay merged."""
    model = peft.get_peft_model(build(), lora("lin0", "lin1"))
    perturb(model)
    model.base_model.model.lin1.lora_B["default"].weight.data[0, 0] = float("nan")
    before = everything(model)["values"]
    with pytest.raises(ValueError, match="NaN"):
        model.merge_adapter(safe_merge=True)
    assert model.base_model.model.lin0.merged_adapters == []
    assert torch.equal(
        model.state_dict()["base_model.model.lin0.base_layer.weight"],
        before["base_model.model.lin0.base_layer.weight"],
    )


def test_compiled_model_keys_round_trip() -> None:
    model = peft.get_peft_model(build(), lora("lin0"))
    perturb(model)
    compiled = torch.compile(model, backend="eager")
    plain = peft.get_peft_model_state_dict(model)
    assert [key.removeprefix("_orig_mod.") for key in peft.get_peft_model_state_dict(compiled)] == list(plain)
    assert list(peft.get_peft_model_state_dict(compiled, unwrap_compiled=True)) == list(plain)
    fresh = peft.get_peft_model(build(), lora("lin0"))
    outcome = peft.set_peft_model_state_dict(fresh, peft.get_peft_model_state_dict(compiled))
    assert outcome.unexpected_keys == []
    torch.testing.assert_close(fresh(X), model(X))


def test_a_deleted_adapter_is_freed() -> None:
    model = peft.get_peft_model(build(), lora("lin0", modules_to_save=["lin1"]))
    held = [weakref.ref(p) for p in model.parameters() if p.requires_grad]
    model.delete_adapter("default")
    gc.collect()
    assert len(held) == 4
    assert [ref for ref in held if ref() is not None] == []
