"""Faults of get_peft_model and of what PeftModel shows."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from peft_reference import injection, layer, model, saving
from peft_reference.model import PeftModel
from torch import nn

from .fake import Patches, fake

# The wrapper ---------------------------------------------------------------------------------------


@fake(
    "get_peft_model returns the adapted model without a wrapper.",
    caught_by=["get_peft_model.second-call:still-peft-model"],
)
def returns_no_wrapper(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs).get_base_model()


@fake(
    "get_peft_model returns a task class for every model.",
    caught_by=["get_peft_model.returns-wrapper:plain-peft-model", "client.generate-without-task:plain"],
)
def returns_a_subclass(patch: Patches) -> None:
    class PeftModelForCausalLM(PeftModel):
        pass

    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        made.__class__ = PeftModelForCausalLM
        return made


@fake(
    "The wrapper is a plain object that forwards attributes, no torch module and no PeftModel.",
    caught_by=[
        "get_peft_model.returns-wrapper:is-module",
        "get_peft_model.returns-wrapper:plain-peft-model",
        "task.routing:is-peft-model",
    ],
)
def returns_a_proxy(patch: Patches) -> None:
    class Proxy:
        def __init__(self, inside: Any) -> None:
            self.__dict__["inside"] = inside

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inside, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.inside(*args, **kwargs)

    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        return Proxy(original(*args, **kwargs))


@fake("The tuner is a class made for the model.", caught_by=["get_peft_model.returns-wrapper:tuner-class"])
def tuner_of_its_own_class(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "__init__")
    def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.__class__ = type("LoraModelForAny", (type(self),), {})


@fake(
    "base_model is the adapted model itself, there is no tuner.",
    caught_by=[
        "get_peft_model.returns-wrapper:tuner-class",
        "get_peft_model.returns-wrapper:tuner-is-base-tuner",
    ],
)
def base_model_is_the_model(patch: Patches) -> None:
    @patch.replace(PeftModel, "__getattr__")
    def __getattr__(original: Any, self: Any, name: str) -> Any:
        tuner = original(self, "base_model") if name != "injection" else None
        if name == "base_model":
            return _Direct(tuner)
        return original(self, name)

    class _Direct(nn.Module):
        def __init__(self, tuner: Any) -> None:
            super().__init__()
            self.__dict__["tuner"] = tuner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["tuner"], name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.__dict__["tuner"](*args, **kwargs)


@fake(
    "The wrapper adds no prefix, parameters keep the names they have in the base model.",
    caught_by=[
        "get_peft_model.parameter-names:prefixed",
        "get_peft_model.parameter-names:base-present",
        "get_peft_model.parameter-names:adapter-present",
    ],
)
def drops_the_prefix(patch: Patches) -> None:
    for name in ("named_parameters", "named_buffers", "named_modules"):

        @patch.replace(PeftModel, name)
        def named(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
            for key, value in original(self, *args, **kwargs):
                yield key.removeprefix("base_model.model."), value


@fake("peft_type is the config's class name.", caught_by=["get_peft_model.returns-wrapper:peft-type"])
def peft_type_is_the_class_name(patch: Patches) -> None:
    @patch.replace(PeftModel, "__init__")
    def __init__(original: Any, self: Any, model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, model, peft_config, *args, **kwargs)
        self.__dict__["shown"] = type(peft_config).__name__

    @patch.replace(PeftModel, "__getattribute__")
    def __getattribute__(original: Any, self: Any, name: str) -> Any:
        return (
            original(self, "__dict__").get("shown", "LORA") if name == "peft_type" else original(self, name)
        )


@fake(
    "active_adapter is a list of one name.",
    caught_by=["get_peft_model.names-adapter:active-name", "get_peft_model.names-adapter:active-is-str"],
)
def active_adapter_is_a_list(patch: Patches) -> None:
    patch.replace(PeftModel, "active_adapter")(lambda original, self: self.active_adapters)
    patch.replace(PeftModel, "active_peft_config")(
        lambda original, self: self.peft_config[self.active_adapters[0]]
    )


@fake(
    "active_adapters is one name.",
    caught_by=["get_peft_model.names-adapter:actives-is-list", "peft_model.add-adapter:still-active"],
)
def active_adapters_is_a_name(patch: Patches) -> None:
    @patch.replace(PeftModel, "active_adapters")
    def active_adapters(original: Any, self: Any) -> Any:
        return next(iter(original(self)), None)

    patch.replace(PeftModel, "active_adapter")(lambda original, self: self.active_adapters)


@fake("active_adapters names every adapter.", caught_by=["peft_model.add-adapter:still-active"])
def active_adapters_names_all(patch: Patches) -> None:
    patch.replace(PeftModel, "active_adapters")(lambda original, self: list(self.peft_config))


@fake("active_peft_config is a copy.", caught_by=["get_peft_model.names-adapter:config-of-active"])
def active_config_is_a_copy(patch: Patches) -> None:
    patch.replace(PeftModel, "active_peft_config")(lambda original, self: copy.copy(original(self)))


@fake("get_base_model returns the tuner.", caught_by=["get_peft_model.returns-wrapper:same-base"])
def base_model_is_the_tuner(patch: Patches) -> None:
    patch.replace(PeftModel, "get_base_model")(lambda original, self: self.base_model)


@fake(
    "Attributes of the base model are copied when they are read through the wrapper.",
    caught_by=["peft_model.forwards-attributes:same-module"],
)
def forwards_copies(patch: Patches) -> None:
    @patch.replace(PeftModel, "__getattr__")
    def __getattr__(original: Any, self: Any, name: str) -> Any:
        found = original(self, name)
        return copy.deepcopy(found) if isinstance(found, nn.Linear) else found


@fake("An attribute that nobody has is None.", caught_by=["peft_model.missing-attribute:raises"])
def missing_attributes_are_none(patch: Patches) -> None:
    @patch.replace(PeftModel, "__getattr__")
    def __getattr__(original: Any, self: Any, name: str) -> Any:
        try:
            return original(self, name)
        except AttributeError:
            if name.startswith("_") or "base_model" not in self.__dict__.get("_modules", {}):
                raise
            return None


@fake(
    "Plain attributes of the base model are hidden behind zeros.",
    caught_by=["peft_model.forwards-attributes:plain-value"],
)
def hides_plain_attributes(patch: Patches) -> None:
    @patch.replace(PeftModel, "__getattr__")
    def __getattr__(original: Any, self: Any, name: str) -> Any:
        found = original(self, name)
        return 0 if type(found) is int else found


@fake("The wrapper's forward skips the adapters.", caught_by=["peft_model.forward-keywords:same-both-ways"])
def wrapper_skips_adapters(patch: Patches) -> None:
    @patch.replace(PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.disable_adapter():
            return original(self, *args, **kwargs)


@fake("The wrapper's output is cast to float32.", caught_by=["get_peft_model.autocast:output-dtype"])
def wrapper_casts_outputs(patch: Patches) -> None:
    @patch.replace(PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        return output.float() if isinstance(output, torch.Tensor) else output


# Counting ------------------------------------------------------------------------------------------


@fake("All parameters are counted as trainable.", caught_by=["peft_model.count:trainable-and-all"])
def counts_all_as_trainable(patch: Patches) -> None:
    @patch.replace(PeftModel, "get_nb_trainable_parameters")
    def get_nb_trainable_parameters(original: Any, self: Any) -> Any:
        return original(self)[1], original(self)[1]


@fake(
    "The number of all parameters leaves out the adapter's.",
    caught_by=["peft_model.count:trainable-and-all", "peft_model.count-printed:line"],
)
def counts_the_base_only(patch: Patches) -> None:
    @patch.replace(PeftModel, "get_nb_trainable_parameters")
    def get_nb_trainable_parameters(original: Any, self: Any) -> Any:
        trainable, total = original(self)
        return trainable, total - trainable


@fake(
    "print_trainable_parameters prints a sentence of its own and returns it.",
    caught_by=[
        "peft_model.count-printed:line",
        "peft_model.count-printed:nothing-returned",
        "get_peft_model.documented-example:prints",
    ],
)
def prints_its_own_words(patch: Patches) -> None:
    @patch.replace(PeftModel, "print_trainable_parameters")
    def print_trainable_parameters(original: Any, self: Any) -> Any:
        trainable, total = self.get_nb_trainable_parameters()
        line = f"{trainable} of {total} parameters are trained ({trainable / total:.1%})"
        print(line)
        return line


# What get_peft_model does to the config and what it says


@fake("The base model's name is not recorded.", caught_by=["get_peft_model.base-name:recorded"])
def forgets_the_base_name(patch: Patches) -> None:
    patch.replace(saving, "base_model_name")(lambda original, model: None)


@fake(
    "The class name stands in for the name of a base model that has none.",
    caught_by=["get_peft_model.base-name-unknown:null-name"],
)
def invents_base_names(patch: Patches) -> None:
    patch.replace(saving, "base_model_name")(lambda original, model: original(model) or type(model).__name__)


@fake(
    "The revision is not recorded.",
    caught_by=["get_peft_model.revision:recorded", "get_peft_model.revision-conflict:replaced"],
)
def forgets_the_revision(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, revision: Any = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)


@fake("A revision of None erases the config's own.", caught_by=["get_peft_model.revision:kept"])
def erases_the_revision(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> Any:
        peft_config.revision = kwargs.get("revision")
        return original(model, peft_config, *args, **kwargs)


@fake("A revision is always warned about.", caught_by=["get_peft_model.revision:no-conflict"])
def warns_of_every_revision(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("revision"):
            warnings.warn("peft config has already set base model revision, overwriting.", stacklevel=2)
        return original(*args, **kwargs)


@fake(
    "Every model is said to be modified for a second time.",
    caught_by=["get_peft_model.wrap-after-unload:silent"],
)
def always_second_time(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn("You are trying to modify a model with PEFT for a second time.", stacklevel=2)
        return original(*args, **kwargs)


@fake(
    "A second wrapping is not warned about.",
    caught_by=["get_peft_model.second-call:warns", "get_peft_model.wrap-wrapper:warns"],
)
def second_wrap_is_silent(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return original(*args, **kwargs)


@fake(
    "Wrapping a PeftModel wraps the model inside it instead.",
    caught_by=["get_peft_model.wrap-wrapper:around-peft-model"],
)
def unwraps_before_wrapping(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return original(model.get_base_model() if isinstance(model, PeftModel) else model, *args, **kwargs)


@fake("autocast_adapter_dtype=False is ignored.", caught_by=["get_peft_model.autocast-off:adapter-dtype"])
def autocasts_always(patch: Patches) -> None:
    @patch.replace(PeftModel, "__init__")
    def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args[:3], True, *args[4:])


@fake("Adapters that are added later are not cast.", caught_by=["peft_model.add-autocast:float32"])
def added_adapters_are_not_cast(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(
        original: Any, self: Any, adapter_name: str, config: Any, low_cpu_mem_usage: bool, autocast: bool
    ) -> Any:
        return original(self, adapter_name, config, low_cpu_mem_usage, False)


# Adding --------------------------------------------------------------------------------------------


@fake(
    "add_adapter replaces an adapter of the same name.",
    caught_by=["peft_model.add-existing-name:raises", "peft_model.add-existing-name:frame"],
)
def add_replaces_existing_names(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(
        original: Any, self: Any, adapter_name: str, config: Any, low_cpu_mem_usage: bool, autocast: bool
    ) -> Any:
        return self.base_model.add_adapter(adapter_name, config, low_cpu_mem_usage)


@fake(
    "A failing add_adapter leaves the config behind.",
    caught_by=["peft_model.add-rolls-back:raises-look", "peft_model.add-rolls-back:frame"],
)
def failed_add_leaves_the_config(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(original: Any, self: Any, adapter_name: str, config: Any, *args: Any) -> Any:
        try:
            return original(self, adapter_name, config, *args)
        except ValueError:
            self.peft_config.setdefault(adapter_name, config)
            raise


@fake(
    "A failing add_adapter leaves weights on the layers that it reached.",
    caught_by=["peft_model.add-rolls-back:nothing-of-it"],
)
def failed_add_leaves_weights(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(original: Any, self: Any, adapter_name: str, config: Any, *args: Any) -> Any:
        try:
            return original(self, adapter_name, config, *args)
        except ValueError:
            for held in self.modules():
                if isinstance(held, layer.BaseTunerLayer) and not held.has_adapter(adapter_name):
                    held.attach(adapter_name, held.create(config, "lin0"))
            raise


@fake("A failing add_adapter is ignored.", caught_by=["peft_model.add-rolls-back:raises-add"])
def failed_add_is_ignored(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(original: Any, self: Any, *args: Any) -> Any:
        try:
            return original(self, *args)
        except ValueError:
            return None


@fake(
    "A further adapter takes rank, alpha and targets from the first.",
    caught_by=["peft_model.add-other-options:other-on-lin1", "peft_model.add-other-options:lin1-rank"],
)
def added_adapters_copy_the_first(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(original: Any, self: Any, adapter_name: str, config: Any, *args: Any) -> Any:
        first = next(iter(self.peft_config.values()))
        config.r, config.lora_alpha = first.r, first.lora_alpha
        return original(self, adapter_name, config, *args)


@fake(
    "A further adapter is put on the targets of the first too.",
    caught_by=["peft_model.add-other-options:default-not-on-lin1"],
)
def added_targets_hold_for_all(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(original: Any, self: Any, *args: Any) -> Any:
        done = original(self, *args)
        first, config = next(iter(self.peft_config.items()))
        for name, held in self.get_base_model().named_modules():
            if isinstance(held, layer.BaseTunerLayer) and not held.has_adapter(first):
                held.attach(first, held.create(config, name))
        return done


@fake(
    "A new adapter gives its rank to the first one.",
    caught_by=["peft_model.add-other-options:default-kept"],
)
def add_resizes_the_first(patch: Patches) -> None:
    @patch.replace(PeftModel, "_add")
    def _add(original: Any, self: Any, adapter_name: str, config: Any, *args: Any) -> Any:
        done = original(self, adapter_name, config, *args)
        first, old = next(iter(self.peft_config.items()))
        resized = copy.copy(old)
        resized.r = config.r
        for name, held in self.get_base_model().named_modules():
            if isinstance(held, layer.BaseTunerLayer) and held.has_adapter(first):
                held.attach(first, held.create(resized, name))
        return done


@fake(
    "modules_to_save of the wrapper is an empty set when none is named.",
    caught_by=["peft_model.no-modules-to-save:none-named"],
)
def modules_to_save_is_never_none(patch: Patches) -> None:
    patch.replace(PeftModel, "modules_to_save")(lambda original, self: original(self) or set())


@fake("modules_to_save of the wrapper is always None.", caught_by=["peft_model.no-modules-to-save:union"])
def modules_to_save_is_always_none(patch: Patches) -> None:
    patch.replace(PeftModel, "modules_to_save")(lambda original, self: None)


@fake(
    "The wrapper of a module to save has another class.",
    caught_by=["peft_model.modules-to-save:wrapper-class"],
)
def modules_to_save_by_another_class(patch: Patches) -> None:
    from peft_reference import holder, wrappers

    def __getattr__(self: Any, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return getattr(self.acting_copy(), name)

    own = ("__dict__", "__weakref__", "__init__", "__getattr__")
    inside = {key: value for key, value in vars(wrappers.ModulesToSaveWrapper).items() if key not in own}
    TrainedCopies = type("TrainedCopies", (holder.Holder,), {**inside, "__getattr__": __getattr__})

    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        held = [h for h in self.contents if isinstance(h, wrappers.ModulesToSaveWrapper)]
        done = original(self)
        for wrapper in held:
            wrapper.__class__ = TrainedCopies
        return done
