"""Putting adapters into a model: plan everything, then change it; and `BaseTuner`, the module around such a
model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import merging
from .adapters import (
    active_adapters_of,
    delete_from,
    holders,
    set_adapter,
    set_requires_grad,
    walk,
)
from .config import PeftConfig
from .errors import UnsupportedLayerError, UnsupportedOptionError
from .holder import BASE_NAME, Holder, per_sample
from .layer import BaseTunerLayer
from .matching import (
    INSIDE_WRAPPERS,
    resolve_targets,
    select_by_keys,
    select_parameters,
    select_targets,
    select_to_save,
    select_tokens,
    warn_unmatched_patterns,
)
from .operators import Conv1D, Linear
from .registry import method_name, tuner_for
from .tokens import TrainableTokensLayer, TrainableTokensWrapper
from .tying import Ties, base_module
from .wrappers import ModulesToSaveWrapper


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Adapt `model` in place and return it: the same object, with its own attributes and methods.

    The new adapter is active and trainable; the first one freezes the base model. Call it again with other
    names for further adapters. With `state_dict`, its keys (not its values) say which layers are adapted.
    With `low_cpu_mem_usage`, adapter weights are on the meta device until they are set.

    Raises ValueError for a method that does not adapt layers or an unknown one, or whose layers share tensors
    that a PeftModel has to keep, NoMatchingPeftModuleError (a ValueError) if nothing is selected; the model
    is unchanged after any error.
    """
    tuner_cls = tuner_for(peft_config, "inject_adapter_in_model")
    layer_cls = tuner_cls.tuner_layer_cls
    if layer_cls.shared_slots and layer_cls.needs_peft_model:
        raise ValueError(
            f"`inject_adapter_in_model` does not support {method_name(peft_config.peft_type)}, whose layers "
            "share tensors that a PeftModel keeps: use `get_peft_model`."
        )
    Injection(model, tuner_cls, peft_config, adapter_name, True, low_cpu_mem_usage, state_dict).apply()
    return model


class Injection:
    """One adapter on its way into one model.

    The constructor plans: it selects, checks and creates, raises for everything that is wrong, and leaves
    the model alone. `apply` changes the model, `undo` takes every change back.
    """

    def __init__(
        self,
        model: nn.Module,
        tuner_cls: type[BaseTuner],
        config: Any,
        adapter_name: str,
        activate: bool,
        low_cpu_mem_usage: bool = False,
        state_dict: Mapping[str, Any] | None = None,
    ) -> None:
        config.validate()
        check_adapter_name(adapter_name)
        self.model, self.config, self.adapter_name = model, config, adapter_name
        self.layer_cls = tuner_cls.tuner_layer_cls
        self.activate = activate
        self._undo: list[Callable[[], Any]] = []
        self._check_bias()
        if state_dict is not None and getattr(config, "target_parameters", None):
            raise ValueError(
                "`state_dict` cannot be combined with a config that has `target_parameters`: the keys do "
                "not say which parameters were targeted. Use the config alone."
            )

        undo = tuner_cls.prepare_model(model, config, adapter_name)
        if undo is not None:
            self._undo.append(undo)
        self.low_cpu_mem_usage = low_cpu_mem_usage
        self.placed: dict[str, nn.Module] = {}  # name -> the module that will stand there
        self.contents: dict[Holder, Any] = {}  # holder -> what it will have of the adapter
        self.weights: dict[Tensor, Tensor] = {}  # base weight -> its values, where adapters start with others
        try:
            self._plan(tuner_cls, state_dict)
        except BaseException:
            self.undo()
            raise

    # Planning ------------------------------------------------------------------------------------

    def _plan(self, tuner_cls: type[BaseTuner], state_dict: Mapping[str, Any] | None) -> None:
        """Select, check and create everything; the model is only read."""
        model, config, adapter_name = self.model, self.config, self.adapter_name
        modules = dict(walk(model))
        saved = select_to_save(config, modules, adapter_name)
        ties = Ties(modules, bool(getattr(config, "ensure_weight_tying", False)))
        save_with = ties.follow(saved, modules)
        off_limits = tuple(f"{name}." for name in saved)
        candidates = {
            name: module
            for name, module in modules.items()
            if name not in saved and not name.startswith(off_limits) and not name.endswith(INSIDE_WRAPPERS)
        }
        parameters = select_parameters(config, candidates)
        self.targets: Any = config.target_modules
        if state_dict is None or self.targets:
            mapping = tuner_cls.default_targets(model, candidates)
            self.targets = resolve_targets(config, model, candidates, mapping, bool(parameters))
        if state_dict is None:
            names = select_targets(config, self.targets, candidates, bool(parameters))
        else:
            names = select_by_keys(
                config, self.targets, candidates, state_dict, self.layer_cls.adapter_layer_names
            )
        targets = {name: candidates[name] for name in names}
        adapt_with = tuner_cls.follow_ties(ties, config, targets, candidates)
        self.targeted_module_names = [name for name in candidates if name in targets]
        tuner_cls.check_targets(model, self.targeted_module_names)
        self.shared = self._shared_containers(candidates.values())
        self.part_of: dict[str, str] = {}  # part of a compound layer -> the layer, by which options name it
        self.layers = self._adapted_layers(candidates)
        self.decided = {"target_modules": self.targets, **tuner_cls.settle(config, model, adapter_name)}
        self.settled = copy.copy(config)  # the given config is completed when the model is changed
        vars(self.settled).update(self.decided)
        vars(self.settled).update(self.layer_cls.share_out(self.settled, self.layers))
        for name, layer in self.layers.items():
            layer.check(self.settled, layer.get_base_layer(), layer.op, name)
        warn_unmatched_patterns(
            config, [*self.layers, *(f"{m}.{p}" for m in parameters for p in parameters[m])]
        )
        self._correct_fan_in_fan_out()

        taken = {*self.layers, *parameters}
        free = {name: module for name, module in candidates.items() if name not in taken}
        self._plan_shared(tuner_cls)
        self._plan_tokens(select_tokens(config, model, modules), free, ties)
        self._plan_parameters(parameters, candidates, tuner_cls.parameter_layer_cls)
        self._plan_layers(self.layers, adapt_with, self._create_layer)
        tuner_cls.join(self.settled, self.layers, self.contents)
        self._plan_copies(saved, save_with)

    def _create_layer(self, name: str, layer: BaseTunerLayer) -> dict[str, Any]:
        return layer.create_with(self.settled, self.part_of.get(name, name), self.for_all)

    def _shared_containers(self, modules: Iterable[nn.Module]) -> dict[str, Any]:
        """Where the layers of a model keep what they share: where the present ones do, or new containers."""
        present = next((module for module in modules if isinstance(module, self.layer_cls)), None)
        slots = self.layer_cls.shared_slots.items()
        if present is not None:
            return {slot: getattr(present, slot) for slot, _ in slots}
        return {slot: kind().train(self.model.training) for slot, kind in slots}

    def _plan_shared(self, tuner_cls: type[BaseTuner]) -> None:
        """What the adapter has for the whole model."""
        self.for_all: dict[str, Any] = {}
        if self.shared and self.layers:
            first = next(iter(self.layers.values()))
            with _creating_on(torch.device("meta") if self.low_cpu_mem_usage else first.weight.device):
                self.for_all = tuner_cls.create_shared(self.settled, self.layers, self.shared)

    def _check_bias(self) -> None:
        """Biases belong to the base model, so only one adapter may train them."""
        bias = getattr(self.config, "bias", "none")
        if bias == "none":
            return
        known = ["all", f"{method_name(self.config.peft_type).lower()}_only", f"{self.layer_cls.prefix}only"]
        if bias not in known:
            raise UnsupportedOptionError(f"bias={bias!r} is not known: use none or one of {known}.")
        others = {**(getattr(self.model, "peft_config", None) or {})}
        others.pop(self.adapter_name, None)
        for name, config in others.items():
            if getattr(config, "bias", "none") != "none":
                raise ValueError(
                    f"A model supports only 1 adapter with bias, and '{name}' has bias={config.bias!r}. "
                    "Set bias to 'none' for the others."
                )

    def _adapted_layers(self, modules: Mapping[str, nn.Module]) -> dict[str, BaseTunerLayer]:
        """The adapted layers for the targets and, after a compound one, for its parts; by present name."""
        layers: dict[str, BaseTunerLayer] = {}
        for name in self.targeted_module_names:
            if name in self.part_of:  # targeted by a name of its own, too
                continue
            layers[name] = layer = self._adapted_layer(name, modules[name])
            below = f"{name}.base_layer" if layer is modules[name] else name
            for path, part in layer.parts().items():
                layers[f"{below}.{path}"] = self._adapted_layer(name, part)
                self.part_of[f"{below}.{path}"] = name
        return layers

    def _adapted_layer(self, name: str, module: nn.Module) -> BaseTunerLayer:
        """The adapted layer for a target: the one that is there, or a new one, not yet in the model."""
        if isinstance(module, self.layer_cls):
            return module
        op = module.op if isinstance(module, BaseTunerLayer) else self.layer_cls.operator_for(module)
        if op is None or op not in self.layer_cls.operators:
            supported = ", ".join(f"`{'.'.join(kind.where)}`" for kind in self.layer_cls.operators)
            raise UnsupportedLayerError(
                f"Target '{name}' is a {type(module).__name__}, which is not supported. Layers that can be "
                f"adapted: {supported}."
            )
        layer = self.layer_cls.class_for(op)(module, op)
        for slot, container in self.shared.items():
            setattr(layer, slot, container)
        return layer

    def _correct_fan_in_fan_out(self) -> None:
        """The layers show how they store their weights, whatever the config says."""
        ops = {layer.op for layer in self.layers.values()}
        for op, wrong in ((Linear, True), (Conv1D, False)):
            if op in ops and getattr(self.config, "fan_in_fan_out", None) is wrong:
                warnings.warn(
                    f"fan_in_fan_out={wrong} does not fit a `{op.__name__}`: {not wrong} is used.",
                    stacklevel=4,
                )
                self.decided["fan_in_fan_out"] = not wrong

    def _plan_layers(
        self,
        layers: Mapping[str, BaseTunerLayer],
        leaders: Mapping[str, str],
        create: Callable[[str, Any], dict[str, Any]],
    ) -> None:
        """Each layer gets its own contents, or shares those of the layer that leads it."""
        for name, layer in layers.items():
            self.placed.setdefault(name, layer)
        for name in sorted(layers, key=lambda name: name in leaders):
            if name not in leaders:
                self.contents[layers[name]] = self._create(layers[name], partial(create, name, layers[name]))
                continue
            leader = layers[leaders[name]]
            shared = layers[name].share(leader, self.adapter_name, self.contents[leader])
            self.contents[layers[name]] = shared | {"tied_to": leader}

    def _plan_parameters(
        self, parameters: Mapping[str, list[str]], modules: Mapping[str, nn.Module], layer_cls: Any
    ) -> None:
        """A layer for each adapted parameter, around its module; those of one module are nested."""
        if not parameters:
            if getattr(self.config, "target_parameters", None):
                text = f"target_parameters={self.config.target_parameters} matches no parameter."
                warnings.warn(text, RuntimeWarning, stacklevel=5)
            return
        held = {
            name: {layer.parameter_name for layer in module.nested()}
            for name, module in modules.items()
            if isinstance(module, layer_cls)
        }
        if held and held != {name: set(keys) for name, keys in parameters.items()}:
            raise ValueError(
                "All adapters with `target_parameters` have to target the same set of parameters."
            )
        for name, keys in parameters.items():
            if name in self.layers or (isinstance(modules[name], BaseTunerLayer) and name not in held):
                raise ValueError(f"'{name}' is adapted whole: target_parameters cannot name a part of it.")
            for key in keys:
                layer_cls.check_parameter(self.settled, base_module(modules[name]), f"{name}.{key}")
        for name, keys in parameters.items():
            outer: Any = modules[name]
            for key in keys if name not in held else ():
                outer = layer_cls(outer, key)
            self.placed[name] = outer
            for layer in outer.nested():
                full_name = f"{name}.{layer.parameter_name}"
                self.contents[layer] = self._create(layer, partial(layer.create, self.settled, full_name))

    def _plan_tokens(self, indices: dict[str, list[int]], free: Mapping[str, nn.Module], ties: Ties) -> None:
        """Trained rows for the modules whose tokens are named, and for those that follow them."""
        if taken := [name for name in indices if name not in free]:
            raise ValueError(f"{taken} cannot have trainable tokens: adapted or trained whole already.")
        leaders = ties.follow_tokens(indices, free)
        layers = {}
        for name, own in indices.items():
            module = free[name]
            if not isinstance(module, TrainableTokensWrapper):
                TrainableTokensLayer.check_module(module, name)
                module = TrainableTokensWrapper(module)
            module.token_adapter.check_tokens(own, module.token_adapter.weight, name)
            self.placed[name], layers[name] = module, module.token_adapter
        self._plan_layers(layers, leaders, lambda name, layer: layer.create_rows(indices[name]))

    def _plan_copies(self, saved: Mapping[str, nn.Module], leaders: Mapping[str, str]) -> None:
        """Copies of the modules to save; those of a tied group share one weight."""
        for name in sorted(saved, key=lambda name: name in leaders):
            module = saved[name]
            wrapper = module if isinstance(module, ModulesToSaveWrapper) else ModulesToSaveWrapper(module)
            self.placed[name] = wrapper
            self.contents[wrapper] = wrapper.create()
            if name in leaders:
                leader: Any = self.placed[leaders[name]]
                self.contents[wrapper].weight = self.contents[leader].weight

    def _create(self, layer: BaseTunerLayer, create: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The adapter's slots for one layer, on the base weight's device (or meta), in its dtype and mode."""
        if self.adapter_name in layer.merged_adapters:
            raise ValueError(
                f"Adapter '{self.adapter_name}' is merged and cannot be replaced. Unmerge it first."
            )
        weight = layer.weight
        with _creating_on(torch.device("meta") if self.low_cpu_mem_usage else weight.device):
            contents = create()
        if "weight" in contents:
            self.weights[weight] = contents.pop("weight")
        dtype = weight.dtype if weight.is_floating_point() or weight.is_complex() else None
        for value in contents.values():
            if isinstance(value, nn.Module):
                value.to(dtype=dtype).train(layer.training)
            elif isinstance(value, Tensor) and dtype is not None and value.is_floating_point():
                value.data = value.data.to(dtype)
        return contents

    # Changing ------------------------------------------------------------------------------------

    def apply(self) -> Injection:
        """Change the model as planned."""
        found = holders(self.model)
        active = [self.adapter_name] if self.activate else active_adapters_of(self.model)
        trains = self.activate and not self.config.inference_mode
        try:
            if not any(isinstance(holder, BaseTunerLayer) for holder in found):  # the first adapter
                for parameter in self.model.parameters():
                    self._set_requires_grad(parameter, False)
            for name in sorted(self.placed, key=lambda name: -name.count(".")):  # inner ones first
                self._place(name, self.placed[name])
            for slot, container in self.shared.items():
                self._keep(container, self.for_all[slot])
            for holder, contents in self.contents.items():
                self._replace(holder, contents)
            for weight, values in self.weights.items():
                self._set_weight(weight, values)
            for holder in dict.fromkeys([*found, *self.contents]):
                self._undo.append(partial(setattr, holder, "_active_adapter", holder._active_adapter))
                holder._active_adapter = list(active)
                holder.set_requires_grad(self.adapter_name, trains)
            if trains:
                self._unfreeze_biases()
            self._record_config()
        except BaseException:
            self.undo()
            raise
        for plan in (self.layers, self.placed, self.contents, self.weights, self.for_all):
            plan.clear()  # the model has them now, and may delete them
        return self

    def undo(self) -> None:
        """Leave the model exactly as it was before `apply`."""
        while self._undo:
            self._undo.pop()()

    def forget(self) -> None:
        """Drop what `undo` needs, so that it is neither copied nor pickled with the model."""
        self._undo.clear()

    def _set_requires_grad(self, parameter: nn.Parameter, value: bool) -> None:
        self._undo.append(partial(parameter.requires_grad_, parameter.requires_grad))
        parameter.requires_grad_(value)

    @torch.no_grad()
    def _set_weight(self, weight: Tensor, values: Tensor) -> None:
        self._undo.append(partial(weight.data.copy_, weight.clone()))
        weight.copy_(values)

    def _place(self, name: str, module: nn.Module) -> None:
        """Put a module at `name`, unless it is there."""
        parent_name, _, key = name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        if parent._modules[key] is not module:
            self._undo.append(partial(parent._modules.__setitem__, key, parent._modules[key]))
            setattr(parent, key, module)

    def _replace(self, holder: Any, contents: Any) -> None:
        """Put the adapter into a holder, in the place of one of this name."""
        old = holder.detach(self.adapter_name)
        if old:
            self._undo.append(partial(holder.attach, self.adapter_name, old))
        self._undo.append(partial(holder.detach, self.adapter_name))
        holder.attach(self.adapter_name, contents)

    def _keep(self, container: Any, value: Any) -> None:
        """Put what an adapter has for the whole model into its container, in the place of one of its name."""
        if self.adapter_name in container:
            self._undo.append(
                partial(container.__setitem__, self.adapter_name, container.pop(self.adapter_name))
            )
        self._undo.append(partial(container.pop, self.adapter_name))
        container[self.adapter_name] = value

    def _unfreeze_biases(self) -> None:
        bias = getattr(self.config, "bias", "none")
        owners: Iterable[nn.Module] = ()
        if bias == "all":
            owners = (m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for _, m in walk(self.model))
        elif bias != "none":
            owners = (layer.get_base_layer() for layer in self.layers.values())
        for owner in owners:
            for name, parameter in owner._parameters.items():
                if "bias" in name and parameter is not None:
                    self._set_requires_grad(parameter, True)

    def _record_config(self) -> None:
        for field, value in self.decided.items():
            self._undo.append(partial(setattr, self.config, field, getattr(self.config, field)))
            setattr(self.config, field, value)
        model: Any = self.model
        if getattr(model, "peft_config", None) is None:
            self._undo.append(partial(delattr, model, "peft_config"))
            model.peft_config = {}
        elif self.adapter_name in model.peft_config:
            replaced = model.peft_config[self.adapter_name]
            self._undo.append(partial(model.peft_config.__setitem__, self.adapter_name, replaced))
        else:
            self._undo.append(partial(model.peft_config.pop, self.adapter_name))
        model.peft_config[self.adapter_name] = self.config


def _creating_on(device: torch.device) -> AbstractContextManager[Any]:
    """`device` as the default one; nothing if it is, for the context makes each call of torch a Python call
    (a sixth of the work of adding an adapter).
    """
    return nullcontext() if device == torch.get_default_device() else device


def check_adapter_name(adapter_name: Any) -> None:
    """TypeError or ValueError for what cannot be part of a parameter's name."""
    if not isinstance(adapter_name, str):
        raise TypeError(f"An adapter's name should be a string, got {type(adapter_name).__name__}.")
    reserved = any(hasattr(container, adapter_name) for container in (nn.ModuleDict(), nn.ParameterDict()))
    if not adapter_name or "." in adapter_name or reserved:
        raise ValueError(
            f"{adapter_name!r} cannot be an adapter's name: it should be a non-empty string without '.', "
            "and no attribute of torch.nn.ModuleDict."
        )


class BaseTuner(nn.Module):
    """A model with adapters of one method, and the verbs on them. `PeftModel.base_model` is one of these."""

    prefix: ClassVar[str]  # that of the layers, which name their slots by it
    tuner_layer_cls: ClassVar[type[BaseTunerLayer]]
    parameter_layer_cls: ClassVar[type[BaseTunerLayer] | None] = None  # for config.target_parameters
    # (config, tensors, initial tensors) -> an adapter that needs no changed base weights
    as_plain: ClassVar[Callable[..., Any] | None] = None
    target_module_mapping: ClassVar[Mapping[str, Collection[str] | str]] = {}  # by model type
    takes_task_ids: ClassVar[bool] = False  # whether `forward` and `generate` want the task of each sample

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.prefix = getattr(cls.tuner_layer_cls, "prefix", "")

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        tuner_cls = self.method_for(peft_config)
        injection = Injection(
            model, tuner_cls, peft_config, adapter_name, True, low_cpu_mem_usage, state_dict
        )
        self.injection = injection.apply()
        self.model = model
        self.training = model.training
        self.targeted_module_names = injection.targeted_module_names
        for slot, container in injection.shared.items():
            setattr(self, slot, container)

    @classmethod
    def method_for(cls, config: PeftConfig) -> type[BaseTuner]:
        """The tuner whose layers an adapter with this config gets."""
        return cls

    @classmethod
    def prepare_model(cls, model: nn.Module, config: Any, adapter_name: str) -> Callable[[], Any] | None:
        """Change the model's own layers as `config` asks, before they are adapted; returns what undoes it."""
        return None

    @classmethod
    def create_shared(
        cls, config: Any, layers: Mapping[str, BaseTunerLayer], held: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a new adapter has for the whole model: one value for each of `shared_slots`.

        Runs after all checks and before the layers' own `create`. `layers` are those that it will adapt, by
        name, and `held` the containers, with what other adapters have. Further keys are for `create_with`.
        """
        return {}

    @classmethod
    def default_targets(
        cls, model: nn.Module, modules: Mapping[str, nn.Module]
    ) -> Mapping[str, Collection[str] | str]:
        """What is adapted if the config does not say, by model type."""
        return cls.target_module_mapping

    @classmethod
    def follow_ties(
        cls, ties: Ties, config: Any, targets: dict[str, nn.Module], modules: Mapping[str, nn.Module]
    ) -> dict[str, str]:
        """Follower -> leader among the targets, to which the followers are added from `modules`."""
        return ties.follow(targets, modules)

    @classmethod
    def check_targets(cls, model: nn.Module, names: Collection[str]) -> None:
        """Raise if modules of these names cannot be adapted in this model."""

    def check_merge_allowed(self) -> None:
        """Raise if the adapters of this model cannot be merged, whatever their layers say."""

    @classmethod
    def settle(cls, config: Any, model: nn.Module, adapter_name: str) -> dict[str, Any]:
        """The fields of the config that the model decides; raises for an adapter that the model cannot get.

        Runs before anything is created or changed.
        """
        return {}

    @classmethod
    def join(cls, config: Any, layers: Mapping[str, Any], contents: dict[Holder, dict[str, Any]]) -> None:
        """Let layers share what was created for each, by changing `contents`; layers come by their names."""

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

    @contextmanager
    def per_sample(self, adapter_names: Sequence[str] | None, repeat: int = 1) -> Iterator[None]:
        """Within, each sample of a batch is computed with the adapter that is named for it, `__base__` for
        none.

        `repeat` is how many copies of each sample generation makes, one after the other. ValueError in
        training mode, for an unknown name, for an adapter that cannot do that and while adapters are merged;
        disabled adapters stay disabled.
        """
        if adapter_names is None:
            yield
            return
        found = holders(self.model)
        self._check_per_sample(found, set(adapter_names) - {BASE_NAME})
        with per_sample(found, adapter_names, repeat):
            yield

    def _check_per_sample(self, found: list[Holder], names: set[str]) -> None:
        if self.training:
            raise ValueError("`adapter_names` is for inference: call `eval()` first.")
        if unknown := sorted(names - set(self.peft_config)):
            raise ValueError(f"`adapter_names` has unknown names: {', '.join(unknown)}.")
        for layer in (h for h in found if isinstance(h, BaseTunerLayer)):
            if layer.disable_adapters:
                continue
            if layer.merged:
                raise ValueError("`adapter_names` needs unmerged adapters: call `unmerge_adapter` first.")
            for name in filter(layer.has_adapter, sorted(names)):
                layer.check_per_sample(name)

    def add_adapter(
        self, adapter_name: str, peft_config: PeftConfig, low_cpu_mem_usage: bool = False
    ) -> Injection:
        """Add an inactive, frozen adapter."""
        tuner_cls = self.method_for(peft_config)
        done = Injection(self.model, tuner_cls, peft_config, adapter_name, False, low_cpu_mem_usage).apply()
        self.targeted_module_names = list(
            dict.fromkeys([*self.targeted_module_names, *done.targeted_module_names])
        )
        return done

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one or several adapters; ValueError for an unknown name."""
        self.check_names([adapter_name] if isinstance(adapter_name, str) else adapter_name)
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
        self.check_names([adapter_name])
        delete_from(holders(self.model), adapter_name)
        del self.peft_config[adapter_name]

    def check_names(self, adapter_names: Iterable[str]) -> None:
        """ValueError, which lists the adapters there are, if there is none of one of these names."""
        unknown = [name for name in adapter_names if name not in self.peft_config]
        if unknown:
            raise ValueError(f"Adapters {unknown} not found; there are: {', '.join(self.peft_config)}.")

    def enable_adapter_layers(self) -> None:
        """Let the active adapters act and train."""
        for holder in holders(self.model):
            holder.enable_adapters(True)

    def disable_adapter_layers(self) -> None:
        """Compute the base model's output, with all adapters frozen, until they are enabled again."""
        for name in self.active_adapters:
            if getattr(self.peft_config.get(name), "bias", "none") != "none":
                warnings.warn(
                    f"Disabling adapter '{name}' does not give the base model's output: its trained biases "
                    "stay.",
                    stacklevel=2,
                )
        for holder in holders(self.model):
            holder.enable_adapters(False)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Write adapters (default: the active ones) into the base weights; they stay and can be unmerged."""
        self.check_merge_allowed()
        merging.merge_adapter(self.model, adapter_names, safe_merge)

    def unmerge_adapter(self) -> None:
        """Put the base weights back, bit for bit."""
        merging.unmerge_adapter(self.model)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge, remove every trace of PEFT from the model in place, and return it."""
        self.check_merge_allowed()
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
