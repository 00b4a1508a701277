"""(IA)³: W' = diag(l)·W and b' = l∘b, or W' = W·diag(l) where the layer is a feed-forward one.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
https://arxiv.org/abs/2205.05638: l scales keys and values as they come out of their layers, and the hidden
state as it goes into the second layer of the feed-forward block.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters import walk
from ..config import PeftConfig
from ..injection import BaseTuner, Injection
from ..layer import BaseTunerLayer
from ..matching import default_for, names_module
from ..operators import Conv1D, Conv2d, Conv3d, Linear
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["IA3Config", "IA3Model"]


@dataclass
class IA3Config(PeftConfig):
    """(IA)³'s options. ValueError if lists of both are given and a feed-forward module is no target."""

    target_modules: list[str] | set[str] | str | None = None  # names, suffixes, a regex or 'all-linear'
    exclude_modules: list[str] | set[str] | str | None = None
    feedforward_modules: list[str] | set[str] | str | None = None  # the targets whose inputs are scaled
    fan_in_fan_out: bool = False  # whether the base stores (in, out): corrected by what the layer is
    modules_to_save: list[str] | None = None
    init_ia3_weights: bool = True  # ones; else N(0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.feedforward_modules, (list, tuple)):
            self.feedforward_modules = set(self.feedforward_modules)
        both = self.feedforward_modules, self.target_modules
        if isinstance(both[0], set) and isinstance(both[1], set) and not both[0] <= both[1]:
            raise ValueError(
                f"`feedforward_modules` should be a subset of `target_modules`; {sorted(both[0] - both[1])} "
                "are not among them."
            )


class IA3Layer(BaseTunerLayer):
    """A layer with (IA)³ adapters: one factor for each output, or for each input."""

    prefix = "ia3_"
    operators = (Linear, Conv1D, Conv2d, Conv3d)
    slots: ClassVar[dict[str, type]] = {"is_feedforward": dict, "ia3_l": nn.ParameterDict}
    is_feedforward: dict[str, bool]
    ia3_l: nn.ParameterDict
    adapter_layer_names = ("ia3_l",)
    changes_input = True

    def create(self, config: IA3Config, name: str) -> dict[str, Any]:
        """l: (out, 1) or, of a feed-forward layer, (1, in); of convolutions (1, channels, *ones)."""
        feedforward = names_module(config.feedforward_modules, name)
        n = self.in_features if feedforward else self.out_features
        ones = (1,) * (self.weight.dim() - 2)
        shape = (1, n, *ones) if feedforward or ones else (n, 1)
        values = torch.ones(shape) if config.init_ia3_weights else torch.randn(shape)
        return {"is_feedforward": feedforward, "ia3_l": nn.Parameter(values)}

    def factors(self, adapter: str) -> Tensor:
        """l as inputs and outputs meet it: (features), or (channels, *ones) on a convolution."""
        factors = self.ia3_l[adapter]
        return factors.view(-1, *(1,) * (factors.dim() - 2))

    def adapt_input(self, adapter: str, x: Tensor) -> Tensor:
        """l∘x for a feed-forward layer, in the dtype of x."""
        return (x * self.factors(adapter)).to(x.dtype) if self.is_feedforward[adapter] else x

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """l∘y for any other."""
        return y if self.is_feedforward[adapter] else y * self.factors(adapter)

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows of W and the bias scaled, or columns: those of each group of a convolution."""
        factors, ones = self.ia3_l[adapter].flatten(), (1,) * (weight.dim() - 2)
        if not self.is_feedforward[adapter]:
            return weight * factors.view(-1, 1, *ones), None if bias is None else bias * factors
        groups = getattr(self.get_base_layer(), "groups", 1)
        columns = factors.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
        return weight * columns.view(*columns.shape, *ones), bias


class IA3Model(BaseTuner):
    """A model with (IA)³ adapters."""

    tuner_layer_cls = IA3Layer
    target_module_mapping = defaults.IA3

    @classmethod
    def settle(cls, config: IA3Config, model: nn.Module, adapter_name: str) -> dict[str, Any]:
        """`feedforward_modules` by architecture; ValueError if it has to be given and is not."""
        if config.feedforward_modules is not None:
            return {}
        known = default_for(model, defaults.IA3_FEEDFORWARD, "feedforward_modules")
        return {"feedforward_modules": set(known)}

    @torch.no_grad()
    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """Add one adapter, inactive and frozen, whose factors are the weighted sum of those of others.

        A layer that only some of them have sums theirs; a name that exists is left as it is. ValueError,
        before anything changes, for an unknown adapter, another number of weights than of adapters, and
        factors that stand on the inputs of a layer in one adapter and on its outputs in another.
        """
        if adapter_name in self.peft_config:
            return
        self.check_names(adapters)
        if not adapters or len(adapters) != len(weights):
            raise ValueError(f"One weight for each adapter is needed, got {len(weights)} for {adapters}.")
        inputs = list(zip(adapters, weights, strict=True))
        layers = {
            n: m for n, m in walk(self.model) if isinstance(m, IA3Layer) and any(map(m.has_adapter, adapters))
        }
        sides = {n: {layer.is_feedforward.get(a) for a in adapters} - {None} for n, layer in layers.items()}
        if mixed := [name for name, side in sides.items() if len(side) > 1]:
            raise ValueError(f"{mixed} are feed-forward layers for some of {adapters} only: there is no sum.")
        like: Any = self.peft_config[adapters[0]]
        config = dataclasses.replace(
            like,
            target_modules=set(layers),
            exclude_modules=None,
            feedforward_modules={name for name, side in sides.items() if True in side},
            modules_to_save=None,
        )
        planned = Injection(self.model, type(self), config, adapter_name, False)
        for layer in layers.values():
            own = [weight * layer.ia3_l[adapter] for adapter, weight in inputs if layer.has_adapter(adapter)]
            planned.contents[layer]["ia3_l"] = nn.Parameter(torch.stack(own).sum(0))
        planned.apply().forget()


register_peft_method(PeftType.IA3, IA3Config, IA3Model)
