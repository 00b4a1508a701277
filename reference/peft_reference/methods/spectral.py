"""What FourierFT and WaveFT share: n trained coefficients of a transform of the delta, at places that a seed
draws. The places are in no file, so that the seed has to draw the same ones everywhere.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layer import BaseTunerLayer
from ..matching import pattern_value
from ..operators import Conv1D, Linear, Operator


def drawn_places(seed: int, rows: int, columns: int, n: int) -> Tensor:
    """(2, n): the rows and columns of n different entries of a matrix, by torch's generator on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("cpu"):
        chosen = torch.randperm(rows * columns, generator=generator)[:n]
    return torch.stack([chosen // columns, chosen % columns])


def check_frequency(n_frequency: int) -> None:
    """ValueError unless there is at least one coefficient."""
    if n_frequency <= 0:
        raise ValueError(f"`n_frequency` should be a positive number, got {n_frequency}.")


class SpectralLayer(BaseTunerLayer):
    """A layer whose delta is s times a transform of a matrix with few entries; each method says which."""

    operators = (Linear, Conv1D)
    init_std: ClassVar[float] = 1.0  # of coefficients that do not begin as zeros

    @classmethod
    def check(cls, config: Any, base: Any, op: type[Operator], name: str) -> None:
        """There must be a seed, and at most as many coefficients as the weight has entries."""
        n, size = cls.frequencies(config, name), base.weight.numel()
        check_frequency(n)
        if n > size:
            raise ValueError(f"n_frequency={n} is more than the {size} entries of the weight of '{name}'.")
        if config.random_loc_seed is None:
            raise ValueError("`random_loc_seed` has to be given: a file does not say where coefficients are.")

    @classmethod
    def frequencies(cls, config: Any, name: str) -> int:
        """How many coefficients the layer of this name gets."""
        return pattern_value(config.n_frequency_pattern, name, config.n_frequency)

    def create(self, config: Any, name: str) -> dict[str, Any]:
        """Coefficients (n,) and their places."""
        n = self.frequencies(config, name)
        places = drawn_places(config.random_loc_seed, self.out_features, self.in_features, n)
        values = torch.zeros(n) if config.init_weights else torch.randn(n) * self.init_std
        return {
            f"{self.prefix}spectrum": nn.Parameter(values),
            f"{self.prefix}scaling": config.scaling,
            f"{self.prefix}indices": places,
        }

    def matrix(self, adapter: str, dtype: torch.dtype) -> Tensor:
        """(out, in): the coefficients at their places among zeros."""
        values = getattr(self, f"{self.prefix}spectrum")[adapter].to(dtype)
        rows, columns = getattr(self, f"{self.prefix}indices")[adapter].to(values.device)
        return values.new_zeros(self.out_features, self.in_features).index_put((rows, columns), values)

    def transform(self, adapter: str, coefficients: Tensor) -> Tensor:
        """What the coefficients stand for, both (out, in)."""
        raise NotImplementedError

    def delta(self, adapter: str) -> Tensor:
        """s·transform, computed in float32 at least: fast transforms know no half precision."""
        own = getattr(self, f"{self.prefix}spectrum")[adapter].dtype
        wide = self.matrix(adapter, torch.promote_types(own, torch.float32))
        return (getattr(self, f"{self.prefix}scaling")[adapter] * self.transform(adapter, wide)).to(own)
