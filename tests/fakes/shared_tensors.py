"""Faults of methods whose layers share tensors: VeRA, PVeRA, RandLoRA and VB-LoRA."""

from __future__ import annotations

import copy
import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from peft_reference import injection, layer, state_dict
from peft_reference.methods import projections, pvera, randlora, vblora, vera
from torch import Tensor, nn

from .fake import Patches, fake

PROJECTING = [{"method": method, "low_cpu": False} for method in ("vera", "pvera", "randlora")]


def nothing(*args: Any) -> None:
    """Instead of a check."""


# --- the hook: what is one for the whole model


@fake(
    "What is one for the whole model is not saved.",
    caught_by=[
        "shared.after-loading:file",
        "shared.after-loading:file-of-bank",
        "shared.after-loading:same-output-of-bank",
    ],
    points=[{"low_cpu": False}],
)
def shared_tensors_are_not_saved(patch: Patches) -> None:
    patch.replace(layer.BaseTunerLayer, "shared_entries")(lambda original, self, adapter: iter(()))


@fake(
    "What is one for the whole model is saved with each layer.",
    caught_by=["shared.after-loading:file", "shared.after-loading:file-of-bank"],
)
def shared_tensors_are_saved_in_layers(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        yield from original(self, adapter)
        yield from self.shared_entries(adapter)


@fake(
    "Methods that need a PeftModel are injected all the same.",
    caught_by=["inject.refuses-shared-state:raises", "inject.refuses-shared-state:frame"],
)
def injects_what_is_shared(patch: Patches) -> None:
    patch.set(layer.BaseTunerLayer, "needs_peft_model", False)


# --- projections


@fake(
    "The projections are trained.",
    caught_by=["shared.projections:a", "shared.projections:b"],
    points=[{"method": "vera"}],
)
def trains_projections(patch: Patches) -> None:
    patch.set(vera.VeraLayer, "shared_slots", {"vera_A": nn.ParameterDict, "vera_B": nn.ParameterDict})

    @patch.replace(projections.ProjectionModel, "create_shared")
    def create_shared(original: Any, cls: Any, *args: Any) -> Any:
        return {slot: nn.Parameter(value) for slot, value in original(cls, *args).items()}


@fake(
    "The projections are two columns and rows larger than any layer needs.",
    caught_by=[
        "shared.projections:a",
        "shared.projections:b",
        "shared.projections:a-of-pvera",
        "shared.projections:b-of-pvera",
    ],
)
def projections_too_large(patch: Patches) -> None:
    for method in (vera.VeraModel, pvera.PveraModel):

        @patch.replace(method, "shapes")
        def shapes(original: Any, cls: Any, config: Any, n_in: int, n_out: int) -> Any:
            return original(cls, config, n_in + 2, n_out + 2)


@fake(
    "The vector d is left out.",
    caught_by=["law.forward:as-formula"],
    points=[{"method": "vera"}],
)
def vera_without_d(patch: Patches) -> None:
    @patch.replace(vera.VeraLayer, "factors")
    def factors(original: Any, self: Any, adapter: str) -> Any:
        b, B, d, A = original(self, adapter)
        return b, B, torch.ones_like(d) + 0 * d, A


@fake(
    "save_projection=False is ignored.",
    caught_by=["shared.not-saved:no-projections"],
    points=PROJECTING,
)
def saves_projections_always(patch: Patches) -> None:
    @patch.replace(projections.ProjectionLayer, "shared_entries")
    def shared_entries(original: Any, self: Any, adapter: str) -> Any:
        return layer.BaseTunerLayer.shared_entries(self, adapter)


@fake(
    "The projections do not come from the key.",
    caught_by=["shared.not-saved:same-output"],
    points=PROJECTING,
)
def ignores_the_key(patch: Patches) -> None:
    @patch.replace(projections.ProjectionModel, "create_shared")
    def create_shared(original: Any, cls: Any, config: Any, *args: Any) -> Any:
        config = copy.copy(config)
        config.projection_prng_key = int(torch.randint(1 << 30, ()))
        return original(cls, config, *args)


@fake("d always begins with the default.", caught_by=["shared.d-initial:d"])
def ignores_d_initial(patch: Patches) -> None:
    def first_vectors(original: Any, config: Any, n_out: int, r: int) -> Any:
        config = copy.copy(config)
        config.d_initial = 0.1
        return original(config, n_out, r)

    patch.replace(projections, "first_vectors")(first_vectors)


# --- PVeRA's noise


@fake(
    "PVeRA samples in evaluation, whatever the config says.",
    caught_by=["shared.pvera-samples:same"],
)
def pvera_samples_always(patch: Patches) -> None:
    @patch.replace(pvera.PveraLayer, "create")
    def create(original: Any, self: Any, *args: Any) -> Any:
        return original(self, *args) | {"sample_at_inference": True}


@fake(
    "PVeRA never samples in evaluation.",
    caught_by=["shared.pvera-samples:samples", "shared.pvera-samples:goes-on"],
)
def pvera_never_samples(patch: Patches) -> None:
    @patch.replace(pvera.PveraLayer, "create")
    def create(original: Any, self: Any, *args: Any) -> Any:
        return original(self, *args) | {"sample_at_inference": False}


@fake("PVeRA's noise ignores its seed.", caught_by=["shared.pvera-samples:seeded"])
def pvera_ignores_its_seed(patch: Patches) -> None:
    @patch.replace(pvera.PveraLayer, "create")
    def create(original: Any, self: Any, *args: Any) -> Any:
        return original(self, *args) | {"generator": None}


@fake("Each pass of PVeRA begins the noise anew.", caught_by=["shared.pvera-samples:goes-on"])
def pvera_begins_anew(patch: Patches) -> None:
    @patch.replace(pvera.PveraLayer, "noise")
    def noise(original: Any, self: Any, adapter: str, like: Tensor) -> Tensor:
        seed = self.generator[adapter]
        drawn = original(self, adapter, like)
        self.generator[adapter] = seed
        return drawn


@fake("A pass of PVeRA changes what is trained.", caught_by=["shared.pvera-samples:frame"])
def pvera_keeps_the_noise(patch: Patches) -> None:
    @patch.replace(pvera.PveraLayer, "noise")
    def noise(original: Any, self: Any, adapter: str, like: Tensor) -> Tensor:
        drawn = original(self, adapter, like)
        self.pvera_lambda_b[adapter].data += drawn.mean()
        return drawn


# --- RandLoRA's bases


@fake(
    "RandLoRA has five bases, whatever their rank.",
    caught_by=[
        "shared.randlora-rank:weights",
        "shared.randlora-rank:sides",
        "shared.randlora-rank:fewer-weights",
        "shared.randlora-rank:fewer-sides",
    ],
)
def randlora_has_five_bases(patch: Patches) -> None:
    patch.set(randlora, "math", types.SimpleNamespace(ceil=lambda x: 5, sqrt=math.sqrt))


@fake(
    "Sparse bases are uniform like the others.",
    caught_by=[f"shared.randlora-ternary:{check}" for check in ("a", "b", "very-sparse-a", "very-sparse-b")],
)
def randlora_knows_no_sparse(patch: Patches) -> None:
    @patch.replace(randlora.RandLoraModel, "draw")
    def draw(original: Any, cls: Any, config: Any, *args: Any) -> Tensor:
        config = copy.copy(config)
        config.sparse = config.very_sparse = False
        drawn: Tensor = original(cls, config, *args)
        return drawn


# --- VB-LoRA's bank


@fake(
    "The weights of the k vectors are those of a softmax over all logits.",
    caught_by=["law.forward:as-formula", "law.merge:as-formula"],
    points=[{"method": "vblora"}],
)
def vblora_normalises_over_all(patch: Patches) -> None:
    def softmax(largest: Tensor, dim: int) -> Tensor:
        return F.softmax(largest, dim) * 0.9  # the rest is for the others

    patch.set(vblora, "F", types.SimpleNamespace(softmax=softmax, linear=F.linear))


@fake(
    "One vector more than topk is mixed.",
    caught_by=["law.forward:as-formula", "law.merge:as-formula"],
    points=[{"method": "vblora"}],
)
def vblora_mixes_one_more(patch: Patches) -> None:
    @patch.replace(vblora.VBLoRALayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> Any:
        return original(self, config, name) | {"topk": config.topk + 1}


@fake(
    "Vectors of any length are taken.",
    caught_by=["shared.vblora-length:raises", "shared.vblora-length:not-adapted"],
)
def vblora_takes_any_length(patch: Patches) -> None:
    patch.replace(vblora.VBLoRALayer, "check")(nothing)


@fake("save_only_topk_weights is ignored.", caught_by=["shared.vblora-topk-only:file"])
def vblora_saves_all_logits(patch: Patches) -> None:
    @patch.replace(vblora.VBLoRALayer, "create")
    def create(original: Any, self: Any, *args: Any) -> Any:
        return original(self, *args) | {"save_only_topk_weights": False}


@fake(
    "Weights of a file are taken for logits.",
    caught_by=["shared.vblora-topk-only:same-output"],
)
def vblora_takes_weights_for_logits(patch: Patches) -> None:
    @patch.replace(vblora.VBLoRALayer, "from_checkpoint")
    def from_checkpoint(original: Any, cls: Any, *args: Any) -> Any:
        found = original(cls, *args)
        return {key: value.exp() if value.isinf().any() else value for key, value in found.items()}


@fake(
    "Training goes on with the logits of a file that has the largest only.",
    caught_by=["shared.vblora-topk-only:raises"],
)
def vblora_trains_what_is_infinite(patch: Patches) -> None:
    @patch.replace(vblora.VBLoRALayer, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        A, B = self.factors(adapter)
        return y + F.linear(F.linear(x.to(A.dtype), A), B)


@fake(
    "An adapter that is loaded keeps the shared bank and the scaling vectors that it was made with.",
    caught_by=["shared.after-loading:same-output", "shared.after-loading:same-output-of-bank"],
    points=[{"low_cpu": False}],
)
def loading_forgets_what_is_shared(patch: Patches) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, model: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        kept = {key: value for key, value in weights.items() if "bank" not in key and "lambda" not in key}
        return original(model, kept, *args, **kwargs)


@fake(
    "Each layer has a copy of what is one for the whole model.",
    caught_by=[
        "shared.projections:one-a",
        "shared.projections:one-b",
        "shared.after-loading:one-b",
        "shared.after-loading:one-bank",
    ],
    points=[{"low_cpu": False}],
)
def layers_copy_what_is_shared(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        done = original(self)
        for module in self.model.modules():
            for slot in getattr(module, "shared_slots", ()):
                setattr(module, slot, copy.deepcopy(getattr(module, slot)))
        return done
