"""What is measured: rows, the work of each contender in them, and how a chunk of it is timed."""

from __future__ import annotations

import contextlib
import gc
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import memray
import peft
import peft_reference
import torch

Job = TypeVar("Job", "Work", "Elsewhere")

LIBRARIES: dict[str, ModuleType] = {"reference": peft_reference, "upstream": peft}

REPETITIONS = 5  # of a row; its contenders alternate in each
ROUND = 1e-3  # a round repeats what is shorter, in seconds
CHUNK = 30e-3  # and a chunk has as many rounds as fit
ROUNDS = 15  # but not more than these
LONG = 0.2  # a call that takes longer is warm after one


class Clock(contextlib.AbstractContextManager[None]):
    """How long the last time inside of it took."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start


@dataclass(frozen=True)
class Work:
    """What one contender does in a row: a call, and what comes untimed before and after each."""

    call: Callable[[], Any]
    before: Callable[[], Any] | None = None
    after: Callable[[], Any] | None = None
    inference: bool = False  # without autograd, as a server runs it

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """What the call runs in."""
        return torch.no_grad() if self.inference else contextlib.nullcontext()

    @property
    def repeatable(self) -> bool:
        """Whether it can be called again without anything in between."""
        return self.before is None and self.after is None

    def portions(self) -> dict[str, int]:
        """Rounds of a chunk and iterations of each, by a call after a first one that warms up."""
        clock = Clock()
        for _ in range(2):
            self.once(clock)
            if clock.seconds > LONG:
                break
        taken = clock.seconds
        iterations = max(1, math.ceil(ROUND / taken)) if self.repeatable else 1
        rounds = min(ROUNDS, max(1, round(CHUNK / (taken * iterations))))
        return {"rounds": rounds, "iterations": iterations}

    def peak(self) -> int:
        """Bytes that the call holds at its highest, beyond what there was before: torch's and Python's."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "allocations"
            form = memray.FileFormat.AGGREGATED_ALLOCATIONS
            gc.collect()
            self.once(memray.Tracker(file, trace_python_allocators=True, file_format=form))
            return memray.FileReader(file).metadata.peak_memory

    def once(self, around: contextlib.AbstractContextManager[Any]) -> None:
        """Call it, with only the call itself inside of `around`."""
        if self.before:
            self.before()
        with self.context(), around:
            self.call()
        if self.after:
            self.after()


class Elsewhere(ABC):
    """What a contender does in a process of its own, which measures itself."""

    @abstractmethod
    def seconds(self) -> float:
        """How long it takes."""

    def peak(self) -> int:
        """Bytes that it holds at its highest."""
        raise NotImplementedError


@dataclass(frozen=True)
class Row:
    """One operation at one point of its parameters, for all contenders."""

    operation: str
    method: str
    point: dict[str, Any]
    prepare: Callable[[], Mapping[str, Work | Elsewhere]] = field(repr=False)
    contenders: tuple[str, ...] = tuple(LIBRARIES)
    repetitions: int = REPETITIONS
    memory: bool = True  # whether its peaks are measured
    curve: str = ""  # the parameter along which its cost is plotted; such rows are not in README's table

    @property
    def id(self) -> str:
        """As pytest shows it, without the contender and the repetition."""
        parts = [self.operation.replace(" ", "_"), self.method, *(f"{k}:{v}" for k, v in self.point.items())]
        return "-".join([f"along-{self.curve}", *parts] if self.curve else parts)


def of_libraries(make: Callable[[ModuleType], Job]) -> dict[str, Job]:
    """The same work in each library."""
    return {name: make(library) for name, library in LIBRARIES.items()}
