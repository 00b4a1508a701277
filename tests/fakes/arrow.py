"""Faults of Arrow, which routes each token to the LoRA adapters that fit it best."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import peft_reference
import torch
from peft_reference.methods import lora_arrow

from .fake import Patches, fake

ROUTES = ["arrow.routes:softmax"]


def _fits(layer: Any, names: list[str], x: Any, signed: bool = False) -> Any:
    """How well each adapter fits each token: (..., adapters)."""
    fits = x @ torch.stack([lora_arrow._prototype(*layer.factors(name)) for name in names]).t()
    return fits if signed else fits.abs()


@fake("The router is there, and the first task adapter is active.", caught_by=["arrow.create:adapters"])
def arrow_does_not_activate(patch: Patches) -> None:
    @patch.replace(peft_reference, "create_arrow_model")
    def create(original: Any, *args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        model.set_adapter("task_0")
        return model


@fake(
    "What was loaded from a folder is noted in it.",
    caught_by=[f"arrow.{clause}:frame" for clause in ("create", "one-task", "routes", "genknowsub")],
)
def arrow_leaves_a_note(patch: Patches) -> None:
    @patch.replace(peft_reference, "create_arrow_model")
    def create(original: Any, *args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        for path in kwargs["task_specific_adapter_paths"]:
            Path(path, "loaded.txt").write_text("loaded")
        return model


@fake("How well an adapter fits is its weight.", caught_by=["arrow.one-task:as-alone", *ROUTES])
def arrow_without_softmax(patch: Patches) -> None:
    patch.set(lora_arrow.Router, "weights", lambda self, layer, names, x: _fits(layer, names, x))


@fake("The vector that stands for an adapter is its first row of A.", caught_by=ROUTES)
def arrow_by_the_first_row(patch: Patches) -> None:
    patch.set(lora_arrow, "_prototype", lambda A, B: A[0] / A[0].norm())


@fake("The last right singular vector stands for an adapter.", caught_by=[*ROUTES, "arrow.routes:top-k"])
def arrow_by_the_last_vector(patch: Patches) -> None:
    patch.set(
        lora_arrow, "_prototype", lambda A, B: torch.linalg.svd(B @ A, full_matrices=False)[2][len(A) - 1]
    )


@fake("A vector that stands for an adapter is as long as its singular value says.", caught_by=ROUTES)
def arrow_with_long_vectors(patch: Patches) -> None:
    @patch.replace(lora_arrow, "_prototype")
    def prototype(original: Any, A: Any, B: Any) -> Any:
        return original(A, B) * torch.linalg.matrix_norm(B @ A, 2)


@fake("A vector counts for nothing where it points the other way.", caught_by=ROUTES)
def arrow_minds_the_sign(patch: Patches) -> None:
    @patch.replace(lora_arrow, "_prototype")
    def prototype(original: Any, A: Any, B: Any) -> Any:
        vector = original(A, B)
        return vector * -vector.sum().sign()

    @patch.replace(lora_arrow.Router, "weights")
    def weights(original: Any, self: Any, layer: Any, names: list[str], x: Any) -> Any:
        return torch.softmax(_fits(layer, names, x, signed=True) / self.options.router_temperature, -1)


@fake("The temperature is multiplied by.", caught_by=ROUTES)
def arrow_heats_the_wrong_way(patch: Patches) -> None:
    @patch.replace(lora_arrow.Router, "weights")
    def weights(original: Any, self: Any, layer: Any, names: list[str], x: Any) -> Any:
        return torch.softmax(_fits(layer, names, x) * self.options.router_temperature, -1)


@fake("All adapters act on all tokens.", caught_by=["arrow.routes:top-k"])
def arrow_forgets_top_k(patch: Patches) -> None:
    @patch.replace(lora_arrow.Router, "weights")
    def weights(original: Any, self: Any, layer: Any, names: list[str], x: Any) -> Any:
        self.options.top_k = len(names)
        return original(self, layer, names, x)


@fake("General adapters are loaded, and nothing is taken off.", caught_by=["arrow.genknowsub:taken-off"])
def arrow_keeps_general_knowledge(patch: Patches) -> None:
    patch.set(lora_arrow, "_subtract", lambda *given: None)


@fake("The sum of the general adapters is taken off.", caught_by=["arrow.genknowsub:taken-off"])
def arrow_subtracts_the_sum(patch: Patches) -> None:
    @patch.replace(lora_arrow, "_subtract")
    def subtract(original: Any, model: Any, tasks: list[str], general: list[str]) -> None:
        for name in general:
            original(model, tasks, [name])


@fake(
    "The defaults of Arrow are others.",
    caught_by=["arrow.options:top-k", "arrow.options:temperature", "arrow.options:gks"],
)
def arrow_with_other_defaults(patch: Patches) -> None:
    @patch.replace(lora_arrow.ArrowConfig, "__post_init__")
    def check(original: Any, self: Any) -> None:
        original(self)
        if [getattr(self, f.name) == f.default for f in fields(self) if f.init].count(False) == 0:
            self.top_k, self.router_temperature, self.use_gks = 2, 0.5, True


@fake("Options that are not positive are taken.", caught_by=["arrow.options:raises-*"])
def arrow_takes_any_number(patch: Patches) -> None:
    patch.set(lora_arrow.ArrowConfig, "__post_init__", lambda self: None)


@fake(
    "Adapters of other ranks and other targets are taken.",
    caught_by=["arrow.refused:raises-ranks", "arrow.refused:raises-targets", "arrow.refused:frame"],
)
def arrow_takes_any_adapter(patch: Patches) -> None:
    @patch.replace(lora_arrow, "_same_config")
    def same(original: Any, paths: dict[str, Any]) -> Any:
        return original(dict([next(iter(paths.items()))]))


@fake(
    "Without adapters there is a model all the same.",
    caught_by=["arrow.refused:raises-none", "arrow.refused:raises-none-general", "arrow.refused:not-adapted"],
)
def arrow_of_nothing(patch: Patches) -> None:
    @patch.replace(peft_reference, "create_arrow_model")
    def create(original: Any, **given: Any) -> Any:
        try:
            return original(**given)
        except ValueError:
            config = peft_reference.LoraConfig(target_modules=["lin1"])
            return peft_reference.get_peft_model(given["base_model"], config)
