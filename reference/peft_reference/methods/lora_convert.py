"""PiSSA and its like as plain LoRA of twice the rank: s·B·A - s·B₀·A₀ = s·[B, -B₀]·[A; A₀].

With W_res + s·B₀·A₀ = W, the difference to the base model as it was is low-rank, and needs no residual.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor


def as_plain_lora(
    config: Any, state_dict: dict[str, Tensor], initial: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """Config and tensors of a plain LoRA that does to the original base what the trained adapter does to its
    own; what is no factor of LoRA stays. `initial` holds the adapter's tensors as they began.

    ValueError for rsLoRA with patterns, where alpha cannot follow, for DoRA, and for other keys or shapes.
    """
    if config.use_rslora and (config.rank_pattern or config.alpha_pattern):
        raise ValueError(
            "path_initial_model_for_weight_conversion does not work for use_rslora=True together with "
            "rank_pattern or alpha_pattern."
        )
    if config.use_dora:
        raise ValueError("path_initial_model_for_weight_conversion does not work for DoRA: W' is no sum.")
    result = {}
    for key, tensor in state_dict.items():
        if not any(slot in key for slot in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")):
            result[key] = tensor
            continue
        start = initial.get(key)
        if start is None or start.shape != tensor.shape:
            found = "nothing" if start is None else tuple(start.shape)
            raise ValueError(f"The initial adapter has {found} for '{key}', which is {tuple(tensor.shape)}.")
        start = start.to(tensor)
        is_A = "lora_A" in key or "lora_embedding_A" in key
        result[key] = torch.cat([tensor, start if is_A else -start], dim=0 if is_A else 1)
    plain = replace(
        config,
        r=2 * config.r,
        lora_alpha=config.lora_alpha * (2**0.5 if config.use_rslora else 2),
        rank_pattern={key: 2 * r for key, r in (config.rank_pattern or {}).items()},
        alpha_pattern={key: 2 * alpha for key, alpha in (config.alpha_pattern or {}).items()},
        init_lora_weights=True,
        loftq_config={},
        eva_config=None,
        corda_config=None,
        lora_ga_config=None,
    )
    return plain, result
