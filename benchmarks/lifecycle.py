"""Rows of what is done with adapters: put into a model, saved, loaded, activated, merged and deleted."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.measure import Row, Work, of_libraries
from benchmarks.models import ATTENTION, METHODS, adapted, config, llama, stack

LAYERS = {"LoRA": 112}  # of the models with 1 and with 100 adapters: 28 blocks of 4
SAVED = 4  # of the models that are saved and loaded
FEWER = 8  # of the other methods


def rows() -> Iterator[Row]:
    """All of them, by operation."""
    for size, targets, low in itertools.product(("7B", "100M"), ("attention", "all-linear"), (False, True)):
        if size == "7B" or not low:
            point = {"model": size, "targets": targets, **({"low_cpu_mem_usage": True} if low else {})}
            yield Row("get_peft_model", "LoRA", point, partial(get_peft_model, "LoRA", size, targets, low))
    for method in METHODS[1:]:
        point = {"model": "100M", "targets": "attention"}
        yield Row(
            "get_peft_model", method, point, partial(get_peft_model, method, "100M", "attention", False)
        )
    for method, present in itertools.product(METHODS, (1, 100)):
        layers = LAYERS.get(method, FEWER)
        for operation, make in OPERATIONS.items():
            point = {"layers": layers, "adapters": present}
            yield Row(
                operation,
                method,
                point,
                partial(of_libraries, partial(make, method=method, layers=layers, present=present)),
                repetitions=3 if present == 100 else 5,
            )
    merges = {"merge": merge, "unmerge": unmerge, "merge_and_unload": merge_and_unload}
    for method, (operation, make) in itertools.product(METHODS, merges.items()):
        point = {"layers": 8, "width": 512}
        yield Row(operation, method, point, partial(of_libraries, partial(make, method=method)))
    for method, present in [*itertools.product(METHODS, (1,)), ("LoRA", 100)]:
        for operation, make in {"save_pretrained": save, "from_pretrained": load}.items():
            point = {"layers": SAVED, "adapters": present}
            prepare = partial(of_libraries, partial(make, method=method, present=present))
            yield Row(operation, method, point, prepare, repetitions=3 if present == 100 else 5)


def get_peft_model(method: str, size: str, targets: str, low: bool) -> dict[str, Work]:
    """A Llama gets its first adapter."""

    def make(library: ModuleType) -> Work:
        fresh: list[Any] = []
        given = config(library, method, ATTENTION if targets == "attention" else targets)
        return Work(
            lambda: library.get_peft_model(fresh[0], given, low_cpu_mem_usage=low),
            before=lambda: fresh.append(llama(size)),
            after=fresh.clear,
        )

    return of_libraries(make)


@functools.lru_cache(maxsize=2)  # one of each library: what is kept makes every collection longer
def with_adapters(library: ModuleType, method: str, layers: int, present: int) -> Any:
    """A stack with adapters, shared by consecutive rows, which leave it as it was."""
    return adapted(library, method, layers, adapters=present)


def inject(library: ModuleType, method: str, layers: int, present: int) -> Work:
    """Adapter number `present` comes to those that are there; number 1 into a model without any."""
    if present == 1:
        fresh: list[Any] = []
        return Work(
            lambda: library.get_peft_model(fresh[0], config(library, method)),
            before=lambda: fresh.append(stack(layers)),
            after=fresh.clear,
        )
    model = with_adapters(library, method, layers, present)
    return Work(
        lambda: model.add_adapter("one more", config(library, method)),
        after=lambda: model.delete_adapter("one more"),
    )


def delete(library: ModuleType, method: str, layers: int, present: int) -> Work:
    """An adapter goes that came beside those that stay."""
    model = with_adapters(library, method, layers, present)
    return Work(
        lambda: model.delete_adapter("one more"),
        before=lambda: model.add_adapter("one more", config(library, method)),
    )


def activate(library: ModuleType, method: str, layers: int, present: int) -> Work:
    """Another adapter becomes the active one, where there is another."""
    model = with_adapters(library, method, layers, present)
    return Work(
        lambda: model.set_adapter(f"a{present - 1}"),
        before=(lambda: model.set_adapter("a0")) if present > 1 else None,
    )


def get_state(library: ModuleType, method: str, layers: int, present: int) -> Work:
    """The tensors of one adapter."""
    model = with_adapters(library, method, layers, present)
    return Work(lambda: library.get_peft_model_state_dict(model, adapter_name="a0"))


def set_state(library: ModuleType, method: str, layers: int, present: int) -> Work:
    """And back."""
    model = with_adapters(library, method, layers, present)
    tensors = library.get_peft_model_state_dict(model, adapter_name="a0")
    return Work(lambda: library.set_peft_model_state_dict(model, tensors, adapter_name="a0"))


OPERATIONS: dict[str, Callable[..., Work]] = {
    "inject": inject,
    "delete_adapter": delete,
    "set_adapter": activate,
    "get_peft_model_state_dict": get_state,
    "set_peft_model_state_dict": set_state,
}


def merge(library: ModuleType, method: str) -> Work:
    """One adapter of each layer goes into its weight."""
    model = adapted(library, method, 8, 512)
    return Work(model.merge_adapter, after=model.unmerge_adapter)


def unmerge(library: ModuleType, method: str) -> Work:
    """And out again."""
    model = adapted(library, method, 8, 512)
    return Work(model.unmerge_adapter, before=model.merge_adapter)


def merge_and_unload(library: ModuleType, method: str) -> Work:
    """In for good."""
    fresh: list[Any] = []
    return Work(
        lambda: fresh[0].merge_and_unload(),
        before=lambda: fresh.append(adapted(library, method, 8, 512)),
        after=fresh.clear,
    )


def save(library: ModuleType, method: str, present: int) -> Work:
    """All adapters of a model into a folder each."""
    model = with_adapters(library, method, SAVED, present)
    folder = tempfile.TemporaryDirectory()  # removed with the work
    return Work(lambda folder=folder: model.save_pretrained(folder.name))


def load(library: ModuleType, method: str, present: int) -> Work:
    """Saved adapters into a model without any: `from_pretrained`, then `load_adapter`."""
    folder = tempfile.TemporaryDirectory()
    with_adapters(library, method, SAVED, present).save_pretrained(folder.name)
    fresh: list[Any] = []

    def call(folder: Any = folder) -> None:
        model = library.PeftModel.from_pretrained(fresh[0], Path(folder.name) / "a0", adapter_name="a0")
        for i in range(1, present):
            model.load_adapter(Path(folder.name) / f"a{i}", f"a{i}")

    return Work(call, before=lambda: fresh.append(stack(SAVED)), after=fresh.clear)
