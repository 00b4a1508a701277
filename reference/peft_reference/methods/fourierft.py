"""FourierFT: W' = W + s·Re(F⁻¹(E)), where E is zero but for n trained coefficients, F⁻¹ the inverse discrete
Fourier transform in two dimensions.

Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
https://arxiv.org/abs/2405.03003. A seed says which coefficients are trained; a file does not contain them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..registry import PeftType, register_peft_method
from . import defaults
from .spectral import SpectralLayer

__all__ = ["FourierFTConfig", "FourierFTModel"]


@dataclass
class FourierFTConfig(PeftConfig):
    """FourierFT's options, in PEFT's order."""

    n_frequency: int = 1000  # trained coefficients of a layer
    scaling: float = 150.0
    random_loc_seed: int | None = 777  # of their places
    fan_in_fan_out: bool = False  # whether the base stores (in, out): corrected by what the layer is
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    bias: str = "none"  # 'all' and 'fourier_only' train biases of the base
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    n_frequency_pattern: dict | None = field(default_factory=dict)  # regex for names -> n_frequency
    init_weights: bool = False  # True: zeros; False: N(0, 1)

    _patterns: ClassVar[tuple[str, ...]] = ("n_frequency_pattern",)


class FourierFTLayer(SpectralLayer):
    """A layer with FourierFT adapters."""

    prefix = "fourierft_"
    adapter_layer_names = ("fourierft_spectrum",)
    slots: ClassVar[dict[str, type]] = {
        "fourierft_scaling": dict,
        "fourierft_indices": dict,
        "fourierft_spectrum": nn.ParameterDict,
    }

    def transform(self, adapter: str, coefficients: Tensor) -> Tensor:
        """Re(F⁻¹(E))."""
        return torch.fft.ifft2(coefficients).real


class FourierFTModel(BaseTuner):
    """A model with FourierFT adapters."""

    tuner_layer_cls = FourierFTLayer
    target_module_mapping = defaults.MLP_OF_GPT2


register_peft_method(PeftType.FOURIERFT, FourierFTConfig, FourierFTModel)
