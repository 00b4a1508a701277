"""Files on disk: whole or not there, inside their folder, and explained when they are broken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import peft_reference as peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo import MLP, assert_same, build, everything, perturb

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with an adapter on lin0 and a copy of lin1."""
    config = peft.LoraConfig(target_modules=["lin0"], r=3, modules_to_save=["lin1"])
    model = peft.get_peft_model(build(), config)
    perturb(model)
    model.save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / CONFIG).read_text())
    data = {key: value for key, value in {**data, **changes}.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(data))


def test_three_files_and_nothing_else(saved: Path) -> None:
    assert sorted(os.listdir(saved)) == ["README.md", CONFIG, WEIGHTS]


def test_a_failed_save_leaves_the_old_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("peft_reference.saving.save_file", full)
    with pytest.raises(OSError, match="No space"):
        peft.get_peft_model(build(), peft.LoraConfig(target_modules=["lin0"])).save_pretrained(saved)
    assert {name: (saved / name).read_bytes() for name in os.listdir(saved)} == before


@pytest.mark.parametrize("name", ["/outside", "/", "a/b", "a\\b", "C:x", "a\0b"])
def test_an_adapter_is_not_saved_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    model = peft.get_peft_model(build(), peft.LoraConfig(target_modules=["lin0"]), name)
    with pytest.raises(ValueError, match="outside"):
        model.save_pretrained(tmp_path / "inside")
    assert not (tmp_path / "inside").exists()


@pytest.mark.parametrize("name", ["", "..", "a.b", "keys", "pop"])
def test_a_name_that_cannot_be_part_of_a_key_is_refused(name: str) -> None:
    model = build()
    before = everything(model)
    with pytest.raises(ValueError, match="name"):
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["lin0"]), model, name)
    assert_same(before, everything(model))


def test_meta_weights_are_not_saved(tmp_path: Path) -> None:
    model = peft.get_peft_model(build(), peft.LoraConfig(target_modules=["lin0"]), low_cpu_mem_usage=True)
    with pytest.raises(ValueError, match=r"lora_A\.weight.*meta"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_card_that_someone_wrote_is_kept(saved: Path) -> None:
    (saved / "README.md").write_text("mine")
    peft.PeftModel.from_pretrained(build(), saved).save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"


def truncate(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.lin0.lora_A.weight"] = torch.zeros(7, 8)
    save_file(tensors, folder / WEIGHTS)


def no_copy(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.lin1.bias"]
    save_file(tensors, folder / WEIGHTS)


BROKEN: dict[str, tuple[Any, type[Exception], str]] = {
    "weights truncated": (truncate, ValueError, "adapter_model.safetensors is no complete file"),
    "weights not safetensors": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"not tensors"),
        ValueError,
        "adapter_model.safetensors is no complete file",
    ),
    "weights missing": (lambda folder: (folder / WEIGHTS).unlink(), ValueError, "no file adapter_model"),
    "weights of another shape": (
        other_shape,
        RuntimeError,
        r"lin0\.lora_A\.weight: the checkpoint has \(7, 8\), the model has \(3, 8\)",
    ),
    "copy incomplete": (no_copy, KeyError, r"lin1\.bias"),
    "config missing": (lambda folder: (folder / CONFIG).unlink(), ValueError, "no file adapter_config"),
    "config not JSON": (
        lambda folder: (folder / CONFIG).write_text('{"r": 3,'),
        ValueError,
        "not valid JSON",
    ),
    "config a list": (
        lambda folder: (folder / CONFIG).write_text("[1]"),
        ValueError,
        "JSON object, found list",
    ),
    "config without type": (lambda folder: edit(folder, peft_type=...), TypeError, "peft_type"),
    "config of unknown type": (
        lambda folder: edit(folder, peft_type="FOO"),
        ValueError,
        "Unknown PEFT type.*FOO",
    ),
    "targets not found": (lambda folder: edit(folder, target_modules=["x"]), ValueError, "not found"),
    "option not offered": (
        lambda folder: edit(folder, megatron_config={"a": 1}),
        ValueError,
        "megatron_config",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_adapter_is_explained_and_leaves_the_model_alone(saved: Path, fault: str) -> None:
    damage, error, message = BROKEN[fault]
    damage(saved)
    model = build()
    before = everything(model)
    with pytest.raises(error, match=message):
        peft.PeftModel.from_pretrained(model, saved)
    assert_same(before, everything(model))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_adapter_leaves_the_adapters_that_are_there_alone(saved: Path, fault: str) -> None:
    damage, error, message = BROKEN[fault]
    damage(saved)
    model = peft.get_peft_model(build(), peft.LoraConfig(target_modules=["lin1"], r=2, bias="lora_only"))
    if (
        fault != "targets not found"
    ):  # the saved adapter copies lin1, which is adapted here: also an error, earlier
        error, message = (error, message) if "weights" in fault or "config" in fault else (Exception, "")
    before = everything(model)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the kinds are asserted in the test above
        model.load_adapter(saved, "more")
    assert isinstance(caught.value, (error, TypeError))
    assert_same(before, everything(model))


def test_unknown_fields_are_dropped_with_a_warning(saved: Path) -> None:
    edit(saved, field_of_tomorrow=1, runtime_config={"ephemeral_gpu_offload": True})
    with pytest.warns(UserWarning, match="no fields.*field_of_tomorrow.*runtime_config"):
        config = peft.PeftConfig.from_pretrained(saved)
    assert config.r == 3
    assert config.runtime_config == peft.LoraRuntimeConfig()


def test_type_and_targets_are_enough(saved: Path) -> None:
    (saved / CONFIG).write_text(json.dumps({"peft_type": "LORA", "target_modules": ["lin0"]}))
    assert peft.PeftConfig.from_pretrained(saved).r == 8


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"x": Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin"):
        peft.load_peft_weights(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_bin_and_safetensors_hold_the_same(saved: Path, tmp_path: Path) -> None:
    model = peft.PeftModel.from_pretrained(build(), saved)
    model.save_pretrained(tmp_path / "bin", safe_serialization=False)
    one, other = peft.load_peft_weights(saved), peft.load_peft_weights(tmp_path / "bin")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_tied_and_transposed_tensors_can_be_saved(tmp_path: Path) -> None:
    model = peft.get_peft_model(build(lambda: MLP(8)), peft.LoraConfig(target_modules=["lin0", "lin1"], r=4))
    lin0, lin1 = model.base_model.model.lin0, model.base_model.model.lin1
    lin1.lora_A["default"].weight = lin0.lora_A["default"].weight
    lin1.lora_B["default"].weight = torch.nn.Parameter(torch.randn(4, 4).t())
    model.save_pretrained(tmp_path)
    tensors = peft.load_peft_weights(tmp_path)
    assert torch.equal(tensors["base_model.model.lin1.lora_A.weight"], lin0.lora_A["default"].weight)
    assert torch.equal(tensors["base_model.model.lin1.lora_B.weight"], lin1.lora_B["default"].weight)
