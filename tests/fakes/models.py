"""Faults of PeftModel's members: mixed batches, weighted combinations, saved modules, status."""

from __future__ import annotations

from typing import Any

from peft_reference import holder, injection, layer, model, wrappers

from .activating import layers_of
from .fake import Patches, fake

# Batches of several adapters -----------------------------------------------------------------------


@fake(
    "Each sample of a mixed batch gets the adapter of its neighbour.",
    caught_by=[
        *(f"mixed_batch.per-sample:{who}" for who in ("default", "other", "base")),
        *(f"mixed_batch.transformers:{who}" for who in ("default", "other", "base")),
        *(f"mixed_batch.modules-to-save:{who}" for who in ("default", "other", "base")),
    ],
)
def mixed_batch_shifts_the_names(patch: Patches) -> None:
    @patch.replace(holder.Batch, "apply")
    def apply(original: Any, self: Any, samples: int, compute: Any) -> Any:
        names = self.names[1:] + self.names[:1]
        return original(holder.Batch(names, self.repeat), samples, compute)


@fake(
    "__base__ stands for the active adapters.",
    caught_by=["mixed_batch.per-sample:base", "mixed_batch.transformers:base"],
)
def mixed_batch_base_is_adapted(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "_adapt_per_sample")
    def _adapt_per_sample(original: Any, self: Any, batch: Any, x: Any, y: Any) -> Any:
        names = tuple(self.active_adapters[0] if n == "__base__" else n for n in batch.names)
        return original(self, holder.Batch(names, batch.repeat), x, y)


@fake(
    "In a mixed batch every sample goes through the active adapter's copy of a saved module.",
    caught_by=["mixed_batch.modules-to-save:other", "mixed_batch.modules-to-save:base"],
)
def mixed_batch_ignores_saved_modules(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.acting_copy()(*args, **kwargs)


@fake(
    "A mixed batch is computed in training mode, while adapters are merged, and with unknown names.",
    caught_by=[f"mixed_batch.{why}:raises*" for why in ("training", "merged", "unknown-name")],
)
def mixed_batch_checks_nothing(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "_check_per_sample")
    def _check_per_sample(original: Any, self: Any, found: Any, names: Any) -> None:
        pass


@fake(
    "Too many names are cut off, and samples without a name get the base model.",
    caught_by=[
        "mixed_batch.length:raises-short",
        "mixed_batch.length:raises-long",
        "mixed_batch.length:raises-empty",
    ],
)
def mixed_batch_fits_any_length(patch: Patches) -> None:
    @patch.replace(holder.Batch, "apply")
    def apply(original: Any, self: Any, samples: int, compute: Any) -> Any:
        names = (*self.names, *["__base__"] * samples)[:samples]
        return original(holder.Batch(names), samples, compute)


@fake(
    "adapter_names acts although the adapters are disabled.",
    caught_by=["mixed_batch.disabled:base-output"],
)
def mixed_batch_wins_over_disabling(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        off = [m for m in self.modules() if getattr(m, "_disable_adapters", False)]
        if "adapter_names" not in kwargs:
            return original(self, *args, **kwargs)
        for module in off:
            module._disable_adapters = False
        try:
            return original(self, *args, **kwargs)
        finally:
            for module in off:
                module._disable_adapters = True


@fake(
    "The hooks that carry adapter_names to the layers stay when the call fails.",
    like="peft 0.21.2",
    caught_by=[f"mixed_batch.{why}:frame" for why in ("length", "merged", "training", "unknown-name")],
)
def mixed_batch_leaves_hooks_after_an_error(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except ValueError:
            for tuner_layer in layers_of(self):
                tuner_layer.register_forward_pre_hook(lambda module, args: None)
            raise


@fake(
    "A mixed batch leaves its last adapter active.",
    caught_by=[
        f"mixed_batch.{why}:frame" for why in ("per-sample", "transformers", "modules-to-save", "disabled")
    ],
)
def mixed_batch_activates(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, *args, **kwargs)
        for name in kwargs.get("adapter_names", ())[-1:]:
            for tuner_layer in layers_of(self):
                tuner_layer._active_adapter = [name, "__base__"]
        return y
