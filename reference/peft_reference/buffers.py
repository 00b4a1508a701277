"""A container for what is saved with an adapter and never trained."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


class BufferDict(nn.Module):
    """Buffers by name, as `nn.ParameterDict` has parameters."""

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.register_buffer(key, value)

    def __getitem__(self, key: str) -> Tensor:
        return self._buffers[key]  # type: ignore[return-value]

    def __contains__(self, key: str) -> bool:
        return key in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def pop(self, key: str) -> Tensor:
        """Take a buffer out and return it."""
        return self._buffers.pop(key)  # type: ignore[return-value]
