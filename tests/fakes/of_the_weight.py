"""Faults of the methods whose change is made from the base weight: GLoRA, PEANuT, OSF, Uni-LoRA, TinyLoRA."""

from __future__ import annotations

from typing import Any

import torch
from peft_reference.config import PeftConfig
from peft_reference.methods import glora
from torch import nn

from .fake import Patches, fake

WITH_GLORA = [{"method": "glora"}, {"method": "glora-vector"}]


@fake(
    "GLoRA takes the rank for twice as large, vectors for matrices and numbers for vectors.",
    caught_by=[f"glora.paths:{part}" for part in ("left", "right", "column", "number")],
)
def glora_has_other_shapes(patch: Patches) -> None:
    @patch.replace(glora.Path, "__init__")
    def __init__(original: Any, self: Any, kind: str, shape: Any, config: Any) -> None:
        original(self, kind, shape, config)
        for name, parameter in list(self._parameters.items()):
            self._parameters[name] = nn.Parameter(torch.cat([parameter, parameter], -1))


@fake("GLoRA has one number where a vector was asked for.", caught_by=["glora.paths:flat"])
def glora_knows_no_vectors(patch: Patches) -> None:
    @patch.replace(glora.Path, "__init__")
    def __init__(original: Any, self: Any, kind: str, shape: Any, config: Any) -> None:
        original(self, "constant" if kind == "vector" else kind, shape, config)


@fake("GLoRA trains the zeros of a path that is none.", caught_by=["glora.paths:nothing"])
def glora_trains_nothing(patch: Patches) -> None:
    @patch.replace(glora.Path, "__init__")
    def __init__(original: Any, self: Any, kind: str, shape: Any, config: Any) -> None:
        original(self, kind, shape, config)
        for name, buffer in list(self._buffers.items()):
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(buffer))

    patch.replace(glora.Path, "forward")(
        lambda original, self: self.zeros if self.kind == "none" else original(self)
    )


@fake(
    "GLoRA takes any word for the kind of a path.",
    caught_by=["glora.values:raises-weight", "glora.values:raises-coupling", "glora.values:raises-bias"],
)
def glora_takes_any_kind(patch: Patches) -> None:
    patch.set(glora.GloraConfig, "__post_init__", PeftConfig.__post_init__)


@fake("GLoRA's init_weights is ignored.", caught_by=["glora.no-init:not-base", "glora.no-init:all-random"])
def glora_always_begins_with_zeros(patch: Patches) -> None:
    @patch.replace(glora.Path, "__init__")
    def __init__(original: Any, self: Any, kind: str, shape: Any, config: Any) -> None:
        original(self, kind, shape, config)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


@fake(
    "GLoRA changes the bias of every sample of a batch by the first adapter's.",
    caught_by=["glora.mixed-batch:other", "glora.mixed-batch:base"],
)
def glora_ignores_the_batch(patch: Patches) -> None:
    patch.set(glora.GloraLayer, "batch", lambda self: None)


@fake(
    "GLoRA's factor of the bias is left out.",
    caught_by=["law.forward:as-formula", "glora.mixed-batch:default"],
    points=[{}, *WITH_GLORA],
)
def glora_leaves_the_bias_unscaled(patch: Patches) -> None:
    @patch.replace(glora.GloraLayer, "changes")
    def changes(original: Any, self: Any, adapter: str) -> Any:
        delta, shift = original(self, adapter)
        return delta, None if shift is None else shift - self.unmerged_bias * self.glora_D[adapter]()


@fake(
    "GLoRA merges the second adapter into what the first has made.",
    caught_by=["law.merge-both:merged"],
    points=WITH_GLORA,
)
def glora_composes_when_merging(patch: Patches) -> None:
    @patch.replace(glora.GloraLayer, "fold")
    def fold(original: Any, self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        new, shift = original(self, adapter, weight, bias)
        return new + (weight - self.unmerged_weight) * self.glora_A[adapter](), shift
