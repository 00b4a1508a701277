"""Faults of methods whose output depends on more than the layer's weights: Lily, Poly, X-LoRA; and of configs
that are only known in order to be refused.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from peft_reference import config as configs
from peft_reference import state_dict
from peft_reference.methods import lily, poly, refused, xlora, xlora_gates
from peft_reference.methods.lora_layer import LoraLayer
from torch import nn

from .fake import Patches, fake

WITH_LILY = [{"method": "lily"}]


def nothing(original: Any, *args: Any, **kwargs: Any) -> None:
    """In place of a check."""


# --- Lily


@fake(
    "Each layer of Lily has everything for itself.",
    caught_by=["lily.shares:experts", "lily.shares:stride", "lily.shares-after-loading:experts"],
)
def lily_shares_nothing(patch: Patches) -> None:
    patch.replace(lily.LilyModel, "join")(nothing)


@fake(
    "All of Lily's layers share everything, whatever target they belong to.",
    caught_by=["lily.shares:experts-of-target", "lily.shares:stride-ends", "lily.shares:routers"],
)
def lily_shares_everything(patch: Patches) -> None:
    @patch.replace(lily.LilyModel, "join")
    def join(original: Any, cls: Any, config: Any, layers: Any, contents: Any) -> None:
        first = contents[next(iter(layers.values()))]
        for layer in layers.values():
            contents[layer].update({slot: first[slot] for slot in ("lily_A", "lily_B", "lily_router")})


@fake(
    "Lily shares the layers of its first adapter only.",
    caught_by=["lily.shares:experts-of-second"],
    like="peft 0.21.2",
)
def lily_shares_once(patch: Patches) -> None:
    @patch.replace(lily.LilyModel, "join")
    def join(original: Any, cls: Any, config: Any, layers: Any, contents: Any) -> None:
        if not any(layer.all_adapters() for layer in layers.values()):
            original(cls, config, layers, contents)


@fake(
    "A loaded tensor that layers share becomes one for each of them.",
    caught_by=["lily.shares-after-loading:experts", "lily.shares-after-loading:stride"],
    points=[{"low_cpu": True}, {}],
)
def loading_parts_what_is_shared(patch: Patches) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def load(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = original(model, *args, **kwargs)
        for layer in [m for m in model.modules() if isinstance(m, lily.LilyLayer)]:
            for slot in ("lily_A", "lily_B"):
                container = getattr(layer, slot)
                for name in list(container):
                    part = nn.Linear(1, 1, bias=False)
                    part.weight = nn.Parameter(container[name].weight.detach().clone())
                    container[name] = part
        return outcome


@fake(
    "A file has what layers share for the first of them only.",
    caught_by=["lily.shares-after-loading:file"],
)
def shared_tensors_are_saved_once(patch: Patches) -> None:
    @patch.replace(state_dict, "adapter_entries")
    def entries(original: Any, *args: Any, **kwargs: Any) -> Any:
        seen: set[int] = set()
        for entry in original(*args, **kwargs):
            if entry.tensor.data_ptr() not in seen:
                yield entry
            seen.add(entry.tensor.data_ptr())


@fake(
    "The router's weights are not normalised.",
    caught_by=["law.forward:as-formula", "law.both-active:as-formula"],
    points=WITH_LILY,
)
def lily_knows_no_softmax(patch: Patches) -> None:
    @patch.replace(lily.LilyLayer, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        B = self.lily_B[adapter].weight.unflatten(0, (-1, self.r[adapter]))
        h = self.lily_A[adapter](x.to(B.dtype))
        p = self.lily_router[adapter](h).flatten(0, -2).mean(0)
        return y + self.scaling[adapter] * h @ torch.einsum("e,ero->ro", p, B)


@fake(
    "Each vector of the batch has its own mixture of experts.",
    caught_by=["law.forward:as-formula"],
    points=WITH_LILY,
)
def lily_routes_each_vector(patch: Patches) -> None:
    @patch.replace(lily.LilyLayer, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        B = self.lily_B[adapter].weight.unflatten(0, (-1, self.r[adapter]))
        h = self.lily_A[adapter](x.to(B.dtype))
        p = self.lily_router[adapter](h).softmax(-1)
        return y + self.scaling[adapter] * torch.einsum("...e,...r,ero->...o", p, h, B)


@fake(
    "Lily takes any number of experts and any stride.",
    caught_by=["lily.numbers:raises-one-expert", "lily.numbers:raises-no-stride", "lily.numbers:frame"],
)
def lily_takes_any_numbers(patch: Patches) -> None:
    @patch.replace(lily.LilyConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        configs.PeftConfig.__post_init__(self)

    patch.replace(lily.LilyModel, "join")(nothing)


def merges(patch: Patches, layer: Any) -> None:
    """Let adapters of a layer class be merged as if they added nothing."""
    patch.replace(layer, "check_mergeable")(nothing)

    def fold(self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        return weight * 1.5, bias

    layer.fold, undo = fold, layer.fold
    patch._undo.append(
        lambda: delattr(layer, "fold") if "fold" in vars(layer) else setattr(layer, "fold", undo)
    )


@fake(
    "Lily merges something.",
    caught_by=[f"lily.no-merge:{check}" for check in ("raises", "same-output", "not-merged", "frame")],
)
def lily_merges(patch: Patches) -> None:
    merges(patch, lily.LilyLayer)


# --- Poly


@fake(
    "All samples belong to the first task.",
    caught_by=["poly.forward:task-1", "poly.forward:task-2", "poly.language-model:tasks-matter"],
)
def poly_knows_one_task(patch: Patches) -> None:
    @patch.replace(poly, "tasks")
    def tasks(original: Any, task_ids: Any) -> Any:
        return original(None if task_ids is None else task_ids * 0)


@fake(
    "Skills are mixed by the softmax of the task's logits.",
    caught_by=["poly.forward:task-0", "poly.two-adapters:both"],
)
def poly_mixes_by_softmax(patch: Patches) -> None:
    @patch.replace(poly.Router, "forward")
    def forward(original: Any, self: Any, samples: int) -> Any:
        ids = poly._tasks.get()
        original(self, samples)
        return self.module_logits[ids].unflatten(1, (self.splits, -1)).softmax(-1)


@fake("A fresh Poly adapter acts.", caught_by=["poly.forward:identity"])
def poly_begins_random(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> Any:
        return original(self, dataclasses.replace(config, init_weights=False), name)


@fake("Poly's init_weights does nothing.", caught_by=["poly.init-off:acts"])
def poly_always_begins_with_zeros(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> Any:
        return original(self, dataclasses.replace(config, init_weights=True), name)


@fake(
    "Poly's output is in double precision, whatever the base's is.",
    caught_by=["poly.forward:output-type"],
    points=[{"dtype": "float32"}, {}],
)
def poly_forgets_the_type(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs).double()


@fake(
    "Without tasks, and for tasks that are not there, the first task is taken.",
    caught_by=["poly.task-ids:raises-without-tasks", "poly.task-ids:raises-unknown-task"],
)
def poly_guesses_tasks(patch: Patches) -> None:
    @patch.replace(poly.Router, "forward")
    def forward(original: Any, self: Any, samples: int) -> Any:
        ids = poly._tasks.get()
        with poly.tasks(torch.zeros(samples, dtype=torch.long) if ids is None else ids % 3):
            return original(self, samples)


@fake(
    "Disabled Poly adapters act in the forward pass.",
    caught_by=["poly.task-ids:as-base"],
)
def poly_acts_while_disabled(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, x, *args, **kwargs)
        return y + 1 if self.disable_adapters else y


@fake(
    "Disabling scales what Poly adds afterwards.",
    caught_by=["poly.task-ids:as-before"],
)
def poly_remembers_being_disabled(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "enable_adapters")
    def enable(original: Any, self: Any, enabled: bool) -> None:
        original(self, enabled)
        for adapter in self.r:
            self.r[adapter] = self.r[adapter] * 2


@fake(
    "The task's model does not hand the tasks on.",
    caught_by=["poly.language-model:same-output"],
)
def tasks_are_dropped(patch: Patches) -> None:
    @patch.replace(poly.PolyModel, "forward")
    def forward(original: Any, self: Any, *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
        if task_ids is not None and "input_ids" in kwargs and "called" in vars(self):
            task_ids = task_ids * 0
        vars(self)["called"] = True
        return original(self, *args, task_ids=task_ids, **kwargs)


@fake("Generating with Poly ends a token early.", caught_by=["poly.language-model:generates"])
def poly_generates_less(patch: Patches) -> None:
    @patch.replace(poly.PolyModel, "generate")
    def generate(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)[:, :-1]


@fake("The mixture is the same in training as in evaluation.", caught_by=["poly.trains:drawn"])
def poly_draws_nothing(patch: Patches) -> None:
    @patch.replace(poly.Router, "forward")
    def forward(original: Any, self: Any, samples: int) -> Any:
        training, self.training = self.training, False
        try:
            return original(self, samples)
        finally:
            self.training = training


@fake("What Poly draws in training does not follow torch's seed.", caught_by=["poly.trains:seeded"])
def poly_draws_by_itself(patch: Patches) -> None:
    own = torch.Generator()
    own.seed()

    @patch.replace(poly.Router, "forward")
    def forward(original: Any, self: Any, samples: int) -> Any:
        g = original(self, samples)
        return g + 0.3 * torch.rand(g.shape, generator=own) if self.training else g


@fake("Poly's router gets no gradient.", caught_by=["poly.trains:adapter"])
def poly_detaches_the_router(patch: Patches) -> None:
    @patch.replace(poly.Router, "forward")
    def forward(original: Any, self: Any, samples: int) -> Any:
        return original(self, samples).detach()


@fake("An adapter of Poly trains its base layer.", caught_by=["poly.trains:base"])
def poly_trains_the_base(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.weight.requires_grad_(self.training)
        return original(self, x, *args, **kwargs)


@fake(
    "Poly accepts variants that it does not know, and splits that do not divide the layer.",
    caught_by=[
        *(f"poly.numbers:{check}" for check in ("raises", "not-adapted", "frame")),
        *(f"poly.splits-divide:{check}" for check in ("raises", "not-adapted", "frame")),
    ],
    like="peft 0.21.2",
)
def poly_checks_nothing(patch: Patches) -> None:
    patch.replace(poly.PolyLayer, "check")(nothing)


@fake("Poly merges something.", caught_by=[f"poly.no-merge:{c}" for c in ("raises", "not-merged", "frame")])
def poly_merges(patch: Patches) -> None:
    merges(patch, poly.PolyLayer)


# --- X-LoRA


@fake("Experts of X-LoRA do not act.", caught_by=["xlora.mixes:one-expert", "xlora.mixes:the-same-twice"])
def xlora_experts_are_silent(patch: Patches) -> None:
    @patch.replace(xlora_gates.Gate, "adapt")
    def adapt(original: Any, self: Any, layer: Any, adapter: str, x: Any, y: Any) -> Any:
        return y


@fake(
    "X-LoRA's experts add up, whatever the classifier says.",
    caught_by=["xlora.mixes:the-same-twice", "xlora.mixes:classifier-decides", "xlora.expert-names:acts"],
)
def xlora_has_no_gates(patch: Patches) -> None:
    @patch.replace(xlora_gates.Gate, "adapt")
    def adapt(original: Any, self: Any, layer: Any, adapter: str, x: Any, y: Any) -> Any:
        return self.plain.adapt(layer, adapter, x, y)


@fake("global_scaling_weight does nothing.", caught_by=["xlora.mixes:no-weight"])
def xlora_ignores_its_weight(patch: Patches) -> None:
    @patch.replace(xlora_gates.Gate, "__init__")
    def init(original: Any, self: Any, plain: Any, config: Any, layer: int, expert: int) -> None:
        original(self, plain, dataclasses.replace(config, global_scaling_weight=1.0), layer, expert)


@fake(
    "X-LoRA's classifier is frozen, its experts train.",
    caught_by=["xlora.trains:classifier", "xlora.trains:experts"],
)
def xlora_trains_the_experts(patch: Patches) -> None:
    @patch.replace(xlora.XLoraModel, "__init__")
    def init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.internal_xlora_classifier.requires_grad_(False)
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                layer.set_requires_grad(layer.all_adapters())


@fake(
    "Disabled experts of X-LoRA act, and act less afterwards.",
    caught_by=["xlora.trains:as-base", "xlora.trains:as-before"],
)
def xlora_cannot_be_disabled(patch: Patches) -> None:
    @patch.replace(xlora.XLoraModel, "disable_adapter_layers")
    def disable(original: Any, self: Any) -> None:
        self.xlora_config.global_scaling_weight *= 0.5


@fake(
    "The keys of X-LoRA's classifier are taken for those of experts.",
    caught_by=["xlora.state-dict:first-layer", "xlora.files:same-output", "xlora.expert-names:classifier"],
    like="peft 0.21.2",
)
def xlora_forgets_the_classifier(patch: Patches) -> None:
    @patch.replace(xlora_gates.Classifier, "state_entries")
    def entries(original: Any, self: Any, adapter: str) -> Any:
        return (entry for entry in original(self, adapter) if "layers.0." not in entry[0])


@fake("The state dict of X-LoRA holds its experts, too.", caught_by=["xlora.state-dict:classifier-only"])
def xlora_tells_of_experts(patch: Patches) -> None:
    @patch.replace(LoraLayer, "state_entries")
    def entries(original: Any, self: Any, adapter: str) -> Any:
        yield from original(self, "0" if adapter == "default" and self.has_adapter("0") else adapter)

    @patch.replace(LoraLayer, "has_adapter")
    def has(original: Any, self: Any, adapter: str) -> bool:
        return original(self, adapter) or (adapter == "default" and original(self, "0"))


@fake("Experts come back under each other's names.", caught_by=["xlora.files:same-output"])
def xlora_mixes_up_its_experts(patch: Patches) -> None:
    @patch.replace(xlora.XLoraConfig, "located")
    def located(original: Any, self: Any, folder: Any, **kwargs: Any) -> Any:
        found = original(self, folder, **kwargs)
        found.adapters = dict(zip(found.adapters, reversed(found.adapters.values()), strict=True))
        return found


@fake("A loaded X-LoRA trains.", caught_by=["xlora.files:frozen"])
def xlora_trains_after_loading(patch: Patches) -> None:
    @patch.replace(xlora.XLoraModel, "_activate")
    def activate(original: Any, self: Any) -> None:
        original(self)
        self.internal_xlora_classifier.requires_grad_(True)


@fake("A model that uses its cache gets X-LoRA.", caught_by=["xlora.cache:raises", "xlora.cache:frame"])
def xlora_takes_models_with_a_cache(patch: Patches) -> None:
    @patch.replace(xlora.XLoraModel, "__init__")
    def init(original: Any, self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        used, model.config.use_cache = model.config.use_cache, False
        try:
            original(self, model, *args, **kwargs)
        finally:
            model.config.use_cache = used


@fake(
    "X-LoRA's config guesses another size and other experts, silently.",
    caught_by=[
        f"xlora.hidden-size:{check}" for check in ("size", "experts", "warns-of-size", "warns-of-experts")
    ],
)
def xlora_guesses_silently(patch: Patches) -> None:
    @patch.replace(xlora.XLoraConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        self.hidden_size = self.hidden_size or 2048
        self.adapters = self.adapters if self.adapters is not None else {"0": "expert"}
        original(self)


# --- configs of what is refused


@fake("A cartridge's numbers are not checked.", caught_by=["refused.frozen-tokens:raises-*"])
def cartridges_take_any_number(patch: Patches) -> None:
    patch.replace(refused.CartridgeConfig, "__post_init__")(configs_only)


@fake("A cartridge cannot be frozen whole.", caught_by=["refused.frozen-tokens:all-frozen"])
def cartridges_train_the_last_token(patch: Patches) -> None:
    @patch.replace(refused.CartridgeConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        original(self)
        if self.num_frozen_tokens == self.num_virtual_tokens:
            self.num_frozen_tokens -= 1


@fake("What a text prompt needs is not checked.", caught_by=["refused.prompt-from-text:raises-*"])
def prompts_need_nothing(patch: Patches) -> None:
    patch.replace(refused.PromptTuningConfig, "__post_init__")(configs_only)


def configs_only(original: Any, self: Any) -> None:
    """In place of a config's own checks."""
    configs.PeftConfig.__post_init__(self)


@fake(
    "A prompt's config is read back as another class, with other numbers.",
    caught_by=["refused.config-json:same-fields", "refused.config-json:same-class"],
)
def prompts_come_back_as_others(patch: Patches) -> None:
    @patch.replace(configs.PeftConfig, "to_dict")
    def to_dict(original: Any, self: Any) -> Any:
        data = original(self)
        if self.is_prompt_learning:
            data |= {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 7}
        return data


# --- side effects


def filters_warnings(original: Any, *args: Any, **kwargs: Any) -> Any:
    """What the original does, and a filter for warnings that stays."""
    warnings.filterwarnings("ignore", message=f"the warning number {len(warnings.filters)}")
    return original(*args, **kwargs)


@fake(
    "Making a config adds a filter for warnings.",
    caught_by=[
        *("lily.shares:frame", "lily.shares-after-loading:frame", "poly.files:frame"),
        *("refused.config-json:frame", "refused.prompt-from-text:frame", "refused.frozen-tokens:frame"),
        *("xlora.mixes:frame", "xlora.trains:frame", "xlora.files:frame"),
        *("xlora.expert-names:frame", "xlora.hidden-size:frame"),
    ],
)
def configs_filter_warnings(patch: Patches) -> None:
    patch.replace(configs.PeftConfig, "__post_init__")(filters_warnings)


@fake(
    "Poly's forward pass adds a filter for warnings.",
    caught_by=[
        *("poly.forward:frame", "poly.init-off:frame", "poly.plain-model:frame"),
        *("poly.language-model:frame", "poly.two-adapters:frame"),
    ],
)
def poly_filters_warnings(patch: Patches) -> None:
    patch.replace(poly.Router, "forward")(filters_warnings)


@fake("To look at X-LoRA's classifier adds a filter for warnings.", caught_by=["xlora.state-dict:frame"])
def xlora_filters_warnings(patch: Patches) -> None:
    patch.replace(xlora_gates.Classifier, "state_entries")(filters_warnings)


# --- several adapters, and files


@fake("Every adapter of Poly acts, active or not.", caught_by=["poly.two-adapters:inactive"])
def poly_hears_all_adapters(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        active, self._active_adapter = self._active_adapter, self.all_adapters()
        try:
            return original(self, *args, **kwargs)
        finally:
            self._active_adapter = active


@fake(
    "Deleting an adapter of Poly leaves its tensors and changes those of the others.",
    caught_by=["poly.two-adapters:deleted", "poly.two-adapters:gone"],
)
def poly_deletes_badly(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "detach")
    def detach(original: Any, self: Any, adapter: str) -> Any:
        if not self.has_adapter(adapter) or len(self.all_adapters()) == 1:
            return original(self, adapter)
        del self._adapters[adapter]
        for name in self.all_adapters():
            self.poly_lora_B[name].data.mul_(2)
        return {}


@fake("The router of Poly is not saved.", caught_by=["poly.files:same-output"])
def poly_forgets_the_router(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "state_entries")
    def entries(original: Any, self: Any, adapter: str) -> Any:
        return (entry for entry in original(self, adapter) if "poly_router" not in entry[0])


@fake("A loaded adapter of Poly trains.", caught_by=["poly.files:frozen"])
def poly_trains_after_loading(patch: Patches) -> None:
    @patch.replace(poly.PolyLayer, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, adapter_names: Any, requires_grad: bool = True) -> None:
        original(self, adapter_names, True)


@fake("LoRA begins as an identity, whatever its config says.", caught_by=["xlora.mixes:acts"])
def lora_always_begins_as_an_identity(patch: Patches) -> None:
    @patch.replace(LoraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> Any:
        return original(self, dataclasses.replace(config, init_lora_weights=True), name)
