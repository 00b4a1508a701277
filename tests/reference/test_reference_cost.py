"""Work per added adapter does not depend on how many are there. Counted in Python calls, not in seconds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import peft_reference as peft
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


def config() -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=["q", "v"], r=2)


def test_adding_the_50th_adapter_costs_what_the_2nd_does() -> None:
    blocks = [nn.ModuleDict({name: nn.Linear(4, 4) for name in "qkv"}) for _ in range(5)]
    model = peft.get_peft_model(
        build(lambda: nn.ModuleDict({"layers": nn.ModuleList(blocks)})), config(), "n0"
    )
    costs = [calls(lambda i=i: model.add_adapter(f"n{i}", config())) for i in range(1, 50)]
    assert costs[-1] <= costs[1] * 1.02
    injected = build(lambda: nn.ModuleDict({"layers": nn.ModuleList(blocks)}))
    costs = [
        calls(lambda i=i: peft.inject_adapter_in_model(config(), injected, f"m{i}")) for i in range(2, 50)
    ]
    assert costs[-1] <= costs[1] * 1.02
    reading = [
        calls(lambda i=i: peft.get_peft_model_state_dict(model, adapter_name=f"n{i}")) for i in (0, 49)
    ]
    assert reading[1] <= reading[0] * 1.02


def test_forward_stays_a_few_python_calls() -> None:
    """The layer, the adapter and its product, and whether each part is bare: no bookkeeping between them."""
    model = build(lambda: nn.Sequential(nn.Linear(4, 4)))
    peft.inject_adapter_in_model(config_for("0"), model)
    layer = model[0]
    x = layer.weight.detach()
    assert calls(lambda: layer(x)) <= 13


def config_for(name: str) -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=[name], r=2)
