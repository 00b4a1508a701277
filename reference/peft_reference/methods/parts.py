"""What slots are filled with: ranks, fresh parameters, and the dropout of an adapter's input."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedOptionError
from ..matching import pattern_value


def random(*shape: int) -> nn.Parameter:
    """Torch's own initialisation of a linear layer: Kaiming-uniform with a = √5."""
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5)))


def normal(*shape: int, std: float = 1.0) -> nn.Parameter:
    """A parameter of draws from N(0, std²)."""
    return nn.Parameter(torch.randn(shape) * std)


def zeros(*shape: int) -> nn.Parameter:
    """A parameter of zeros."""
    return nn.Parameter(torch.zeros(shape))


def dropout(p: float) -> nn.Module:
    """Dropout with probability p, ValueError if it is none; the identity where nothing is dropped."""
    return nn.Dropout(p) if p else nn.Identity()


def rank_of(config: Any, name: str) -> int:
    """The rank that `r` and, if there is one, `rank_pattern` give a layer; ValueError unless positive."""
    r: int = pattern_value(getattr(config, "rank_pattern", None), name, config.r)
    if r <= 0:
        raise ValueError(f"The rank of '{name}' should be positive, got r={r}.")
    return r


def check_bias(config: Any, *own: str) -> None:
    """UnsupportedOptionError for a `bias` that is neither none, all nor the method's own word."""
    if config.bias not in ("none", "all", *own):
        raise UnsupportedOptionError(f"bias={config.bias!r} is not known: use none, all or {own[0]}.")
