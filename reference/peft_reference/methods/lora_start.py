"""What LoRA's slots hold when an adapter is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..matching import pattern_value
from ..operators import Embedding
from . import lora_init
from .parts import dropout, rank_of

if TYPE_CHECKING:
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer


def low_rank_contents(layer: LoraLayer, config: LoraConfig, name: str) -> dict[str, Any]:
    """A, B and the numbers that belong to them for the module called `name`; under `weight`, the base weight
    to begin with, if it changes.
    """
    r = rank_of(config, name)
    alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
    scaling = alpha / (r**0.5 if config.use_rslora else r)
    contents: dict[str, Any] = {"r": r, "lora_alpha": alpha, "scaling": scaling}
    contents["lora_dropout"] = dropout(config.lora_dropout)
    if layer.op is Embedding:
        shape_A, shape_B = (r, layer.in_features), (layer.out_features, r)
        A = nn.Parameter(torch.zeros(shape_A) if config.init_lora_weights else torch.randn(shape_A))
        B = nn.Parameter(torch.randn(shape_B))
        contents |= {"lora_embedding_A": A, "lora_embedding_B": B}
    else:
        a: Any
        b: Any
        a, b = layer.new_factors(r, config.lora_bias)
        if config.init_lora_weights:  # A keeps torch's own initialisation, Kaiming-uniform with a = √5
            nn.init.zeros_(b.weight)
            if config.lora_bias:
                nn.init.zeros_(b.bias)
        if str(config.init_lora_weights).lower() == "gaussian":
            nn.init.normal_(a.weight, std=1 / r)
        A, B = a.weight, b.weight
        contents |= {"lora_A": a, "lora_B": b}
    return contents | _start(layer, config, name, contents, A, B)


@torch.no_grad()
def _start(
    layer: Any, config: Any, name: str, contents: dict[str, Any], A: Tensor, B: Tensor
) -> dict[str, Any]:
    """Give A and B other initial values; the base weight and the frozen slots that go with them."""
    initialise = lora_init.initialiser(config, layer.op, A.is_meta)
    if initialise is None:
        return {}
    weight = layer.op.canonical(layer.weight)
    W = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    site = lora_init.Site(W, contents["r"], contents["scaling"], layer.get_base_layer(), config, name)
    begin = initialise(site)
    A.copy_(begin.A)
    B.copy_(begin.B)
    wanted: dict[str, Any] = {}
    if not begin.trains_B:
        wanted["frozen_slots"] = ("lora_B", "lora_embedding_B")
    if begin.W is not None:
        wanted["weight"] = layer.op.canonical(begin.W)
    return wanted
