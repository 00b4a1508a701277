"""Modules that are trained and saved whole, next to the adapters: `modules_to_save`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .holder import Holder
from .layer import BaseTunerLayer


class ModulesToSaveWrapper(Holder):
    """A module and one trained copy of it per adapter; it computes what the active adapter's copy does.

    `original_module` stays as it was and is used when no adapter with a copy is active.
    """

    def __init__(self, module_to_save: nn.Module) -> None:
        super().__init__()
        self.original_module = module_to_save
        self.training = module_to_save.training
        self.modules_to_save = nn.ModuleDict().train(self.training)

    @staticmethod
    def check(module: nn.Module, name: str) -> None:
        """TypeError for a module that cannot be replaced by a wrapper."""
        containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
        if isinstance(module, (*containers, BaseTunerLayer)):
            raise TypeError(f"'{name}' is a {type(module).__name__}, which modules_to_save cannot copy.")

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

    def copy_of(self, adapters: Sequence[str]) -> nn.Module:
        """The copy of the first of these adapters that has one; the original if none has."""
        return next(
            (self.modules_to_save[name] for name in adapters if name in self.modules_to_save),
            self.original_module,
        )

    def acting_copy(self) -> nn.Module:
        """The module that computes the output now."""
        return self.original_module if self._disable_adapters else self.copy_of(self._active_adapter)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The acting module's output; with `adapter_names`, for each sample that of its adapter's copy."""
        batch = self.batch()
        if batch is None or self._disable_adapters:
            return self.acting_copy()(*args, **kwargs)
        x, *rest = args

        def output(name: str, rows: Tensor) -> Any:
            return self.copy_of([name])(x[rows.to(x.device)], *rest, **kwargs)

        return batch.apply(len(x), output)

    def check_set_adapter(self, adapter_names: list[str]) -> None:
        """ValueError if more than one of these adapters has a copy here: only one can compute the output."""
        with_copy = [name for name in adapter_names if name in self.modules_to_save]
        if len(with_copy) > 1:
            raise ValueError(f"{with_copy} have copies of one module: only one of them can be active.")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "original_module" not in self._modules:
                raise
            return getattr(self.acting_copy(), name)
