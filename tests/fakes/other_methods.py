"""Faults of the methods beside LoRA: (IA)³'s factors, AdaLoRA's budget and loss."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import torch
from peft_reference.config import PeftConfig
from peft_reference.layer import BaseTunerLayer
from peft_reference.methods import adalora, adalora_ranks, ia3, lora
from peft_reference.methods import defaults as by_architecture
from torch import nn

from .fake import Patches, fake

IA3, ADA, RANKS = ia3.IA3Layer, adalora.AdaLoraLayer, adalora_ranks.RankAllocator
WITH_IA3 = [{"method": "ia3"}, {"method": "ia3-feedforward"}]
WITH_ADALORA = [{"method": "adalora"}]


def changing(patch: Patches, layer: Any, **slots: Any) -> None:
    """Let each slot of a new adapter hold what a function makes of it."""

    @patch.replace(layer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        return contents | {slot: change(contents[slot]) for slot, change in slots.items()}


def feedforward_is(patch: Patches, pattern: str) -> None:
    """Let the modules that a pattern means be the feed-forward ones."""

    @patch.replace(IA3, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, feedforward_modules=pattern), name)


@fake(
    "(IA)³ scales the outputs of a feed-forward layer too.",
    caught_by=["ia3.sides:inputs", "ia3.sides:inputs-by-regex", "ia3.default-targets:inputs"],
    points=[{}, *WITH_IA3],
)
def ia3_knows_no_feedforward(patch: Patches) -> None:
    feedforward_is(patch, "nothing")


@fake(
    "(IA)³ scales the inputs of every layer.",
    caught_by=["ia3.sides:outputs", "ia3.default-targets:outputs"],
    points=[{}, *WITH_IA3],
)
def ia3_is_all_feedforward(patch: Patches) -> None:
    feedforward_is(patch, ".*")


@fake("Merging (IA)³ leaves the bias as it was.", caught_by=["law.merge:as-formula"], points=WITH_IA3)
def ia3_merges_no_bias(patch: Patches) -> None:
    @patch.replace(IA3, "fold")
    def fold(original: Any, self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        return original(self, adapter, weight, bias)[0], bias


@fake("Merging (IA)³ scales the wrong side of the weight.", caught_by=["ia3.fan-in-fan-out:merged"])
def ia3_merges_the_other_side(patch: Patches) -> None:
    @patch.replace(IA3, "fold")
    def fold(original: Any, self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        return weight * self.ia3_l[adapter].flatten(), bias


@fake(
    "(IA)³ adds its factors instead of multiplying by them.",
    caught_by=["ia3.fan-in-fan-out:adapted", "law.forward:as-formula"],
    points=[{}, *WITH_IA3],
)
def ia3_adds(patch: Patches) -> None:
    @patch.replace(IA3, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        return y + self.factors(adapter)


@fake("init_ia3_weights=False is ignored.", caught_by=["ia3.no-init:not-base"])
def ia3_always_begins_with_ones(patch: Patches) -> None:
    changing(patch, IA3, ia3_l=lambda p: nn.Parameter(torch.ones_like(p)))


@fake("feedforward_modules need not be targets.", caught_by=["ia3.feedforward-subset:raises"])
def ia3_takes_any_feedforward(patch: Patches) -> None:
    patch.set(ia3.IA3Config, "__post_init__", lambda self: _post_init(self, ia3.PeftType.IA3))


def _post_init(config: Any, peft_type: Any) -> None:
    PeftConfig.__post_init__(config)
    config.peft_type = peft_type


@fake(
    "For an unknown architecture (IA)³ takes no module for a feed-forward one.",
    caught_by=["ia3.unknown-architecture:raises-no-feedforward"],
)
def ia3_guesses_feedforward(patch: Patches) -> None:
    patch.set(
        ia3.IA3Model, "settle", classmethod(lambda cls, config, model, name: {"feedforward_modules": set()})
    )


@fake(
    "(IA)³'s defaults are those of LoRA.",
    caught_by=["ia3.default-targets:adapted", "ia3.default-targets:only-those"],
)
def ia3_has_loras_targets(patch: Patches) -> None:
    patch.set(ia3.IA3Model, "target_module_mapping", by_architecture.ATTENTION)


@fake(
    "(IA)³'s config has other defaults.",
    caught_by=["ia3.config-fields:fields", "adalora.config-fields:fields"],
)
def other_defaults_of_methods(patch: Patches) -> None:
    for cls, field in ((ia3.IA3Config, "fan_in_fan_out"), (adalora.AdaLoraConfig, "tinit")):
        init: Any = cls.__init__
        at = [*cls.__dataclass_fields__].index(field)
        defaults = (*init.__defaults__[:at], 1, *init.__defaults__[at + 1 :])
        other = types.FunctionType(init.__code__, init.__globals__, "__init__", defaults, init.__closure__)
        other.__annotations__ = init.__annotations__
        patch.set(cls, "__init__", other)


@fake("A weighted (IA)³ adapter is the mean of the others.", caught_by=["ia3.weighted:sum"])
def ia3_averages(patch: Patches) -> None:
    @patch.replace(ia3.IA3Model, "add_weighted_adapter")
    def add(original: Any, self: Any, adapters: Any, weights: Any, adapter_name: str) -> None:
        original(self, adapters, [1 / len(weights) for _ in weights], adapter_name)


@fake(
    "A weighted (IA)³ adapter is active and trained at once.",
    caught_by=["ia3.weighted:frozen", "ia3.weighted:inactive"],
)
def ia3_activates_the_sum(patch: Patches) -> None:
    @patch.replace(ia3.IA3Model, "add_weighted_adapter")
    def add(original: Any, self: Any, adapters: Any, weights: Any, adapter_name: str) -> None:
        original(self, adapters, weights, adapter_name)
        self.set_adapter(adapter_name)


@fake(
    "A weighted (IA)³ adapter of unknown ones is one that does nothing.",
    caught_by=[
        "ia3.weighted-unknown:raises",
        "ia3.weighted-unknown:one-adapter",
        "ia3.weighted-unknown:frame",
    ],
)
def ia3_adds_what_is_not_there(patch: Patches) -> None:
    @patch.replace(ia3.IA3Model, "add_weighted_adapter")
    def add(original: Any, self: Any, adapters: Any, weights: Any, adapter_name: str) -> None:
        self.add_adapter(adapter_name, self.peft_config[adapters[0]])


# AdaLoRA


@fake(
    "AdaLoRA's ranknum is trained and saved.",
    caught_by=["law.tensors:bookkeeping", "law.keys:bookkeeping"],
    points=WITH_ADALORA,
    like="0.21.2, which trains it where the base is not float32",
)
def ranknum_trains(patch: Patches) -> None:
    patch.set(ADA, "adapter_layer_names", (*ADA.adapter_layer_names, "ranknum"))
    patch.set(ADA, "state_entries", BaseTunerLayer.state_entries)
    changing(patch, ADA, ranknum=lambda p: p.requires_grad_())


@fake("AdaLoRA divides by nothing.", caught_by=["law.forward:as-formula"], points=WITH_ADALORA)
def adalora_forgets_ranknum(patch: Patches) -> None:
    changing(patch, ADA, scaling=lambda alpha: alpha * 4.0)


@fake(
    "AdaLoRA begins with the target rank, zero factors and random singular values.",
    caught_by=["adalora.factors:right", "adalora.factors:left", "adalora.factors:values"],
)
def adalora_begins_elsewhere(patch: Patches) -> None:
    def zeros(p: Any) -> nn.Parameter:
        return nn.Parameter(torch.zeros_like(p))

    changing(patch, ADA, lora_A=zeros, lora_B=zeros, lora_E=lambda p: nn.Parameter(torch.ones_like(p)))


@fake(
    "AdaLoRA's config accepts any schedule.",
    caught_by=[
        "adalora.total-step:raises",
        "adalora.no-budgeting:raises",
        "adalora.no-budgeting:not-adapted",
    ],
)
def adalora_accepts_any_schedule(patch: Patches) -> None:
    def post_init(self: Any) -> None:
        lora.LoraConfig.__post_init__(self)
        self.peft_type = adalora.PeftType.ADALORA

    patch.set(adalora.AdaLoraConfig, "__post_init__", post_init)


@fake(
    "Any number of AdaLoRA adapters can be trained.",
    caught_by=[
        "adalora.one-trainable:raises",
        "adalora.one-trainable:one-adapter",
        "adalora.one-trainable:frame",
    ],
)
def adalora_trains_many(patch: Patches) -> None:
    patch.set(adalora.AdaLoraModel, "settle", classmethod(lambda cls, config, model, name: {}))


@fake("An AdaLoRA adapter for inference is trained.", caught_by=["adalora.one-trainable:frozen"])
def adalora_trains_what_infers(patch: Patches) -> None:
    @patch.replace(adalora.AdaLoraModel, "add_adapter")
    def add(original: Any, self: Any, adapter_name: str, config: Any, *args: Any, **kwargs: Any) -> Any:
        done = original(self, adapter_name, config, *args, **kwargs)
        self.set_requires_grad([adapter_name])
        return done


def scheduled(patch: Patches, left: Any) -> None:
    """Let `left(time)` of the superfluous triplets stay at a time between 0 and 1."""

    @patch.replace(RANKS, "budget_schedule")
    def budget_schedule(original: Any, self: Any, step: int) -> tuple[int, bool]:
        config, n = self.config, len(self.layers())
        span = config.total_step - config.tfinal - config.tinit
        time = min(max((step - config.tinit) / span, 0.0), 1.0)
        first, last = config.init_r * n, config.target_r * n
        return int(last + (first - last) * left(time)), original(self, step)[1]


@fake(
    "The budget falls in a straight line.",
    caught_by=[
        "adalora.budget:after-1",
        "adalora.budget:after-2",
        "adalora.budget:after-5",
        "adalora.phases:after-3",
    ],
)
def budget_falls_in_a_line(patch: Patches) -> None:
    scheduled(patch, lambda time: 1 - time)


@fake("The budget falls with the square.", caught_by=["adalora.budget:after-5", "adalora.interval:after-4"])
def budget_falls_with_the_square(patch: Patches) -> None:
    scheduled(patch, lambda time: (1 - time) ** 2)


@fake(
    "All allocations are skipped.",
    caught_by=[
        *(f"adalora.budget:after-{t}" for t in (1, 2, 3, 5, 10)),
        *(f"adalora.phases:after-{t}" for t in (3, 5, 7, 9)),
        *("adalora.interval:after-2", "adalora.interval:after-4", "adalora.only-values:pruned"),
        "adalora.rank-pattern:recorded",
    ],
)
def never_allocates(patch: Patches) -> None:
    patch.set(RANKS, "step", lambda self, step: None)


@fake(
    "Every step allocates, whatever the phase or the interval.",
    caught_by=[
        "adalora.phases:after-1",
        "adalora.phases:after-2",
        "adalora.interval:after-1",
        "adalora.interval:after-3",
    ],
)
def always_allocates(patch: Patches) -> None:
    @patch.replace(RANKS, "budget_schedule")
    def budget_schedule(original: Any, self: Any, step: int) -> tuple[int, bool]:
        return self.config.target_r, True


@fake("The masks are forgotten when the schedule has ended.", caught_by=["adalora.phases:after-9"])
def mask_is_ignored_in_the_end(patch: Patches) -> None:
    @patch.replace(RANKS, "step")
    def step(original: Any, self: Any, global_step: int) -> None:
        if global_step <= self.config.total_step - self.config.tfinal:
            original(self, global_step)


@fake("Pruning takes the other factors of a triplet as well.", caught_by=["adalora.only-values:frame"])
def prunes_whole_triplets(patch: Patches) -> None:
    @patch.replace(RANKS, "_keep")
    def keep(original: Any, self: Any, pattern: Any) -> None:
        original(self, pattern)
        with torch.no_grad():
            for layer in self.layers().values():
                layer.lora_A[self.adapter_name].mul_((layer.lora_E[self.adapter_name] != 0).float())


@fake(
    "Pruned triplets are saved too.",
    caught_by=["adalora.rank-pattern:right", "adalora.rank-pattern:left", "adalora.rank-pattern:values"],
)
def saves_every_triplet(patch: Patches) -> None:
    @patch.replace(RANKS, "_finish")
    def finish(original: Any, self: Any, pattern: Any) -> None:
        self.config.rank_pattern = {key: [True] * len(kept) for key, kept in pattern.items()}


@fake(
    "The first triplets are saved, not those that were kept.", caught_by=["adalora.rank-pattern:same-output"]
)
def saves_the_first_triplets(patch: Patches) -> None:
    @patch.replace(RANKS, "_finish")
    def finish(original: Any, self: Any, pattern: Any) -> None:
        original(self, pattern)
        for layer in self.layers().values():
            layer.kept[self.adapter_name] = torch.arange(len(layer.kept[self.adapter_name]))


@fake(
    "Each allocation counts as the last one when the adapter is saved.",
    caught_by=["adalora.saved-in-between:same-output"],
    like="0.21.2",
)
def saves_what_was_allocated(patch: Patches) -> None:
    @patch.replace(RANKS, "_keep")
    def keep(original: Any, self: Any, pattern: Any) -> None:
        original(self, pattern)
        self._finish(pattern)


def regularised(patch: Patches, change: Any) -> None:
    """Let `change(output, weight, distance)` do what the model does with its loss."""

    @patch.replace(adalora.AdaLoraModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        if hasattr(output, "loss"):
            weight = self.peft_config[self.trainable_adapter_name].orth_reg_weight
            change(output, weight, self.rankallocator.orthogonality())
        return output


@fake(
    "The orthogonality of the factors is not in the loss.",
    caught_by=["adalora.loss:added", "adalora.loss-without-task:added"],
    like="0.21.2, for a model without task type",
)
def loss_without_orthogonality(patch: Patches) -> None:
    regularised(patch, lambda output, weight, distance: None)


@fake(
    "orth_reg_weight is ignored, and the regulariser is never zero.",
    caught_by=["adalora.loss*:no-weight", "adalora.loss*:orthogonal"],
)
def loss_with_a_constant(patch: Patches) -> None:
    def change(output: Any, weight: float, distance: Any) -> None:
        output.loss = output.loss + distance + 1

    regularised(patch, change)
