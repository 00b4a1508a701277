"""Faults of merging, unmerging, unloading and disabling."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Any

import torch
from peft_reference import injection, layer, merging, model, wrappers
from torch import nn

from .activating import layers_of
from .fake import Patches, fake

LAYER = layer.BaseTunerLayer

# Merging -------------------------------------------------------------------------------------------


@fake("Of several active adapters only the first is merged.", caught_by=["law.merge-both:merged"])
def merges_the_first_active_adapter(patch: Patches) -> None:
    @patch.replace(LAYER, "mergeable_adapters")
    def mergeable_adapters(original: Any, self: Any, adapter_names: Any = None) -> list[str]:
        return original(self, adapter_names)[:1]


@fake(
    "merge_adapter marks the layers as merged and writes nothing.",
    caught_by=["peft_model.merge-adapter:weight-written", "lycoris.core-on-conv1d:merges"],
)
def merges_nothing(patch: Patches) -> None:
    @patch.replace(LAYER, "merged_base")
    def merged_base(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        original(self, *args, **kwargs)
        return self.weight, self.bias


@fake(
    "A merged layer still adds its adapters, so that they act twice.",
    caught_by=["peft_model.merge-adapter:output-kept", "law.merge:as-adapted"],
)
def merged_adapters_act_twice(patch: Patches) -> None:
    @patch.replace(LAYER, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        said, self.merged_adapters = self.merged_adapters, []
        try:
            return original(self, x, *args, **kwargs)
        finally:
            self.merged_adapters = said


@fake(
    "The output of a merged layer is float32.",
    caught_by=["law.merge:output-type"],
    points=[{"dtype": "float64"}],
)
def merged_outputs_are_float32(patch: Patches) -> None:
    @patch.replace(LAYER, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, x, *args, **kwargs)
        return y.float() if self.merged else y


@fake("Merging forgets the scaling.", caught_by=["peft_model.merge-adapter:output-kept"])
def merges_without_scaling(patch: Patches) -> None:
    from peft_reference.methods import lora

    @patch.replace(lora.LoraLayer, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        return original(self, adapter) / self.scaling[adapter]


@fake(
    "Merging removes the adapter.",
    caught_by=["peft_model.merge-adapter:names-merged", "law.merge:says-merged"],
)
def merge_forgets_the_adapter(patch: Patches) -> None:
    @patch.replace(LAYER, "merge")
    def merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.merged_adapters = []


@fake("Merging freezes the adapter.", caught_by=["peft_model.merge-named:adapters-kept"])
def merge_freezes_the_adapter(patch: Patches) -> None:
    @patch.replace(LAYER, "merge")
    def merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for adapter in self.all_adapters():
            self.set_requires_grad(adapter, False)


@fake(
    "Unmerging initialises the adapter again.",
    caught_by=[
        "peft_model.merge-adapter:adapter-kept",
        "peft_model.merge-adapter:output-after",
        "law.unmerge:as-adapted",
    ],
)
def unmerge_resets_the_adapter(patch: Patches) -> None:
    @patch.replace(LAYER, "unmerge")
    def unmerge(original: Any, self: Any) -> None:
        original(self)
        with torch.no_grad():
            for adapter in self.all_adapters():
                for parameter in self.adapter_parameters(adapter):
                    parameter.zero_()


@fake(
    "unmerge_adapter only forgets that the layers are merged.",
    caught_by=[
        "peft_model.merge-adapter:weight-restored",
        "law.unmerge:as-base",
        "tying.lora-tied-merge:unmerged-as-adapted",
        "mha.round-trip:unmerged",
    ],
)
def unmerges_nothing(patch: Patches) -> None:
    @patch.replace(LAYER, "unmerge")
    def unmerge(original: Any, self: Any) -> None:
        self._saved_base = None
        self.merged_adapters.clear()


@fake(
    "unmerge_adapter leaves the layers marked as merged.",
    caught_by=["peft_model.merge-adapter:none-merged-after", "law.unmerge:nothing-merged"],
)
def unmerge_keeps_the_mark(patch: Patches) -> None:
    @patch.replace(LAYER, "unmerge")
    def unmerge(original: Any, self: Any) -> None:
        names = list(self.merged_adapters)
        original(self)
        self.merged_adapters.extend(names)


@fake(
    "Unmerging subtracts the product instead of putting the saved weight back, so that rounding stays.",
    caught_by=["law.unmerge:bits"],
    like="peft 0.21.2",
)
def unmerges_by_subtraction(patch: Patches) -> None:
    @patch.replace(LAYER, "unmerge")
    def unmerge(original: Any, self: Any) -> None:
        with torch.no_grad():
            for adapter in self.merged_adapters:
                self.weight.sub_(self.get_delta_weight(adapter).to(self.weight.dtype))
        self._saved_base = None
        self.merged_adapters.clear()


@fake(
    "adapter_names of merge_adapter is ignored, the active adapters are merged.",
    caught_by=["peft_model.merge-named:other-merged"],
)
def merge_ignores_names(patch: Patches) -> None:
    @patch.replace(merging, "merge_adapter")
    def merge_adapter(
        original: Any,
        model: nn.Module,
        adapter_names: Any = None,
        safe_merge: bool = False,
        **kwargs: Any,
    ) -> None:
        original(model, None, safe_merge, **kwargs)


@fake(
    "safe_merge is ignored.",
    caught_by=[
        "peft_model.safe-merge:raises",
        "peft_model.safe-merge:base-finite",
        "peft_model.safe-merge:not-merged",
    ],
)
def merges_unsafely(patch: Patches) -> None:
    @patch.replace(merging, "merge_adapter")
    def merge_adapter(
        original: Any,
        model: nn.Module,
        adapter_names: Any = None,
        safe_merge: bool = False,
        **kwargs: Any,
    ) -> None:
        original(model, adapter_names, **kwargs)


@fake(
    "safe_merge raises after it has written the weights.",
    caught_by=["peft_model.safe-merge:base-finite", "peft_model.safe-merge:frame"],
)
def safe_merge_raises_too_late(patch: Patches) -> None:
    @patch.replace(merging, "merge_adapter")
    def merge_adapter(
        original: Any,
        model: nn.Module,
        adapter_names: Any = None,
        safe_merge: bool = False,
        **kwargs: Any,
    ) -> None:
        original(model, adapter_names, **kwargs)
        if safe_merge and not all(p.isfinite().all() for p in model.parameters()):
            raise ValueError("NaNs detected in the merged weights. An adapter seems to be broken: default.")


@fake(
    "safe_merge merges a copy of the weight and forgets to write it back.",
    caught_by=["peft_model.merge-and-unload:output"],
    points=[{"safe": True}],
)
def safe_merge_is_lost(patch: Patches) -> None:
    @patch.replace(merging, "merge_adapter")
    def merge_adapter(
        original: Any,
        model: nn.Module,
        adapter_names: Any = None,
        safe_merge: bool = False,
        **kwargs: Any,
    ) -> None:
        weights = [(p, p.detach().clone()) for p in model.parameters()]
        original(model, adapter_names, safe_merge, **kwargs)
        if safe_merge:
            with torch.no_grad():
                for parameter, weight in weights:
                    parameter.copy_(weight)


@fake(
    "Merging puts a new tensor in the place of the base weight.",
    caught_by=["peft_model.merge-adapter:frame", "peft_model.merge-named:frame"],
)
def merge_reallocates(patch: Patches) -> None:
    @patch.replace(LAYER, "_write_base")
    def _write_base(original: Any, self: Any, weight: Any, bias: Any) -> None:
        self.weight.data = weight.detach().clone()
        if bias is not None:
            self.bias.data = bias.detach().clone()


@fake("Merging twice writes the adapter twice.", caught_by=["peft_model.*:*", "law.*:*"])
def merges_twice(patch: Patches) -> None:
    @patch.replace(LAYER, "mergeable_adapters")
    def mergeable_adapters(original: Any, self: Any, adapter_names: Any = None) -> list[str]:
        said, self.merged_adapters = self.merged_adapters, []
        try:
            return original(self, adapter_names)
        finally:
            self.merged_adapters = said


# Unloading -----------------------------------------------------------------------------------------


@fake(
    "merge_and_unload returns a copy of the model.",
    caught_by=[
        "peft_model.merge-and-unload:same-object",
        "mixed.merge-and-unload:same-model",
        "mixed.unload:same-model",
    ],
)
def unloads_a_copy(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, *args: Any, **kwargs: Any) -> nn.Module:
        return copy.deepcopy(original(*args, **kwargs))


@fake(
    "unload and merge_and_unload give every layer a new copy of its weights.",
    caught_by=["peft_model.unload:weights"],
)
def unload_rebuilds_layers(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        original(model, *args, **kwargs)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model


@fake(
    "merge_and_unload does not merge.",
    caught_by=[
        "peft_model.merge-and-unload:output",
        "peft_model.merge-and-unload-transformers:output",
        "tying.copies-tied:merged-same",
    ],
)
def unloads_without_merging(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, model: nn.Module, merge: bool, *args: Any, **kwargs: Any) -> nn.Module:
        return original(model, False, *args, **kwargs)


@fake("unload merges.", caught_by=["peft_model.unload:weights", "peft_model.unload:output"])
def unload_merges(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, model: nn.Module, merge: bool, *args: Any, **kwargs: Any) -> nn.Module:
        return original(model, True, *args, **kwargs)


@fake(
    "merge_and_unload leaves the adapter layers in the model, merged.",
    caught_by=[
        "peft_model.merge-and-unload:no-adapter-layer",
        "peft_model.merge-and-unload:no-adapter-tensor",
        "peft_model.merge-and-unload:own-names",
    ],
)
def unload_leaves_the_layers(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, model: nn.Module, merge: bool, *args: Any, **kwargs: Any) -> nn.Module:
        if merge:
            merging.merge_adapter(model)
        else:
            for held in layers_of(model):
                held._active_adapter = []
        vars(model).pop("peft_config", None)
        return model


@fake(
    "merge_and_unload returns the tuner around the base model.",
    caught_by=["peft_model.merge-and-unload:same-object", "peft_model.merge-and-unload:class"],
)
def unload_returns_the_tuner(patch: Patches) -> None:
    for name in ("merge_and_unload", "unload"):

        @patch.replace(injection.BaseTuner, name)
        def method(original: Any, self: Any, *args: Any, **kwargs: Any) -> nn.Module:
            original(self, *args, **kwargs).peft_config = {}  # which the tuner looks up in its forward pass
            return self


@fake(
    "adapter_names of merge_and_unload is ignored.",
    caught_by=[
        "peft_model.merge-and-unload-named:other-merged",
        "peft_model.merge-and-unload-named:default-dropped",
    ],
)
def unload_ignores_names(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(
        original: Any,
        model: Any,
        merge: bool,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Any = None,
    ) -> Any:
        return original(model, merge, progressbar, safe_merge)


@fake(
    "The original takes the place of the trained copy of a module to save.",
    caught_by=["peft_model.modules-to-save-merged:output"],
)
def unload_drops_modules_to_save(patch: Patches) -> None:
    patch.replace(merging, "_saved_copy")(lambda original, wrapper, names: wrapper.original_module)


@fake(
    "The wrapper of a module to save stays in the unloaded model.",
    caught_by=["peft_model.modules-to-save-merged:own-names", "peft_model.modules-to-save-merged:plain-lin1"],
)
def unload_leaves_wrappers(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        held = [(n, m) for n, m in model.named_modules() if isinstance(m, wrappers.ModulesToSaveWrapper)]
        original(model, *args, **kwargs)
        for name, module in held:
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, module)
        return model


# Disabling -----------------------------------------------------------------------------------------


@fake(
    "disable_adapter does nothing.",
    caught_by=[
        "peft_model.disable-adapter:base-inside",
        "peft_model.disable-adapter:disabled-inside",
        "law.disabled:as-base",
        "replication.trains-apart:disabled",
    ],
)
def disables_nothing(patch: Patches) -> None:
    for holder in (LAYER, wrappers.ModulesToSaveWrapper):
        patch.replace(holder, "enable_adapters")(lambda original, self, enabled: None)


@fake(
    "disable_adapter leaves the adapters disabled.",
    caught_by=[
        "peft_model.disable-adapter:adapted-after",
        "peft_model.disable-adapter:enabled-after",
        "law.disabled:as-before",
        "mixed.disable:adapted-after",
    ],
)
def stays_disabled(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "enable_adapter_layers")
    def enable_adapter_layers(original: Any, self: Any) -> None:
        return None


@fake(
    "disable_adapter disables when it is called, before its block is entered.",
    caught_by=[
        "peft_model.disable-without-block:still-adapted",
        "peft_model.disable-without-block:still-enabled",
    ],
)
def disables_at_the_call(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "disable_adapter")
    def disable_adapter(original: Any, self: Any) -> Any:
        self.base_model.disable_adapter_layers()

        @contextmanager
        def block() -> Any:
            try:
                yield
            finally:
                self.base_model.enable_adapter_layers()

        return block()


@fake(
    "disable_adapter does not put the adapters back when its block raises.",
    caught_by=[
        "peft_model.disable-after-error:adapted-after",
        "peft_model.disable-after-error:enabled-after",
    ],
)
def disable_leaks_after_errors(patch: Patches) -> None:
    @contextmanager
    def disable_adapter(self: Any) -> Any:
        if all(held.disable_adapters for held in layers_of(self)):
            yield
            return
        flags = [(p, p.requires_grad) for p in self.parameters()]
        self.base_model.disable_adapter_layers()
        yield
        self.base_model.enable_adapter_layers()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

    patch.set(model.PeftModel, "disable_adapter", disable_adapter)


@fake(
    "Leaving an inner disable_adapter enables the adapters within the outer one.",
    caught_by=["peft_model.disable-nested:outer-base"],
)
def nested_disable_enables(patch: Patches) -> None:
    @contextmanager
    def disable_adapter(self: Any) -> Any:
        self.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self.base_model.enable_adapter_layers()

    patch.set(model.PeftModel, "disable_adapter", disable_adapter)


@fake("Disabled adapters stay trainable.", caught_by=["peft_model.disable-adapter:frozen-inside"])
def disabled_adapters_train(patch: Patches) -> None:
    @patch.replace(LAYER, "enable_adapters")
    def enable_adapters(original: Any, self: Any, enabled: bool) -> None:
        self._disable_adapters = not enabled


@fake("Leaving disable_adapter freezes the adapters.", caught_by=["peft_model.disable-adapter:frame"])
def disable_freezes(patch: Patches) -> None:
    @contextmanager
    def disable_adapter(self: Any) -> Any:
        said = [held.disable_adapters for held in layers_of(self)]
        self.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            if not all(said):
                self.base_model.enable_adapter_layers()
            for held in layers_of(self):
                held.set_requires_grad(held.all_adapters(), False)

    patch.set(model.PeftModel, "disable_adapter", disable_adapter)


@fake(
    "Disabling deactivates the adapters for good.",
    caught_by=["peft_model.disable-adapter:enabled-after", "peft_model.disable-adapter:adapted-after"],
)
def disable_deactivates(patch: Patches) -> None:
    @patch.replace(LAYER, "enable_adapters")
    def enable_adapters(original: Any, self: Any, enabled: bool) -> None:
        original(self, enabled)
        self._active_adapter = []


@fake(
    "Disabling zeroes the adapter's weights to get the base output.",
    caught_by=["peft_model.disable-adapter:adapted-after"],
)
def disable_zeroes_weights(patch: Patches) -> None:
    @patch.replace(LAYER, "enable_adapters")
    def enable_adapters(original: Any, self: Any, enabled: bool) -> None:
        original(self, enabled)
        with torch.no_grad():
            for adapter in self.all_adapters():
                for parameter in self.adapter_parameters(adapter):
                    parameter.zero_()


@fake(
    "A disabled adapter still scales the output a little.",
    caught_by=["peft_model.disable-adapter:base-inside", "peft_model.adapter-layers-switch:off-is-base"],
)
def disabled_output_is_rounded(patch: Patches) -> None:
    @patch.replace(LAYER, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, x, *args, **kwargs)
        return y * (1 + 1e-6) if self._disable_adapters else y


@fake("Disabling an adapter with biases gives no warning.", caught_by=["peft_model.disable-with-bias:warns"])
def disable_is_silent_about_biases(patch: Patches) -> None:
    import warnings

    @patch.replace(injection.BaseTuner, "disable_adapter_layers")
    def disable_adapter_layers(original: Any, self: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            original(self)
