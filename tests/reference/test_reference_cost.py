"""Work per added adapter does not depend on how many are there. Counted in Python calls, not in seconds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import peft_reference as peft
import pytest
import torch
from peft_reference import state_dict
from torch import nn
from zoo import build


def calls(function: Callable[[], Any]) -> int:
    """How many Python functions run during `function()`."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call"

    gc.collect()
    gc.disable()  # else the finalizers of other tests' garbage are counted too
    sys.setprofile(trace)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def counted(numbers: tuple[int, ...], total: int, call: Callable[[int], Any]) -> list[int]:
    """`call(1)` up to `call(total)`, in order; how many Python functions run in those of these numbers."""
    found = {i: calls(lambda i=i: call(i)) if i in numbers else call(i) for i in range(1, total + 1)}
    return [found[i] for i in numbers]


def config() -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=["q", "v"], r=2)


def test_adding_the_50th_adapter_costs_what_the_2nd_does() -> None:
    blocks = [nn.ModuleDict({name: nn.Linear(4, 4) for name in "qkv"}) for _ in range(5)]
    model = peft.get_peft_model(
        build(lambda: nn.ModuleDict({"layers": nn.ModuleList(blocks)})), config(), "n0"
    )
    second, later = counted((2, 49), 49, lambda i: model.add_adapter(f"n{i}", config()))
    assert later <= second * 1.02
    injected = build(lambda: nn.ModuleDict({"layers": nn.ModuleList(blocks)}))
    second, later = counted((2, 49), 49, lambda i: peft.inject_adapter_in_model(config(), injected, f"m{i}"))
    assert later <= second * 1.02
    reading = [
        calls(lambda i=i: peft.get_peft_model_state_dict(model, adapter_name=f"n{i}")) for i in (0, 49)
    ]
    assert reading[1] <= reading[0] * 1.02


METHODS: dict[str, Callable[[], Any]] = {
    "ia3": lambda: peft.IA3Config(target_modules=["q", "v"], feedforward_modules=["v"]),
    "loha": lambda: peft.LoHaConfig(target_modules=["q", "v"], r=2),
    "lokr": lambda: peft.LoKrConfig(target_modules=["q", "v"], r=2),
    "oft": lambda: peft.OFTConfig(target_modules=["q", "v"], oft_block_size=2),
    "vera": lambda: peft.VeraConfig(target_modules=["q", "v"], r=2),
    "randlora": lambda: peft.RandLoraConfig(target_modules=["q", "v"], r=2),
    "fourierft": lambda: peft.FourierFTConfig(target_modules=["q", "v"], n_frequency=4),
    "vblora": lambda: peft.VBLoRAConfig(
        target_modules=["q", "v"], r=2, num_vectors=4, vector_length=2, topk=2
    ),
    "copies": lambda: peft.LoraConfig(target_modules=["q"], modules_to_save=["v"], r=2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_the_same_for_methods_with_other_parts(method: str) -> None:
    """Also deleting it, which in turn puts the 101st adapter into the place of the 2nd."""
    blocks = [nn.ModuleDict({name: nn.Linear(4, 4) for name in "qkv"}) for _ in range(3)]
    model = peft.get_peft_model(
        build(lambda: nn.ModuleDict({"layers": nn.ModuleList(blocks)})), METHODS[method](), "n0"
    )
    first, last = counted((1, 100), 100, lambda i: model.add_adapter(f"n{i}", METHODS[method]()))
    assert last <= first * 1.02
    gone = [calls(lambda i=i: model.delete_adapter(f"n{i}")) for i in (100, 50, 1)]
    assert gone[0] <= gone[-1] * 1.02


def test_setting_an_adapter_does_not_read_the_names_of_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a key that is not the adapter's asks for the original key of every weight in the model."""
    asked: list[str] = []
    original = state_dict.original_key
    monkeypatch.setattr(
        state_dict, "original_key", lambda key, held: (asked.append(key), original(key, held))[1]
    )
    model = peft.get_peft_model(build(lambda: nn.Sequential(nn.Linear(4, 4))), config_for("0"))
    own = peft.get_peft_model_state_dict(model)
    assert not peft.set_peft_model_state_dict(model, own).unexpected_keys
    assert not asked
    base = {"base_model.model.0.base_layer.bias": torch.ones(4), "stray": torch.ones(1)}
    outcome = peft.set_peft_model_state_dict(model, own | base)
    assert outcome.unexpected_keys == ["stray"]
    assert asked
    assert torch.equal(model.base_model.model[0].bias, torch.ones(4))


def test_forward_stays_a_few_python_calls() -> None:
    """The layer, the adapter and its product, and whether each part is bare: no bookkeeping between them."""
    model = build(lambda: nn.Sequential(nn.Linear(4, 4)))
    peft.inject_adapter_in_model(config_for("0"), model)
    layer = model[0]
    x = layer.weight.detach()
    assert calls(lambda: layer(x)) <= 13


def config_for(name: str) -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=[name], r=2)
