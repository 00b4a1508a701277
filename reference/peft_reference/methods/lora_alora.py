"""aLoRA: LoRA on the tokens from the last invocation sequence on, and the base model on those before, whose
keys and values are then those of the base model's cache.

Greenewald et al., "Activated LoRA: Fine-tuned LLMs for Intrinsics", https://arxiv.org/abs/2504.12397. Where
the sequence begins is read off the token ids that a model is given, and handed to its layers for that call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..holder import current_batch
from .lora_variant import VARIANTS, LoraVariant, UnmergedVariant

if TYPE_CHECKING:
    from .lora_layer import LoraLayer

# adapter -> which tokens of the batch it acts on: (samples, tokens)
_invoked: ContextVar[Mapping[str, Tensor]] = ContextVar("invoked", default={})  # noqa: B039 - never changed


class AloraVariant(UnmergedVariant):
    """LoRA on some tokens only; on none, where no token ids were seen."""

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y with s·B·A·x added at the invoked tokens of x (samples, tokens, in)."""
        tokens = _invoked.get().get(adapter)
        if tokens is None:
            return y
        at = tokens.to(y.device).view(y.shape[:-1])
        return torch.where(at[..., None], LoraVariant.adapt(layer, adapter, x, y).to(y.dtype), y)


def starts(ids: Tensor, invocation: list[int]) -> Tensor:
    """Where the last `invocation` begins in each sample of `ids` (samples, tokens); behind the last token if
    there is none.
    """
    wanted = torch.tensor(invocation, device=ids.device)
    if ids.shape[1] < len(wanted):
        return torch.full(ids.shape[:1], torch.iinfo(torch.long).max, device=ids.device)
    found = (ids.unfold(1, len(wanted), 1) == wanted).all(-1)
    places = torch.arange(found.shape[1], device=ids.device)
    last = torch.where(found, places, -1).amax(1)
    return torch.where(last < 0, torch.iinfo(torch.long).max, last)


@contextmanager
def watching(
    model: nn.Module, invocations: Mapping[str, list[int]], ids: Tensor | None, generates: bool = False
) -> Iterator[None]:
    """Within, adapters act on the tokens from their invocation in `ids` on, in every call of `model`.

    While it `generates`, calls are given the end of a sequence that began with `ids`, and any number of
    copies of each sample. What a cache holds already comes before the tokens of a call.
    """
    if ids is None:
        yield
        return
    begin = {name: starts(ids, tokens) for name, tokens in invocations.items()}

    def mark(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        given = kwargs["inputs_embeds"] if given is None else given
        samples, length = given.shape[:2]
        cache = kwargs.get("past_key_values") if generates else None
        places = torch.arange(length, device=ids.device) + (0 if cache is None else cache.get_seq_length())
        acts = {
            name: places >= first.repeat_interleave(samples // len(first))[:, None]
            for name, first in begin.items()
        }
        if (batch := current_batch()) is not None:  # a layer is given the samples of one adapter at a time
            names = batch.expanded(samples)
            acts = {name: at[[own == name for own in names]] for name, at in acts.items()}
        _invoked.set(acts)

    token = _invoked.set({})
    handle = model.register_forward_pre_hook(mark, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _invoked.reset(token)


VARIANTS["alora_invocation_tokens"] = AloraVariant
