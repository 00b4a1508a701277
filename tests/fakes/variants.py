"""Faults of LoRA's variants: KaSA, BD-LoRA, VeLoRA, MonteCLoRA and aLoRA."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from peft_reference.methods import (
    lora,
    lora_alora,
    lora_bdlora,
    lora_config,
    lora_kasa,
    lora_monteclora,
    lora_variant,
    lora_velora,
)
from torch import nn

from .fake import Patches, fake

KASA, BD, MONTE = lora_kasa.KasaVariant, lora_bdlora.BdLoraVariant, lora_monteclora.MontecloraVariant
VELORA, ALORA = lora_velora.VeloraVariant, lora_alora.AloraVariant


@fake("KaSA leaves the base weight as it is.", caught_by=["kasa.truncates:truncated"])
def kasa_does_not_truncate(patch: Patches) -> None:
    @patch.replace(KASA, "create")
    def create(original: Any, *given: Any) -> dict[str, Any]:
        return {slot: value for slot, value in original(*given).items() if slot != "weight"}


@fake("KaSA takes the largest components.", caught_by=["kasa.truncates:truncated"])
def kasa_takes_the_largest(patch: Patches) -> None:
    @patch.replace(lora_kasa, "svd")
    def svd(original: Any, matrix: Any) -> Any:
        return tuple(part.flip(-1 if i < 2 else 0) for i, part in enumerate(original(matrix)))


@fake("Unloading KaSA changes the weight once more.", caught_by=["kasa.truncates:unloaded"])
def kasa_unloads_something_else(patch: Patches) -> None:
    @patch.replace(lora.LoraModel, "unload")
    def unload(original: Any, self: Any) -> Any:
        model = original(self)
        for parameter in model.parameters():
            parameter.data.mul_(2)
        return model


@fake(
    "KaSA joins adapters without it, and they it.",
    caught_by=["kasa.alone:raises-*", "kasa.alone:as-they-were", "kasa.alone:frame"],
)
def kasa_is_not_alone(patch: Patches) -> None:
    patch.set(lora.LoraModel, "settle", classmethod(lambda cls, config, model, name: {}))


@fake(
    "KaSA asks neither for a rank nor for a kind of layer.",
    caught_by=["kasa.refused:raises", "kasa.refused:not-adapted"],
)
def kasa_refuses_nothing(patch: Patches) -> None:
    patch.set(KASA, "check", staticmethod(lambda *given: None))
    patch.set(KASA, "operators", lora.LoraLayer.operators)
    patch.set(KASA, "create", staticmethod(lambda layer, config, name, contents: contents))
    patch.set(lora_config.LoraConfig, "variant", property(lambda self: KASA if self.kasa_config else None))


@fake("KaSA's regulariser forgets A.", caught_by=["kasa.loss:closed-form"])
def kasa_loss_without_a(patch: Patches) -> None:
    @patch.replace(lora, "regulariser")
    def regulariser(original: Any, *given: Any) -> Any:
        return original(*given) - 1.0


@fake("There is a regulariser without KaSA.", caught_by=["kasa.loss:nothing"])
def kasa_loss_of_lora(patch: Patches) -> None:
    @patch.replace(lora.LoraModel, "_get_kasa_loss")
    def loss(original: Any, self: Any, *given: Any) -> Any:
        return original(self, *given) or 1.0


@fake("A KaSA adapter that is loaded does not truncate.", caught_by=["kasa.reload:same-output"])
def kasa_loads_without_truncating(patch: Patches) -> None:
    @patch.replace(KASA, "create")
    def create(original: Any, layer: Any, config: Any, *given: Any) -> dict[str, Any]:
        made = original(layer, config, *given)
        return {slot: value for slot, value in made.items() if slot != "weight" or not config.inference_mode}


@fake(
    "BD-LoRA is LoRA.",
    caught_by=[*(f"bdlora.blocks:{side}-blocks" for side in "ab"), "bdlora.refused:blocks"],
)
def bdlora_has_no_blocks(patch: Patches) -> None:
    patch.set(BD, "create", staticmethod(lambda layer, config, name, contents: contents))


@fake(
    "BD-LoRA exchanges its lists and takes blocks for granted.",
    caught_by=[*(f"bdlora.blocks:{side}-whole" for side in "ab"), "bdlora.refused:plain"],
)
def bdlora_blocks_of_both(patch: Patches) -> None:
    @patch.replace(BD, "create")
    def create(original: Any, layer: Any, config: Any, name: str, contents: Any) -> dict[str, Any]:
        for slot in ("lora_A", "lora_B"):
            whole = contents[slot].weight
            half = nn.Parameter(whole.detach()[:, : whole.shape[1] // 2].clone())
            contents[slot] = lora_bdlora.BlockDiagonal(half, 2, None)
        return contents


@fake(
    "BD-LoRA takes any lists.",
    caught_by=["bdlora.refused:raises-*", "bdlora.refused:not-adapted", "bdlora.refused:frame"],
)
def bdlora_refuses_nothing(patch: Patches) -> None:
    patch.set(lora_bdlora.BdLoraConfig, "__post_init__", lambda self: None)
    patch.set(BD, "check", staticmethod(lambda *given: None))
    patch.set(BD, "create", staticmethod(lambda layer, config, name, contents: contents))


@fake("VeLoRA computes with compressed inputs.", caught_by=["velora.forward:as-lora"])
def velora_compresses_forwards(patch: Patches) -> None:
    @patch.replace(lora_velora._Compressed, "forward")
    def forward(original: Any, ctx: Any, x: Any, A: Any, v: Any, scale: float) -> Any:
        return original(ctx, 0 * x, A, v, scale)


@fake("VeLoRA gives A no gradient.", caught_by=["velora.forward:gradients"])
def velora_forgets_the_input(patch: Patches) -> None:
    @patch.replace(lora_velora._Compressed, "backward")
    def backward(original: Any, ctx: Any, gradient: Any) -> Any:
        x, A, *rest = original(ctx, gradient)
        return x, 0 * A, *rest


@fake(
    "VeLoRA takes any options and any layer.",
    caught_by=["velora.options:raises-*", "velora.options:not-adapted"],
)
def velora_refuses_nothing(patch: Patches) -> None:
    patch.set(lora_velora.VeloraConfig, "__post_init__", lambda self: None)
    patch.set(VELORA, "operators", lora.LoraLayer.operators)
    patch.set(VELORA, "create", staticmethod(lambda layer, config, name, contents: contents))


@fake("The options of the variants have other defaults.", caught_by=["variants.option-defaults:*"])
def variants_have_other_defaults(patch: Patches) -> None:
    for kind in (lora_kasa.KasaConfig, lora_velora.VeloraConfig):

        def __init__(self: Any, **given: Any) -> None:
            for field in dataclasses.fields(self):
                setattr(self, field.name, 7)

        patch.set(kind, "__init__", __init__)


@fake(
    "MonteCLoRA's noise does not stop in evaluation mode.",
    caught_by=["monteclora.evaluation:as-lora", "monteclora.evaluation:the-same"],
)
def monteclora_never_rests(patch: Patches) -> None:
    @patch.replace(MONTE, "adapt")
    def adapt(original: Any, layer: Any, adapter: str, x: Any, y: Any) -> Any:
        return original(layer, adapter, x, y) + torch.randn(())


@fake("MonteCLoRA draws no noise.", caught_by=["monteclora.evaluation:*noise"])
def monteclora_is_lora(patch: Patches) -> None:
    patch.set(MONTE, "adapt", staticmethod(lora_variant.LoraVariant.adapt))


@fake("MonteCLoRA has a regulariser without a sampler.", caught_by=["monteclora.evaluation:nothing"])
def monteclora_loss_of_lora(patch: Patches) -> None:
    @patch.replace(lora.LoraModel, "_get_monteclora_loss")
    def loss(original: Any, self: Any, *given: Any) -> Any:
        return original(self, *given) or 1.0


@fake(
    "aLoRA acts everywhere.",
    caught_by=[
        *(f"alora.from-invocation:{check}" for check in ("not-invoked", "before")),
        "alora.generates:as-base",
    ],
)
def alora_acts_everywhere(patch: Patches) -> None:
    patch.set(ALORA, "adapt", staticmethod(lora_variant.LoraVariant.adapt))


@fake(
    "aLoRA never acts.",
    caught_by=[
        *(f"alora.from-invocation:{check}" for check in ("as-lora", "from")),
        *("alora.generates:as-lora", "alora.generates:changed"),
    ],
)
def alora_never_acts(patch: Patches) -> None:
    patch.set(ALORA, "adapt", staticmethod(lambda layer, adapter, x, y: y))


@fake("aLoRA acts from the first invocation on.", caught_by=["alora.from-invocation:before"])
def alora_from_the_first(patch: Patches) -> None:
    @patch.replace(lora_alora, "starts")
    def starts(original: Any, ids: Any, invocation: Any) -> Any:
        found = (ids == invocation[0]).int()
        return torch.where(found.any(1), found.argmax(1), original(ids, invocation))


@fake(
    "aLoRA is merged like LoRA, and made for any task.",
    caught_by=["alora.refused:raises", "alora.refused:warns"],
)
def alora_refuses_nothing(patch: Patches) -> None:
    plain = lora_variant.LoraVariant
    patch.set(ALORA, "check_mergeable", staticmethod(plain.check_mergeable))
    patch.set(ALORA, "delta", staticmethod(plain.delta))

    @patch.replace(lora_config.LoraConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            original(self)
