"""Faults of state dicts: keys, what belongs to an adapter, loading, missing and unexpected keys."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft_reference import injection, layer, matching, state_dict, wrappers
from torch import nn

from .fake import Patches, fake

Tensors = dict[str, Any]
PREFIX = "base_model.model."


def got(patch: Patches, change: Callable[[Any, Tensors, str], Tensors]) -> None:
    """Let `change(model, tensors, adapter)` stand in for what get_peft_model_state_dict returns."""

    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any,
        model: Any,
        state_dict: Any = None,
        adapter_name: str = "default",
        *args: Any,
        **kwargs: Any,
    ) -> Tensors:
        return change(model, original(model, state_dict, adapter_name, *args, **kwargs), adapter_name)


def given(patch: Patches, change: Callable[[Any, Tensors, str], Tensors]) -> None:
    """Let `change(model, tensors, adapter)` stand in for what is given to set_peft_model_state_dict."""

    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(
        original: Any,
        model: Any,
        peft_model_state_dict: Tensors,
        adapter_name: str = "default",
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return original(
            model, change(model, peft_model_state_dict, adapter_name), adapter_name, *args, **kwargs
        )


def setting(patch: Patches) -> Callable[[Callable[..., Any]], None]:
    """Replace set_peft_model_state_dict by a function that gets all of its arguments in their order."""

    def decorate(new: Callable[..., Any]) -> None:
        @patch.replace(state_dict, "set_peft_model_state_dict")
        def set_peft_model_state_dict(
            original: Any,
            model: Any,
            peft_model_state_dict: Tensors,
            adapter_name: str = "default",
            ignore_mismatched_sizes: bool = False,
            low_cpu_mem_usage: bool = False,
        ) -> Any:
            return new(
                original,
                model,
                peft_model_state_dict,
                adapter_name,
                ignore_mismatched_sizes,
                low_cpu_mem_usage,
            )

    return decorate


def told(patch: Patches, change: Callable[[list[str], list[str]], tuple[list[str], list[str]]]) -> None:
    """Let `change(missing, unexpected)` stand in for the outcome of set_peft_model_state_dict."""

    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = original(*args, **kwargs)
        return state_dict.IncompatibleKeys(*change(outcome.missing_keys, outcome.unexpected_keys))


# Getting -------------------------------------------------------------------------------------------


@fake(
    "The adapter's name stays in the keys.",
    caught_by=[
        "get_state_dict.adapter-only:no-name",
        "get_state_dict.documented-key:keys",
        "get_state_dict.embedding-keys:keys",
        "checkpoint.name-folder:no-name-in-keys",
        "law.keys:any-name",
    ],
)
def keeps_the_adapter_name(patch: Patches) -> None:
    for holder in (layer.BaseTunerLayer, wrappers.ModulesToSaveWrapper):

        @patch.replace(holder, "state_entries")
        def state_entries(original: Any, self: Any, adapter: str) -> Any:
            for live, _, tensor in original(self, adapter):
                yield live, live, tensor


@fake(
    "The adapter's name is cut out of the keys wherever it stands, as text.",
    caught_by=["get_state_dict.module-names:default-kept", "get_state_dict.names-that-overlap:same-keys"],
    points=[{"adapter": "lin0"}],
    like="peft 0.18.1",
)
def cuts_the_name_anywhere(patch: Patches) -> None:
    got(
        patch,
        lambda model, tensors, adapter: {key.replace(f".{adapter}", ""): t for key, t in tensors.items()},
    )


@fake(
    "Keys of a PeftModel have no prefix.",
    caught_by=["get_state_dict.adapter-only:adapter-keys", "checkpoint.tensors:keys"],
)
def saves_without_prefix(patch: Patches) -> None:
    got(patch, lambda model, tensors, adapter: {key.removeprefix(PREFIX): t for key, t in tensors.items()})


@fake(
    "Keys of an injected model get the prefix of a PeftModel.",
    caught_by=["get_state_dict.injected:keys", "get_state_dict.documented-key:keys"],
)
def always_prefixes(patch: Patches) -> None:
    got(
        patch,
        lambda model, tensors, adapter: {PREFIX + key.removeprefix(PREFIX): t for key, t in tensors.items()},
    )


@fake(
    "Embedding tensors are called lora_A_embedding and lora_B_embedding.",
    caught_by=["get_state_dict.embedding-keys:keys"],
    like="one list of the checkpoint page",
)
def swaps_embedding_names(patch: Patches) -> None:
    def renamed(model: Any, tensors: Tensors, adapter: str) -> Tensors:
        return {
            k.replace("lora_embedding_A", "lora_A_embedding").replace(
                "lora_embedding_B", "lora_B_embedding"
            ): t
            for k, t in tensors.items()
        }

    got(patch, renamed)


@fake(
    "The base weights are in the adapter's state dict too.",
    caught_by=[
        "get_state_dict.adapter-only:adapter-keys",
        "get_state_dict.adapter-only:no-base",
        "inject.full-state:adapter-smaller",
        "law.keys:no-base",
        "checkpoint.tensors:keys",
    ],
)
def saves_the_base_too(patch: Patches) -> None:
    got(patch, lambda model, tensors, adapter: {**model.state_dict(), **tensors})


@fake(
    "The whole state of the model is returned.",
    caught_by=["get_state_dict.adapter-only:smaller", "get_state_dict.one-adapter:default-keys"],
)
def returns_the_whole_state(patch: Patches) -> None:
    got(patch, lambda model, tensors, adapter: dict(model.state_dict()))


@fake("A list of pairs is returned instead of a dict.", caught_by=["get_state_dict.adapter-only:dict"])
def returns_pairs(patch: Patches) -> None:
    got(patch, lambda model, tensors, adapter: list(tensors.items()))  # type: ignore[arg-type, return-value]


@fake(
    "Every tensor is saved in float16.",
    caught_by=["get_state_dict.table:float32", "get_state_dict.table:table"],
)
def saves_in_half_precision(patch: Patches) -> None:
    got(
        patch,
        lambda model, tensors, adapter: {
            key: t.half() if t.is_floating_point() else t for key, t in tensors.items()
        },
    )


@fake(
    "Tensors are saved transposed.",
    caught_by=[
        "get_state_dict.embedding-keys:a-shape",
        "get_state_dict.embedding-keys:b-shape",
        "checkpoint.several:second-shape",
    ],
)
def saves_transposed(patch: Patches) -> None:
    got(
        patch,
        lambda model, tensors, adapter: {
            key: t.transpose(0, 1) if t.dim() > 1 else t for key, t in tensors.items()
        },
    )


@fake(
    "Tensors are returned without values, on the meta device.",
    caught_by=["get_state_dict.adapter-only:device"],
)
def returns_meta_tensors(patch: Patches) -> None:
    got(patch, lambda model, tensors, adapter: {key: t.to("meta") for key, t in tensors.items()})


@fake(
    "Reading the state casts the adapter in the model to float16.",
    caught_by=["get_state_dict.one-adapter:live-names", "get_state_dict.adapter-only:frame"],
)
def reading_casts_the_model(patch: Patches) -> None:
    def cast(model: Any, tensors: Tensors, adapter: str) -> Tensors:
        for name, parameter in model.named_parameters():
            if f".{adapter}." in f"{name}.":
                parameter.data = parameter.data.half()
        return tensors

    got(patch, cast)


@fake(
    "unwrap_compiled returns the tensors without the model's prefix.",
    caught_by=["get_state_dict.unwrap-compiled:same"],
)
def unwrapping_drops_the_prefix(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(original: Any, *args: Any, **kwargs: Any) -> Tensors:
        tensors = original(*args, **kwargs)
        return (
            {k.removeprefix(PREFIX): t for k, t in tensors.items()}
            if kwargs.get("unwrap_compiled")
            else tensors
        )


@fake(
    "B is left out.",
    caught_by=["get_state_dict.documented-key:keys", "get_state_dict.one-adapter:default-keys"],
)
def saves_a_only(patch: Patches) -> None:
    got(
        patch,
        lambda model, tensors, adapter: {
            key: t for key, t in tensors.items() if "lora_B" not in key and "embedding_B" not in key
        },
    )


@fake(
    "The active adapter is returned, whichever is named.",
    caught_by=["get_state_dict.one-adapter:other-keys", "get_state_dict.names-that-overlap:its-own-rank"],
)
def returns_the_active_adapter(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any, model: Any, state_dict: Any = None, adapter_name: str = "default", **kwargs: Any
    ) -> Tensors:
        from peft_reference.adapters import active_adapters_of

        return original(model, state_dict, (active_adapters_of(model) or [adapter_name])[0], **kwargs)


@fake(
    "The tensors of all adapters are returned, the last ones under the same keys.",
    caught_by=["get_state_dict.names-that-overlap:default-rank", "get_state_dict.one-adapter:default-rank"],
)
def returns_all_adapters(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any, model: Any, state_dict: Any = None, adapter_name: str = "default", **kwargs: Any
    ) -> Tensors:
        every = original(model, state_dict, adapter_name, **kwargs)
        for name in model.peft_config:
            every.update(original(model, state_dict, name, **kwargs))
        return every


@fake(
    "A name that no adapter has gives an empty dict.",
    caught_by=["get_state_dict.unknown-adapter:raises", "set_state_dict.unknown-adapter:raises"],
)
def unknown_adapters_are_empty(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any, model: Any, state_dict: Any = None, adapter_name: str = "default", **kwargs: Any
    ) -> Tensors:
        return (
            original(model, state_dict, adapter_name, **kwargs) if adapter_name in model.peft_config else {}
        )

    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        if adapter not in model.peft_config:
            return state_dict.IncompatibleKeys([], list(tensors))
        return original(model, tensors, adapter, ignore, low)


@fake(
    "Reading the state freezes the adapter.",
    caught_by=["get_state_dict.unknown-adapter:untouched", "get_state_dict.adapter-only:frame"],
)
def reading_freezes(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(original: Any, model: Any, *args: Any, **kwargs: Any) -> Tensors:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return original(model, *args, **kwargs)


@fake("A state dict that is passed is ignored.", caught_by=["get_state_dict.from-given:given-values"])
def ignores_the_given_state(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any, model: Any, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Tensors:
        return original(model, None, *args, **kwargs)


@fake("A state dict that is passed is returned as it is.", caught_by=["get_state_dict.from-given:keys"])
def returns_the_given_state(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any, model: Any, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Tensors:
        return dict(state_dict) if state_dict is not None else original(model, state_dict, *args, **kwargs)


@fake(
    "A state dict that is passed is loaded into the model.",
    caught_by=["get_state_dict.from-given:own-values", "get_state_dict.from-given:frame"],
)
def loads_the_given_state(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any, model: Any, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Tensors:
        if state_dict is not None:
            model.load_state_dict(state_dict, strict=False)
        return original(model, state_dict, *args, **kwargs)


@fake(
    "A state dict that is passed is stripped of the adapter's name in place.",
    caught_by=["get_state_dict.from-given:frame"],
)
def rewrites_the_given_state(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(
        original: Any,
        model: Any,
        state_dict: Any = None,
        adapter_name: str = "default",
        *args: Any,
        **kwargs: Any,
    ) -> Tensors:
        result = original(model, state_dict, adapter_name, *args, **kwargs)
        if state_dict is not None:
            for key in [key for key in state_dict if f".{adapter_name}." in key]:
                state_dict[key.replace(f".{adapter_name}", "")] = state_dict.pop(key)
        return result


@fake(
    "Modules whose names look like the method's are exported.",
    caught_by=["get_state_dict.module-names:only-target"],
    like="peft 0.18.1",
)
def searches_names_for_the_prefix(patch: Patches) -> None:
    def searched(model: Any, tensors: Tensors, adapter: str) -> Tensors:
        return {
            **{
                key: t
                for key, t in model.state_dict().items()
                if "lora_" in key and f".{adapter}." not in key
            },
            **tensors,
        }

    got(patch, searched)


@fake(
    "Trained biases are not in the state dict.",
    caught_by=[
        "get_state_dict.bias*:*",
        "checkpoint.biases:own",
        "checkpoint.biases:every",
        "load.biases:same-output",
        "set_state_dict.bias:same-output",
    ],
    like="peft 0.18.1, with bias='lora_only'",
)
def forgets_biases(patch: Patches) -> None:
    @patch.replace(state_dict, "adapter_entries")
    def adapter_entries(original: Any, *args: Any, **kwargs: Any) -> Any:
        return (entry for entry in original(*args, **kwargs) if entry.holder is not None)


@fake(
    "All biases of the adapted layers are in the state dict, trained or not.",
    caught_by=["get_state_dict.bias-none:*"],
)
def saves_biases_anyway(patch: Patches) -> None:
    _with_bias(patch, lambda bias: "lora_only" if bias == "none" else bias)


@fake(
    "bias='lora_only' saves the biases of all layers.",
    caught_by=["get_state_dict.bias*:*", "checkpoint.biases:own"],
)
def lora_only_saves_all_biases(patch: Patches) -> None:
    _with_bias(patch, lambda bias: "all" if bias == "lora_only" else bias)


@fake(
    "bias='all' saves the biases of the adapted layers only.",
    caught_by=["get_state_dict.bias*:*", "checkpoint.biases:every"],
    points=[{"bias": "all"}],
)
def all_saves_lora_biases_only(patch: Patches) -> None:
    _with_bias(patch, lambda bias: "lora_only" if bias == "all" else bias)


def _with_bias(patch: Patches, change: Callable[[str], str]) -> None:
    @patch.replace(state_dict, "adapter_entries")
    def adapter_entries(original: Any, model: Any, config: Any, adapter_name: str) -> Any:
        config = copy.copy(config)
        config.bias = change(config.bias)
        return original(model, config, adapter_name)


@fake(
    "bias='lora_only' trains the biases of all layers.",
    caught_by=["lora_config.bias-trains:own-only"],
    points=[{"bias": "lora_only"}],
)
def lora_only_trains_all_biases(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_unfreeze_biases")
    def _unfreeze_biases(original: Any, self: Any) -> None:
        original(self)
        if self.config.bias == "lora_only":
            for name, parameter in self.model.named_parameters():
                if name.endswith("bias"):
                    parameter.requires_grad_(True)


@fake(
    "`bias` is ignored, no bias is trained.",
    caught_by=["lora_config.bias-trains:own-trains", "lora_config.bias-trains:all-train"],
)
def ignores_bias(patch: Patches) -> None:
    patch.replace(injection.Injection, "_unfreeze_biases")(lambda original, self: None)


@fake(
    "Copies of modules_to_save are not in the state dict.",
    caught_by=["checkpoint.modules-to-save:keys", "ia3.modules-to-save:saved"],
)
def forgets_modules_to_save(patch: Patches) -> None:
    @patch.replace(state_dict, "adapter_entries")
    def adapter_entries(original: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            e for e in original(*args, **kwargs) if not isinstance(e.holder, wrappers.ModulesToSaveWrapper)
        )


@fake(
    "The original of a module to save is saved, not the trained copy.",
    caught_by=["set_state_dict.modules-to-save:same-output", "load.extras:same-output"],
)
def saves_the_original_module(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        originals = self.original_module.state_dict()
        for live, saved, _ in original(self, adapter):
            yield live, saved, originals[saved]


@fake(
    "Modules to save keep `modules_to_save` in their keys.", caught_by=["get_state_dict.*modules-to-save*:*"]
)
def modules_to_save_keep_their_path(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        for live, saved, tensor in original(self, adapter):
            yield live, f"modules_to_save.{saved}", tensor


@fake("save_embedding_layers is ignored.", caught_by=["get_state_dict.*:*"])
def ignores_save_embedding_layers(patch: Patches) -> None:
    patch.replace(state_dict, "_embedding_tensors")(lambda original, model: iter(()))


@fake("Embedding layers are always saved.", caught_by=["get_state_dict.*:*"])
def always_saves_embeddings(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(original: Any, *args: Any, **kwargs: Any) -> Tensors:
        return original(*args, **{**kwargs, "save_embedding_layers": True})


@fake("An adapted embedding does not make `auto` save the embeddings.", caught_by=["get_state_dict.*:*"])
def auto_never_saves_embeddings(patch: Patches) -> None:
    patch.replace(state_dict, "_embeddings_changed")(lambda original, *args: False)


# Setting -------------------------------------------------------------------------------------------


@fake(
    "set_peft_model_state_dict sets nothing.",
    caught_by=[
        "set_state_dict.round-trip:same-state",
        "set_state_dict.round-trip:same-output",
        "set_state_dict.documented-example:same-weights",
        "law.round-trip:same-state",
        "dora.merge-file:same-output",
        "replication.file:same-output",
        "mha.round-trip:loaded",
    ],
)
def sets_nothing(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        state = {key: t.clone() for key, t in model.state_dict().items() if not t.is_meta}
        outcome = original(model, tensors, adapter, ignore, low)
        model.load_state_dict(state, strict=False)
        return outcome


@fake(
    "Half of each tensor is set.",
    caught_by=["set_state_dict.round-trip:same-state", "set_state_dict.named-adapter-only:filled"],
)
def sets_half_of_each_tensor(patch: Patches) -> None:
    given(
        patch,
        lambda model, tensors, adapter: {
            key: t / 2 if isinstance(t, torch.Tensor) else t for key, t in tensors.items()
        },
    )


@fake("Every adapter of the model is filled.", caught_by=["set_state_dict.named-adapter-only:frame"])
def fills_every_adapter(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        for other in set(model.peft_config) - {adapter}:
            original(model, tensors, other, ignore, low)
        return original(model, tensors, adapter, ignore, low)


@fake(
    "The adapter called default is filled, whichever is named.",
    caught_by=["set_state_dict.named-adapter-only:filled"],
    points=[{"name": "other"}],
)
def fills_the_default_adapter(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        return original(model, tensors, "default" if "default" in model.peft_config else adapter, ignore, low)


@fake(
    "Keys with the prefix of a PeftModel do not fit an injected model.",
    caught_by=["set_state_dict.prefixed-into-injected:nothing-unexpected"],
)
def knows_no_prefix_on_injected_models(patch: Patches) -> None:
    def foreign(model: Any, tensors: Tensors, adapter: str) -> Tensors:
        wrapped = hasattr(model, "base_model")
        return (
            tensors
            if wrapped
            else {(f"foreign.{k}" if k.startswith(PREFIX) else k): t for k, t in tensors.items()}
        )

    given(patch, foreign)


@fake("The prefix is never put back.", caught_by=["set_state_dict.round-trip:nothing-unexpected"])
def loses_the_prefix_on_setting(patch: Patches) -> None:
    given(patch, lambda model, tensors, adapter: {f"lost.{key}": t for key, t in tensors.items()})


@fake(
    "Setting a state dict freezes the adapter.",
    caught_by=[
        "set_state_dict.round-trip:trainable",
        "set_state_dict.fills-meta:trains",
        "inject_sd.then-set:trains",
    ],
)
def setting_freezes(patch: Patches) -> None:
    _after_setting(patch, lambda parameter: parameter.requires_grad_(False))


@fake("Setting a state dict makes everything trainable.", caught_by=["set_state_dict.round-trip:frame"])
def setting_thaws(patch: Patches) -> None:
    _after_setting(patch, lambda parameter: parameter.requires_grad_(True))


def _after_setting(patch: Patches, change: Callable[[nn.Parameter], Any]) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(model, *args, **kwargs)
        finally:
            for parameter in model.parameters():
                change(parameter)


@fake(
    "Parameters are replaced by the given tensors, whatever type those have.",
    caught_by=["set_state_dict.keeps-dtype:float32-early", "set_state_dict.keeps-dtype:frame"],
)
def assigns_the_given_tensors(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        outcome = original(model, tensors, adapter, ignore, low)
        for name, module in model.named_modules():
            for key, parameter in module._parameters.items():
                saved = f"{name}.{key}".replace(f".{adapter}", "")
                value = tensors.get(saved)
                if (
                    parameter is not None
                    and isinstance(value, torch.Tensor)
                    and value.shape == parameter.shape
                    and "lora_" in saved
                ):
                    module._parameters[key] = nn.Parameter(value.clone(), parameter.requires_grad)
        return outcome


@fake(
    "Weights that arrive by way of the meta device stay on meta.",
    caught_by=[
        "set_state_dict.fills-meta:real-after",
        "inject.meta-example:cpu-after",
        "law.meta:nothing-left",
    ],
)
def leaves_meta_tensors(patch: Patches) -> None:
    @patch.replace(state_dict, "_like")
    def _like(original: Any, value: Any, current: Any, holder: Any) -> Any:
        return torch.empty_like(value, device="meta") if current.is_meta else original(value, current, holder)

    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if any(p.is_meta for p in self.parameters()):
            return self.base_layer(x, *args, **kwargs)
        return original(self, x, *args, **kwargs)


@fake(
    "Weights that arrive by way of the meta device are zeros.",
    caught_by=[
        "set_state_dict.fills-meta:same-weights",
        "set_state_dict.fills-meta:same-output",
        "law.meta:same-tensors",
        "inject_sd.then-set:same-values",
    ],
)
def fills_meta_with_zeros(patch: Patches) -> None:
    @patch.replace(state_dict, "_like")
    def _like(original: Any, value: Any, current: Any, holder: Any) -> Any:
        return torch.zeros_like(value) if current.is_meta else original(value, current, holder)


@fake(
    "Unexpected keys are not reported.",
    caught_by=["set_state_dict.unexpected-keys:*"],
    like="peft 0.18.1, of layers without the adapter",
)
def swallows_unexpected_keys(patch: Patches) -> None:
    told(patch, lambda missing, unexpected: (missing, []))


@fake(
    "Every key is reported as unexpected.",
    caught_by=[
        "set_state_dict.round-trip:nothing-unexpected",
        "functional.any-module:no-unexpected",
        "law.round-trip:no-unexpected",
    ],
)
def all_keys_are_unexpected(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        return state_dict.IncompatibleKeys(
            original(model, tensors, adapter, ignore, low).missing_keys, list(tensors)
        )


@fake("Missing keys are not reported.", caught_by=["set_state_dict.missing-keys:reported"])
def swallows_missing_keys(patch: Patches) -> None:
    told(patch, lambda missing, unexpected: ([], unexpected))


@fake(
    "Keys that were set are reported as missing.",
    caught_by=["set_state_dict.missing-keys:filled-not-missing"],
)
def set_keys_are_missing(patch: Patches) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return state_dict.IncompatibleKeys(
            list(model.state_dict()), original(model, *args, **kwargs).unexpected_keys
        )


@fake("The outcome's lists are tuples.", caught_by=["set_state_dict.round-trip:missing-is-a-list"])
def outcome_of_tuples(patch: Patches) -> None:
    told(patch, lambda missing, unexpected: (tuple(missing), tuple(unexpected)))  # type: ignore[arg-type, return-value]


@fake("A state dict with unexpected keys sets nothing.", caught_by=["set_state_dict.unexpected-keys:*"])
def unexpected_keys_stop_everything(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        state = {key: t.clone() for key, t in model.state_dict().items() if not t.is_meta}
        outcome = original(model, tensors, adapter, ignore, low)
        if outcome.unexpected_keys:
            model.load_state_dict(state, strict=False)
        return outcome


@fake(
    "Tensors of another size are left out without an error.",
    caught_by=[
        "set_state_dict.size-mismatch:raises",
        "set_state_dict.size-mismatch-rank:raises",
        "bad_files.size-mismatch:raises",
    ],
)
def loads_size_mismatches(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        return original(model, tensors, adapter, True, low)


@fake(
    "What fits is copied before the error about what does not.",
    caught_by=["set_state_dict.size-mismatch:frame"],
    like="peft 0.21.2",
)
def copies_before_raising(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        try:
            return original(model, tensors, adapter, ignore, low)
        except RuntimeError:
            original(model, tensors, adapter, True, low)
            raise


@fake(
    "Tensors of another size resize the parameter.",
    caught_by=["set_state_dict.ignore-mismatched:kept", "set_state_dict.size-mismatch:b-still-zero"],
)
def resizes_parameters(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        for name, parameter in model.named_parameters():
            value = tensors.get(name.replace(f".{adapter}", ""))
            if value is not None and value.shape != parameter.shape:
                parameter.data = value.clone().to(parameter.dtype)
        return original(model, tensors, adapter, ignore, low)


@fake(
    "With ignore_mismatched_sizes nothing at all is filled.",
    caught_by=["set_state_dict.ignore-mismatched:others-filled"],
)
def ignoring_mismatches_ignores_all(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        if ignore:
            tensors = {}
        return original(model, tensors, adapter, ignore, low)


@fake(
    "The state dict that is given is emptied while it is read.",
    caught_by=["set_state_dict.documented-example:frame", "set_state_dict.documented-example:keys"],
)
def empties_the_given_state(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        outcome = original(model, tensors, adapter, ignore, low)
        tensors.clear()
        return outcome


@fake(
    "Keys of the state dict that is given get the adapter's name.",
    caught_by=["set_state_dict.documented-example:keys"],
    like="peft 0.18.1, for modules_to_save",
)
def rewrites_the_callers_state_dict(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        outcome = original(model, tensors, adapter, ignore, low)
        for key in list(tensors):
            tensors[key.replace(".weight", f".{adapter}.weight")] = tensors.pop(key)
        return outcome


@fake(
    "Saved biases are not loaded.",
    caught_by=["set_state_dict.bias:same-output", "set_state_dict.bias:bias-there"],
)
def does_not_load_biases(patch: Patches) -> None:
    given(
        patch,
        lambda model, tensors, adapter: {key: t for key, t in tensors.items() if not key.endswith("bias")},
    )


@fake("Entries of modules to save enter the original.", caught_by=["set_state_dict.modules-to-save:*"])
def loads_into_the_original_module(patch: Patches) -> None:
    @setting(patch)
    def set_tensors(
        original: Any, model: Any, tensors: Tensors, adapter: str, ignore: bool, low: bool
    ) -> Any:
        held = [m for m in model.modules() if isinstance(m, wrappers.ModulesToSaveWrapper)]
        before = [copy.deepcopy(m.modules_to_save.state_dict()) for m in held]
        outcome = original(model, tensors, adapter, ignore, low)
        for module, state in zip(held, before, strict=True):
            module.original_module.load_state_dict(module.modules_to_save[adapter].state_dict())
            module.modules_to_save.load_state_dict(state)
        return outcome


# Injecting from a state dict -----------------------------------------------------------------------


@fake(
    "The state dict given to injection is ignored, the config decides.",
    caught_by=[
        "inject_sd.keys-decide:same-layers",
        "inject_sd.mismatch-warns:warns",
        "law.inject-from-state:same-tree",
    ],
    points=[{"saved": "lin0", "configured": "lin1"}, {"saved": "lin1"}],
)
def injection_ignores_the_state_dict(patch: Patches) -> None:
    @patch.replace(injection.Injection, "__init__")
    def __init__(
        original: Any,
        self: Any,
        model: Any,
        tuner_cls: Any,
        config: Any,
        adapter_name: str,
        activate: bool,
        low: bool = False,
        state_dict: Any = None,
    ) -> None:
        if config.target_modules:
            state_dict = None
        original(self, model, tuner_cls, config, adapter_name, activate, low, state_dict)


@fake(
    "The values of the state dict enter the model at injection.",
    caught_by=["inject_sd.values-unused:as-fresh", "inject_sd.values-unused:starts-as-base"],
)
def injection_uses_the_values(patch: Patches) -> None:
    @patch.replace(injection, "inject_adapter_in_model")
    def inject_adapter_in_model(
        original: Any,
        peft_config: Any,
        model: Any,
        adapter_name: str = "default",
        low_cpu_mem_usage: bool = False,
        state_dict: Any = None,
    ) -> Any:
        result = original(peft_config, model, adapter_name, low_cpu_mem_usage, state_dict)
        if state_dict is not None and not low_cpu_mem_usage:
            set_values(result, state_dict, adapter_name, True)
        return result

    set_values = state_dict.set_peft_model_state_dict


@fake("The rank comes from the tensors of the state dict.", caught_by=["inject_sd.rank-from-config:shapes"])
def rank_from_the_state_dict(patch: Patches) -> None:
    @patch.replace(injection.Injection, "__init__")
    def __init__(
        original: Any,
        self: Any,
        model: Any,
        tuner_cls: Any,
        config: Any,
        adapter_name: str,
        activate: bool,
        low: bool = False,
        state_dict: Any = None,
    ) -> None:
        ranks = [t.shape[0] for key, t in (state_dict or {}).items() if "_A" in key and t is not None]
        if ranks:
            config = copy.copy(config)
            config.r = ranks[0]
        original(self, model, tuner_cls, config, adapter_name, activate, low, state_dict)


@fake(
    "The layers of the config are adapted besides those of the keys.",
    caught_by=["inject_sd.keys-decide:same-tree"],
    points=[{"saved": "lin0", "configured": "lin1"}],
)
def keys_and_config_decide(patch: Patches) -> None:
    @patch.replace(matching, "select_by_keys")
    def select_by_keys(
        original: Any, config: Any, targets: Any, modules: Any, keys: Any, slots: Any
    ) -> list[str]:
        names = original(config, targets, modules, keys, slots)
        return [n for n in modules if n in names or (targets and matching.is_target(targets, config, n))]


@fake(
    "With a state dict, the layers that its keys do not name are adapted.",
    caught_by=[
        "inject_sd.targets-none:same-tree",
        "inject_sd.meta:same-tree",
        "inject_sd.second-adapter:first-layer",
        "inject_sd.second-adapter:second-layer",
    ],
)
def keys_adapt_the_other_layers(patch: Patches) -> None:
    from peft_reference.operators import operator_of

    @patch.replace(matching, "select_by_keys")
    def select_by_keys(
        original: Any, config: Any, targets: Any, modules: Any, keys: Any, slots: Any
    ) -> list[str]:
        meant = original(config, targets, modules, keys, slots)
        return [
            n
            for n, m in modules.items()
            if n not in meant and (isinstance(m, layer.BaseTunerLayer) or operator_of(m))
        ]


@fake(
    "A mismatch between keys and config passes in silence, a match is warned about.",
    caught_by=["inject_sd.mismatch-warns:warns", "inject_sd.match-silent:silent"],
)
def mismatch_is_silent(patch: Patches) -> None:
    import warnings

    @patch.replace(matching, "select_by_keys")
    def select_by_keys(original: Any, *args: Any, **kwargs: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = original(*args, **kwargs)
        if not caught:
            warnings.warn(
                "The state dict decides which layers are adapted, not the config.",
                RuntimeWarning,
                stacklevel=2,
            )
        return names


@fake(
    "Keys are matched by the module's last name.",
    caught_by=["inject_sd.layers:same-tree"],
    points=[{"model": "deep"}],
)
def keys_match_short_names(patch: Patches) -> None:
    @patch.replace(matching, "select_by_keys")
    def select_by_keys(
        original: Any, config: Any, targets: Any, modules: Any, keys: Any, slots: Any
    ) -> list[str]:
        owners = {(matching._owner(key, slots) or "").rpartition(".")[2] for key in keys}
        return [n for n in modules if n.rpartition(".")[2] in owners] or original(
            config, targets, modules, keys, slots
        )


@fake(
    "Keys that match nothing adapt nothing, without an error.",
    caught_by=["inject_sd.no-match:*"],
)
def keys_match_nothing_silently(patch: Patches) -> None:
    from peft_reference import errors

    @patch.replace(matching, "select_by_keys")
    def select_by_keys(original: Any, *args: Any, **kwargs: Any) -> list[str]:
        try:
            return original(*args, **kwargs)
        except errors.NoMatchingPeftModuleError:
            return []


@fake(
    "Keys that match nothing are forgotten, and the config decides.",
    caught_by=["inject_sd.no-match:raises", "inject_sd.no-match:no-adapter"],
)
def unmatched_keys_fall_back(patch: Patches) -> None:
    from peft_reference import errors

    @patch.replace(matching, "select_by_keys")
    def select_by_keys(
        original: Any, config: Any, targets: Any, modules: Any, keys: Any, slots: Any
    ) -> list[str]:
        try:
            return original(config, targets, modules, keys, slots)
        except errors.NoMatchingPeftModuleError:
            return matching.select_targets(config, targets, modules)


@fake(
    "A state dict is accepted together with target_parameters.",
    caught_by=["inject_sd.target-parameters:raises"],
)
def accepts_target_parameters(patch: Patches) -> None:
    @patch.replace(injection.Injection, "__init__")
    def __init__(
        original: Any,
        self: Any,
        model: Any,
        tuner_cls: Any,
        config: Any,
        adapter_name: str,
        activate: bool,
        low: bool = False,
        state_dict: Any = None,
    ) -> None:
        config = copy.copy(config)
        config.target_parameters = None
        original(self, model, tuner_cls, config, adapter_name, activate, low, state_dict)


@fake("low_cpu_mem_usage is ignored when there is a state dict.", caught_by=["inject_sd.meta:on-meta"])
def state_dict_switches_meta_off(patch: Patches) -> None:
    @patch.replace(injection.Injection, "__init__")
    def __init__(
        original: Any,
        self: Any,
        model: Any,
        tuner_cls: Any,
        config: Any,
        adapter_name: str,
        activate: bool,
        low: bool = False,
        state_dict: Any = None,
    ) -> None:
        original(
            self, model, tuner_cls, config, adapter_name, activate, low and state_dict is None, state_dict
        )


@fake(
    "Keys with the prefix of a checkpoint adapt every module without children.",
    caught_by=["inject_sd.checkpoint-keys:same-tree"],
)
def checkpoint_keys_reach_one_layer(patch: Patches) -> None:
    @patch.replace(matching, "select_by_keys")
    def select_by_keys(
        original: Any, config: Any, targets: Any, modules: Any, keys: Any, slots: Any
    ) -> list[str]:
        names = original(config, targets, modules, keys, slots)
        return (
            [n for n in modules if n and not list(modules[n].children())]
            if any(k.startswith(PREFIX) for k in keys)
            else names
        )


# Base weights --------------------------------------------------------------------------------------


@fake("Base weights are returned as copies.", caught_by=["base_state_dict.get:live"])
def base_weights_are_copies(patch: Patches) -> None:
    @patch.replace(state_dict, "get_base_model_state_dict")
    def get_base_model_state_dict(original: Any, model: Any) -> Tensors:
        return {key: tensor.clone() for key, tensor in original(model).items()}


@fake(
    "Base weights are returned under their live keys, with the adapters'.",
    caught_by=["base_state_dict.get:original-keys", "base_state_dict.get:no-adapter"],
)
def base_weights_under_live_keys(patch: Patches) -> None:
    patch.replace(state_dict, "get_base_model_state_dict")(lambda original, model: dict(model.state_dict()))


@fake(
    "Base weights are returned with noise.",
    caught_by=["base_state_dict.get:values", "base_state_dict.modules-to-save:values"],
)
def base_weights_are_scaled(patch: Patches) -> None:
    @patch.replace(state_dict, "get_base_model_state_dict")
    def get_base_model_state_dict(original: Any, model: Any) -> Tensors:
        return {key: tensor * 1.01 for key, tensor in original(model).items()}


@fake(
    "A module to save appears by its copy too.", caught_by=["base_state_dict.modules-to-save:original-keys"]
)
def base_weights_with_copies(patch: Patches) -> None:
    @patch.replace(state_dict, "get_base_model_state_dict")
    def get_base_model_state_dict(original: Any, model: Any) -> Tensors:
        return {
            **original(model),
            **{k: t for k, t in model.state_dict().items() if ".modules_to_save." in k},
        }


@fake(
    "Base weights that are set go nowhere, and all keys are reported.",
    caught_by=[
        "base_state_dict.set:loaded",
        "base_state_dict.set:none-missing",
        "base_state_dict.set:none-unexpected",
        "base_state_dict.not-strict:*",
    ],
)
def base_weights_are_not_set(patch: Patches) -> None:
    @patch.replace(state_dict, "set_base_model_state_dict")
    def set_base_model_state_dict(
        original: Any, model: Any, tensors: Any = None, strict: bool = True, **kwargs: Any
    ) -> Any:
        given = tensors if tensors is not None else kwargs["state_dict"]
        return state_dict.IncompatibleKeys(list(state_dict.get_base_model_state_dict(model)), list(given))


@fake("`strict` is ignored when base weights are set.", caught_by=["base_state_dict.strict:raises*"])
def base_weights_are_never_strict(patch: Patches) -> None:
    @patch.replace(state_dict, "set_base_model_state_dict")
    def set_base_model_state_dict(original: Any, model: Any, state_dict: Any, strict: bool = True) -> Any:
        return original(model, state_dict, False)
