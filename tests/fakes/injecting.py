"""Faults of injection: which layers are adapted, what is frozen, what is left as it was, what is refused."""

from __future__ import annotations

import copy
import functools
import re
import types
from typing import Any

import torch
from peft_reference import errors, injection, layer, matching, model, registry, wrappers
from peft_reference.methods import lora
from peft_reference.model import PeftModel
from torch import nn

from .fake import Patches, fake

# Freezing ------------------------------------------------------------------------------------------


@fake(
    "The base model stays trainable.",
    caught_by=[
        "inject.freezes:base-frozen",
        "get_peft_model.in-place:base-frozen",
        "law.tensors:base",
        "law.gradients:base",
        "load.frozen:nothing-trains",
        "inject_sd.keys-decide:base-frozen",
        "peft_model.active-together:base-grad",
        "lora_config.bias-trains:weights-frozen",
        "mixed.create:base-frozen",
        "mixed.gradients:base",
        "mixed.load-frozen:base",
        "replication.trains-apart:base-frozen",
        "mha.adapts:base-frozen",
    ],
)
def forgets_to_freeze(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        flags = [(p, p.requires_grad) for p in model.parameters()]
        done = original(self)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        return done


@fake(
    "Only the layers that are adapted are frozen, the rest of the base model goes on training.",
    caught_by=["inject.freezes-untargeted:base-frozen"],
)
def freezes_targets_only(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        flags = [(p, p.requires_grad) for p in model.parameters()]
        done = original(self)
        targeted = {
            id(p)
            for m in model.modules()
            if isinstance(m, layer.BaseTunerLayer)
            for p in m.get_base_layer().parameters()
        }
        for parameter, flag in flags:
            if id(parameter) not in targeted:
                parameter.requires_grad_(flag)
        return done


@fake(
    "Biases of the base model stay trainable whatever `bias` says.",
    caught_by=["inject.freezes:base-frozen", "lora_config.bias-trains:none-trains"],
)
def trains_biases_anyway(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_(True)
        return done


@fake(
    "The new adapter is frozen together with the base model.",
    caught_by=[
        "inject.freezes:adapter-trains",
        "get_peft_model.in-place:adapter-trains",
        "law.tensors:trainable",
        "lora_config.bias-trains:adapter-trains",
        "low_memory.get-peft-model:adapter-trains",
        "inject_sd.keys-decide:one-layer",
        "mixed.create:trains",
        "mha.adapts:adapter-trains",
        "ia3.modules-to-save:trains",
        "tying.tokens-list-untied:rows",
        "tying.tokens-separate:rows",
    ],
)
def freezes_the_adapter_too(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return done


@fake(
    "Adapters train although the config is for inference.",
    caught_by=["get_peft_model.inference-mode:nothing-trains"],
)
def ignores_inference_mode(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        said, self.config.inference_mode = self.config.inference_mode, False
        try:
            return original(self)
        finally:
            self.config.inference_mode = said


@fake(
    "In inference mode the adapter is not active either.",
    caught_by=["get_peft_model.inference-mode:active"],
)
def inference_mode_deactivates(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        done = original(self)
        if self.config.inference_mode:
            for module in self.model.modules():
                if isinstance(module, layer.BaseTunerLayer):
                    module._active_adapter = []
        return done


@fake("A second injection thaws the base model again.", caught_by=["inject.several:base-frozen"])
def second_injection_thaws_the_base(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        again = any(isinstance(m, layer.BaseTunerLayer) for m in model.modules())
        done = original(self)
        if again:
            for name, parameter in model.named_parameters():
                if "lora_" not in name:
                    parameter.requires_grad_(True)
        return done


# The model that was passed -------------------------------------------------------------------------


@fake(
    "A copy of the model is adapted and returned, the model that was passed stays as it was.",
    caught_by=["inject.in-place:same-object", "get_peft_model.returns-wrapper:same-base"],
)
def adapts_a_copy(patch: Patches) -> None:
    @patch.replace(injection, "inject_adapter_in_model")
    def inject_adapter_in_model(
        original: Any, peft_config: Any, model: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        return original(peft_config, copy.deepcopy(model), *args, **kwargs)

    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return original(copy.deepcopy(model), *args, **kwargs)


@fake(
    "The model that was passed is adapted, and a copy of it returned.",
    caught_by=["inject.in-place:same-object", "inject.several:same-object"],
)
def returns_a_copy(patch: Patches) -> None:
    @patch.replace(injection, "inject_adapter_in_model")
    def inject_adapter_in_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        return copy.deepcopy(original(*args, **kwargs))


@fake(
    "inject_adapter_in_model returns a PeftModel around the model.",
    caught_by=["inject.in-place:own-class", "inject.in-place:no-peft-model"],
)
def injects_by_wrapping(patch: Patches) -> None:
    @patch.replace(injection, "inject_adapter_in_model")
    def inject_adapter_in_model(
        original: Any,
        peft_config: Any,
        model: nn.Module,
        adapter_name: str = "default",
        low_cpu_mem_usage: bool = False,
        state_dict: Any = None,
    ) -> Any:
        return PeftModel(model, peft_config, adapter_name, False, low_cpu_mem_usage)


@fake(
    "The model's class is replaced by a PeftModel class made for it, as mixin libraries do.",
    caught_by=["inject.in-place:own-class", "inject.module-tree:root"],
)
def changes_the_models_class(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        done, target = original(self), self.model
        if not issubclass(type(target), Adapted):
            target.__class__ = type(f"Peft{type(target).__name__}", (type(target), Adapted), {})
        return done

    PeftModel = type("PeftModel", (), {})

    class Adapted(PeftModel):  # type: ignore[misc, valid-type]
        pass


@fake("The model's own config is replaced by a copy.", caught_by=["inject.keeps-transformers:config-kept"])
def copies_the_models_config(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        if hasattr(self.model, "config"):
            self.model.config = copy.deepcopy(self.model.config)
        return original(self)


@fake(
    "The layers stay where they are and are adapted by patching their forward methods.",
    caught_by=["get_peft_model.in-place:replaced", "get_peft_model.in-place:lora-layer"],
)
def adapts_by_patching(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        layers = dict(self.layers)
        done = original(self)
        for name, adapted in layers.items():
            parent, _, key = name.rpartition(".")
            base = adapted.get_base_layer()
            own = type(base).forward.__get__(base)
            base.__dict__["base_layer"] = base
            self.model.get_submodule(parent)._modules[key] = base
            base.forward = functools.partial(_patched, own, adapted)
        return done

    def _patched(own: Any, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        y = own(x)
        for adapter in adapted.all_adapters():
            y = adapted.adapt(adapter, x, y)
        return y


@fake(
    "An adapter that was injected is inactive until it is set.",
    caught_by=[
        "law.tensors:adapted",
        "inject.adapter-name:on-layer",
        "mixed.create:active",
        "mixed.load:active",
        "mixed.add:active",
    ],
)
def injects_inactive_adapters(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        layers = list(self.layers.values())
        done = original(self)
        for held in layers:
            held._active_adapter = []
        return done


@fake("Attributes that were set on the model are reset.", caught_by=["inject.keeps-attributes:attribute"])
def resets_instance_attributes(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        for name, value in vars(model).items():
            if not name.startswith("_") and isinstance(value, (str, int)) and not isinstance(value, bool):
                setattr(model, name, type(value)())
        return done


@fake(
    "The model's forward method is replaced by one that reports calls.",
    caught_by=["inject.keeps-attributes:method"],
)
def patches_forward(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        forward = type(model).forward

        def reporting(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **kwargs)

        model.forward = types.MethodType(reporting, model)
        return done


@fake(
    "The base weights are copied into new memory.",
    caught_by=["inject.in-place:base-kept", "get_peft_model.in-place:base-kept"],
)
def reallocates_the_base(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        for module in model.modules():
            if isinstance(module, layer.BaseTunerLayer):
                for parameter in module.get_base_layer().parameters():
                    parameter.data = parameter.data.clone()
        return done


@fake(
    "Each target layer is built anew with the old weights, so that optimizers lose their parameters.",
    caught_by=["inject.in-place:base-kept", "get_peft_model.in-place:base-layer"],
)
def rebuilds_the_base_layer(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "__init__")
    def __init__(original: Any, self: Any, base_layer: nn.Module, op: Any) -> None:
        original(self, copy.deepcopy(base_layer), op)


@fake(
    "Layers that no config targets are replaced by copies as well.",
    caught_by=["get_peft_model.only-targets:head-same"],
)
def rebuilds_untargeted_layers(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        for name, child in list(model.named_children()):
            if not any(
                isinstance(m, (layer.BaseTunerLayer, wrappers.ModulesToSaveWrapper)) for m in child.modules()
            ):
                setattr(model, name, copy.deepcopy(child))
        return done


@fake(
    "New layers are in training mode whatever mode the model is in.",
    caught_by=["law.mode:same-mode"],
    points=[{"training": False}],
    like="peft 0.21.2",
)
def new_layers_in_train_mode(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        for module in model.modules():
            if isinstance(module, layer.BaseTunerLayer):
                module.train()
        return done


@fake(
    "The whole model is put into training mode.",
    caught_by=["inject.in-place:frame", "law.mode:same-mode"],
    points=[{"training": False}],
)
def switches_the_model_to_training(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        model.train()
        return done


@fake(
    "The base model is cast to the adapter's type, float32.", caught_by=["get_peft_model.autocast:base-kept"]
)
def casts_the_base_too(patch: Patches) -> None:
    from peft_reference import adapters

    @patch.replace(adapters, "cast_adapter_dtype")
    def cast_adapter_dtype(
        original: Any, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True
    ) -> Any:
        original(model, adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            model.float()

    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = original(self, x.to(self.weight.dtype) if x.is_floating_point() else x, *args, **kwargs)
        return y.to(x.dtype) if x.is_floating_point() else y


# Which layers --------------------------------------------------------------------------------------


@fake(
    "Every layer of a known type is adapted, whatever the config targets.",
    caught_by=[
        "inject.example:head-plain",
        "inject.freezes-untargeted:untargeted-plain",
        "get_peft_model.only-targets:others-plain",
        "targets.suffix:others-plain",
        "targets.numbers:others-plain",
    ],
)
def adapts_every_known_layer(patch: Patches) -> None:
    from peft_reference.operators import operator_of

    @patch.replace(matching, "select_targets")
    def select_targets(original: Any, config: Any, targets: Any, modules: Any, *optional: Any) -> Any:
        meant = original(config, targets, modules, *optional)
        return [name for name, module in modules.items() if name in meant or operator_of(module)]


@fake(
    "Only the first module that matches is adapted.",
    caught_by=[
        "get_peft_model.targeted-names:full-names",
        "targets.suffix:adapted",
        "targets.several:adapted",
        "targets.all-linear:adapted",
    ],
)
def adapts_the_first_match_only(patch: Patches) -> None:
    @patch.replace(matching, "select_targets")
    def select_targets(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)[:1]


@fake(
    "A target matches any name that contains it.",
    caught_by=[
        "inject.no-target:raises",
        "get_peft_model.targets-not-found:raises*",
        "targets.regex-partial:raises",
    ],
    points=[{"targets": "linea"}],
)
def matches_substrings(patch: Patches) -> None:
    @patch.replace(matching, "names_module")
    def names_module(original: Any, entries: Any, name: str) -> bool:
        if isinstance(entries, str):
            return re.search(entries, name) is not None
        return original(entries, name) or any(entry in name for entry in entries or ())


@fake(
    "Entries of a list of targets are regular expressions.",
    caught_by=["targets.whole-segments:raises", "targets.whole-segments:not-adapted"],
    points=[{"entry": "lin."}],
)
def list_entries_are_regexes(patch: Patches) -> None:
    @patch.replace(matching, "names_module")
    def names_module(original: Any, entries: Any, name: str) -> bool:
        if isinstance(entries, str) or entries is None:
            return original(entries, name)
        return original(entries, name) or any(re.fullmatch(rf"(.*\.)?{entry}", name) for entry in entries)


@fake(
    "Upper and lower case are the same in targets.",
    caught_by=["inject.no-target:raises"],
    points=[{"targets": "LINEAR"}],
)
def matches_any_case(patch: Patches) -> None:
    @patch.replace(matching, "names_module")
    def names_module(original: Any, entries: Any, name: str) -> bool:
        if isinstance(entries, str):
            return re.fullmatch(entries, name, re.IGNORECASE) is not None
        return original({entry.lower() for entry in entries or ()}, name.lower())


@fake(
    "A full name in a list of targets also matches modules that end in it as text.",
    caught_by=["targets.whole-segments:raises"],
)
def suffix_without_dot(patch: Patches) -> None:
    @patch.replace(matching, "names_module")
    def names_module(original: Any, entries: Any, name: str) -> bool:
        if isinstance(entries, str) or entries is None:
            return original(entries, name)
        return any(name.endswith(entry) for entry in entries)


@fake(
    "exclude_modules is ignored.",
    caught_by=[
        "targets.exclude-list:adapted",
        "targets.exclude-list:others-plain",
        "targets.exclude-regex:adapted",
        "targets.exclude-everything:raises",
        "targets.exclude-all-linear:adapted",
    ],
)
def ignores_exclude_modules(patch: Patches) -> None:
    @patch.replace(matching, "select_targets")
    def select_targets(original: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        config = copy.copy(config)
        config.exclude_modules = None
        return original(config, *args, **kwargs)


@fake(
    "layers_to_transform is ignored.",
    caught_by=[
        "targets.layers-list:adapted",
        "targets.layers-one:adapted",
        "targets.layers-zero:adapted",
        "targets.layers-none-left:raises",
    ],
)
def ignores_layers_to_transform(patch: Patches) -> None:
    @patch.replace(matching, "_in_layers")
    def _in_layers(original: Any, config: Any, name: str) -> bool:
        return True


@fake("layers_pattern is ignored.", caught_by=["targets.layers-pattern-decides:block"])
def ignores_layers_pattern(patch: Patches) -> None:
    @patch.replace(matching, "_in_layers")
    def _in_layers(original: Any, config: Any, name: str) -> bool:
        config = copy.copy(config)
        config.layers_pattern = None
        return original(config, name)


@fake(
    "`all-linear` adapts the output head too.",
    caught_by=["targets.all-linear-llama:adapted", "targets.all-linear-llama:others-plain"],
)
def all_linear_takes_the_head(patch: Patches) -> None:
    @patch.replace(matching, "is_transformers_model")
    def is_transformers_model(original: Any, model: nn.Module) -> bool:
        return False


@fake(
    "`all-linear` means the embeddings too.",
    caught_by=["targets.all-linear-gpt2:adapted", "targets.all-linear-llama:others-plain"],
)
def all_linear_takes_embeddings(patch: Patches) -> None:
    @patch.replace(matching, "_all_linear")
    def _all_linear(original: Any, config: Any, model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
        return original(config, model, modules) | {
            n for n, m in modules.items() if isinstance(m, nn.Embedding)
        }


@fake(
    "`all-linear` finds the low-rank layers of the adapters that are there.",
    caught_by=["targets.all-linear-again:not-nested"],
)
def all_linear_adapts_adapters(patch: Patches) -> None:
    @patch.replace(matching, "_all_linear")
    def _all_linear(original: Any, config: Any, model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
        inside = {n: m for n, m in model.named_modules() if ".lora_" in n and isinstance(m, nn.Linear)}
        modules.update(inside)
        return original(config, model, modules)


@fake(
    "Known architectures have other default targets.",
    caught_by=[
        "targets.default-llama:adapted",
        "targets.default-bert:adapted",
        "targets.default-gpt2:adapted",
        "config_json.lora-fields:default-targets",
    ],
)
def other_default_targets(patch: Patches) -> None:
    @patch.replace(matching, "resolve_targets")
    def resolve_targets(
        original: Any, config: Any, model: nn.Module, modules: Any, defaults: Any, *optional: Any
    ) -> Any:
        others = {"llama": ("q_proj", "k_proj"), "bert": ("query", "key", "value"), "gpt2": ("c_proj",)}
        return original(config, model, modules, {**defaults, **others}, *optional)


@fake("Without targets every linear layer is adapted.", caught_by=["get_peft_model.no-targets:raises"])
def no_targets_means_all_linear(patch: Patches) -> None:
    @patch.replace(matching, "resolve_targets")
    def resolve_targets(
        original: Any, config: Any, model: nn.Module, modules: Any, defaults: Any, *optional: Any
    ) -> Any:
        return original(config, model, modules, {None: "all-linear", **defaults})


@fake(
    "The names of the adapted modules are reported without their path.",
    caught_by=["get_peft_model.targeted-names:full-names"],
)
def reports_short_names(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "__init__")
    def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.targeted_module_names = [name.rpartition(".")[2] for name in self.targeted_module_names]


# Names and configs ---------------------------------------------------------------------------------


@fake(
    "Every adapter is called default.",
    caught_by=["inject.adapter-name:on-layer", "get_peft_model.names-adapter:active-name"],
    points=[{"adapter": "other"}, {"adapter": "custom_adapter"}],
)
def calls_every_adapter_default(patch: Patches) -> None:
    @patch.replace(injection.Injection, "__init__")
    def __init__(
        original: Any, self: Any, model: nn.Module, tuner_cls: Any, config: Any, adapter_name: str, *args: Any
    ) -> None:
        original(self, model, tuner_cls, config, "default", *args)


@fake(
    "The default name of an adapter is another one.",
    caught_by=["inject.parameter-names:names", "inject.signature:parameters"],
)
def other_default_name(patch: Patches) -> None:
    original = injection.inject_adapter_in_model

    def inject_adapter_in_model(
        peft_config: Any,
        model: Any,
        adapter_name: str = "adapter",
        low_cpu_mem_usage: bool = False,
        state_dict: Any = None,
    ) -> Any:
        return original(peft_config, model, adapter_name, low_cpu_mem_usage, state_dict)

    patch.set(injection, "inject_adapter_in_model", inject_adapter_in_model)


@fake(
    "A second adapter takes the place of the first.",
    caught_by=["inject.several:both", "targets.all-linear-again:same-layers"],
)
def second_adapter_replaces_the_first(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "attach")
    def attach(original: Any, self: Any, adapter: str, contents: dict[str, Any]) -> None:
        for other in self.all_adapters():
            self.detach(other)
        original(self, adapter, contents)


@fake("A second injection initialises the first adapter again.", caught_by=["inject.several:first-kept"])
def second_injection_resets_the_first(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "attach")
    def attach(original: Any, self: Any, adapter: str, contents: dict[str, Any]) -> None:
        original(self, adapter, contents)
        with torch.no_grad():
            for other in self.all_adapters():
                for parameter in self.adapter_parameters(other):
                    parameter.copy_(torch.zeros_like(parameter) if other != adapter else parameter)


@fake(
    "Every adapter is put on every adapted layer, whatever its own config targets.",
    caught_by=["inject.several-elsewhere:first-layer"],
)
def adapters_on_every_layer(patch: Patches) -> None:
    @patch.replace(matching, "select_targets")
    def select_targets(original: Any, config: Any, targets: Any, modules: Any, *optional: Any) -> Any:
        there = [name for name, m in modules.items() if isinstance(m, layer.BaseTunerLayer)]
        return list(dict.fromkeys([*original(config, targets, modules, *optional), *there]))


@fake(
    "The model's peft_config holds a fresh config of the method, not the one that was passed.",
    caught_by=[
        "inject.config-attribute:fields",
        "inject.config-attribute:rank",
        "get_peft_model.returns-wrapper:very-config",
    ],
)
def stores_a_fresh_config(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_record_config")
    def _record_config(original: Any, self: Any) -> None:
        original(self)
        self.model.peft_config[self.adapter_name] = type(self.config)()


@fake(
    "The model's peft_config holds a copy of the config.",
    caught_by=["get_peft_model.returns-wrapper:very-config"],
)
def stores_a_copy_of_the_config(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_record_config")
    def _record_config(original: Any, self: Any) -> None:
        original(self)
        self.model.peft_config[self.adapter_name] = copy.deepcopy(self.config)


@fake(
    "The model's peft_config holds plain dicts.",
    caught_by=["inject.several:config-default", "inject.several:config-other"],
)
def stores_configs_as_dicts(patch: Patches) -> None:
    @patch.replace(injection, "inject_adapter_in_model")
    def inject_adapter_in_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        result.peft_config = {name: AsDict(vars(config)) for name, config in result.peft_config.items()}
        return result

    class AsDict(dict):
        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(name) from None


@fake(
    "Fields of the caller's config are changed: alpha is doubled, the rank is one more.",
    caught_by=["inject.example:frame", "inject_sd.match-silent:frame"],
)
def rewrites_the_callers_config(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        done = original(self)
        self.config.lora_alpha *= 2
        self.config.r += 1
        return done


# Meta device ---------------------------------------------------------------------------------------


@fake(
    "low_cpu_mem_usage is ignored, the adapter is made on the CPU.",
    caught_by=[
        "inject.meta:adapter-meta",
        "inject.meta-example:meta-before",
        "low_memory.get-peft-model:adapter-meta",
        "low_memory.constructor:adapter-meta",
        "low_memory.add-adapter:new-meta",
        "law.meta:on-meta",
        "inject_sd.meta:on-meta",
        "set_state_dict.fills-meta:meta-before",
        "mixed.low-memory:second",
        "task.add-on-meta:on-meta",
    ],
)
def ignores_low_cpu_mem_usage(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, held: Any, create: Any) -> Any:
        self.low_cpu_mem_usage = False
        return original(self, held, create)


@fake(
    "low_cpu_mem_usage moves the base layers to meta as well.",
    caught_by=["inject.meta:base-real", "mixed.low-memory:base-stays"],
)
def moves_the_base_to_meta(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, held: Any, create: Any) -> Any:
        contents = original(self, held, create)
        if self.low_cpu_mem_usage:
            held.get_base_layer().to("meta")
        return contents


@fake(
    "Adapters are always made on meta.",
    caught_by=["inject.meta:plain-real", "get_peft_model.in-place:adapter-device", "mixed.create:identity"],
)
def always_on_meta(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, held: Any, create: Any) -> Any:
        self.low_cpu_mem_usage = True
        return original(self, held, create)


@fake("Layers that are made on meta have a bias.", caught_by=["inject.meta:same-names"])
def meta_layers_have_biases(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, held: Any, create: Any) -> Any:
        contents = original(self, held, create)
        for value in contents.values():
            if self.low_cpu_mem_usage and isinstance(value, nn.Linear):
                value.bias = nn.Parameter(torch.empty(value.out_features, device="meta"))
        return contents


@fake(
    "Adding an adapter on meta moves those that are there to meta.",
    caught_by=["low_memory.add-adapter:old-real"],
)
def adding_on_meta_moves_all(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, held: Any, create: Any) -> Any:
        if self.low_cpu_mem_usage:
            for slot in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
                getattr(held, slot).to("meta")
        return original(self, held, create)

    skip_meta_adapters(patch)


def skip_meta_adapters(patch: Patches) -> None:
    """Let a layer with an adapter on meta compute what its base layer does, so that a case goes on."""

    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if any(p.is_meta for p in self.parameters()):
            return self.base_layer(x, *args, **kwargs)
        return original(self, x, *args, **kwargs)


@fake(
    "With low_cpu_mem_usage the base layers are on meta too until the adapter is filled.",
    caught_by=[
        "set_state_dict.fills-meta:base-never-meta",
        "low_memory.get-peft-model:base-stays",
        "low_memory.constructor:base-stays",
        "inject_sd.meta:base-real",
    ],
)
def offloads_the_base(patch: Patches) -> None:
    from peft_reference import state_dict

    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, held: Any, create: Any) -> Any:
        contents = original(self, held, create)
        if self.low_cpu_mem_usage and not held.all_adapters():
            held.__dict__["offloaded"] = [(p, p.data) for p in held.get_base_layer().parameters()]
            held.get_base_layer().to("meta")
        return contents

    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        for held in model.modules():
            for old, data in vars(held).pop("offloaded", ()):
                for key, now in list(held.get_base_layer().named_parameters()):
                    if now.shape == data.shape and now.is_meta:
                        kept = nn.Parameter(data, now.requires_grad and old.requires_grad)
                        held.get_base_layer().register_parameter(key, kept)
        return original(model, *args, **kwargs)


@fake(
    "On meta the adapter does not train.",
    caught_by=[
        "inject.meta:adapter-trains",
        "low_memory.get-peft-model:adapter-trains",
        "low_memory.adapter-dtype:same-tensors",
    ],
)
def meta_adapters_are_frozen(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        model = self.model
        done = original(self)
        for parameter in model.parameters():
            if parameter.is_meta:
                parameter.requires_grad_(False)
        return done


@fake(
    "Adapters are float32 whatever type the base layer has.",
    caught_by=[
        "get_peft_model.autocast-off:adapter-dtype",
        "cast.keeps-base-type:as-base",
        "low_memory.adapter-dtype:dtype",
    ],
    points=[{"dtype": "bfloat16"}, {"dtype": "float64"}],
)
def adapters_always_float32(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, *args: Any, **kwargs: Any) -> Any:
        contents = original(*args, **kwargs)
        for value in contents.values():
            if isinstance(value, nn.Module):
                value.float()
            elif isinstance(value, torch.Tensor):
                value.data = value.data.float()
        return contents


# Refusing ------------------------------------------------------------------------------------------


@fake(
    "The base model is frozen before the config is looked at, and stays so after an error.",
    caught_by=["inject.no-target:frame", "get_peft_model.targets-not-found:frame"],
)
def half_done_after_errors(patch: Patches) -> None:
    @patch.replace(injection, "inject_adapter_in_model")
    def inject_adapter_in_model(
        original: Any, peft_config: Any, model: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        model.requires_grad_(False)
        return original(peft_config, model, *args, **kwargs)

    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        model.requires_grad_(False)
        return original(model, *args, **kwargs)


@fake(
    "Targets are adapted one by one, those before an unsupported one stay adapted after the error.",
    caught_by=[
        "get_peft_model.unsupported-layer:not-adapted",
        "get_peft_model.unsupported-layer:frame",
        "law.unsupported-layer:not-adapted",
        "law.unsupported-layer-second:one-adapter",
    ],
    points=[{"targets": "lin0|relu"}],
    like="peft 0.21.2",
)
def adapts_until_the_first_error(patch: Patches) -> None:
    @patch.replace(injection.Injection, "__init__")
    def __init__(original: Any, self: Any, model: nn.Module, tuner_cls: Any, config: Any, *args: Any) -> None:
        try:
            original(self, model, tuner_cls, config, *args)
        except ValueError:
            single = copy.copy(config)
            for name in ("lin0", "layer", "linear"):
                if hasattr(model, name):
                    single.target_modules = {name}
                    original(self, model, tuner_cls, single, *args)
                    self.apply()
            raise


@fake(
    "A config that selects no module leaves the model as it is, without an error.",
    caught_by=[
        "inject.no-target:raises",
        "inject.no-target-class:raises",
        "get_peft_model.targets-not-found:raises*",
        "targets.empty-list:raises",
        "targets.layers-none-left:raises",
    ],
)
def accepts_missing_targets(patch: Patches) -> None:
    @patch.replace(matching, "select_targets")
    def select_targets(original: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except errors.NoMatchingPeftModuleError:
            return []


@fake(
    "Targets of unsupported types are skipped without a word.",
    caught_by=[
        "get_peft_model.unsupported-layer:raises",
        "targets.container:raises",
        "law.unsupported-layer:raises",
    ],
)
def skips_unsupported_layers(patch: Patches) -> None:
    from peft_reference.operators import operator_of

    @patch.replace(matching, "select_targets")
    def select_targets(original: Any, config: Any, targets: Any, modules: Any, *optional: Any) -> Any:
        names = original(config, targets, modules, *optional)
        return [n for n in names if isinstance(modules[n], layer.BaseTunerLayer) or operator_of(modules[n])]


@fake(
    "Unknown and prompt-learning types are taken for LoRA.",
    caught_by=["inject.refuses-prompt:raises", "get_peft_model.unknown-type:raises"],
)
def takes_every_type_for_lora(patch: Patches) -> None:
    @patch.replace(registry, "tuner_for")
    def tuner_for(original: Any, config: Any) -> Any:
        return lora.LoraModel

    @patch.replace(injection.Injection, "__init__")
    def __init__(original: Any, self: Any, model: nn.Module, tuner_cls: Any, config: Any, *args: Any) -> None:
        if not isinstance(config, lora.LoraConfig):
            config = lora.LoraConfig(target_modules=["linear", "lin0", "layer", "q_proj"])
        original(self, model, tuner_cls, config, *args)


@fake(
    "Unknown types raise the KeyError of the type table.",
    caught_by=["get_peft_model.unknown-type:raises"],
    like="peft 0.21.2",
)
def key_errors_for_unknown_types(patch: Patches) -> None:
    @patch.replace(registry, "tuner_for")
    def tuner_for(original: Any, config: Any) -> Any:
        return registry.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]


# Modules to save -----------------------------------------------------------------------------------


@fake(
    "With modules_to_save nothing else is adapted.",
    caught_by=["peft_model.modules-to-save-not-adapted:lin0-adapted"],
)
def modules_to_save_replace_targets(patch: Patches) -> None:
    @patch.replace(matching, "select_targets")
    def select_targets(original: Any, config: Any, *args: Any) -> list[str]:
        return [] if config.modules_to_save else original(config, *args)


@fake("modules_to_save is ignored.", caught_by=["inject.modules-to-save:copy-trains"])
def ignores_modules_to_save(patch: Patches) -> None:
    @patch.replace(matching, "select_to_save")
    def select_to_save(original: Any, *args: Any, **kwargs: Any) -> Any:
        return {}


@fake(
    "The module of modules_to_save is trained itself, without a copy of its own.",
    caught_by=["inject.modules-to-save:original-frozen"],
)
def modules_to_save_without_copy(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "create")
    def create(original: Any, self: Any) -> nn.Module:
        return self.original_module


@fake(
    "The trained module shares its parameters with the original.",
    caught_by=["peft_model.modules-to-save:own-copy", "peft_model.modules-to-save:original-frozen"],
)
def modules_to_save_share_parameters(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "create")
    def create(original: Any, self: Any) -> nn.Module:
        made = copy.copy(self.original_module)
        self._modules = dict(
            sorted(self._modules.items())
        )  # the copies first, so that tensors go by their names
        return made


@fake(
    "The copy of a module to save is frozen.",
    caught_by=[
        "inject.modules-to-save:copy-trains",
        "peft_model.modules-to-save:copy-trains",
        "tying.copies-one:one-copy",
    ],
)
def modules_to_save_copy_is_frozen(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, adapter_names: Any, requires_grad: bool = True) -> None:
        original(self, adapter_names, False)


@fake(
    "The copy of a module to save starts from new random weights.",
    caught_by=["inject.modules-to-save:starts-as-base"],
)
def modules_to_save_copy_starts_afresh(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "create")
    def create(original: Any, self: Any) -> nn.Module:
        made = original(self)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_()
        return made


@fake(
    "The original of a module to save computes the output, the copy trains in vain.",
    caught_by=[
        "inject.modules-to-save-trains:counts",
        "inject.modules-to-save-trains:gradient",
        "peft_model.modules-to-save:copy-used",
        "set_adapter.modules-to-save-other:own-counts",
    ],
)
def modules_to_save_copy_is_not_used(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "acting_copy")
    def acting_copy(original: Any, self: Any) -> nn.Module:
        return self.original_module


@fake(
    "The copy of a module to save acts although the adapter is disabled.",
    caught_by=["peft_model.modules-to-save:original-when-disabled"],
)
def modules_to_save_stay_when_disabled(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "enable_adapters")
    def enable_adapters(original: Any, self: Any, enabled: bool) -> None:
        original(self, enabled)
        self._disable_adapters = False


@fake(
    "A module to save is adapted as well when the config targets it.",
    caught_by=["peft_model.modules-to-save-not-adapted:no-lora-on-lin1"],
)
def adapts_modules_to_save(patch: Patches) -> None:
    @patch.replace(matching, "select_to_save")
    def select_to_save(original: Any, config: Any, modules: dict[str, nn.Module], adapter_name: str) -> Any:
        saved = original(config, modules, adapter_name)
        return {
            name: m
            for name, m in saved.items()
            if not matching.is_target(config.target_modules, config, name)
        }


# Where things are ----------------------------------------------------------------------------------


@fake(
    "The containers and the low-rank layers are of classes of their own.",
    caught_by=[
        "inject.module-tree:dropout-container",
        "inject.module-tree:matrix-containers",
        "inject.module-tree:matrices",
        "inject.module-tree:embedding-containers",
    ],
)
def own_container_classes(patch: Patches) -> None:
    class AdapterDict(nn.ModuleDict):
        pass

    class AdapterParameters(nn.ParameterDict):
        pass

    class LowRank(nn.Linear):
        pass

    own: dict[Any, Any] = {nn.ModuleDict: AdapterDict, nn.ParameterDict: AdapterParameters}
    patch.set(
        lora.LoraLayer, "slots", {slot: own.get(kind, kind) for slot, kind in lora.LoraLayer.slots.items()}
    )

    @patch.replace(lora.LoraLayer, "create")
    def create(original: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        contents = original(self, *args, **kwargs)
        for value in contents.values():
            if type(value) is nn.Linear:
                value.__class__ = LowRank
        return contents


@fake(
    "A and B are built from bare parameters instead of layers.",
    caught_by=["inject.example:a-linear", "inject.example:b-linear"],
)
def matrices_are_no_linear_layers(patch: Patches) -> None:
    class Matrix(nn.Module):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)
            self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight, self._parameters["bias"])

    @patch.replace(lora.LoraLayer, "create")
    def create(original: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        contents = original(self, *args, **kwargs)
        return {
            slot: Matrix(value.weight.detach(), None if value.bias is None else value.bias.detach())
            if isinstance(value, nn.Linear)
            else value
            for slot, value in contents.items()
        }


@fake(
    "The low-rank layers have biases that nobody asked for.",
    caught_by=["inject.example:no-bias", "inject.parameter-names:names"],
)
def matrices_have_biases(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "create")
    def create(original: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        contents = original(self, *args, **kwargs)
        for value in contents.values():
            if isinstance(value, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and value.bias is None:
                value.bias = nn.Parameter(torch.zeros(value.weight.shape[0], device=value.weight.device))
        return contents


@fake(
    "The original layer stands under the name `original` instead of base_layer.",
    caught_by=[
        "inject.parameter-names:names",
        "inject.full-state:base-present",
        "inject.module-tree:base-layer",
        "inject.full-state:base-present",
    ],
)
def base_layer_under_another_name(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "__init__")
    def __init__(original: Any, self: Any, base_layer: nn.Module, op: Any) -> None:
        original(self, base_layer, op)
        self._modules = {
            ("original" if name == "base_layer" else name): m for name, m in self._modules.items()
        }

    @patch.replace(layer.BaseTunerLayer, "__getattr__")
    def __getattr__(original: Any, self: Any, name: str) -> Any:
        renamed = name == "base_layer" and "original" in self._modules
        return self._modules["original"] if renamed else original(self, name)

    @patch.replace(layer.BaseTunerLayer, "get_base_layer")
    def get_base_layer(original: Any, self: Any) -> nn.Module:
        base = self
        while isinstance(base, layer.BaseTunerLayer):
            base = base.base_layer
        return base

    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._modules["base_layer"] = self._modules["original"]
        try:
            return original(self, x, *args, **kwargs)
        finally:
            del self._modules["base_layer"]


@fake(
    "The dropout modules of a layer are hidden from the module tree.",
    caught_by=["inject.module-tree:dropout", "inject.module-tree:dropout-container"],
)
def hides_dropout(patch: Patches) -> None:
    slots = {slot: kind for slot, kind in lora.LoraLayer.slots.items() if slot != "lora_dropout"}
    patch.set(lora.LoraLayer, "slots", {**slots, "lora_dropout": dict})
