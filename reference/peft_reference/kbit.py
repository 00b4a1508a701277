"""Make a base model ready for training adapters on it when its weights are of low precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> nn.Module:
    """Freeze all parameters and raise those in float16 and bfloat16 to float32, in place; returns the model.

    A transformers model with quantised weights also gets gradient checkpointing (unless told otherwise), with
    inputs that require gradients, so that they reach the adapters. `auto_clear_cache` gives the memory of the
    old weights back to the accelerator.
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    quantised = any(
        getattr(model, flag, False) for flag in ("is_loaded_in_8bit", "is_loaded_in_4bit", "is_quantized")
    )
    if quantised and use_gradient_checkpointing:
        ready: Any = model
        ready.enable_input_require_grads()
        ready.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs or {})
    if auto_clear_cache and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model
