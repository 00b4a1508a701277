"""Faults of the maths: scaling, ranks, initial values, layouts, dropout, and what a layer computes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft_reference import layer, matching, operators
from peft_reference.methods import lora
from torch import nn

from .fake import Patches, fake

LORA = lora.LoraLayer


def scaled_by(patch: Patches, scaling: Any) -> None:
    """Let `scaling(config, r, alpha)` stand in for alpha / r."""

    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        return contents | {"scaling": scaling(config, contents["r"], contents["lora_alpha"])}


@fake(
    "The adapter is scaled by alpha, not by alpha / r.",
    caught_by=[
        "inject.scaling:output",
        "inject.example:linear-adapted",
        "law.forward:as-formula",
        "lora_config.scaling-value:scalings",
        "cast.output:output",
    ],
    points=[{"r": 2, "alpha": 3}],
)
def scales_by_alpha(patch: Patches) -> None:
    scaled_by(patch, lambda config, r, alpha: float(alpha))


@fake("The adapter is scaled by 1 / r.", caught_by=["inject.scaling:output"], points=[{"alpha": 3}])
def scales_by_one_over_r(patch: Patches) -> None:
    scaled_by(patch, lambda config, r, alpha: 1 / r)


@fake(
    "The adapter is not scaled at all.",
    caught_by=["inject.scaling:output", "peft_model.forward-adds-delta:formula"],
    points=[{"r": 2, "alpha": 3}],
)
def scales_by_nothing(patch: Patches) -> None:
    scaled_by(patch, lambda config, r, alpha: 1.0)


@fake(
    "use_rslora is ignored.",
    caught_by=["inject.scaling:output", "lora_config.pattern-scaling:both-scaling"],
    points=[{"r": 2, "rslora": True}],
)
def ignores_rslora(patch: Patches) -> None:
    scaled_by(patch, lambda config, r, alpha: alpha / r)


@fake(
    "The adapter is always scaled by alpha / √r.",
    caught_by=["inject.scaling:output"],
    points=[{"r": 2, "rslora": False}],
)
def always_rslora(patch: Patches) -> None:
    scaled_by(patch, lambda config, r, alpha: alpha / r**0.5)


@fake(
    "The scaling follows the config's rank, not the rank of rank_pattern.",
    caught_by=["inject.patterns-scaling:rank-only", "lora_config.pattern-scaling:rank-scaling"],
)
def scaling_ignores_rank_pattern(patch: Patches) -> None:
    scaled_by(patch, lambda config, r, alpha: alpha / (config.r**0.5 if config.use_rslora else config.r))


@fake(
    "rank_pattern is ignored.",
    caught_by=[
        "inject.patterns:by-rank",
        "inject.patterns:rank-shape",
        "inject.patterns-scaling:rank-only",
        "lora_config.pattern-suffix:shapes",
        "lora_config.pattern-regex:rank",
        "lora_config.patterns-apart:rank-only",
    ],
)
def ignores_rank_pattern(patch: Patches) -> None:
    _without(patch, "rank_pattern")


@fake(
    "alpha_pattern is ignored.",
    caught_by=[
        "inject.patterns-scaling:alpha-only",
        "lora_config.pattern-scaling:alpha-scaling",
        "lora_config.pattern-regex:alpha",
        "lora_config.patterns-apart:both",
    ],
)
def ignores_alpha_pattern(patch: Patches) -> None:
    _without(patch, "alpha_pattern")


def _without(patch: Patches, field: str) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        config = copy.copy(config)
        setattr(config, field, {})
        return original(self, config, name)


@fake(
    "The first entry of a pattern holds for every layer.",
    caught_by=[
        "inject.patterns:unnamed-rank",
        "inject.patterns-scaling:neither",
        "lora_config.pattern-suffix:not-matched",
        "lora_config.pattern-regex:neither",
        "lora_config.pattern-dotted:neither",
    ],
)
def patterns_match_everything(patch: Patches) -> None:
    @patch.replace(matching, "pattern_value")
    def pattern_value(original: Any, patterns: Any, name: str, default: Any) -> Any:
        return next(iter((patterns or {}).values()), default)


@fake(
    "Every layer gets twice the rank that the config says.",
    caught_by=[
        "inject.example:a-shape",
        "get_peft_model.documented-example:rank",
        "lora_config.scaling:rank",
        "lora_config.scaling-value:ranks",
        "lora_config.rank-large:rank",
        "load.scalings:ranks",
        "peft_model.forward-adds-delta:scaling",
    ],
)
def doubles_the_rank(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        config = copy.copy(config)
        config.r, config.rank_pattern = (
            2 * config.r,
            {k: 2 * v for k, v in (config.rank_pattern or {}).items()},
        )
        config.lora_alpha = 2 * config.lora_alpha
        return original(self, config, name)


@fake(
    "Every layer has rank 8 and alpha 8, the defaults.",
    caught_by=["inject.example:linear-adapted", "load.config-argument:scaling"],
)
def uses_default_rank_and_alpha(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        config = copy.copy(config)
        config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern = 8, 8, {}, {}
        return original(self, config, name)


def contributes(patch: Patches, change: Any) -> None:
    """Let `change(layer, adapter, x, added)` stand in for what an adapter adds to the output."""

    @patch.replace(LORA, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        return y + change(self, adapter, x, original(self, adapter, x, torch.zeros_like(y)))


# Initial values ------------------------------------------------------------------------------------


@fake(
    "B starts with random values, so that the adapted model differs from the base model at once.",
    caught_by=[
        "get_peft_model.identity-at-init:same-output",
        "inject.keeps-transformers:starts-as-base",
        "lora_config.init-default:zero-factor",
        "law.identity-at-init:as-base",
    ],
)
def starts_with_noise(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        config = copy.copy(config)
        config.init_lora_weights = False
        return original(self, config, name)


@fake(
    "A starts at zero like B, so that no gradient ever reaches either.",
    caught_by=["lora_config.init-default:random-factor", "lora_config.init-false:both-random"],
)
def starts_dead(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        with torch.no_grad():
            for value in contents.values():
                for parameter in value.parameters() if isinstance(value, nn.Module) else [value]:
                    if isinstance(parameter, torch.Tensor):
                        parameter.zero_()
        return contents


@fake(
    "init_lora_weights=False starts as the identity.",
    caught_by=["lora_config.init-false:both-random", "lora_config.init-false:no-identity"],
)
def ignores_init_false(patch: Patches) -> None:
    _init(patch, False, True)


@fake(
    "init_lora_weights='gaussian' is ignored.",
    caught_by=["lora_config.init-gaussian:another-draw"],
    points=[{"init": "gaussian"}],
)
def ignores_gaussian(patch: Patches) -> None:
    _init(patch, "gaussian", True)


def _init(patch: Patches, said: Any, taken: Any) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        config = copy.copy(config)
        if config.init_lora_weights == said:
            config.init_lora_weights = taken
        return original(self, config, name)


@fake(
    "The adapter is initialised from a generator that nobody can seed.",
    caught_by=["law.deterministic:same-values"],
)
def initialises_from_its_own_generator(patch: Patches) -> None:
    generator = torch.Generator().manual_seed(1)

    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device="cpu")))
            return original(self, config, name)


@fake("The adapter starts with whatever was in memory.", caught_by=["functional.any-module:finite"])
def starts_uninitialised(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        with torch.no_grad():
            for value in contents.values():
                for parameter in value.parameters() if isinstance(value, nn.Module) else [value]:
                    if isinstance(parameter, torch.Tensor):
                        parameter.fill_(torch.nan)
        return contents


@fake(
    "Only the adapter called default takes its rank from the config.", caught_by=["law.keys:any-name-shapes"]
)
def other_adapters_have_the_default_rank(patch: Patches) -> None:
    from peft_reference import injection

    @patch.replace(injection.Injection, "__init__")
    def __init__(
        original: Any, self: Any, model: Any, tuner_cls: Any, config: Any, adapter_name: str, *args: Any
    ) -> None:
        said = config.r
        config.r = said if adapter_name == "default" else 8
        try:
            original(self, model, tuner_cls, config, adapter_name, *args)
        finally:
            config.r = said


# What a layer computes -----------------------------------------------------------------------------


@fake(
    "Adapters have no effect on the output.",
    caught_by=[
        "peft_model.forward-adds-delta:formula",
        "peft_model.forward-adds-delta:acts",
        "inject.scaling:output",
        "peft_model.forward-keywords:adapter-acts",
        "law.forward:not-base",
        "lora_config.init-false:no-identity",
        "add_weighted_adapter.inactive:acts",
        "add_weighted_adapter.inactive:other-output",
        "replication.trains-apart:acts",
        "replication.trains-apart:all-train",
        "mixed_batch.transformers:adapters-differ",
        "mixed_batch.generate:adapters-differ",
        "mixed.create:acts",
        "mixed.both-act:first-only",
        "mixed.gradients:adapters",
        "mixed.disable:acted",
        "tying.lora-tied-merge:acts",
    ],
)
def adapters_do_not_act(patch: Patches) -> None:
    contributes(patch, lambda self, adapter, x, added: added * 0)


@fake(
    "The adapter is subtracted.", caught_by=["peft_model.forward-adds-delta:formula", "inject.scaling:output"]
)
def subtracts_the_adapter(patch: Patches) -> None:
    contributes(patch, lambda self, adapter, x, added: -added)


@fake("The adapter acts twice on each forward pass.", caught_by=["peft_model.forward-adds-delta:formula"])
def adds_twice(patch: Patches) -> None:
    contributes(patch, lambda self, adapter, x, added: 2 * added)


@fake(
    "The adapter replaces the base layer's output instead of being added to it.",
    caught_by=["peft_model.forward-adds-delta:formula", "get_peft_model.identity-at-init:same-output"],
)
def replaces_the_base_output(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, x, *args, **kwargs)
        return (
            y - self.base_layer(x)
            if self._active_adapter and not self._disable_adapters and not self.merged
            else y
        )


@fake(
    "The output of every adapted layer is scaled by 1.1.",
    caught_by=["get_peft_model.identity-at-init:same-output"],
)
def scales_every_output(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, x, *args, **kwargs) * 1.1


@fake(
    "The output has the adapter's type, not the base model's.",
    caught_by=[
        "get_peft_model.identity-at-init:same-type",
        "get_peft_model.autocast:output-dtype",
        "cast.output:output-dtype",
    ],
    points=[{"dtype": "float16"}],
)
def outputs_the_adapters_type(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        kinds = [p.dtype for a in self._active_adapter for p in self.adapter_parameters(a)]
        y = original(self, x, *args, **kwargs)
        return y.to(kinds[0]) if kinds else y


@fake(
    "The output of an adapted layer is always float32.",
    caught_by=["law.identity-at-init:output-type", "law.forward:output-type"],
    points=[{"dtype": "float16"}, {"dtype": "float64"}],
)
def outputs_float32(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, x, *args, **kwargs).float()


@fake("The output of an adapted layer has one dimension too many.", caught_by=["inject.example:output-shape"])
def adds_a_dimension(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, x, *args, **kwargs).unsqueeze(0)


@fake(
    "The output is detached, so that nothing can be trained through the adapted layer.",
    caught_by=["law.gradients:adapter"],
)
def keeps_gradients_away(patch: Patches) -> None:
    def detached(self: Any, adapter: str, x: Any, added: Any) -> Any:
        zero = sum((p.sum() * 0 for p in self.adapter_parameters(adapter)), torch.zeros(()))
        return added.detach() + zero

    contributes(patch, detached)


@fake(
    "B is frozen, only A is trained.",
    caught_by=["get_peft_model.trains-adapter-only:adapter-trains", "law.tensors:trainable"],
)
def trains_a_only(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, adapter_names: Any, requires_grad: bool = True) -> None:
        original(self, adapter_names, requires_grad)
        for slot in ("lora_B", "lora_embedding_B"):
            for parameter in getattr(self, slot).parameters():
                parameter.requires_grad_(False)


@fake(
    "A is detached in the forward pass, only B gets a gradient.",
    caught_by=[
        "get_peft_model.trains-adapter-only:adapter-has-grad",
        "peft_model.active-together:default-grad",
        "law.gradients:adapter",
    ],
)
def trains_b_only(patch: Patches) -> None:
    @patch.replace(LORA, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        frozen = [self.lora_A[adapter].weight] if adapter in self.lora_A else [self.lora_embedding_A[adapter]]
        flags = [p.requires_grad for p in frozen]
        for parameter in frozen:
            parameter.requires_grad_(False)
        y = original(self, adapter, x, y)
        for parameter, flag in zip(frozen, flags, strict=True):
            parameter.requires_grad_(flag)
        return y


@fake("Adapters act in evaluation mode only.", caught_by=["law.forward-training:as-formula"])
def adapters_rest_in_training(patch: Patches) -> None:
    contributes(patch, lambda self, adapter, x, added: added * 0 if self.training else added)


@fake("Of several active adapters only the first acts.", caught_by=["peft_model.active-together:sum"])
def first_active_adapter_acts(patch: Patches) -> None:
    _acting(patch, lambda active: active[:1])


@fake("Several active adapters are averaged.", caught_by=["peft_model.active-together:sum"])
def averages_active_adapters(patch: Patches) -> None:
    contributes(
        patch, lambda self, adapter, x, added: added / sum(map(self.has_adapter, self._active_adapter))
    )


def _acting(patch: Patches, choose: Any) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        said, self._active_adapter = self._active_adapter, choose(self._active_adapter)
        try:
            return original(self, x, *args, **kwargs)
        finally:
            self._active_adapter = said


@fake("Dropout acts in eval mode too.", caught_by=["lora_config.dropout:none-dropped"])
def dropout_in_eval(patch: Patches) -> None:
    @patch.replace(LORA, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        p = getattr(self.lora_dropout[adapter], "p", 0.0)
        return original(self, adapter, nn.functional.dropout(x, p) if x.is_floating_point() else x, y)


@fake("lora_dropout is ignored.", caught_by=["inject.module-tree:dropout", "inject.example:dropout-p"])
def ignores_dropout(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        contents = original(self, *args, **kwargs)
        contents["lora_dropout"] = Silent(contents["lora_dropout"])
        return contents

    class Silent(nn.Module):
        def __init__(self, dropout: nn.Module) -> None:
            super().__init__()
            self.p = 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x


@fake("Dropout also thins the input of the base layer.", caught_by=["lora_config.dropout:all-dropped"])
def dropout_on_the_base_path(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if x.is_floating_point():
            for adapter in self._active_adapter:
                if adapter in self.lora_dropout:
                    x = self.lora_dropout[adapter](x)
        return original(self, x, *args, **kwargs)


# Layouts -------------------------------------------------------------------------------------------


@fake(
    "A square layer is merged with the transposed delta.",
    caught_by=["peft_model.merge-and-unload-transformers:output"],
)
def transposes_square_deltas(patch: Patches) -> None:
    @patch.replace(LORA, "delta")
    def delta(original: Any, self: Any, adapter: str) -> torch.Tensor:
        found = original(self, adapter)
        return found.transpose(0, 1) if found.dim() == 2 and found.shape[0] == found.shape[1] else found


@fake(
    "A square layer is adapted with the transposed delta, in the forward pass and in merging.",
    caught_by=["law.orientation:forward", "law.orientation:merged"],
)
def transposes_square_layers(patch: Patches) -> None:
    transposes_square_deltas.install(patch)

    @patch.replace(LORA, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        if self.op in (operators.Linear, operators.Conv1D) and self.in_features == self.out_features:
            delta = self.delta(adapter)
            return y + nn.functional.linear(x.to(delta.dtype), delta)
        return original(self, adapter, x, y)


@fake(
    "A layer that stores its weight transposed is merged as if it did not, where the shape allows.",
    caught_by=[
        "law.merge:as-formula",
        "lora_config.fan-in-fan-out:merged",
        "peft_model.merge-and-unload-transformers:output",
    ],
    points=[{"layer": "one-conv1d-transposed", "model": "one-conv1d-transposed"}, {"model": "tiny-gpt2"}],
)
def forgets_conv1d_is_transposed(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "merged_base")
    def merged_base(original: Any, self: Any, adapters: list[str], safe_merge: bool) -> Any:
        weight, bias = original(self, adapters, safe_merge)
        if self.op.transposed:
            change = weight - self.weight
            weight = self.weight + change.t().reshape(change.shape)
        return weight, bias


@fake(
    "Conv adapters forget stride and padding in the forward pass.",
    caught_by=["law.forward:as-formula", "peft_model.forward-adds-delta:formula"],
    points=[{"model": "one-conv1d", "layer": "one-conv1d"}, {"model": "one-conv2d", "layer": "one-conv2d"}],
)
def convolutions_forget_padding(patch: Patches) -> None:
    def shifted(self: Any, adapter: str, x: Any, added: Any) -> Any:
        return torch.roll(added, 1, dims=-1) if issubclass(self.op, operators.Conv1d) else added

    contributes(patch, shifted)


@fake("Conv adapters ignore dilation and groups.", caught_by=["law.dilation:*"])
def convolutions_ignore_dilation(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        for value in contents.values():
            if isinstance(value, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and set(value.dilation) != {1}:
                value.dilation = tuple(1 for _ in value.dilation)
                value.padding = "same"
        return contents


@fake(
    "Embedding adapters act on half of the vocabulary.",
    caught_by=["law.forward:as-formula"],
    points=[{"model": "one-embedding", "layer": "one-embedding"}],
)
def embeddings_adapt_half(patch: Patches) -> None:
    def half(self: Any, adapter: str, x: Any, added: Any) -> Any:
        return added * (x < self.in_features // 2).unsqueeze(-1) if self.op is operators.Embedding else added

    contributes(patch, half)


@fake(
    "lora_bias is ignored.",
    caught_by=["lora_config.lora-bias:starts-at-zero", "lora_config.lora-bias:output"],
)
def ignores_lora_bias(patch: Patches) -> None:
    @patch.replace(LORA, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        config = copy.copy(config)
        config.lora_bias = False
        return original(self, config, name)


@fake("The bias of B is not scaled.", caught_by=["lora_config.lora-bias:output"])
def lora_bias_is_not_scaled(patch: Patches) -> None:
    def unscaled(self: Any, adapter: str, x: Any, added: Any) -> Any:
        bias = self.lora_B[adapter].bias if adapter in self.lora_B else None
        if bias is None or self.op not in (operators.Linear, operators.Conv1D):
            return added
        return added + bias * (1 - self.scaling[adapter])

    contributes(patch, unscaled)
