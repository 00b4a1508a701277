"""Rows of curves: how the cost of a few operations grows with layers, with adapters and with rank."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks.measure import LIBRARIES, Row, Work, of_libraries
from benchmarks.models import config, stack

LAYERS = (4, 16, 64, 256)
ADAPTERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RANKS = (1, 4, 16, 64, 256, 512)
REPETITIONS = 3


@dataclass
class Growing:
    """A model that gets adapter after adapter; it keeps how long each took."""

    library: ModuleType
    layers: int
    width: int = 64
    rank: int = 8
    model: nn.Module = field(init=False)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = stack(self.layers, self.width)

    def grow(self, adapters: int) -> nn.Module:
        """The model, with as many adapters."""
        while len(self.seconds) < adapters:
            start = time.perf_counter()
            self.inject(f"a{len(self.seconds)}")
            self.seconds.append(time.perf_counter() - start)
        return self.model.eval()

    def inject(self, name: str) -> None:
        """One adapter more."""
        self.library.inject_adapter_in_model(
            config(self.library, "LoRA", rank=self.rank), self.model, adapter_name=name
        )

    def delete(self, name: str) -> None:
        """One less."""
        functional = importlib.import_module(f"{self.library.__name__}.functional")
        functional.delete_adapter(self.model, name, prefix="lora_")


SWEEP = {name: Growing(library, layers=2) for name, library in LIBRARIES.items()}  # 1, 2, 3, ... 1000


def rows() -> Iterator[Row]:
    """All of them; those of adapters in the order in which the models grow."""
    for operation, make in OPERATIONS.items():
        for layers in LAYERS:
            growing = partial(Growing, layers=layers)
            yield _row("layers", layers, operation, partial(_works, make, growing, 1))
    for operation, make in OPERATIONS.items():
        for rank in RANKS:
            growing = partial(Growing, layers=8, width=512, rank=rank)
            yield _row("rank", rank, operation, partial(_works, make, growing, 1))
    for adapters in ADAPTERS:
        for operation, make in OPERATIONS.items():
            yield _row("adapters", adapters, operation, partial(_works, make, swept, adapters))


def _row(curve: str, x: int, operation: str, prepare: Callable[[], dict[str, Work]]) -> Row:
    return Row(operation, "LoRA", {curve: x}, prepare, repetitions=REPETITIONS, curve=curve)


def _works(
    make: Callable[[Growing, int], Work], growing: Callable[[ModuleType], Growing], adapters: int
) -> dict[str, Work]:
    return of_libraries(lambda library: make(growing(library), adapters))


def swept(library: ModuleType) -> Growing:
    """The model of a library that all rows of the curve share."""
    return next(growing for growing in SWEEP.values() if growing.library is library)


def inject(growing: Growing, number: int) -> Work:
    """Adapter number so and so; number 1 comes into a model without any."""
    if number > 1:
        growing.grow(number - 1)
        return Work(partial(growing.inject, "one more"), after=partial(growing.delete, "one more"))
    fresh: list[Growing] = []
    alike = partial(Growing, growing.library, growing.layers, growing.width, growing.rank)
    return Work(lambda: fresh[0].inject("a0"), before=lambda: fresh.append(alike()), after=fresh.clear)


def forward(growing: Growing, adapters: int) -> Work:
    """All layers, with one active adapter."""
    x = torch.randn(8, growing.width)
    return Work(partial(growing.grow(adapters), x), inference=True)


def get_state(growing: Growing, adapters: int) -> Work:
    """The tensors of one adapter."""
    model = growing.grow(adapters)
    return Work(lambda: growing.library.get_peft_model_state_dict(model, adapter_name="a0"))


def set_state(growing: Growing, adapters: int) -> Work:
    """And back."""
    model, library = growing.grow(adapters), growing.library
    tensors = library.get_peft_model_state_dict(model, adapter_name="a0")
    return Work(lambda: library.set_peft_model_state_dict(model, tensors, adapter_name="a0"))


OPERATIONS: dict[str, Callable[[Growing, int], Work]] = {
    "inject": inject,
    "forward": forward,
    "get_peft_model_state_dict": get_state,
    "set_peft_model_state_dict": set_state,
}


def sweep(first: float, bins: int = 50) -> dict[str, Any]:
    """How long adapters took, none deleted in between: the median of each few, in multiples of the first."""
    each = max(1, min(len(growing.seconds) for growing in SWEEP.values()) // bins)
    starts = range(0, each * bins, each) if each > 1 else ()
    told: dict[str, Any] = {"each": each, "adapters": [start + 1 for start in starts]}
    for name, growing in SWEEP.items():
        told[name] = [
            float(f"{statistics.median(growing.seconds[s : s + each]) / first:.4g}") for s in starts
        ]
    return told
