"""What a model keeps of adapters that are gone, what a merge keeps, and what an import brings along."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from typing import Any

import peft_reference as peft
import pytest
import torch
from peft_reference.layer import BaseTunerLayer
from torch import nn
from zoo import build, perturb

CONFIGS = {
    "lora": lambda: peft.LoraConfig(target_modules=["lin0", "lin1"], r=2),
    "dora": lambda: peft.LoraConfig(target_modules=["lin0", "lin1"], r=2, use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["lin0", "lin1"], feedforward_modules=["lin1"]),
    "loha": lambda: peft.LoHaConfig(target_modules=["lin0", "lin1"], r=2),
    "oft": lambda: peft.OFTConfig(target_modules=["lin0", "lin1"], oft_block_size=4),
    "vera": lambda: peft.VeraConfig(target_modules=["lin0", "lin1"], r=2),
    "copies": lambda: peft.LoraConfig(target_modules=["lin0"], modules_to_save=["lin1"], r=2),
}


def tensors() -> set[int]:
    gc.collect()
    return {id(found) for found in gc.get_objects() if type(found) in (torch.Tensor, nn.Parameter)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.filterwarnings("ignore")
def test_a_deleted_adapter_leaves_no_tensor_behind(name: str) -> None:
    model = peft.get_peft_model(build(), CONFIGS[name](), "first")
    before = len(tensors())
    model.add_adapter("second", CONFIGS[name]())
    assert len(tensors()) > before
    model.set_adapter("second")
    model.set_adapter("first")
    model.delete_adapter("second")
    assert len(tensors()) == before


def test_merging_for_good_needs_no_second_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one layer is merged, the weights of those before it are there once."""
    model = peft.get_peft_model(build(), CONFIGS["lora"]())
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    kept: list[int] = []
    merge = BaseTunerLayer.merge

    def counting(self: BaseTunerLayer, *args: Any, **kwargs: Any) -> None:
        kept.append(sum(layer._saved_base is not None for layer in layers))
        merge(self, *args, **kwargs)

    monkeypatch.setattr(BaseTunerLayer, "merge", counting)
    model.merge_and_unload()
    assert kept == [0, 0]
    assert all(layer._saved_base is None for layer in layers)


@pytest.mark.parametrize("merged_before", [False, True])
@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
@pytest.mark.filterwarnings("ignore")
def test_a_safe_merge_that_fails_takes_back_the_layers_before(call: str, merged_before: bool) -> None:
    """The layer that fails is not the first that is merged: the first one's weight and bias come back."""
    model = peft.get_peft_model(build(), CONFIGS["lora"](), "good")
    model.add_adapter("bad", CONFIGS["lora"]())
    model.set_requires_grad(["good", "bad"])
    perturb(model)
    plain = copy.deepcopy(model.state_dict())
    if merged_before:
        model.merge_adapter()
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    first = layers[-1]  # inner and later ones are merged first
    with torch.no_grad():
        layers[0].lora_B["bad"].weight.fill_(torch.nan)
    now = {key: value.clone() for key, value in model.state_dict().items() if "bad" not in key}
    with pytest.raises(ValueError, match="'bad'"):
        getattr(model, call)(adapter_names=["bad"], safe_merge=True)
    assert first.merged_adapters == (["good"] if merged_before else [])
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in now.items())
    if merged_before:
        model.unmerge_adapter()
        assert all(torch.equal(after[key], plain[key]) for key in now)
    else:
        assert all(layer._saved_base is None for layer in layers)


def test_the_import_brings_nothing_along_but_torch() -> None:
    """What is slow to import and most programs do not need is imported where it is used."""
    code = """if True:
        import sys
        import numpy, torch, safetensors.torch
        before = set(sys.modules)
        import peft_reference
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
        print(sum(not name.startswith("peft_reference") for name in set(sys.modules) - before))
    """
    command = [sys.executable, "-c", code]
    packages, others = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    heavy = {
        "transformers",
        "accelerate",
        "datasets",
        "huggingface_hub",
        "pandas",
        "scipy",
        "sklearn",
        "tqdm",
    }
    assert not heavy & set(packages.split())
    assert int(others) <= 20, packages
