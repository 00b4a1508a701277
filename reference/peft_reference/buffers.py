"""Containers for what an adapter has and never trains."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn


class BufferDict(nn.Module):
    """Buffers by name, as `nn.ParameterDict` has parameters; they are saved with the adapter."""

    saved: ClassVar[bool] = True

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.register_buffer(key, value, persistent=self.saved)

    def __getitem__(self, key: str) -> Tensor:
        return self._buffers[key]  # type: ignore[return-value]

    def __contains__(self, key: str) -> bool:
        return key in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def keys(self) -> KeysView[str]:
        """The names of the buffers."""
        return self._buffers.keys()

    def pop(self, key: str) -> Tensor:
        """Take a buffer out and return it."""
        self._non_persistent_buffers_set.discard(key)
        return self._buffers.pop(key)  # type: ignore[return-value]


class UnsavedBufferDict(BufferDict):
    """Buffers that follow from the base weight and the config, and are in no state dict."""

    saved = False


class BufferGroups(nn.Module):
    """Buffers by group and name, `group.name` in a state dict; the groups of a name are its value."""

    def __setitem__(self, key: str, values: Mapping[str, Tensor]) -> None:
        groups: dict[str, Any] = self._modules
        for group, value in values.items():
            if group not in groups:
                groups[group] = BufferDict().train(self.training)  # any layer's name can be a group's
            groups[group][key] = value

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        groups: dict[str, Any] = self._modules
        return {group: buffers[key] for group, buffers in groups.items() if key in buffers}

    def __contains__(self, key: str) -> bool:
        return bool(self[key])

    def pop(self, key: str) -> dict[str, Tensor]:
        """Take the buffers of a name out of all groups and return them."""
        values = self[key]
        groups: dict[str, Any] = self._modules
        for group in values:
            groups[group].pop(key)
            if not len(groups[group]):
                del groups[group]
        return values
