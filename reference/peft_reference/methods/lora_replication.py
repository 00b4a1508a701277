"""Layer replication: a longer stack of a model's layers that repeats some, on the same base weights.

PEFT's page on LoRA, "Memory efficient Layer Replication with LoRA". [[0, 4], [2, 5]] makes of the layers 0 to
4 the stack 0, 1, 2, 3, 2, 3, 4. Every layer of the new stack is a module of its own, so that each gets its
own adapter; their parameters are those of the old layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

STACKS = ("layers", "layer", "h")  # what the list of layers is called: Llama and most others, BERT, Falcon


def replicate_layers(model: Any, ranges: Sequence[Sequence[int]]) -> Callable[[], None]:
    """Replace the model's one stack of layers by the `ranges` (start, end) of it; returns what undoes that.

    ValueError, before anything changes, for a range outside of the stack or a model without such a stack.
    """
    parent, key = _stack(model)
    old: Any = parent._modules[key]
    order = [index for start, end in _checked(ranges, len(old)) for index in range(start, end)]
    new = nn.ModuleList(_same_weights(old[index]) for index in order)
    for position, layer in enumerate(new):
        module: Any
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # where the layer finds its part of the cache
                module.layer_idx = position
    config = getattr(model, "config", None)
    count = getattr(config, "num_hidden_layers", None)

    def put(layers: nn.ModuleList, number: int | None) -> None:
        setattr(parent, key, layers)
        if number is not None:
            config.num_hidden_layers = number  # type: ignore[union-attr]

    put(new.train(old.training), None if count is None else len(new))
    return lambda: put(old, count)


def _stack(model: nn.Module) -> tuple[nn.Module, str]:
    """Where the stack of layers is: the module that has it, and its name there."""
    found = [
        (parent, key)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if key in STACKS and isinstance(child, nn.ModuleList)
    ]
    if len(found) != 1:
        raise ValueError(
            f"layer_replication needs a model with one list of layers called {', '.join(STACKS)}; "
            f"{type(model).__name__} has {len(found)}."
        )
    return found[0]


def _checked(ranges: Sequence[Sequence[int]], length: int) -> list[tuple[int, int]]:
    pairs = [tuple(pair) for pair in ranges if not isinstance(pair, str)]
    if len(pairs) < len(ranges) or not all(len(p) == 2 and 0 <= p[0] < p[1] <= length for p in pairs):
        raise ValueError(
            f"layer_replication={ranges!r} should list ranges [start, end] with start < end <= {length}, "
            "the number of layers."
        )
    return pairs  # type: ignore[return-value]


def _same_weights(layer: nn.Module) -> nn.Module:
    """A copy of the modules that shares all parameters and buffers."""
    shared = [*layer.parameters(), *layer.buffers()]
    return copy.deepcopy(layer, {id(tensor): tensor for tensor in shared})
