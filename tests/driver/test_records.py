"""A record tells what is there, wherever an implementation keeps it and however often it is looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft_conformance.records import Recorder
from torch import nn

KEPT = {"default": torch.ones(2)}


class Layer(nn.Module):
    active_adapters = ("default",)

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(2, 2)


class WithDict(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.slot = dict(KEPT)


class WithParameters(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.slot = nn.ParameterDict(KEPT)


class OfTheClass(Layer):
    slot = KEPT


class WithProperty(Layer):
    @property
    def slot(self) -> dict[str, torch.Tensor]:
        return KEPT


class OwnLookup(Layer):
    def __getattr__(self, name: str) -> Any:
        return KEPT if name == "slot" else super().__getattr__(name)


class OwnAccess(Layer):
    def __getattribute__(self, name: str) -> Any:
        return KEPT if name == "slot" else super().__getattribute__(name)


class WithBuffer(Layer):  # no container: its name alone makes no adapter
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slot", torch.ones(2))


@pytest.mark.parametrize("cls", [WithDict, WithParameters, OfTheClass, WithProperty, OwnLookup, OwnAccess])
def test_the_adapters_of_a_slot_are_found_wherever_the_layer_keeps_it(cls: type[Layer]) -> None:
    record = Recorder(["elsewhere", "slot"]).record(cls(), "model")
    assert record["modules"][0]["adapter"]["adapters"] == ["default"]


def test_a_buffer_called_like_a_slot_is_no_adapter() -> None:
    assert Recorder(["slot"]).record(WithBuffer(), "model")["modules"][0]["adapter"]["adapters"] == []


def test_a_layer_is_adapted_also_when_its_base_is_a_property() -> None:
    class Wrapping(nn.Module):
        active_adapters = ("default",)
        base_layer = property(lambda self: nn.Identity())

    class Refusing(nn.Module):
        active_adapters = ("default",)

        @property
        def base_layer(self) -> nn.Module:
            raise RuntimeError("not yet")

    adapted = [
        Recorder().record(model, "model")["modules"][0]["adapter"]
        for model in (Wrapping(), Refusing(), nn.Identity())
    ]
    assert [found is not None for found in adapted] == [True, False, False]


def test_tensors_in_a_plain_dict_are_told_in_the_order_of_the_slots() -> None:
    layer = Layer()
    layer.second, layer.first = {"a": torch.ones(1)}, {"b": torch.zeros(1)}  # type: ignore[assignment]
    record = Recorder(["first", "second"]).record(nn.ModuleDict({"layer": layer}), "model")
    kept = [t["name"] for t in record["tensors"] if t["kind"] == "attribute"]
    assert kept == ["layer.first.b", "layer.second.a"]


@pytest.mark.parametrize("how", ["data", "numpy", "storage"])
def test_a_silent_change_shows_in_the_next_record(how: str) -> None:
    tensor, recorder = torch.zeros(3), Recorder()
    before, version = recorder.record(tensor), tensor._version
    if how == "data":
        tensor.data[0] = torch.nan
    elif how == "numpy":
        tensor.numpy()[0] = float("nan")
    else:
        torch.tensor([], dtype=torch.float32).set_(tensor.untyped_storage(), 0, (3,))[0] = torch.nan
    after = recorder.record(tensor)
    assert tensor._version == version  # nothing but the bytes tells
    assert before["digest"] != after["digest"]
    told = ("finite", "nonzeros", "zero")
    assert [before[key] for key in told] == [True, 0, True]
    assert [after[key] for key in told] == [False, 1, False]


def test_the_same_bytes_are_counted_anew_as_another_dtype() -> None:
    infinite, recorder = torch.tensor([torch.inf, 0.0]), Recorder()
    halves = infinite.view(torch.float16)
    records = [recorder.record(t) for t in (infinite, infinite.view(torch.int32), halves)]
    assert len({record["digest"] for record in records}) == 1
    assert [record["finite"] for record in records] == [False, True, False]
    assert [record["nonzeros"] for record in records] == [1, 1, int((halves != 0).sum())]
