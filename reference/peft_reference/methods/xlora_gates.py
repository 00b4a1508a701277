"""The two halves of X-LoRA's mixture: the classifier that computes how much of each expert a token gets, and
the gate through which an expert acts on a layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..holder import Holder
from .lora_layer import LoraLayer
from .lora_variant import UnmergedVariant

gates: ContextVar[Tensor | float | None] = ContextVar("gates", default=None)  # None: experts add up


class Classifier(Holder):
    """From the last hidden states [batch, length, hidden] to g [batch, length, layers, experts]."""

    def __init__(self, config: Any, adapter_name: str, layers: int) -> None:
        super().__init__()
        self.config, self.adapter_name = config, adapter_name
        self.shape = layers, len(config.adapters or {})
        outputs = math.prod(self.shape) if config.layerwise_scalings else self.shape[1]
        sizes = [config.hidden_size, *[config.xlora_size] * (config.xlora_depth - 1), outputs]
        parts: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            dropout = [nn.Dropout(config.xlora_dropout_p)] if parts and config.xlora_dropout_p else []
            parts += [*([nn.ReLU(), *dropout] if parts else []), nn.Linear(n_in, n_out)]
        self.layers = nn.Sequential(*parts)

    def forward(self, hidden: Tensor) -> Tensor:
        """g, of which all but the `top_k_lora` largest are zero."""
        config = self.config
        z = self.layers(hidden.to(next(self.layers.parameters()).dtype))
        z = z.unflatten(-1, (-1, self.shape[1])).expand(*z.shape[:-1], *self.shape)
        g = (z / config.softmax_temperature).softmax(-1) if config.enable_softmax else z
        if config.top_k_lora is None:
            return g
        others = torch.ones_like(g).scatter(-1, g.topk(config.top_k_lora, -1).indices, 0).bool()
        if config.enable_softmax_topk:
            return g.masked_fill(others, -torch.inf).softmax(-1)
        return g.masked_fill(others, 0)

    def all_adapters(self) -> list[str]:
        """The one whose classifier this is."""
        return [self.adapter_name]

    def has_adapter(self, adapter: str) -> bool:
        """Whether it is that one."""
        return adapter == self.adapter_name

    def adapter_parameters(self, adapter: str) -> Iterator[nn.Parameter]:
        """What is trained."""
        return self.layers.parameters() if self.has_adapter(adapter) else iter(())

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """Keys that do not name the adapter: there is one classifier in a model."""
        for key, tensor in self.state_dict().items() if self.has_adapter(adapter) else ():
            yield key, key, tensor


class Gate(UnmergedVariant):
    """How an expert acts on one layer. `plain` is what it does alone: LoRA, or a variant of it."""

    per_sample = False

    def __init__(self, plain: Any, config: Any, layer: int, expert: int) -> None:
        self.plain, self.config, self.layer, self.expert = plain, config, layer, expert
        self.__name__ = "expert of X-LoRA"

    def adapt(self, layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """y + w·g·(what the expert adds)."""
        g, changed = gates.get(), self.plain.adapt(layer, adapter, x, y)
        if g is None:
            return changed
        weight = g if isinstance(g, float) else g[:, :, self.layer, self.expert, None]
        return y + self.config.global_scaling_weight * weight * (changed - y)
