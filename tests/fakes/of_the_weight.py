"""Faults of the methods whose change is made from the base weight: GLoRA, PEANuT, OSF, Uni-LoRA, TinyLoRA."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from peft_reference import injection
from peft_reference.config import PeftConfig
from peft_reference.methods import glora, osf, peanut, tinylora, unilora
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


WITH_PEANUT = [{"method": "peanut"}, {"method": "peanut-deep"}]


@fake(
    "PEANuT reads the inputs of the layer, and has an encoder too many.",
    caught_by=[f"peanut.network:{part}" for part in ("first", "last", "alone", "coders")],
)
def peanut_has_other_shapes(patch: Patches) -> None:
    @patch.replace(peanut.PeanutLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        config = dataclasses.replace(config, depth=config.depth + 1)
        self.out_features, self.in_features = self.in_features, self.out_features
        contents = original(self, config, name)
        self.out_features, self.in_features = self.in_features, self.out_features
        return contents


@fake(
    "PEANuT takes any rank, depth and activation.",
    caught_by=[f"peanut.values:raises-{what}" for what in ("rank", "depth", "activation")],
)
def peanut_takes_any_option(patch: Patches) -> None:
    patch.set(peanut.PeanutConfig, "__post_init__", PeftConfig.__post_init__)
    patch.replace(peanut.PeanutLayer, "create")(
        lambda original, self, config, name: original(self, dataclasses.replace(config, r=2, depth=0), name)
    )


@fake(
    "PEANuT's decoders forget what the encoders have read.",
    caught_by=["law.forward:as-formula"],
    points=WITH_PEANUT[1:],
)
def peanut_has_no_shortcuts(patch: Patches) -> None:
    @patch.replace(peanut.PeanutLayer, "hidden")
    def hidden(original: Any, self: Any, adapter: str) -> Any:
        first, _, *coders = (getattr(self, slot)[adapter] for slot in self.adapter_layer_names)
        h = torch.tanh(first.weight @ self.unmerged_weight)
        for coder in [*coders[0], *coders[1]]:
            h = torch.tanh(coder.weight @ h)
        return h


@fake(
    "PEANuT reads the weight with other adapters merged into it.",
    caught_by=["law.merge-both:merged"],
    points=WITH_PEANUT,
)
def peanut_reads_what_is_merged(patch: Patches) -> None:
    @patch.replace(peanut.PeanutLayer, "fold")
    def fold(original: Any, self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        before, self._saved_base = self._saved_base, (weight, bias)
        new = original(self, adapter, weight, bias)
        self._saved_base = before
        return new


@fake(
    "OSF keeps one singular value, whatever the rank.",
    caught_by=[
        f"osf.ranks:{part}" for part in ("half-of-8", "half-of-4", "a-quarter-left", "own-rank", "others")
    ],
)
def osf_keeps_one(patch: Patches) -> None:
    patch.set(osf.OSFLayer, "rank", classmethod(lambda cls, config, size, name: 1))


@fake(
    "OSF leaves transposed layers out in silence.",
    caught_by=["osf.gpt2:adapted"],
    like="peft 0.18 to 0.21.2",
)
def osf_leaves_conv1d_out(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_adapted_layers")
    def _adapted_layers(original: Any, self: Any, modules: Any) -> dict[str, Any]:
        layers = original(self, modules)
        return {name: layer for name, layer in layers.items() if not name.endswith("c_proj")}


@fake(
    "OSF begins with the largest part of the weight, not with the smallest.",
    caught_by=["law.forward:as-formula"],
    points=[{"method": "osf"}],
)
def osf_trains_the_largest(patch: Patches) -> None:
    @patch.replace(osf.OSFLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        u, s, v = torch.linalg.svd(self.unmerged_weight.detach(), full_matrices=False)
        n = len(contents[self.initial[1]])
        return contents | dict(zip(self.initial, (u[:, :n], s[:n], v[:n]), strict=True))


@fake(
    "OSF's factors are taken out of the graph.",
    caught_by=["osf.gpt2:reached", "law.gradients:adapter"],
    points=[{}, {"method": "osf"}],
)
def osf_detaches(patch: Patches) -> None:
    @patch.replace(osf.OSFLayer, "factors")
    def factors(original: Any, self: Any, adapter: str) -> Any:
        u, s, v = original(self, adapter)
        return u.detach(), s, v


@fake(
    "Uni-LoRA's vector is longer than the config says, and its places are always saved.",
    caught_by=["unilora.one-vector:length", "unilora.one-vector:alone"],
)
def unilora_has_a_longer_vector(patch: Patches) -> None:
    @patch.replace(unilora.UniLoraModel, "create_shared")
    def create_shared(original: Any, cls: Any, config: Any, layers: Any, held: Any) -> dict[str, Any]:
        return original(
            cls, dataclasses.replace(config, theta_d_length=config.theta_d_length + 1), layers, held
        )

    @patch.replace(unilora.UniLoraLayer, "create_with")
    def create_with(original: Any, self: Any, config: Any, name: str, shared: Any) -> dict[str, Any]:
        return original(self, config, name, shared) | {"save_indices": True}


@fake("Uni-LoRA draws its places without the seed.", caught_by=["unilora.one-vector:same-output"])
def unilora_forgets_the_seed(patch: Patches) -> None:
    seeds = itertools.count(1)
    patch.replace(unilora, "draw_places")(
        lambda original, seed, length, count: original(next(seeds), length, count)
    )


@fake(
    "TinyLoRA ties the other way round, saves its projections always, and has one number more.",
    caught_by=[f"tinylora.tying:{part}" for part in ("two", "one", "size", "unsaved")],
)
def tinylora_ties_the_other_way(patch: Patches) -> None:
    @patch.replace(tinylora.TinyLoraModel, "create_shared")
    def create_shared(original: Any, cls: Any, config: Any, layers: Any, held: Any) -> dict[str, Any]:
        other = dataclasses.replace(config, weight_tying=1 - config.weight_tying, u=config.u + 1)
        return original(cls, other, layers, held)

    @patch.replace(tinylora.TinyLoraLayer, "create_with")
    def create_with(original: Any, self: Any, config: Any, name: str, shared: Any) -> dict[str, Any]:
        other = dataclasses.replace(config, u=config.u + 1)
        return original(self, other, name, shared) | {"save_projection": True}


@fake("TinyLoRA draws its projections without the seed.", caught_by=["tinylora.tying:same-output"])
def tinylora_forgets_the_seed(patch: Patches) -> None:
    seeds = itertools.count(1)

    @patch.replace(tinylora.TinyLoraLayer, "create_with")
    def create_with(original: Any, self: Any, config: Any, name: str, shared: Any) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, projection_seed=next(seeds)), name, shared)


@fake(
    "TinyLoRA takes any size and any tying.",
    caught_by=[f"tinylora.values:raises-{what}" for what in ("numbers", "rank", "tying")],
)
def tinylora_takes_any_option(patch: Patches) -> None:
    patch.set(tinylora.TinyLoraConfig, "__post_init__", PeftConfig.__post_init__)
    patch.replace(tinylora.TinyLoraModel, "create_shared")(
        lambda original, cls, config, layers, held: original(
            cls, dataclasses.replace(config, u=2, r=1, weight_tying=0.0), layers, held
        )
    )
    patch.replace(tinylora.TinyLoraLayer, "create_with")(
        lambda original, self, config, name, shared: original(
            self, dataclasses.replace(config, u=2, r=1), name, shared
        )
    )
