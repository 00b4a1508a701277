"""Modules that are trained and saved whole, next to the adapters: `modules_to_save`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from .layer import BaseTunerLayer


class ModulesToSaveWrapper(nn.Module):
    """A module and one trained copy of it per adapter; it computes what the active adapter's copy does.

    `original_module` stays as it was and is used when no adapter with a copy is active.
    """

    def __init__(self, module_to_save: nn.Module) -> None:
        super().__init__()
        self.original_module = module_to_save
        self.training = module_to_save.training
        self.modules_to_save = nn.ModuleDict().train(self.training)
        self._active_adapter: list[str] = []
        self._disable_adapters = False

    @staticmethod
    def check(module: nn.Module, name: str) -> None:
        """TypeError for a module that cannot be replaced by a wrapper."""
        containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
        if isinstance(module, (*containers, BaseTunerLayer)):
            raise TypeError(f"modules_to_save cannot be applied to '{name}' of type {type(module)}.")

    def create(self) -> nn.Module:
        """A copy of the original for one more adapter, not yet attached."""
        return copy.deepcopy(self.original_module)

    def attach(self, adapter: str, module: nn.Module) -> None:
        """Make `module` this adapter's copy."""
        self.modules_to_save[adapter] = module

    def detach(self, adapter: str) -> nn.Module | None:
        """Take an adapter's copy out and return it."""
        return self.modules_to_save.pop(adapter) if adapter in self.modules_to_save else None

    def has_adapter(self, adapter: str) -> bool:
        """Whether this adapter has a copy here."""
        return adapter in self.modules_to_save

    def all_adapters(self) -> list[str]:
        """The names of the adapters that have a copy here."""
        return list(self.modules_to_save)

    def adapter_parameters(self, adapter: str) -> Iterator[nn.Parameter]:
        """The parameters of one adapter's copy."""
        if adapter in self.modules_to_save:
            yield from self.modules_to_save[adapter].parameters()

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """(key in the live wrapper, key in a checkpoint, tensor): a checkpoint knows the module by its plain
        name.
        """
        if adapter in self.modules_to_save:
            for key, tensor in self.modules_to_save[adapter].state_dict().items():
                yield f"modules_to_save.{adapter}.{key}", key, tensor

    def acting_copy(self) -> nn.Module:
        """The module that computes the output now."""
        if not self._disable_adapters:
            for adapter in self._active_adapter:
                if adapter in self.modules_to_save:
                    return self.modules_to_save[adapter]
        return self.original_module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The acting module's output."""
        return self.acting_copy()(*args, **kwargs)

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters that act (where they have a copy)."""
        return self._active_adapter

    @property
    def disable_adapters(self) -> bool:
        """Whether the original module is used whatever is active."""
        return self._disable_adapters

    def check_set_adapter(self, adapter_names: list[str]) -> None:
        """ValueError if more than one of these adapters has a copy here: only one can compute the output."""
        with_copy = [name for name in adapter_names if name in self.modules_to_save]
        if len(with_copy) > 1:
            raise ValueError(f"Only one adapter can be set at a time for {self}, got {with_copy}.")

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Use these adapters' copy and train it, and only it (nothing in `inference_mode`)."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.check_set_adapter(names)
        self._active_adapter = names
        for adapter in self.modules_to_save:
            self.set_requires_grad(adapter, adapter in names and not inference_mode)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze these adapters' copies, active or not."""
        for adapter in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for parameter in self.adapter_parameters(adapter):
                parameter.requires_grad_(requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        """Use and train the active copy again, or the original with all copies frozen."""
        self._disable_adapters = not enabled
        if enabled:
            self.set_adapter(self._active_adapter)
        else:
            self.set_requires_grad(self.modules_to_save, False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "original_module" not in self._modules:
                raise
            return getattr(self.acting_copy(), name)
