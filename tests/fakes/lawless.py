"""Faults of the parts that all methods share, each seen on methods of several kinds."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import peft_reference
import torch
from peft_reference import config, injection, merging, model, state_dict, status
from peft_reference.layer import BaseTunerLayer
from torch import nn

from .fake import Patches, fake

KINDS = tuple({"method": method} for method in ("loha", "ia3", "lora", "hira"))
# two axes have no first value that shows what is wrong
ODD = (
    *KINDS,
    {"method": "loha", "layer": "circular-conv2d"},
    {"method": "lora", "layer": "padded-embedding"},
)


def _acts(self: BaseTunerLayer) -> bool:
    return not (self.disable_adapters or self.merged) and any(map(self.has_adapter, self.active_adapters))


# Computing -----------------------------------------------------------------------------------------


@fake(
    "Adapted layers give a little more than they should.",
    caught_by=[
        "law.identity-at-init:as-base",
        "law.forward:as-formula",
        "law.forward-training:as-formula",
        "law.inactive:as-formula",
        "law.both-active:as-formula",
        "law.merge-both:unmerged",
        "law.merge:as-adapted",
        "law.merge-and-unload:as-adapted",
        "law.orientation:forward",
        "law.dilation:forward",
        "law.unusual-layer:forward",
        "law.groups:forward",
        "law.max-norm:as-formula",
    ],
    points=ODD,
)
def adapted_layers_give_too_much(patch: Patches) -> None:
    @patch.replace(BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, *args, **kwargs)
        return y * 1.05 if _acts(self) else y


@fake(
    "Adapters never act.",
    caught_by=[
        "law.forward:not-base",
        "law.max-norm:adapted",
        "law.init-off:not-base",
        "law.both-active:as-formula",
    ],
    points=KINDS,
)
def adapters_never_act(patch: Patches) -> None:
    @patch.replace(BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.get_base_layer()(*args, **kwargs) if _acts(self) else original(self, *args, **kwargs)


@fake(
    "A method whose initialisation is no identity begins as one.",
    caught_by=["law.no-identity:not-base"],
    points=[{"method": "c3a"}, {"method": "fourierft"}],
)
def every_adapter_begins_as_nothing(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, *args: Any) -> Any:
        contents = original(self, *args)
        for value in contents.values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value.data.zero_()
        return contents


@fake(
    "Every adapter begins with something.",
    caught_by=["law.identity-at-init:as-base", "law.init-on:as-base"],
    points=[*KINDS, {"method": "c3a"}, {"method": "fourierft"}],
)
def every_adapter_begins_with_something(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, *args: Any) -> Any:
        contents = original(self, *args)
        for value in contents.values():
            for tensor in value.parameters() if isinstance(value, nn.Module) else (value,):
                if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                    tensor.data = tensor.data + 0.25
        return contents


@fake(
    "Adapted layers answer in float64.",
    caught_by=["law.identity-at-init:output-type", "law.forward:output-type", "law.merge:output-type"],
    points=KINDS,
)
def adapted_layers_answer_in_float64(patch: Patches) -> None:
    @patch.replace(BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, *args, **kwargs)
        return y.double() if not self.merged else y


@fake(
    "A forward pass stores something in the adapter.",
    caught_by=[
        "law.forward:frame",
        "law.forward-training:frame",
        "law.disabled:frame",
        "law.max-norm:frame",
        "law.gradients:frame",
    ],
    points=KINDS,
)
def forwards_change_the_adapter(patch: Patches) -> None:
    @patch.replace(BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, *args, **kwargs)
        for name in self.all_adapters():
            for parameter in self.adapter_parameters(name):
                parameter.data.mul_(0.5)
        return y


# Merging -------------------------------------------------------------------------------------------


@fake(
    "Merging writes a little more than the adapter.",
    caught_by=[
        "law.merge:as-formula",
        "law.merge:as-adapted",
        "law.merge-both:merged",
        "law.merge-and-unload:as-adapted",
        "law.orientation:merged",
        "law.dilation:merged",
        "law.unusual-layer:merged",
        "law.groups:merged",
    ],
    points=ODD,
)
def merging_writes_too_much(patch: Patches) -> None:
    @patch.replace(BaseTunerLayer, "merged_base")
    def merged_base(original: Any, self: Any, adapters: Any, safe_merge: bool) -> Any:
        weight, bias = original(self, adapters, safe_merge)
        return weight + 0.1 * (weight - self.weight), bias


@fake(
    "Unmerging leaves the weights merged.",
    caught_by=["law.unmerge:as-base", "law.unmerge:bits"],
    points=KINDS,
)
def unmerging_leaves_the_weights(patch: Patches) -> None:
    @patch.replace(BaseTunerLayer, "unmerge")
    def unmerge(original: Any, self: Any) -> None:
        self._saved_base = None
        original(self)


@fake(
    "A safe merge looks at nothing.",
    caught_by=[
        "law.safe-merge:raises",
        "law.safe-merge:not-merged",
        "law.safe-merge:still-finite",
        "law.safe-merge:frame",
    ],
    points=KINDS,
)
def safe_merges_look_at_nothing(patch: Patches) -> None:
    @patch.replace(BaseTunerLayer, "merged_base")
    def merged_base(original: Any, self: Any, adapters: Any, safe_merge: bool) -> Any:
        return original(self, adapters, False)


@fake(
    "Unloading leaves the adapted layers in the model.",
    caught_by=[
        "law.unload:as-base",
        "law.unload:no-adapter",
        "law.unload:own-names",
        "law.merge-and-unload:no-adapter",
        "law.merge-and-unload:not-adapted",
    ],
    points=KINDS,
)
def unloading_leaves_the_layers(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, made: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return made


@fake(
    "Unloading draws random numbers.",
    caught_by=["law.unload:frame", "law.merge-and-unload:frame"],
    points=KINDS,
)
def unloading_draws(patch: Patches) -> None:
    @patch.replace(merging, "unload")
    def unload(original: Any, made: nn.Module, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return original(made, *args, **kwargs)


@fake(
    "What cannot be merged is called merged.",
    caught_by=["law.not-mergeable:raises", "law.not-mergeable:not-merged", "law.not-mergeable:frame"],
    points=[{"method": "lily"}],
)
def calls_merged_what_cannot_be(patch: Patches) -> None:
    @patch.replace(merging, "merge_adapter")
    def merge_adapter(original: Any, made: nn.Module, *args: Any, **kwargs: Any) -> None:
        try:
            original(made, *args, **kwargs)
        except Exception:
            for part in made.modules():
                if isinstance(part, BaseTunerLayer):
                    part.merged_adapters = ["default"]


# Injecting -----------------------------------------------------------------------------------------


class _Half(nn.Module):
    """What half an injection leaves."""

    active_adapters = ("default",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, *args: Any) -> Any:
        return self.base_layer(*args)


@fake(
    "A refused adapter leaves wrapped layers behind.",
    caught_by=[
        "law.unsupported-layer:not-adapted",
        "law.unsupported-layer:frame",
        "law.unsupported-type:not-adapted",
        "law.unsupported-type:frame",
        "law.groups-refused:not-adapted",
        "law.groups-refused:frame",
    ],
    points=[*KINDS, {"method": "adalora"}],
)
def refusals_leave_wrapped_layers(patch: Patches) -> None:
    @patch.replace(injection.Injection, "__init__")
    def __init__(original: Any, self: Any, made: nn.Module, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, made, *args, **kwargs)
        except Exception:
            for name, module in list(made.named_children()):
                if not isinstance(module, BaseTunerLayer):
                    setattr(made, name, _Half(module))
            raise


@fake(
    "What cannot be adapted is a KeyError.",
    caught_by=[
        "law.unsupported-layer:raises",
        "law.unsupported-layer-second:raises",
        "law.unsupported-type:raises",
    ],
    points=KINDS,
)
def refusals_are_key_errors(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_adapted_layer")
    def _adapted_layer(original: Any, self: Any, name: str, module: nn.Module) -> Any:
        try:
            return original(self, name, module)
        except ValueError as error:
            raise KeyError(name) from error


@fake(
    "What cannot be adapted is left out without a word.",
    caught_by=["law.unsupported-layer:raises", "law.groups-refused:raises"],
    points=[*KINDS, {"method": "adalora"}],
)
def checks_nothing(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_adapted_layers")
    def _adapted_layers(original: Any, self: Any, modules: Any) -> Any:
        names = self.targeted_module_names
        ops = (self.layer_cls.operator_for(getattr(modules[n], "base_layer", modules[n])) for n in names)
        kept = [n for n, op in zip(names, ops, strict=True) if op in self.layer_cls.operators]
        self.targeted_module_names = kept
        return original(self, modules)

    for cls in {BaseTunerLayer, *_layer_classes()}:
        if "check" in vars(cls):
            patch.replace(cls, "check")(lambda original, *args: None)


def _layer_classes() -> list[type[BaseTunerLayer]]:
    found: list[type[BaseTunerLayer]] = []
    for cls in BaseTunerLayer.__subclasses__():
        found += [cls, *cls.__subclasses__()]
    return found


@fake(
    "An adapted layer gets a base weight of its own.",
    caught_by=["law.tied:still-tied", "law.tied:same-tensors", "law.tied:frame", "law.tensors:frame"],
    points=KINDS,
)
def adapting_copies_the_weight(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        layers = list(self.layers.values())
        done = original(self)
        for adapted in layers:
            base = adapted.get_base_layer()
            if isinstance(base, (nn.Linear, nn.Embedding)):
                base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        return done


@fake(
    "A model on the meta device is given memory.",
    caught_by=["law.base-on-meta:on-meta", "law.base-on-meta:base", "law.base-on-meta:frame"],
    points=KINDS,
)
def gives_memory_to_meta(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        done = original(self)
        if all(parameter.is_meta for parameter in self.model.parameters()):
            self.model.to_empty(device="cpu")
        return done


@fake("Whatever is linear is adapted.", caught_by=["law.tied:twin-alone"], points=KINDS)
def adapts_all_that_is_linear(patch: Patches) -> None:
    @patch.replace(injection, "select_targets")
    def select_targets(original: Any, chosen: Any, targets: Any, candidates: Any, *args: Any) -> Any:
        named = original(chosen, targets, candidates, *args)
        return [n for n, m in candidates.items() if n in named or isinstance(m, nn.Linear)]


@fake(
    "Everything trains: the base, and what adapters only keep.",
    caught_by=["law.tensors:base", "law.gradients:base"],
    points=KINDS,
)
def everything_trains(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        done = original(self)
        self.model.requires_grad_(True)
        return done


@fake(
    "New layers are in training mode.",
    caught_by=["law.mode:same-mode"],
    points=[{"method": m["method"], "training": False} for m in KINDS],
)
def new_layers_train(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        holders = list(self.contents)
        done = original(self)
        for holder in holders:
            holder.training = True
        return done


@fake(
    "An adapter begins otherwise each time.",
    caught_by=["law.deterministic:same-values"],
    points=KINDS,
)
def adapters_begin_otherwise(patch: Patches) -> None:
    made: list[int] = []

    @patch.replace(injection.Injection, "_create")
    def _create(original: Any, self: Any, *args: Any) -> Any:
        contents = original(self, *args)
        made.append(1)
        for value in contents.values():
            for tensor in value.parameters() if isinstance(value, nn.Module) else (value,):
                if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                    tensor.data = tensor.data + 0.125 * len(made)
        return contents


# State dicts and files -----------------------------------------------------------------------------


@fake(
    "A state dict has flat tensors.",
    caught_by=["law.keys:as-card", "law.keys:values", "law.base-on-meta:as-card"],
    points=KINDS,
)
def state_dicts_are_flat(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(original: Any, *args: Any, **kwargs: Any) -> Any:
        return {key: tensor[None] for key, tensor in original(*args, **kwargs).items()}


@fake(
    "Tensors that are set arrive doubled.",
    caught_by=[
        "law.round-trip:same-output",
        "law.round-trip:same-state",
        "law.into-named:same-output",
        "law.into-named:same-state",
        "law.inject-from-state:same-output",
        "law.meta:same-output",
        "law.meta:same-tensors",
        "law.files:same-output",
    ],
    points=KINDS,
)
def tensors_arrive_doubled(patch: Patches) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        given["peft_model_state_dict"] = {k: 2 * t for k, t in given["peft_model_state_dict"].items()}
        return original(**given)


@fake(
    "Weights are set in every adapter.",
    caught_by=["law.into-named:frame"],
    points=KINDS,
)
def sets_every_adapter(patch: Patches) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        for name in given["model"].peft_config:
            original(**{**given, "adapter_name": name})
        return original(**given)


@fake(
    "A config that is read back has forgotten its targets.",
    caught_by=["law.config-json:same-fields"],
    points=KINDS,
)
def configs_forget_their_targets(patch: Patches) -> None:
    @patch.replace(config.PeftConfig, "save_pretrained")
    def save_pretrained(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        other = copy.copy(self)
        other.target_modules = None
        original(other, *args, **kwargs)


@fake(
    "A config is read back as the bare base class.",
    caught_by=["law.config-json:same-class"],
    points=KINDS,
)
def configs_come_back_bare(patch: Patches) -> None:
    @patch.replace(config.PeftConfig, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(cls, *args, **kwargs)
        return type("OtherConfig", (type(found),), {})(
            **{k: v for k, v in vars(found).items() if k != "peft_type"}
        )


@fake(
    "The config classes have another default.",
    caught_by=["law.config-fields:fields"],
    points=KINDS,
)
def configs_have_another_default(patch: Patches) -> None:
    for cls in set(peft_reference.PEFT_TYPE_TO_CONFIG_MAPPING.values()):
        if "__init__" not in vars(cls):
            continue
        original = cls.__init__

        @functools.wraps(original)
        def init(self: Any, *args: Any, __original: Any = original, **kwargs: Any) -> None:
            __original(self, *args, **kwargs)

        known = inspect.signature(original)
        last = next(p for p in known.parameters.values() if p.name == "inference_mode")
        init.__dict__["__signature__"] = known.replace(
            parameters=[p.replace(default=True) if p is last else p for p in known.parameters.values()]
        )
        patch.set(cls, "__init__", init)


# Activating and telling ----------------------------------------------------------------------------


@fake(
    "Adapters that are added keep float32, whatever they are told.",
    caught_by=["law.autocast-off:adapter"],
    points=KINDS,
)
def autocast_cannot_be_turned_off(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, autocast_adapter_dtype: bool = True, **kwargs: Any) -> Any:
        return original(*args, autocast_adapter_dtype=True, **kwargs)


@fake(
    "The status of a layer is that of another one.",
    caught_by=[
        "law.status:name",
        "law.status:active",
        "law.status:available",
        "law.status:merged",
        "law.status:trains",
    ],
    points=KINDS,
)
def status_of_another_layer(patch: Patches) -> None:
    @patch.replace(status, "_layer_status")
    def _layer_status(original: Any, *args: Any) -> Any:
        found = original(*args)
        found.name, found.active_adapters, found.merged_adapters = "other", ["second"], ["first"]
        found.available_adapters, found.requires_grad = ["second"], {"second": True}
        found.enabled = False
        return found
