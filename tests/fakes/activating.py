"""Faults of the verbs: activating, freezing, deleting and casting adapters that are there."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft_reference import adapters, injection, layer, model, wrappers
from torch import nn

from .fake import Patches, fake

LAYER = layer.BaseTunerLayer
WRAPPER = wrappers.ModulesToSaveWrapper


def layers_of(module: nn.Module) -> list[Any]:
    """The adapted layers of a model."""
    return [m for m in module.modules() if isinstance(m, LAYER)]


# Activating ----------------------------------------------------------------------------------------


@fake(
    "set_adapter does nothing.",
    caught_by=[
        "set_adapter.peft-model-single:active-name",
        "set_adapter.peft-model-single:layers",
        "mixed.both-act:active",
        "mixed.both-act:both-train",
        "mixed.delete:active",
        "delete.peft-model:active-name",
        "delete.peft-model:other-trains",
    ],
    points=[{"adapter": "b"}],
)
def set_adapter_does_nothing(patch: Patches) -> None:
    for holder in (LAYER, WRAPPER):
        patch.replace(holder, "set_adapter")(lambda original, self, *args, **kwargs: None)


@fake("set_adapter adds to the active adapters, the others stay active.", caught_by=["set_adapter.*:*"])
def set_adapter_adds(patch: Patches) -> None:
    @patch.replace(LAYER, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        original(
            self,
            [*self._active_adapter, *(n for n in names if n not in self._active_adapter)],
            inference_mode,
        )


@fake(
    "Of a list of adapters only the first is activated.",
    caught_by=["set_adapter.*:*", "peft_model.active-together:sum", "law.both-active:says-active"],
)
def set_adapter_takes_the_first_of_a_list(patch: Patches) -> None:
    @patch.replace(adapters, "set_adapter")
    def set_adapter(original: Any, model: nn.Module, adapter_name: Any, *args: Any, **kwargs: Any) -> None:
        original(model, adapter_name if isinstance(adapter_name, str) else adapter_name[:1], *args, **kwargs)


@fake("Of a list of adapters only the last is activated.", caught_by=["set_adapter.*:*"])
def set_adapter_takes_the_last_of_a_list(patch: Patches) -> None:
    @patch.replace(adapters, "set_adapter")
    def set_adapter(original: Any, model: nn.Module, adapter_name: Any, *args: Any, **kwargs: Any) -> None:
        original(model, adapter_name if isinstance(adapter_name, str) else adapter_name[-1:], *args, **kwargs)


@fake("A list of adapters is activated from the last to the first.", caught_by=["set_adapter.*:*"])
def set_adapter_reorders(patch: Patches) -> None:
    @patch.replace(adapters, "set_adapter")
    def set_adapter(original: Any, model: nn.Module, adapter_name: Any, *args: Any, **kwargs: Any) -> None:
        original(
            model, adapter_name if isinstance(adapter_name, str) else adapter_name[::-1], *args, **kwargs
        )


@fake("set_adapter leaves the adapters that are no longer active trainable.", caught_by=["set_adapter.*:*"])
def set_adapter_forgets_to_freeze_the_others(patch: Patches) -> None:
    for holder in (LAYER, WRAPPER):

        @patch.replace(holder, "set_adapter")
        def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
            flags = [(p, p.requires_grad) for a in self.all_adapters() for p in self.adapter_parameters(a)]
            original(self, adapter_names, inference_mode)
            for parameter, flag in flags:
                parameter.requires_grad_(parameter.requires_grad or flag)


@fake("set_adapter makes all adapters trainable.", caught_by=["set_adapter.*:*"])
def set_adapter_trains_all(patch: Patches) -> None:
    for holder in (LAYER, WRAPPER):

        @patch.replace(holder, "set_adapter")
        def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
            original(self, adapter_names, inference_mode)
            self.set_requires_grad(self.all_adapters(), True)


@fake("set_adapter does not touch requires_grad.", caught_by=["set_adapter.*:*"])
def set_adapter_leaves_gradients_alone(patch: Patches) -> None:
    for holder in (LAYER, WRAPPER):

        @patch.replace(holder, "set_adapter")
        def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
            self._active_adapter = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)


@fake("inference_mode of set_adapter is ignored.", caught_by=["set_adapter.*:*"])
def set_adapter_ignores_inference_mode(patch: Patches) -> None:
    for holder in (LAYER, WRAPPER):

        @patch.replace(holder, "set_adapter")
        def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
            original(self, adapter_names)


@fake("inference_mode of set_adapter is taken the other way round.", caught_by=["set_adapter.*:*"])
def set_adapter_inverts_inference_mode(patch: Patches) -> None:
    for holder in (LAYER, WRAPPER):

        @patch.replace(holder, "set_adapter")
        def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
            original(self, adapter_names, not inference_mode)


@fake("set_adapter thaws the base model.", caught_by=["set_adapter.*:*"])
def set_adapter_thaws_the_base(patch: Patches) -> None:
    @patch.replace(LAYER, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
        original(self, adapter_names, inference_mode)
        self.get_base_layer().requires_grad_(True)


@fake("layer_cls of set_adapter and delete_adapter is ignored.", caught_by=["set_adapter.*:*", "delete.*:*"])
def ignores_layer_cls(patch: Patches) -> None:
    @patch.replace(adapters, "holders")
    def holders(original: Any, model: nn.Module, layer_cls: Any = LAYER) -> Any:
        return original(model)


@fake(
    "set_adapter does not reach the copies of modules_to_save.", caught_by=["set_adapter.modules-to-save:*"]
)
def set_adapter_forgets_modules_to_save(patch: Patches) -> None:
    @patch.replace(WRAPPER, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
        return None


@fake(
    "All copies of modules_to_save stay trainable.",
    caught_by=["set_adapter.modules-to-save-other:other-frozen"],
)
def modules_to_save_of_all_adapters_train(patch: Patches) -> None:
    @patch.replace(WRAPPER, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, adapter_names: Any, requires_grad: bool = True) -> None:
        original(self, self.all_adapters(), True)


@fake(
    "The copy of the adapter that came last is used, whichever is active.",
    caught_by=["set_adapter.modules-to-save*:*"],
)
def last_copy_acts(patch: Patches) -> None:
    @patch.replace(WRAPPER, "acting_copy")
    def acting_copy(original: Any, self: Any) -> nn.Module:
        return self.original_module if self._disable_adapters else list(self.modules_to_save.values())[-1]


@fake("set_adapter accepts a name that no adapter has.", caught_by=["set_adapter.peft-model-unknown:raises"])
def set_adapter_accepts_unknown_names(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_name: Any, inference_mode: bool = False) -> None:
        adapters.set_adapter(self.model, adapter_name, inference_mode, self.tuner_layer_cls)


@fake("PeftModel.set_adapter accepts a list.", caught_by=["set_adapter.peft-model-list:raises"])
def peft_model_set_adapter_accepts_lists(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_name: Any, inference_mode: bool = False) -> None:
        self.base_model.set_adapter(adapter_name, inference_mode)


@fake("PeftModel.set_adapter forgets inference_mode.", caught_by=["set_adapter.peft-model-inference:frozen"])
def peft_model_set_adapter_forgets_inference_mode(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_name: Any, inference_mode: bool = False) -> None:
        original(self, adapter_name)


@fake(
    "A failing set_adapter has switched all adapters off by then.",
    caught_by=["set_adapter.peft-model-unknown:first-active", "set_adapter.peft-model-unknown:frame"],
)
def set_adapter_deactivates_before_raising(patch: Patches) -> None:
    for owner in (injection.BaseTuner, model.PeftModel):

        @patch.replace(owner, "set_adapter")
        def set_adapter(original: Any, self: Any, adapter_name: Any, inference_mode: bool = False) -> None:
            adapters.set_adapter(self.model, [])
            original(self, adapter_name, inference_mode)


@fake(
    "add_adapter activates the new adapter.",
    caught_by=["peft_model.add-adapter:still-active", "set_adapter.second-inactive:active-name"],
)
def activates_on_add(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "add_adapter")
    def add_adapter(original: Any, self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        done = original(self, adapter_name, *args, **kwargs)
        self.set_adapter(adapter_name)
        return done


@fake(
    "An adapter that is added trains at once, though it is inactive.",
    caught_by=["peft_model.add-adapter:new-frozen", "mixed.add:new-frozen"],
    like="peft 0.21.2, for embeddings in half precision",
)
def trains_on_add(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "add_adapter")
    def add_adapter(original: Any, self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        done = original(self, adapter_name, *args, **kwargs)
        self.set_requires_grad(adapter_name)
        return done


@fake("Adding an adapter freezes those that are there.", caught_by=["peft_model.add-adapter:old-trains"])
def add_freezes_the_others(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "add_adapter")
    def add_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        done = original(self, *args, **kwargs)
        self.set_requires_grad(list(self.peft_config), False)
        return done


@fake(
    "Every adapter acts, active or not.",
    caught_by=["peft_model.add-adapter:output-unchanged", "law.inactive:as-alone", "law.delete:same-output"],
)
def all_adapters_act(patch: Patches) -> None:
    @patch.replace(LAYER, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        said, self._active_adapter = self._active_adapter, self.all_adapters()
        try:
            return original(self, x, *args, **kwargs)
        finally:
            self._active_adapter = said


@fake(
    "The weights of an adapter are dropped while it is inactive.",
    caught_by=["set_adapter.back-and-forth:same-again"],
)
def inactive_adapters_lose_their_weights(patch: Patches) -> None:
    @patch.replace(LAYER, "set_adapter")
    def set_adapter(original: Any, self: Any, adapter_names: Any, inference_mode: bool = False) -> None:
        original(self, adapter_names, inference_mode)
        with torch.no_grad():
            for adapter in set(self.all_adapters()) - set(self._active_adapter):
                for parameter in self.adapter_parameters(adapter):
                    parameter.zero_()


# Freezing ------------------------------------------------------------------------------------------


@fake(
    "set_requires_grad does nothing.",
    caught_by=["set_requires_grad.sets:flag", "set_requires_grad.several:flag"],
)
def set_requires_grad_does_nothing(patch: Patches) -> None:
    patch.replace(adapters, "set_requires_grad")(lambda original, *args, **kwargs: None)


@fake(
    "set_requires_grad ignores its flag, all that is named trains.",
    caught_by=["set_requires_grad.several:flag"],
    points=[{"flag": False}],
)
def set_requires_grad_ignores_the_flag(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        original(model, adapter_names)


@fake(
    "set_requires_grad sets the flag of every adapter.",
    caught_by=["set_requires_grad.sets:frame"],
    points=[{"flag": False}],
)
def set_requires_grad_sets_all(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        for holder in adapters.holders(model):
            holder.set_requires_grad(holder.all_adapters(), requires_grad)


@fake("set_requires_grad reaches the active adapters only.", caught_by=["set_requires_grad.sets:flag"])
def set_requires_grad_skips_inactive(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        original(model, [name for name in names if name in adapters.active_adapters_of(model)], requires_grad)


@fake(
    "set_requires_grad takes the first of several names.",
    caught_by=["set_requires_grad.several:flag"],
    points=[{"flag": False}],
)
def set_requires_grad_takes_one_name(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        original(model, adapter_names if isinstance(adapter_names, str) else adapter_names[:1], requires_grad)


@fake(
    "set_requires_grad activates what it makes trainable.",
    caught_by=["set_requires_grad.sets:still-active"],
    points=[{"adapter": "a"}, {"adapter": "b"}],
)
def set_requires_grad_activates(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        original(model, adapter_names, requires_grad)
        for held in adapters.holders(model):
            held._active_adapter = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)


@fake(
    "set_requires_grad finds parameters by their names, so `a` also means an adapter called my_a.",
    caught_by=["set_requires_grad.name-inside-name:other-trains"],
)
def set_requires_grad_searches_names(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        for wanted in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for name, parameter in model.named_parameters():
                if wanted in name and ("lora_" in name or "modules_to_save" in name):
                    parameter.requires_grad_(requires_grad)


@fake("set_requires_grad takes the base layers along.", caught_by=["set_requires_grad.sets:base-frozen"])
def set_requires_grad_reaches_the_base(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        original(model, adapter_names, requires_grad)
        for held in layers_of(model):
            held.get_base_layer().requires_grad_(requires_grad)
        for held in model.modules():
            if isinstance(held, WRAPPER):
                held.original_module.requires_grad_(requires_grad)


@fake(
    "set_requires_grad forgets the copies of modules_to_save.",
    caught_by=["set_requires_grad.modules-to-save:copy"],
)
def set_requires_grad_forgets_modules_to_save(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        for held in layers_of(model):
            held.set_requires_grad(adapter_names, requires_grad)


@fake("set_requires_grad freezes what is not named.", caught_by=["set_requires_grad.*:frame"])
def set_requires_grad_is_exclusive(patch: Patches) -> None:
    @patch.replace(adapters, "set_requires_grad")
    def set_requires_grad(
        original: Any, model: nn.Module, adapter_names: Any, requires_grad: bool = True
    ) -> None:
        for holder in adapters.holders(model):
            holder.set_requires_grad(holder.all_adapters(), not requires_grad)
        original(model, adapter_names, requires_grad)


# Deleting ------------------------------------------------------------------------------------------


@fake("delete_adapter removes A and leaves B.", caught_by=["delete.removes-weights:gone", "law.delete:gone"])
def deletes_half(patch: Patches) -> None:
    @patch.replace(LAYER, "detach")
    def detach(original: Any, self: Any, adapter: str) -> Any:
        contents = original(self, adapter)
        for slot in ("lora_B", "lora_embedding_B"):
            if slot in contents:
                getattr(self, slot)[adapter] = contents[slot]
        return contents


@fake(
    "delete_adapter stops after the first layer.",
    caught_by=["delete.removes-everywhere:layers", "delete.removes-everywhere:names"],
)
def deletes_from_the_first_layer_only(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(
        original: Any, model: nn.Module, adapter_name: str, prefix: str, layer_cls: Any = LAYER
    ) -> Any:
        for held in layers_of(model)[1:]:
            contents = held.detach(adapter_name)
            held.__dict__["kept"] = contents
        result = original(model, adapter_name, prefix, layer_cls)
        for held in layers_of(model)[1:]:
            if kept := held.__dict__.pop("kept"):
                held.attach(adapter_name, kept)
        return result


@fake(
    "delete_adapter deletes all adapters.",
    caught_by=[
        "delete.removes-weights:other-stays",
        "law.delete:others-kept",
        "functional.any-module:remaining",
        "law.delete:others-kept",
    ],
)
def deletes_all_adapters(patch: Patches) -> None:
    @patch.replace(adapters, "delete_from")
    def delete_from(original: Any, found: Any, adapter_name: str) -> Any:
        result = None
        for name in {n for held in found for n in held.all_adapters()}:
            result = original(found, name)
        return result


@fake(
    "delete_adapter does nothing.", caught_by=["delete.removes-weights:gone", "mixed.delete:nothing-of-third"]
)
def deletes_nothing(patch: Patches) -> None:
    @patch.replace(adapters, "delete_from")
    def delete_from(original: Any, found: Any, adapter_name: str) -> Any:
        return list(found[0].active_adapters) or None


@fake(
    "delete_adapter returns an empty list when no adapter is left.",
    caught_by=["delete.none-when-last:returns-none"],
    like="peft 0.21.2",
)
def delete_returns_an_empty_list(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) or []


@fake("delete_adapter returns None.", caught_by=["delete.returns-remaining:remaining"])
def delete_returns_none(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, *args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)


@fake("delete_adapter returns the name that it deleted.", caught_by=["delete.returns-remaining:remaining"])
def delete_returns_the_deleted(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        original(model, adapter_name, *args, **kwargs)
        return [adapter_name]


@fake(
    "After the active adapter is deleted none is active.", caught_by=["delete.returns-remaining:now-active"]
)
def delete_activates_no_other(patch: Patches) -> None:
    @patch.replace(adapters, "delete_from")
    def delete_from(original: Any, found: Any, adapter_name: str) -> Any:
        was_active = any(adapter_name in held.active_adapters for held in found)
        result = original(found, adapter_name)
        if was_active:
            for held in found:
                held._active_adapter = []
        return result


@fake(
    "The adapter that becomes active after a deletion is frozen.",
    caught_by=["delete.trains-next:next-trains"],
)
def delete_leaves_the_next_frozen(patch: Patches) -> None:
    @patch.replace(adapters, "delete_from")
    def delete_from(original: Any, found: Any, adapter_name: str) -> Any:
        flags = [(p, p.requires_grad) for held in found for p in held.parameters()]
        result = original(found, adapter_name)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        return result


@fake("Deleting any adapter deactivates the others.", caught_by=["delete.*:*"])
def delete_deactivates_the_others(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        result = original(model, adapter_name, *args, **kwargs)
        for held in adapters.holders(model):
            held.set_adapter([])
        return result


@fake(
    "The last deletion takes the adapter layers out of the model.",
    caught_by=["delete.layers-stay:still-adapted"],
)
def delete_unloads_at_last(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(model, *args, **kwargs)
        for name, held in list(model.named_modules()):
            if isinstance(held, LAYER) and not held.all_adapters():
                parent, _, key = name.rpartition(".")
                setattr(model.get_submodule(parent), key, held.get_base_layer())
        return result


@fake("A layer without adapters computes zeros.", caught_by=["delete.layers-stay:as-base"])
def empty_layers_compute_nothing(patch: Patches) -> None:
    @patch.replace(LAYER, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, x, *args, **kwargs)
        return y if self.all_adapters() else torch.zeros_like(y)


@fake("delete_adapter thaws the base when no adapter is left.", caught_by=["delete.layers-stay:base-frozen"])
def delete_thaws_the_base(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(model, *args, **kwargs)
        for held in layers_of(model):
            if not held.all_adapters():
                held.get_base_layer().requires_grad_(True)
        return result


@fake(
    "Deleting an adapter replaces the configs on the model by copies.",
    caught_by=["delete.config-stays:first"],
)
def delete_replaces_the_config(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(model, *args, **kwargs)
        if not hasattr(model, "base_model"):
            for name, config in list(model.peft_config.items()):
                model.peft_config[name] = copy.copy(config)
        return result


@fake("Deleting one of two active adapters deactivates the other.", caught_by=["delete.one-of-two-active:*"])
def delete_forgets_the_other_active(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        active = adapters.active_adapters_of(model)
        result = original(model, adapter_name, *args, **kwargs)
        if len(active) > 1 and adapter_name in active:
            for held in adapters.holders(model):
                held.set_adapter([])
            return None
        return result


@fake(
    "delete_adapter does not reach the copies of modules_to_save.",
    caught_by=["delete.modules-to-save*:*", "modules_to_save.deleted:copy-gone"],
)
def delete_forgets_modules_to_save(patch: Patches) -> None:
    @patch.replace(WRAPPER, "detach")
    def detach(original: Any, self: Any, adapter: str) -> Any:
        return None


@fake(
    "Deleting an adapter with a copy of a module puts another copy in the place of the original.",
    caught_by=[
        "delete.modules-to-save:original-kept",
        "delete.modules-to-save-unset:original-kept",
        "modules_to_save.deleted:original-kept",
    ],
)
def delete_rebuilds_the_original(patch: Patches) -> None:
    @patch.replace(WRAPPER, "detach")
    def detach(original: Any, self: Any, adapter: str) -> Any:
        if adapter in self.modules_to_save:
            self.original_module = copy.deepcopy(self.original_module)
        return original(self, adapter)


@fake("The prefix of delete_adapter is ignored.", caught_by=["delete.*:*"])
def delete_ignores_the_prefix(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(
        original: Any, model: nn.Module, adapter_name: str, prefix: str, layer_cls: Any = LAYER
    ) -> Any:
        return original(model, adapter_name, "lora_", layer_cls)


@fake("An adapter that is merged can be deleted, its weights stay in the base.", caught_by=["delete.*:*"])
def deletes_merged_adapters(patch: Patches) -> None:
    @patch.replace(adapters, "delete_adapter")
    def delete_adapter(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for held in layers_of(model):
            held.merged_adapters = []
        return original(model, *args, **kwargs)


@fake("PeftModel.delete_adapter keeps the config.", caught_by=["delete.peft-model*:*"])
def peft_model_delete_keeps_the_config(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "delete_adapter")
    def delete_adapter(original: Any, self: Any, adapter_name: str) -> None:
        config = self.peft_config.get(adapter_name)
        original(self, adapter_name)
        self.peft_config[adapter_name] = config


@fake(
    "PeftModel.delete_adapter passes over a name that no adapter has.",
    caught_by=["delete.peft-model-unknown:raises"],
)
def peft_model_delete_accepts_unknown_names(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "delete_adapter")
    def delete_adapter(original: Any, self: Any, adapter_name: str) -> None:
        if adapter_name in self.peft_config:
            original(self, adapter_name)


@fake(
    "Before it refuses an unknown name, PeftModel.delete_adapter has deleted the active adapter.",
    caught_by=["delete.peft-model-unknown:still-there"],
)
def peft_model_delete_takes_the_active_one(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "delete_adapter")
    def delete_adapter(original: Any, self: Any, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            original(self, self.active_adapters[0])
        original(self, adapter_name)


# Casting -------------------------------------------------------------------------------------------


@fake(
    "cast_adapter_dtype does nothing.",
    caught_by=[
        "cast.raises-half:adapter-float32",
        "get_peft_model.autocast:adapter-float32",
        "mixed.autocast:cast",
        "mixed.load-autocast:cast",
    ],
)
def casts_nothing(patch: Patches) -> None:
    patch.replace(adapters, "cast_adapter_dtype")(lambda original, *args, **kwargs: None)


@fake(
    "cast_adapter_dtype ignores its switch.",
    caught_by=["cast.switched-off:same-tensors"],
    points=[{"dtype": "bfloat16"}],
)
def casts_although_switched_off(patch: Patches) -> None:
    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> None:
        original(model, adapter_name)


@fake("cast_adapter_dtype casts every adapter.", caught_by=["cast.only-named:other"])
def casts_every_adapter(patch: Patches) -> None:
    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> None:
        for name in {n for held in layers_of(model) for n in held.all_adapters()}:
            original(model, name, autocast_adapter_dtype)


@fake("cast_adapter_dtype casts the adapted base layers as well.", caught_by=["cast.raises-half:base-kept"])
def casts_base_layers(patch: Patches) -> None:
    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> None:
        original(model, adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            for held in layers_of(model):
                held.get_base_layer().float()


@fake(
    "cast_adapter_dtype casts every floating point type, float64 and eight bits too.",
    caught_by=[
        "cast.leaves-others:same-dtype",
        "cast.only-half:still-eight-bit",
        "get_peft_model.autocast-float64:adapter-float64",
    ],
    points=[{"dtype": "float64"}],
    like="peft 0.21.2, for eight-bit floats",
)
def casts_every_type(patch: Patches) -> None:
    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> None:
        if autocast_adapter_dtype:
            for held in layers_of(model):
                for parameter in held.adapter_parameters(adapter_name):
                    parameter.data = parameter.data.float()


@fake(
    "cast_adapter_dtype knows float16 only.",
    caught_by=["cast.raises-half:adapter-float32"],
    points=[{"dtype": "bfloat16"}],
)
def casts_float16_only(patch: Patches) -> None:
    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> None:
        if autocast_adapter_dtype:
            for held in layers_of(model):
                for parameter in held.adapter_parameters(adapter_name):
                    if parameter.dtype is torch.float16:
                        parameter.data = parameter.data.float()


@fake("The cast parameters are new and frozen.", caught_by=["cast.raises-half:still-trains"])
def cast_freezes(patch: Patches) -> None:
    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> None:
        original(model, adapter_name, autocast_adapter_dtype)
        for held in layers_of(model):
            held.set_requires_grad(adapter_name, False)


@fake("The cast gives fresh memory, the values are lost.", caught_by=["cast.raises-half:not-zero"])
def cast_loses_values(patch: Patches) -> None:
    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> None:
        if autocast_adapter_dtype:
            for held in layers_of(model):
                for parameter in held.adapter_parameters(adapter_name):
                    parameter.data = torch.zeros_like(parameter, dtype=torch.float32)


@fake(
    "cast_adapter_dtype, set_adapter and set_requires_grad return the model.",
    caught_by=[
        "cast.returns-none:returns-none",
        "set_requires_grad.default:returns-none",
        "set_adapter.returns-none:returns-none",
    ],
)
def verbs_return_the_model(patch: Patches) -> None:
    for name in ("cast_adapter_dtype", "set_adapter", "set_requires_grad"):

        @patch.replace(adapters, name)
        def verb(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
            original(model, *args, **kwargs)
            return model
