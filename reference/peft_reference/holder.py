"""What holds adapters: a module that knows which of its adapters act, and which train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

BASE_NAME = "__base__"  # stands for no adapter among the names of a batch


@dataclass(frozen=True)
class Batch:
    """Which adapter each sample of a batch is for; `repeat` is how many copies generation makes of each."""

    names: tuple[str, ...]
    repeat: int = 1

    def expanded(self, samples: int) -> tuple[str, ...]:
        """A name for each of `samples`, copies included; ValueError for another number than there are."""
        names = self.names
        if samples == len(names) * self.repeat:  # an encoder sees each sample once, whatever `repeat` is
            names = tuple(name for name in names for _ in range(self.repeat))
        if samples != len(names):
            raise ValueError(f"`adapter_names` has {len(names)} names for a batch of {samples} samples.")
        return names

    def apply(self, samples: int, compute: Callable[[str, Tensor], Tensor]) -> Tensor:
        """The outputs of `compute(name, rows)` for each name, put together in the order of the samples.

        ValueError if there are not as many names as `samples`, the size of the layer's input.
        """
        names = self.expanded(samples)
        rows = {name: [i for i, own in enumerate(names) if own == name] for name in dict.fromkeys(names)}
        outputs = torch.cat([compute(name, torch.tensor(own)) for name, own in rows.items()])
        order = torch.tensor([i for own in rows.values() for i in own])
        return outputs[order.argsort().to(outputs.device)]


_current_batch: ContextVar[Batch | None] = ContextVar("current_batch", default=None)
_counting = Lock()


def current_batch() -> Batch | None:
    """The adapters that this thread's caller has named sample by sample."""
    return _current_batch.get()


class Holder(nn.Module):
    """The common part of an adapted layer and of a module with trained copies: activation and freezing."""

    batches = 0  # how many callers, of any thread, are within `per_sample`

    def __init__(self) -> None:
        super().__init__()
        # the adapters the model uses, whether this holder has them or not
        self._active_adapter: list[str] = []
        self._disable_adapters = False

    def all_adapters(self) -> list[str]:
        """The names of the adapters that are held here."""
        raise NotImplementedError

    def has_adapter(self, adapter: str) -> bool:
        """Whether an adapter of that name is held here."""
        raise NotImplementedError

    def detach(self, adapter: str) -> Any:
        """Take an adapter out and return what was held of it; something false if there was nothing."""
        raise NotImplementedError

    def delete(self, adapter: str) -> None:
        """Take an adapter out for good."""
        self.detach(adapter)

    def adapter_parameters(self, adapter: str) -> Iterator[nn.Parameter]:
        """The trained tensors of one adapter; none if it is not held here."""
        raise NotImplementedError

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """(key in the live holder, key in a checkpoint, tensor) of one adapter."""
        raise NotImplementedError

    def batch(self) -> Batch | None:
        """The adapters that this thread's caller has named sample by sample; None to use the active ones."""
        # the count alone is looked at in most calls: it is fast, and torch.compile sees it change
        return _current_batch.get() if self.batches else None

    def check_set_adapter(self, adapter_names: list[str]) -> None:
        """ValueError if these adapters cannot be active together here."""

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters that act (where they are held)."""
        return self._active_adapter

    @property
    def disable_adapters(self) -> bool:
        """Whether the output is that of the original module, whatever is active."""
        return self._disable_adapters

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate these adapters and make them, and only them, trainable (none in `inference_mode`)."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.check_set_adapter(names)
        self._active_adapter = names
        for adapter in self.all_adapters():
            self.set_requires_grad(adapter, adapter in names and not inference_mode)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze these adapters, active or not."""
        for adapter in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for parameter in self.adapter_parameters(adapter):
                if parameter.requires_grad is not requires_grad:  # reading is four times as fast
                    parameter.requires_grad_(requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        """Let the active adapters act and train again, or compute the original output, all of them frozen."""
        self._disable_adapters = not enabled
        if enabled:
            self.set_adapter(self._active_adapter)
        else:
            self.set_requires_grad(self.all_adapters(), False)


@contextmanager
def per_sample(holders: Sequence[Holder], adapter_names: Sequence[str], repeat: int = 1) -> Iterator[None]:
    """Within, and in this thread only, these holders compute each sample with the adapter named for it."""
    token = _current_batch.set(Batch(tuple(adapter_names), repeat))
    _count(holders, 1)
    try:
        yield
    finally:
        _count(holders, -1)
        _current_batch.reset(token)


def _count(holders: Sequence[Holder], step: int) -> None:
    with _counting:
        for holder in holders:
            holder.batches += step
