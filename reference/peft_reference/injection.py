"""Putting adapters into a model: plan everything, then change it; and `BaseTuner`, the module around such a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import merging
from .adapters import active_adapters_of, delete_adapter, holders, set_adapter, set_requires_grad, walk
from .config import PeftConfig
from .errors import NoMatchingPeftModuleError
from .layer import BaseTunerLayer
from .matching import (
    ALL_LINEAR,
    all_linear_names,
    is_target,
    model_type_of,
    names_module,
    pattern_matches,
)
from .operators import Conv1D, Linear, Operator, operator_of
from .registry import tuner_for
from .state_dict import MODEL_PREFIX, without_compile
from .wrappers import ModulesToSaveWrapper


class Injection:
    """What one injection did: the names of the adapted modules, and how to take it back."""

    def __init__(self) -> None:
        self.targeted_module_names: list[str] = []
        self._undo: list[Callable[[], Any]] = []

    def on_undo(self, function: Callable[..., Any], *args: Any) -> None:
        """Remember how to take back a change that is about to be made."""
        self._undo.append(partial(function, *args))

    def undo(self) -> None:
        """Leave the model exactly as it was."""
        while self._undo:
            self._undo.pop()()


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Adapt `model` in place and return it: the same object, with its own attributes and methods.

    The new adapter is active and trainable, everything that was there before its first adapter is frozen. Call it
    again with another name for further adapters. With `state_dict`, its keys (not its values) say which layers are
    adapted. With `low_cpu_mem_usage`, adapter weights are on the meta device until they are set.

    Raises ValueError for a method that does not adapt layers or an unknown one, NoMatchingPeftModuleError (a
    ValueError) if nothing is selected; the model is unchanged after any error.
    """
    tuner_cls = tuner_for(peft_config)
    inject(model, tuner_cls, peft_config, adapter_name, True, low_cpu_mem_usage, state_dict)
    return model


def inject(
    model: nn.Module,
    tuner_cls: type[BaseTuner],
    config: Any,
    adapter_name: str,
    activate: bool,
    low_cpu_mem_usage: bool = False,
    state_dict: dict[str, Tensor] | None = None,
) -> Injection:
    """Add one adapter to `model`. All errors come from the first half, which changes nothing."""
    config.validate()
    check_adapter_name(adapter_name)
    layer_cls = tuner_cls.tuner_layer_cls
    configs = getattr(model, "peft_config", None) or {}
    _check_bias(config, configs, adapter_name)

    modules = dict(walk(model))
    saved = _modules_to_save(config, modules, adapter_name)
    inside_saved = tuple(f"{name}." for name in saved)
    candidates = {n: m for n, m in modules.items() if n not in saved and not n.startswith(inside_saved)}
    if state_dict is None:
        targets, resolved = select_targets(config, model, candidates)
    else:
        targets, resolved = select_from_state_dict(config, model, candidates, state_dict, layer_cls)

    layers: dict[str, BaseTunerLayer] = {}
    for name in targets:
        layers[name] = _adapted_layer(candidates[name], name, layer_cls)
        layer_cls.check(config, layers[name].get_base_layer(), layers[name].op, name)
    if any(
        layer.has_adapter(adapter_name) and adapter_name in layer.merged_adapters for layer in layers.values()
    ):
        raise ValueError(
            f"Adapter '{adapter_name}' is merged and cannot be replaced. Please unmerge it first."
        )
    contents = {name: _create(layer, config, name, low_cpu_mem_usage) for name, layer in layers.items()}
    copies = {
        name: (m if isinstance(m, ModulesToSaveWrapper) else ModulesToSaveWrapper(m))
        for name, m in saved.items()
    }
    copied = {name: wrapper.create() for name, wrapper in copies.items()}
    _warn_unmatched_patterns(config, targets)
    decided = _decided_fields(config, resolved, layers.values())

    # From here on nothing can fail for a reason that the caller gave.
    done = Injection()
    done.targeted_module_names = targets
    found = holders(model)
    active = active_adapters_of(model)
    if not any(isinstance(h, BaseTunerLayer) for h in found):  # the first adapter freezes the base model
        for parameter in model.parameters():
            done.on_undo(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
    for holder in found:
        _replace(holder, adapter_name, None, done)
    for name, layer in layers.items():
        _place(model, name, layer, done)
        _replace(layer, adapter_name, contents[name], done)
    for name, wrapper in copies.items():
        _place(model, name, wrapper, done)
        _replace(wrapper, adapter_name, copied[name], done)

    new_active = [adapter_name] if activate else active
    for holder in dict.fromkeys([*found, *layers.values(), *copies.values()]):
        done.on_undo(setattr, holder, "_active_adapter", holder._active_adapter)
        holder._active_adapter = list(new_active)
        if holder.has_adapter(adapter_name):
            holder.set_requires_grad(adapter_name, activate and not config.inference_mode)
    if activate and not config.inference_mode:
        _unfreeze_biases(config, model, layers, layer_cls.prefix, done)
    for field, value in decided.items():
        done.on_undo(setattr, config, field, getattr(config, field))
        setattr(config, field, value)
    _record_config(model, config, adapter_name, done)
    return done


def check_adapter_name(adapter_name: Any) -> None:
    """ValueError for a name that cannot be part of a parameter's name."""
    if not isinstance(adapter_name, str):
        raise TypeError(f"An adapter's name should be a string, got {type(adapter_name).__name__}.")
    reserved = any(hasattr(container, adapter_name) for container in (nn.ModuleDict, nn.ParameterDict))
    if not adapter_name or "." in adapter_name or reserved:
        raise ValueError(
            f"{adapter_name!r} cannot be an adapter's name: it should be a non-empty string without '.', and no "
            f"attribute of torch.nn.ModuleDict."
        )


# Selecting -----------------------------------------------------------------------------------------------------


def select_targets(config: Any, model: nn.Module, modules: dict[str, nn.Module]) -> tuple[list[str], Any]:
    """(names of the modules that the config means, `target_modules` with defaults and shorthands resolved)."""
    targets = resolve_targets(config, model, modules)
    exclude = getattr(config, "exclude_modules", None)
    excluded = {name for name in modules if names_module(exclude, name)}
    matched = [name for name in modules if name and is_target(_Resolved(config, targets), name)]
    selected = [name for name in matched if name not in excluded]
    if selected:
        if exclude and not excluded:
            warnings.warn(
                f"You have passed exclude_modules={exclude} but no modules were excluded.", stacklevel=4
            )
        return selected, targets
    if matched:
        raise NoMatchingPeftModuleError(
            f"No modules were targeted for adaptation: exclude_modules={exclude} excludes everything that "
            f"target_modules={config.target_modules} selects ({', '.join(matched)})."
        )
    if exclude and len(excluded) == len([name for name in modules if name]):
        raise NoMatchingPeftModuleError(f"All modules were excluded by exclude_modules={exclude}.")
    if targets == set():
        raise NoMatchingPeftModuleError(
            "No `target_modules` passed but also no `target_parameters` found. Please check these arguments."
        )
    notes = [
        f" Note: You specified '{field}': {getattr(config, field)}."
        for field in ("layers_to_transform", "layers_pattern")
        if getattr(config, field, None) is not None
    ]
    raise NoMatchingPeftModuleError(
        f"Target modules {targets} not found in the base model. Please check the target modules and try again."
        + "".join(notes)
    )


class _Resolved:
    """A config seen with other `target_modules`, without changing the caller's object."""

    def __init__(self, config: Any, targets: Any) -> None:
        self.target_modules = targets
        self.layers_to_transform = getattr(config, "layers_to_transform", None)
        self.layers_pattern = getattr(config, "layers_pattern", None)


def resolve_targets(config: Any, model: nn.Module, modules: dict[str, nn.Module]) -> str | set[str]:
    """`target_modules` as a regex or a set of names: None by architecture, `all-linear` by looking at the layers."""
    targets = config.target_modules
    if targets is None:
        model_type = model_type_of(model)
        if model_type not in tuner_for(config).target_module_mapping:
            raise ValueError(
                f"Please specify `target_modules` or `target_parameters` in `peft_config`: there is no default for "
                f"{f'model type {model_type!r}' if model_type else type(model).__name__}."
            )
        targets = tuner_for(config).target_module_mapping[model_type]
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return all_linear_names(config, model, modules)
    return targets if isinstance(targets, str) else set(targets)


def select_from_state_dict(
    config: Any,
    model: nn.Module,
    modules: dict[str, nn.Module],
    state_dict: dict[str, Any],
    layer_cls: type[BaseTunerLayer],
) -> tuple[list[str], Any]:
    """(names of the modules that a checkpoint's keys belong to, the config's `target_modules`)."""
    if getattr(config, "target_parameters", None):
        raise ValueError(
            "Trying to inject a PEFT adapter from a state_dict but the PEFT config uses `target_parameters`. This is "
            "not supported: the keys do not say which parameters were targeted. Use the config instead."
        )
    named = {owner for key in state_dict if (owner := _owner(key, layer_cls)) is not None}
    plain = {without_compile(name): name for name in modules}
    found = {owner: _find(owner, plain) for owner in named}
    chosen = {name for name in found.values() if name is not None}
    selected = [name for name in modules if name in chosen]
    if not selected:
        raise NoMatchingPeftModuleError(
            f"Target modules {sorted(named)} not found in the base model: no key of the state_dict belongs to one of "
            f"its modules. Please check the state_dict and try again."
        )
    from_config: Iterable[str] = selected
    if config.target_modules:
        targets = resolve_targets(config, model, modules)
        exclude = getattr(config, "exclude_modules", None)
        resolved = _Resolved(config, targets)
        from_config = [n for n in modules if n and is_target(resolved, n) and not names_module(exclude, n)]
    only_keys = sorted((chosen - set(from_config)) | {owner for owner, name in found.items() if name is None})
    only_config = sorted(set(from_config) - chosen)
    if only_keys or only_config:
        warnings.warn(
            f"While injecting the PEFT adapter from a state_dict, it was found not to match the config, and the "
            f"state_dict decides. Modules only in the state_dict: {only_keys}. Only in the config: {only_config}.",
            RuntimeWarning,
            stacklevel=4,
        )
    return selected, config.target_modules


def _owner(key: str, layer_cls: type[BaseTunerLayer]) -> str | None:
    """The module that a checkpoint key belongs to: what stands before the last slot name."""
    parts = key.split(".")
    for i in range(len(parts) - 1, 0, -1):
        if parts[i] in layer_cls.adapter_layer_names:
            return without_compile(".".join(parts[:i]))
    return None


def _find(owner: str, modules: dict[str, str]) -> str | None:
    """The module's name in this model; checkpoints of a PeftModel put `base_model.model.` before it."""
    return next((modules[n] for n in (owner, owner.removeprefix(MODEL_PREFIX)) if n in modules), None)


def _modules_to_save(config: Any, modules: dict[str, nn.Module], adapter_name: str) -> dict[str, nn.Module]:
    """The modules to train and save whole; the outermost one where several are nested."""
    entries = getattr(config, "modules_to_save", None) or ()
    if adapter_name in entries:
        raise ValueError(
            f"modules_to_save names a module '{adapter_name}', which is the adapter's name too. Please rename one."
        )
    saved: dict[str, nn.Module] = {}
    for name, module in modules.items():
        # any suffix, dot or not, as PEFT has it: `classifier` also saves DistilBERT's `pre_classifier`
        if name.endswith(tuple(entries)) and name and not name.startswith(tuple(f"{n}." for n in saved)):
            if isinstance(module, BaseTunerLayer) or not isinstance(module, ModulesToSaveWrapper):
                ModulesToSaveWrapper.check(module, name)
            saved[name] = module
    return saved


def _adapted_layer(module: nn.Module, name: str, layer_cls: type[BaseTunerLayer]) -> BaseTunerLayer:
    """The adapted layer for a target: the one that is there, or a new one around it, not yet placed."""
    if isinstance(module, layer_cls):
        return module
    op = operator_of(module)
    if op is None or op not in layer_cls.operators:
        supported = ", ".join(f"`{'.'.join(kind.where)}`" for kind in layer_cls.operators)
        raise ValueError(
            f"Target module '{name}' of type {type(module).__name__} is not supported. Currently, only the following "
            f"modules are supported: {supported}."
        )
    return layer_cls(module, op)


def _create(layer: BaseTunerLayer, config: Any, name: str, low_cpu_mem_usage: bool) -> dict[str, Any]:
    """One adapter's slots, on the base weight's device (or meta) and in its dtype, in the base layer's mode."""
    weight = layer.weight
    with torch.device("meta" if low_cpu_mem_usage else weight.device):
        contents = layer.create(config, name)
    dtype = weight.dtype if weight.dtype.is_floating_point or weight.dtype.is_complex else None
    for value in contents.values():
        if isinstance(value, nn.Module):
            value.to(dtype=dtype).train(layer.training)
        elif isinstance(value, Tensor) and dtype is not None:
            value.data = value.data.to(dtype)
    return contents


def _check_bias(config: Any, configs: dict[str, Any], adapter_name: str) -> None:
    """Biases belong to the base model, so that only one adapter may train them."""
    if getattr(config, "bias", "none") == "none":
        return
    others = [n for n, c in configs.items() if n != adapter_name and getattr(c, "bias", "none") != "none"]
    if others:
        raise ValueError(
            f"A model supports only 1 adapter with bias: adapter '{others[0]}' has bias="
            f"{configs[others[0]].bias!r} already. When using multiple adapters, set bias to 'none' for the others."
        )


def _warn_unmatched_patterns(config: Any, targets: list[str]) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        unmatched = [
            key
            for key in getattr(config, field, None) or {}
            if not any(pattern_matches(key, n) for n in targets)
        ]
        if unmatched:
            warnings.warn(
                f"{field} has keys that match none of the adapted modules: {unmatched}.",
                RuntimeWarning,
                stacklevel=4,
            )


def _decided_fields(config: Any, targets: Any, layers: Iterable[BaseTunerLayer]) -> dict[str, Any]:
    """What the model decides about the config: the resolved targets, and `fan_in_fan_out`, which layers know better."""
    decided = {"target_modules": targets}
    ops = {layer.op for layer in layers}
    for op, wrong in ((Linear, True), (Conv1D, False)):
        if op in ops and getattr(config, "fan_in_fan_out", None) is wrong:
            warnings.warn(
                f"fan_in_fan_out is set to {wrong} but the target module is `{op.__name__}`. "
                f"Setting fan_in_fan_out to {not wrong}.",
                stacklevel=4,
            )
            decided["fan_in_fan_out"] = not wrong
    return decided


# Changing ------------------------------------------------------------------------------------------------------


def _place(model: nn.Module, name: str, module: nn.Module, done: Injection) -> None:
    """Put a module at `name`, unless it is there."""
    parent_name, _, key = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    old = parent._modules[key]
    if old is not module:
        done.on_undo(parent._modules.__setitem__, key, old)
        setattr(parent, key, module)


def _replace(holder: Any, adapter: str, contents: Any, done: Injection) -> None:
    """Take an adapter of this name out of a holder, and put the new contents in, if any."""
    old = holder.detach(adapter)
    if old:
        done.on_undo(holder.attach, adapter, old)
    if contents is not None:
        done.on_undo(holder.detach, adapter)
        holder.attach(adapter, contents)


def _unfreeze_biases(
    config: Any, model: nn.Module, layers: dict[str, BaseTunerLayer], prefix: str, done: Injection
) -> None:
    bias = getattr(config, "bias", "none")
    owners: Iterable[nn.Module] = ()
    if bias == "all":
        owners = (m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for _, m in walk(model))
    elif bias != "none":
        owners = (layer.get_base_layer() for layer in layers.values())
    for owner in owners:
        for name, parameter in owner._parameters.items():
            if "bias" in name and parameter is not None:
                done.on_undo(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(True)


def _record_config(model: nn.Module, config: Any, adapter_name: str, done: Injection) -> None:
    configs = getattr(model, "peft_config", None)
    if configs is None:
        done.on_undo(delattr, model, "peft_config")
        configs = model.peft_config = {}  # type: ignore[assignment]
    elif adapter_name in configs:
        done.on_undo(configs.__setitem__, adapter_name, configs[adapter_name])
    else:
        done.on_undo(configs.pop, adapter_name)
    configs[adapter_name] = config


# The tuner -----------------------------------------------------------------------------------------------------


class BaseTuner(nn.Module):
    """A model with adapters of one method, and the verbs on them. `PeftModel.base_model` is one of these."""

    prefix: ClassVar[str]
    tuner_layer_cls: ClassVar[type[BaseTunerLayer]]
    target_module_mapping: ClassVar[dict[str, list[str] | str]] = {}

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.injection = inject(
            model, type(self), peft_config, adapter_name, True, low_cpu_mem_usage, state_dict
        )
        self.model = model
        self.training = model.training
        self.targeted_module_names = self.injection.targeted_module_names

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Adapter name -> config; the dict that the model itself carries."""
        return self.model.peft_config  # type: ignore[return-value]

    @property
    def active_adapters(self) -> list[str]:
        """The names of the active adapters."""
        return active_adapters_of(self.model)

    @property
    def active_adapter(self) -> list[str]:
        """The same as `active_adapters`."""
        return self.active_adapters

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's output."""
        return self.model(*args, **kwargs)

    def add_adapter(
        self, adapter_name: str, peft_config: PeftConfig, low_cpu_mem_usage: bool = False
    ) -> Injection:
        """Add an inactive, frozen adapter."""
        done = inject(self.model, type(self), peft_config, adapter_name, False, low_cpu_mem_usage)
        self.targeted_module_names = done.targeted_module_names
        return done

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one or several adapters; ValueError for an unknown name."""
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            if name not in self.peft_config:
                raise ValueError(f"Adapter {name} not found. There are: {', '.join(self.peft_config)}.")
        set_adapter(self.model, adapter_name, inference_mode, self.tuner_layer_cls)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters, active or not."""
        set_requires_grad(
            self.model,
            list([adapter_names] if isinstance(adapter_names, str) else adapter_names),
            requires_grad,
        )

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its config; ValueError if there is none of that name or it is merged."""
        if adapter_name not in self.peft_config:
            raise ValueError(
                f"Adapter {adapter_name} does not exist. There are: {', '.join(self.peft_config)}."
            )
        delete_adapter(self.model, adapter_name, self.prefix, self.tuner_layer_cls)
        del self.peft_config[adapter_name]

    def enable_adapter_layers(self) -> None:
        """Let the active adapters act and train."""
        for holder in holders(self.model):
            holder.enable_adapters(True)

    def disable_adapter_layers(self) -> None:
        """Compute the base model's output, with all adapters frozen, until they are enabled again."""
        for name in self.active_adapters:
            if getattr(self.peft_config.get(name), "bias", "none") != "none":
                warnings.warn(
                    f"Disabling adapter '{name}' does not give the base model's output: its trained biases stay.",
                    stacklevel=2,
                )
        for holder in holders(self.model):
            holder.enable_adapters(False)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Write adapters (default: the active ones) into the base weights; they stay and can be unmerged."""
        merging.merge_adapter(self.model, adapter_names, safe_merge)

    def unmerge_adapter(self) -> None:
        """Put the base weights back, bit for bit."""
        merging.unmerge_adapter(self.model)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge, remove every trace of PEFT from the model in place, and return it."""
        return merging.unload(self.model, True, progressbar, safe_merge, adapter_names)

    def unload(self) -> nn.Module:
        """Remove every trace of PEFT from the model in place without merging, and return it."""
        return merging.unload(self.model, False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "model" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.model, name)
