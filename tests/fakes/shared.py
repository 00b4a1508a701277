"""Faults of what all methods and both kinds of model share: starting, loading, refusing, disabling."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft_reference import injection, mixed, model, state_dict
from torch import nn

from .fake import Patches, fake


@fake(
    "An adapter starts away from the identity, whatever its method.",
    caught_by=["ia3.sides:ones", "lycoris.core-on-conv1d:identity", "parameters.adapts:identity"],
)
def adapters_start_anywhere(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, *args: Any) -> Any:
        contents = original(self, *args)
        for value in contents.values():
            for tensor in value.parameters() if isinstance(value, nn.Module) else (value,):
                if isinstance(tensor, nn.Parameter):
                    tensor.data = tensor.data + 0.25
        return contents


@fake(
    "Everything that can be adapted is, but for what the config targets.",
    caught_by=[
        "ia3.targets:listed",
        "ia3.targets:matched",
        "ia3.targets:linear",
        "ia3.targets:not-listed",
        "ia3.targets:not-matched",
        "ia3.targets:not-output",
    ],
)
def targets_the_others(patch: Patches) -> None:
    @patch.replace(injection, "select_targets")
    def select_targets(original: Any, config: Any, targets: Any, candidates: Any, *args: Any) -> Any:
        chosen = original(config, targets, candidates, *args)
        return [n for n, m in candidates.items() if isinstance(m, nn.Linear) and n not in chosen]


@fake(
    "A model of several methods adapts a copy.",
    caught_by=[
        "mixed.create:same-model",
        "mixed.transformers:same-both-ways",
        "mixed.transformers:forwards",
        "mixed.transformers:same-tokens",
    ],
)
def mixed_models_adapt_a_copy(patch: Patches) -> None:
    @patch.replace(mixed.MixedModel, "__init__")
    def __init__(original: Any, self: Any, base: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, copy.deepcopy(base), *args, **kwargs)


@fake(
    "An adapter that is refused has been added.",
    caught_by=["merging.other-type:nothing-of-it", "mixed.existing-name:one-adapter"],
)
def adds_what_it_refuses(patch: Patches) -> None:
    def adds(original: Any, self: Any, adapter_name: str, *args: Any) -> Any:
        try:
            return original(self, adapter_name, *args)
        except ValueError:
            taken = adapter_name in self.peft_config
            config = copy.copy(next(iter(self.peft_config.values())))
            self.base_model.add_adapter(adapter_name + "2" * taken, config)
            raise

    patch.replace(model.AdaptedModel, "_add")(adds)
    patch.replace(model.PeftModel, "_add")(adds)


@fake(
    "Adapters are disabled from the start.",
    caught_by=["mixed_batch.disabled:adapter-acts"],
)
def starts_disabled(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "__init__")
    def __init__(original: Any, self: Any, base: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, base, *args, **kwargs)
        if not hasattr(base, "_first"):
            base._first = True
            self.base_model.disable_adapter_layers()


@fake(
    "A loaded model keeps a tensor on the meta device.",
    caught_by=["mixed.load:nothing-on-meta", "dora.merge-file:in-memory"],
)
def leaves_something_on_meta(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "_load")
    def _load(original: Any, self: Any, *args: Any) -> Any:
        outcome = original(self, *args)
        if "leftover" not in dict(self.named_buffers()):
            self.register_buffer("leftover", torch.empty(1, device="meta"))
        return outcome


@fake("Keys that were used are called unexpected.", caught_by=["mixed.load:all-used"])
def calls_keys_unexpected(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "_load")
    def _load(original: Any, self: Any, adapter_name: str, weights: Any, *args: Any) -> Any:
        outcome = original(self, adapter_name, weights, *args)
        return state_dict.IncompatibleKeys(outcome.missing_keys, list(weights))


@fake(
    "from_pretrained forgets the config that it is given.",
    caught_by=["mixed.load-config:used", "mixed.load-config:scaling"],
)
def loading_forgets_the_config(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        return original(cls, *args, **kwargs)


@fake("An adapter that is added is cast, even when it is not to be.", caught_by=["mixed.autocast:plain"])
def casts_all_the_same(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "_add")
    def _add(original: Any, self: Any, name: str, config: Any, low_cpu: bool, autocast: bool) -> Any:
        return original(self, name, config, low_cpu, True)
