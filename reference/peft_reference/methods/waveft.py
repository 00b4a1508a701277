"""WaveFT: W' = W + s·DWT⁻¹(E), where E is zero but for n trained coefficients, DWT⁻¹ one level of the inverse
discrete wavelet transform in two dimensions; without it (`use_idwt=False`), W' = W + s·E.

Bilican et al., "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets",
https://arxiv.org/abs/2505.12532. A seed says which coefficients are trained; a file does not contain them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..registry import PeftType, register_peft_method
from . import defaults
from .spectral import SpectralLayer
from .wavelets import filters, named

__all__ = ["WaveFTConfig", "WaveFTModel"]


Filter = tuple[float, ...]


def inverse_wavelets(coefficients: Tensor, low_pass: Filter, high_pass: Filter) -> Tensor:
    """The matrix that one level of a wavelet transform makes these coefficients of, both (out, in).

    The quarters of the coefficients are, row by row, the low pass of both directions, the high pass of the
    rows, that of the columns, and that of both. Zeros around them, as many as the filter is long beyond 2,
    keep the size.
    """
    low, high = coefficients.new_tensor(low_pass), coefficients.new_tensor(high_pass)
    sizes, beyond = coefficients.shape, len(low) - 2
    padding = [p for n in reversed(sizes) for p in ((beyond + n % 2) // 2, (beyond + n % 2 + 1) // 2)]
    padded = F.pad(coefficients, padding)
    rows, columns = (n // 2 for n in padded.shape)
    quarters = padded.unflatten(0, (2, rows)).unflatten(2, (2, columns)).movedim(2, 1).flatten(0, 1)
    bank = torch.stack([torch.outer(f, g) for g in (low, high) for f in (low, high)])
    return F.conv_transpose2d(quarters, bank[:, None], stride=2, padding=beyond)[0, : sizes[0], : sizes[1]]


@dataclass
class WaveFTConfig(PeftConfig):
    """WaveFT's options, in PEFT's order. ValueError for a wavelet that is none of `FAMILIES`."""

    n_frequency: int = 2592  # trained coefficients of a layer
    scaling: float = 25.0
    wavelet_family: str = "db1"
    use_idwt: bool = True  # else the coefficients are the delta itself
    random_loc_seed: int = 777  # of their places
    fan_in_fan_out: bool = False  # whether the base stores (in, out): corrected by what the layer is
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    bias: str = "none"  # 'all' and 'waveft_only' train biases of the base
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    n_frequency_pattern: dict | None = field(default_factory=dict)  # regex for names -> n_frequency
    proportional_parameters: bool = False  # n_frequency is the mean; larger layers get more
    init_weights: bool = True  # True: zeros; False: N(0, 0.01²)

    _patterns: ClassVar[tuple[str, ...]] = ("n_frequency_pattern",)

    def __post_init__(self) -> None:
        super().__post_init__()
        named(self.wavelet_family)


class WaveFTLayer(SpectralLayer):
    """A layer with WaveFT adapters."""

    prefix = "waveft_"
    init_std = 0.01
    adapter_layer_names = ("waveft_spectrum",)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("waveft_scaling", "waveft_filters", "waveft_use_idwt"), dict),
        "waveft_indices": dict,
        "waveft_spectrum": nn.ParameterDict,
    }
    waveft_filters: dict[str, tuple[Filter, Filter]]  # made once: torch.compile does not follow how
    waveft_use_idwt: dict[str, bool]

    @classmethod
    def share_out(cls, config: WaveFTConfig, layers: Mapping[str, BaseTunerLayer]) -> dict[str, Any]:
        """How many coefficients each layer gets, where that goes by the sizes of all of them."""
        if not config.proportional_parameters:
            return {}
        sizes = {name: layer.weight.numel() for name, layer in layers.items()}
        each = config.n_frequency * len(sizes) / sum(sizes.values())
        return {"shares": {name: round(each * size) for name, size in sizes.items()}}

    @classmethod
    def frequencies(cls, config: Any, name: str) -> int:
        """The layer's share, or else what the pattern for its name says."""
        return config.shares[name] if config.proportional_parameters else super().frequencies(config, name)

    def create(self, config: WaveFTConfig, name: str) -> dict[str, Any]:
        """Coefficients (n,), their places and what they are coefficients of."""
        own = {"waveft_filters": (), "waveft_use_idwt": config.use_idwt}
        if config.use_idwt:
            own["waveft_filters"] = filters(*named(config.wavelet_family))
        return {**own, **super().create(config, name)}

    def transform(self, adapter: str, coefficients: Tensor) -> Tensor:
        """DWT⁻¹(E), or E."""
        if not self.waveft_use_idwt[adapter]:
            return coefficients
        return inverse_wavelets(coefficients, *self.waveft_filters[adapter])


class WaveFTModel(BaseTuner):
    """A model with WaveFT adapters."""

    tuner_layer_cls = WaveFTLayer
    target_module_mapping = defaults.MLP_OF_GPT2


register_peft_method(PeftType.WAVEFT, WaveFTConfig, WaveFTModel)
