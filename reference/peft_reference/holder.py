"""What holds adapters: a module that knows which of its adapters act, and which train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


class Holder(nn.Module):
    """The common part of an adapted layer and of a module with trained copies: activation and freezing."""

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

    def adapter_parameters(self, adapter: str) -> Iterator[nn.Parameter]:
        """The trained tensors of one adapter; none if it is not held here."""
        raise NotImplementedError

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """(key in the live holder, key in a checkpoint, tensor) of one adapter."""
        raise NotImplementedError

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
                parameter.requires_grad_(requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        """Let the active adapters act and train again, or compute the original output, all of them frozen."""
        self._disable_adapters = not enabled
        if enabled:
            self.set_adapter(self._active_adapter)
        else:
            self.set_requires_grad(self.all_adapters(), False)
