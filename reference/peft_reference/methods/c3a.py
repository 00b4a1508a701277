"""C³A: W' = W + C / in, where C is a grid of n×n circulant blocks: C[a, b] = k[(b − a) mod n] in each.

Chen et al., "Parameter-Efficient Fine-Tuning via Circular Convolution", https://arxiv.org/abs/2407.19342.
A circulant block times a vector is a circular correlation, which a fast Fourier transform computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..matching import pattern_value
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["C3AConfig", "C3AModel"]

INITS = (True, False, "gaussian", "kaiming_uniform", "xavier_uniform")


@dataclass
class C3AConfig(PeftConfig):
    """C³A's options, in PEFT's order."""

    block_size: int = 256  # divides the inputs and the outputs of every target
    target_modules: list[str] | set[str] | str | None = None
    bias: str = "none"  # 'all' and 'c3a_only' train biases of the base
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    block_size_pattern: dict | None = field(default_factory=dict)  # regex for names -> block_size
    init_weights: bool | str | None = "xavier_uniform"  # True: zeros; False: as 'xavier_uniform'

    _patterns: ClassVar[tuple[str, ...]] = ("block_size_pattern",)

    def validate(self) -> None:
        """ValueError for an initialisation that does not exist."""
        if self.init_weights not in INITS:
            raise ValueError(f"init_weights={self.init_weights!r} is none of {', '.join(map(str, INITS))}.")


class C3ALayer(BaseTunerLayer):
    """A layer with C³A adapters."""

    prefix = "c3a_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {"block_size": dict, "c3a_kernel": nn.ParameterDict}
    block_size: dict[str, int]
    c3a_kernel: nn.ParameterDict
    adapter_layer_names = ("c3a_kernel",)

    @classmethod
    def check(cls, config: C3AConfig, base: Any, op: type[Operator], name: str) -> None:
        """Blocks must fit the layer in both directions."""
        n = pattern_value(config.block_size_pattern, name, config.block_size)
        if n <= 0 or any(size % n for size in base.weight.shape):
            n_in, n_out = op.features(base)
            raise ValueError(
                f"block_size={n} should divide the {n_in} inputs and {n_out} outputs of '{name}'."
            )

    def create(self, config: C3AConfig, name: str) -> dict[str, Any]:
        """k: (out / n, in / n, n)."""
        n = pattern_value(config.block_size_pattern, name, config.block_size)
        kernel = torch.empty(self.out_features // n, self.in_features // n, n)
        if config.init_weights is True:
            nn.init.zeros_(kernel)
        elif config.init_weights == "gaussian":
            nn.init.normal_(kernel)
        elif config.init_weights == "kaiming_uniform":
            nn.init.uniform_(kernel, -(self.in_features**-0.5), self.in_features**-0.5)
        else:
            bound = (6 / (self.in_features + self.out_features)) ** 0.5  # Xavier's, of the whole weight
            nn.init.uniform_(kernel, -bound, bound)
        return {"block_size": n, "c3a_kernel": nn.Parameter(kernel)}

    def delta(self, adapter: str) -> Tensor:
        """C / in."""
        kernel, at = self.c3a_kernel[adapter], torch.arange(self.block_size[adapter])
        blocks = kernel[..., ((at - at[:, None]) % len(at)).to(kernel.device)]  # (out / n, in / n, n, n)
        return blocks.transpose(1, 2).reshape(self.out_features, self.in_features) / self.in_features

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + C·x / in by Fourier transforms, in float32 at least: they know no half precision."""
        kernel, n = self.c3a_kernel[adapter], self.block_size[adapter]
        wide = torch.promote_types(kernel.dtype, torch.float32)
        waves = torch.fft.rfft(x.to(wide).unflatten(-1, (-1, n)))
        products = torch.einsum("...jf,ijf->...if", waves, torch.fft.rfft(kernel.to(wide)).conj())
        return y + (torch.fft.irfft(products, n).flatten(-2) / self.in_features).to(kernel.dtype)


class C3AModel(BaseTuner):
    """A model with C³A adapters."""

    tuner_layer_cls = C3ALayer
    target_module_mapping = defaults.MLP_OF_GPT2


register_peft_method(PeftType.C3A, C3AConfig, C3AModel)
