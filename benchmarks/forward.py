"""Rows of the forward pass: against upstream, the bare layer, and what one would write by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure import LIBRARIES, Row, Work
from benchmarks.models import Stack, adapted, alike, config, stack

WIDTHS, BATCHES, DTYPES = (64, 256, 1024, 4096), (1, 8, 64), {"fp32": torch.float32, "bf16": torch.bfloat16}
OTHERS = [(64, 1), (256, 8), (1024, 64)]  # (width, batch) of the other methods
BY_HAND = ("addmm", "addmm module")


def rows() -> Iterator[Row]:
    """All of them, those of LoRA first."""
    everyone = (*LIBRARIES, "base", *BY_HAND)
    for width, dtype, active in itertools.product(WIDTHS, DTYPES, (1, 3)):
        for batch, operation in itertools.product(BATCHES, ("forward", "forward and backward")):
            point = {"width": width, "batch": batch, "active": active, "dtype": dtype}
            prepare = partial(layer_work, operation, "LoRA", **point)
            yield Row(operation, "LoRA", point, prepare, everyone)
    for method, (width, batch) in itertools.product(("IA3", "LoHa", "OFT", "VeRA"), OTHERS):
        for operation in ("forward", "forward and backward"):
            point = {"width": width, "batch": batch}
            prepare = partial(layer_work, operation, method, **point)
            yield Row(operation, method, point, prepare, (*LIBRARIES, "base"))
    for batch in (4, 64):
        point = {"layers": 16, "width": 256, "batch": batch, "adapters": 4}
        yield Row("forward per sample", "LoRA", point, partial(per_sample_work, batch))


class ByHand(nn.Module):
    """LoRA as a module of one's own."""

    def __init__(self, base: nn.Linear, pairs: list[tuple[Tensor, Tensor]], scaling: float):
        super().__init__()
        self.base, self.scaling = base, scaling
        self.pairs = nn.ParameterList(tensor for pair in pairs for tensor in pair)

    def forward(self, x: Tensor) -> Tensor:
        """W·x + b + s·B·A·x, once for each pair."""
        base, pairs = self.base, [*self.pairs]
        result = linear(x, base.weight, base.bias)
        for a, b in zip(pairs[::2], pairs[1::2], strict=True):
            result = torch.addmm(result, linear(x, a), b.t(), alpha=self.scaling)
        return result


def addmm(
    x: Tensor, weight: Tensor, bias: Tensor, pairs: list[tuple[Tensor, Tensor]], scaling: float
) -> Tensor:
    """What one would write by hand: the strictest baseline."""
    result = linear(x, weight, bias)
    for a, b in pairs:
        result = torch.addmm(result, x @ a.t(), b.t(), alpha=scaling)
    return result


def layer_work(
    operation: str, method: str, width: int, batch: int, active: int = 1, dtype: str = "fp32"
) -> dict[str, Work]:
    """One Linear layer: all contenders share its weight, have the same adapters, and compute the same."""
    base = stack(1, width).to(DTYPES[dtype]).requires_grad_(False)
    names = [f"a{i}" for i in range(active)]
    models = {name: one_layer(library, method, base, names) for name, library in LIBRARIES.items()}
    alike(models)
    calls: dict[str, Any] = {name: model.layers[0] for name, model in models.items()}
    calls["base"] = base.layers[0]
    if method == "LoRA":
        layer = models["reference"].layers[0]
        pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in names]
        calls["addmm"] = partial(
            addmm, weight=calls["base"].weight, bias=calls["base"].bias, pairs=pairs, scaling=2.0
        )
        calls["addmm module"] = ByHand(calls["base"], pairs, 2.0).eval()
    same([calls[name] for name in calls if name != "base"], batch, width, DTYPES[dtype])
    return {name: work(operation, call, batch, width, DTYPES[dtype]) for name, call in calls.items()}


def one_layer(library: ModuleType, method: str, base: Stack, names: list[str]) -> nn.Module:
    """The stack of one layer with adapters that are active together, on the weight that is given."""
    with torch.device("meta"):
        model = Stack(1, base.layers[0].in_features)
    model.layers[0].weight, model.layers[0].bias = base.layers[0].weight, base.layers[0].bias
    if method == "VeRA":  # its layers share tensors, which `inject_adapter_in_model` refuses
        return library.get_peft_model(model.eval(), config(library, method)).base_model.model.eval()
    for name in names:
        library.inject_adapter_in_model(config(library, method), model.eval(), adapter_name=name)
    model.layers[0].set_adapter(names)
    return model.eval()


def same(calls: list[Any], batch: int, width: int, dtype: torch.dtype) -> None:
    """Raise `AssertionError` unless all calls compute the same."""
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        expected, *others = [call(x) for call in calls]
        for other in others:
            torch.testing.assert_close(
                other, expected, **({} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05})
            )


def work(operation: str, call: Any, batch: int, width: int, dtype: torch.dtype) -> Work:
    """A forward pass as a server makes it, or one and the way back as inside of a model in training."""
    x = torch.randn(batch, width).to(dtype)
    if operation == "forward":
        return Work(partial(call, x), inference=True)
    gradient = torch.randn_like(x)
    x.requires_grad_()
    return Work(lambda: call(x).backward(gradient))


def per_sample_work(batch: int) -> dict[str, Work]:
    """A batch in which each sample names its adapter."""
    models = {name: adapted(library, "LoRA", 16, 256, adapters=4) for name, library in LIBRARIES.items()}
    alike(models)
    names = [f"a{i % 4}" for i in range(batch)]
    calls = {name: partial(model, adapter_names=names) for name, model in models.items()}
    same([*calls.values()], batch, 256, torch.float32)
    return {name: work("forward", call, batch, 256, torch.float32) for name, call in calls.items()}
