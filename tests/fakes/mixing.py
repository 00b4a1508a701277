"""Faults of models with adapters of several methods, and of the methods that come with them."""

from __future__ import annotations

from typing import Any

import torch
from peft_reference import adapters, injection, layer, merging, mixed, model
from peft_reference.layer import BaseTunerLayer
from peft_reference.methods import lokr, lycoris, oft
from peft_reference.mixed import MixedModel, PeftMixedModel

from .fake import Patches, fake

# Several methods on one layer ----------------------------------------------------------------------


@fake(
    "Where methods are mixed on a layer, only the first one acts.",
    caught_by=["mixed.both-act:as-formula", "mixed.both-act:second-only", "mixed.load:second-acts"],
    points=[{"first": "lora", "second": "loha"}],
)
def only_the_inner_layer_acts(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.base_layer, BaseTunerLayer):
            return self.base_layer(x, *args, **kwargs)
        return original(self, x, *args, **kwargs)


@fake(
    "A second method's layer takes the place of the first one's.",
    caught_by=["mixed.add:same-output", "mixed.add:old-trains"],
    points=[{"first": "lora", "second": "loha"}, {"first": "lora", "second": "lokr"}],
)
def the_second_method_replaces_the_first(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_adapted_layer")
    def adapted_layer(original: Any, self: Any, name: str, module: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, name, module, *args, **kwargs)
        if isinstance(made.base_layer, BaseTunerLayer):
            made.base_layer = made.get_base_layer()
        return made


@fake(
    "Adapters of one layer act in the order of the names that set_adapter gets.",
    caught_by=["mixed.both-act:any-order"],
    like="peft 0.21.2",
    points=[{"first": "oft", "second": "oft"}],
)
def the_order_of_names_decides(patch: Patches) -> None:
    @patch.replace(MixedModel, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_name: Any, inference_mode: bool = False) -> None:
        injection.BaseTuner.set_adapter(self, adapter_name, inference_mode)


@fake(
    "Activation reaches the outermost adapted layer only.",
    caught_by=["mixed.both-act:first-frozen", "mixed.disable:base-inside"],
    points=[{"first": "lora", "second": "loha"}, {"first": "lora", "second": "lokr"}],
)
def inner_layers_are_forgotten(patch: Patches) -> None:
    @patch.replace(adapters, "named_holders")
    def named_holders(original: Any, *args: Any, **kwargs: Any) -> Any:
        inner: set[int] = set()
        for name, holder in original(*args, **kwargs):
            if id(holder) not in inner:
                yield name, holder
            inner.add(id(getattr(holder, "base_layer", None)))


@fake(
    "merge_and_unload merges the outermost adapted layers only.",
    caught_by=["mixed.merge-and-unload:same-output"],
    points=[{"first": "lora", "second": "loha"}],
)
def merges_the_outer_layer_only(patch: Patches) -> None:
    @patch.replace(merging, "merge_adapter")
    def merge_adapter(
        original: Any,
        made: Any,
        adapter_names: Any = None,
        safe_merge: bool = False,
        **kwargs: Any,
    ) -> None:
        for _, module in adapters.walk(made):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge, adapter_names)


@fake(
    "Unloading takes one adapted layer away and leaves what is below it.",
    caught_by=["mixed.unload:same-keys", "mixed.unload:same-output", "mixed.merge-and-unload:no-layers"],
    points=[{"first": "lora", "second": "lokr"}, {"first": "lora", "second": "loha"}],
)
def unloads_the_outer_layer_only(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "get_base_layer")
    def get_base_layer(original: Any, self: Any) -> Any:
        return self.base_layer if isinstance(self.base_layer, BaseTunerLayer) else original(self)


@fake(
    "Deleting an adapter takes all adapters out of the layers that have it, and out of those below.",
    caught_by=["mixed.delete:same-output"],
    points=[{"first": "lora", "second": "loha"}, {"first": "lora", "second": "lora"}],
)
def deletes_other_adapters_too(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "detach")
    def detach(original: Any, self: Any, adapter: str) -> Any:
        taken = original(self, adapter)
        for name in [*self.all_adapters()] if taken else ():
            original(self, name)
        return taken


@fake("Deleting a list of adapters deletes the last of them only.", caught_by=["mixed.delete:raises"])
def deletes_nothing_of_a_list(patch: Patches) -> None:
    @patch.replace(MixedModel, "delete_adapter")
    def delete_adapter(original: Any, self: Any, adapter_name: Any) -> None:
        if isinstance(adapter_name, str):
            original(self, adapter_name)


# The wrapper ---------------------------------------------------------------------------------------


@fake(
    "What get_peft_model returns for mixed=True is a PeftModel.",
    caught_by=["mixed.create:class", "mixed.create:no-peft-model"],
)
def mixed_models_are_peft_models(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        if kwargs.get("mixed"):
            made.__class__ = model.PeftModel
        return made


@fake("Mixed models are of a class of their own.", caught_by=["mixed.load:class", "mixed.transformers:class"])
def mixed_models_have_another_class(patch: Patches) -> None:
    class Other(PeftMixedModel):
        pass

    def dressed(made: Any) -> Any:
        if isinstance(made, PeftMixedModel):
            made.__class__ = Other
        return made

    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        return dressed(original(*args, **kwargs))

    @patch.replace(PeftMixedModel, "from_pretrained")
    def from_pretrained(original: Any, *args: Any, **kwargs: Any) -> Any:
        return dressed(original(*args, **kwargs))


@fake("Printing the counts of a mixed model thaws its base.", caught_by=["mixed.counts:frame"])
def counting_thaws_a_mixed_model(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "print_trainable_parameters")
    def print_trainable_parameters(original: Any, self: Any) -> None:
        original(self)
        for parameter in self.parameters():
            parameter.requires_grad_(True)


@fake(
    "get_peft_model ignores low_cpu_mem_usage when mixed is true.",
    caught_by=["mixed.low-memory:first"],
    like="peft 0.21.2",
)
def mixed_ignores_low_cpu(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("mixed"):
            kwargs.pop("low_cpu_mem_usage", None)
        return original(*args, **kwargs)


@fake(
    "Every method can be mixed.",
    caught_by=[
        "mixed.incompatible:raises",
        "mixed.add-incompatible:raises",
        "mixed.load-incompatible:raises-from",
        "mixed.load-incompatible:raises-load",
        "mixed.types:list",
    ],
    points=[{"method": "ia3"}],
)
def everything_is_compatible(patch: Patches) -> None:
    every = tuple(mixed.PeftType)
    patch.set(mixed, "COMPATIBLE_TUNER_TYPES", every)
    from peft_reference.tuners import mixed as public

    patch.set(public, "COMPATIBLE_TUNER_TYPES", every)


@fake(
    "A mixed model writes an empty file in the place of its adapters.",
    caught_by=["mixed.no-files:raises"],
)
def mixed_models_are_saved(patch: Patches) -> None:
    @patch.replace(PeftMixedModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        return None


@fake(
    "A mixed model's loaded adapters train when they should not, and do not when they should.",
    caught_by=["mixed.load-frozen:first", "mixed.load-frozen:second"],
    like="peft 0.21.2",
)
def loaded_mixed_adapters_train_the_wrong_way(patch: Patches) -> None:
    for name in ("from_pretrained", "load_adapter"):

        @patch.replace(PeftMixedModel, name)
        def load(original: Any, *args: Any, is_trainable: bool = False, **kwargs: Any) -> Any:
            return original(*args, is_trainable=not is_trainable, **kwargs)


@fake(
    "set_adapter of a mixed model ignores inference_mode.",
    caught_by=["mixed.set-inference-mode-frozen:nothing-trains"],
)
def mixed_ignores_inference_mode(patch: Patches) -> None:
    @patch.replace(MixedModel, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_name: Any, inference_mode: bool = False) -> None:
        original(self, adapter_name)


# LoHa, LoKr, OFT -----------------------------------------------------------------------------------


@fake(
    "LoKr multiplies its factors the wrong way round.",
    caught_by=["law.forward:as-formula", "law.merge:as-formula"],
    points=[{"method": "lokr", "layer": "one-linear"}],
)
def lokr_swaps_its_factors(patch: Patches) -> None:
    @patch.replace(lokr.LoKrLayer, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        made = original(self, adapter)
        return made.roll(1, 0)


@fake(
    "LoHa and LoKr draw random numbers in every forward pass, dropout or not.",
    caught_by=["law.forward:frame", "law.disabled:frame"],
    like="peft 0.21.2",
    points=[{"method": "loha", "layer": "one-linear"}],
)
def lycoris_draws_in_every_forward_pass(patch: Patches) -> None:
    @patch.replace(lycoris.LycorisLayer, "adapt")
    def adapt(original: Any, self: Any, *args: Any) -> Any:
        torch.rand(())
        return original(self, *args)


@fake(
    "LoKr's core on a one-dimensional convolution does nothing.",
    caught_by=["lycoris.core-on-conv1d:acts"],
)
def lokr_ignores_its_core(patch: Patches) -> None:
    @patch.replace(lokr.LoKrLayer, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        made = original(self, adapter)
        return made * 0 if adapter in self.lokr_t2 and made.dim() == 3 else made


@fake("LoKr makes no core.", caught_by=["lycoris.core-on-conv1d:core"])
def lokr_makes_no_core(patch: Patches) -> None:
    @patch.replace(lycoris.LycorisLayer, "shapes")
    def shapes(original: Any, self: Any, config: Any) -> Any:
        return *original(self, config)[:3], ()


@fake(
    "OFT rotates the other way when it merges.",
    caught_by=["mixed.merge-and-unload:same-output"],
    points=[{"first": "oft", "second": "lora"}],
)
def oft_merges_the_inverse(patch: Patches) -> None:
    @patch.replace(oft.OFTLayer, "fold")
    def fold(original: Any, self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        return self.turn(adapter, weight, True), bias


@fake(
    'LoKr with "lycoris" begins with zeros in both factors, or with both random.',
    caught_by=["lycoris.lokr-init:as-base", "lycoris.lokr-init:other-factor"],
    points=[{"layer": "one-linear"}, {"layer": "one-conv2d"}],
)
def lokr_starts_at_nothing_or_anywhere(patch: Patches) -> None:
    @patch.replace(lokr.LoKrLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> Any:
        made = original(self, config, name)
        linear = self.weight.dim() == 2
        for slot in self.adapter_layer_names:
            if slot in made:
                torch.nn.init.zeros_(made[slot]) if linear else torch.nn.init.ones_(made[slot])
        return made
