"""Faults of LoRA's options: DoRA, replicated layers, attention, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

from peft_reference import operators
from peft_reference.methods import lora, lora_config, lora_dora, lora_mha, lora_replication, lora_variant
from torch import Tensor, nn

from .fake import Patches, fake

DORA = lora_dora.DoraVariant


@fake("DoRA's magnitude starts at one.", caught_by=["dora.magnitude:as-base"])
def magnitude_of_ones(patch: Patches) -> None:
    @patch.replace(DORA, "create")
    def create(original: Any, *given: Any) -> dict[str, Any]:
        made = original(*given)
        nn.init.ones_(made["lora_magnitude_vector"].weight)
        return made


@fake(
    "DoRA's length is that of the base weight alone.",
    caught_by=["dora.forward:adapted", "dora.forward:merged"],
)
def length_of_the_base(patch: Patches) -> None:
    @patch.replace(lora_dora, "_norm")
    def norm(original: Any, weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        return original(weight, A, B, 0.0)


@fake("DoRA scales the bias as well.", caught_by=["dora.forward:adapted"])
def scales_the_bias(patch: Patches) -> None:
    @patch.replace(DORA, "adapt")
    def adapt(original: Any, layer: Any, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        ratio = lora_dora._ratio(layer, adapter)
        return ratio * (y + layer.scaling[adapter] * layer.low_rank(adapter, x))


@fake(
    "DoRA merges the product without the magnitude.",
    caught_by=["dora.forward:merged", "dora.forward:unloaded"],
)
def merges_without_magnitude(patch: Patches) -> None:
    patch.set(DORA, "fold", staticmethod(lora_variant.LoraVariant.fold))


@fake("Unmerging leaves DoRA's weights as they were merged.", caught_by=["dora.forward:unmerged"])
def leaves_dora_merged(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "unmerge")
    def unmerge(original: Any, self: Any) -> None:
        self.merged_adapters.clear()


@fake(
    "A checkpoint calls the magnitude by its live name.",
    caught_by=["dora.magnitude:saved-name", "dora.merge-file:saved-name"],
)
def saves_the_magnitudes_live_name(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        for live, saved, tensor in original(self, adapter):
            yield live, "lora_magnitude_vector.weight" if saved == "lora_magnitude_vector" else saved, tensor


@fake(
    "Under DoraCaching outputs are those of the input before.",
    caught_by=["dora.caching:first", "dora.caching:other-input"],
)
def caches_outputs(patch: Patches) -> None:
    @patch.replace(DORA, "adapt")
    def adapt(original: Any, layer: Any, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        kept = lora_dora.DoraCaching.kept
        result = original(layer, adapter, x, y)
        if kept is None:
            return result
        key = layer.lora_dropout[adapter]
        before = kept.get(key, result + 1)
        kept[key] = result
        return before


@fake(
    "What DoraCaching keeps stays, whatever becomes of the weights.",
    caught_by=["dora.caching-training:as-without", "dora.caching-training:as-formula"],
)
def caches_for_ever(patch: Patches) -> None:
    @patch.replace(lora_dora, "_ratio")
    def ratio(original: Any, layer: Any, adapter: str) -> Tensor:
        kept = lora_dora.DoraCaching.kept
        if kept is None:
            return original(layer, adapter)
        return kept.setdefault(layer, original(layer, adapter))


@fake(
    "DoraCaching stays on after its block and changes what is computed.",
    caught_by=["dora.caching:afterwards", "dora.caching:first"],
)
def caching_changes_outputs(patch: Patches) -> None:
    used: list[bool] = []

    @patch.replace(DORA, "adapt")
    def adapt(original: Any, layer: Any, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        if lora_dora.DoraCaching.kept is not None:
            used[:] = [True]
        return original(layer, adapter, x, y) + (0.5 if used else 0.0)

    @patch.replace(lora_dora.DoraCaching, "__init__")
    def init(original: Any, self: Any, enabled: bool = True) -> None:
        used.clear()
        original(self, enabled)

    @patch.replace(DORA, "create")
    def create(original: Any, *args: Any) -> Any:
        used.clear()
        return original(*args)


@fake(
    "Replicated layers get copies of the weights.",
    caught_by=[
        "replication.stack:order-2",
        "replication.stack:order-3",
        "replication.stack:order-0",
        "replication.stack:order-4",
        "replication.stack:base-shared",
    ],
)
def copies_replicated_weights(patch: Patches) -> None:
    patch.set(lora_replication, "_same_weights", copy.deepcopy)


@fake(
    "Of an attention only the input projection is adapted.",
    caught_by=["mha.output-projection:adapted", "mha.output-projection:merged"],
)
def forgets_the_output_projection(patch: Patches) -> None:
    patch.set(lora_mha.LoraMultiheadAttention, "forward", _forward_without_output)

    @patch.replace(lora.LoraLayer, "merged_base")
    def merged_base(original: Any, self: Any, adapters: Any, safe_merge: bool) -> Any:
        weight, bias = original(self, adapters, safe_merge)
        return (self.weight.clone(), bias) if self.op is operators.Linear else (weight, bias)


def _forward_without_output(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    kwargs.pop("adapter_names", None)
    weights = lora_mha._named("in_proj_", self)
    return lora_mha.functional_call(self.get_base_layer(), weights, (x, *args), kwargs)


@fake(
    "Of an attention only the output projection is adapted.",
    caught_by=["mha.input-projection:adapted", "mha.input-projection:merged"],
)
def forgets_the_input_projection(patch: Patches) -> None:
    @patch.replace(lora_mha.LoraMultiheadAttention, "forward")
    def forward(original: Any, self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.get_base_layer().out_proj
        weights = lora_mha._named("out_proj.base_layer.", out)
        return lora_mha.functional_call(self.get_base_layer(), weights, (x, *args), kwargs)

    @patch.replace(lora.LoraLayer, "merged_base")
    def merged_base(original: Any, self: Any, adapters: Any, safe_merge: bool) -> Any:
        weight, bias = original(self, adapters, safe_merge)
        attention = self.op is operators.MultiheadAttention
        return (self.weight.clone(), bias) if attention else (weight, bias)


@fake(
    "An attention's adapter acts only when it is merged.",
    caught_by=[
        "mha.round-trip:acts",
        "mha.round-trip:merged",
        "mha.output-projection:adapted",
    ],
)
def attention_acts_only_merged(patch: Patches) -> None:
    @patch.replace(lora_mha, "_named")
    def named(original: Any, prefix: str, layer: Any) -> dict[str, Tensor]:
        return {}


@fake("An attention ignores that its adapters are disabled.", caught_by=["mha.round-trip:disabled"])
def attention_stays_on(patch: Patches) -> None:
    @patch.replace(lora_mha, "_named")
    def named(original: Any, prefix: str, layer: Any) -> dict[str, Tensor]:
        disabled, layer._disable_adapters = layer._disable_adapters, False
        try:
            return original(prefix, layer)
        finally:
            layer._disable_adapters = disabled


@fake("The factors of an attention start random.", caught_by=["mha.adapts:as-base"])
def attention_starts_random(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        made = original(self, config, name)
        if self.op is operators.MultiheadAttention:
            nn.init.normal_(made["lora_B"].weight)
        return made


@fake("An LSTM is taken for a linear layer.", caught_by=["targets.lstm:raises", "targets.lstm:not-adapted"])
def adapts_an_lstm(patch: Patches) -> None:
    class Recurrent(operators.Linear):
        """An LSTM by its first weight."""

        @classmethod
        def weight(cls, base: Any) -> Tensor:
            return base.weight_ih_l0

        @classmethod
        def features(cls, base: Any) -> tuple[int, int]:
            return base.input_size, 4 * base.hidden_size

    @patch.replace(operators, "operator_of")
    def operator_of(original: Any, module: nn.Module) -> Any:
        return Recurrent if isinstance(module, nn.LSTM) else original(module)

    patch.set(lora.LoraLayer, "operators", (*lora.LoraLayer.operators, Recurrent))


@fake("runtime_config is saved.", caught_by=["lora_config.runtime:not-saved"])
def saves_runtime_config(patch: Patches) -> None:
    patch.set(lora.LoraConfig, "_not_saved", frozenset())


@fake(
    "All configs share one runtime_config, which offloads.",
    caught_by=["lora_config.runtime:apart", "lora_config.runtime:off"],
)
def shares_runtime_config(patch: Patches) -> None:
    one = lora_config.LoraRuntimeConfig(ephemeral_gpu_offload=True)

    @patch.replace(lora.LoraConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        original(self)
        self.runtime_config = one

    @patch.replace(lora.LoraConfig, "validate")
    def validate(original: Any, self: Any) -> None:
        return None


@fake("DoRA's magnitude is frozen.", caught_by=["dora.magnitude:trains"])
def freezes_the_magnitude(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, adapter_names: Any, requires_grad: bool = True) -> None:
        original(self, adapter_names, requires_grad)
        for magnitude in self.lora_magnitude_vector.values():
            magnitude.weight.requires_grad_(False)


@fake(
    "Replicated layers stand in another order.",
    caught_by=["replication.stack:order-0", "replication.stack:order-4"],
)
def shuffles_replicated_layers(patch: Patches) -> None:
    @patch.replace(lora, "replicate_layers")
    def replicate(original: Any, model: Any, ranges: Any) -> Any:
        return original(model, list(reversed(ranges)))


@fake(
    "The layers that replication adds are not adapted.",
    caught_by=["replication.stack:seven-adapters"],
)
def skips_added_layers(patch: Patches) -> None:
    from peft_reference import injection

    @patch.replace(injection, "select_targets")
    def select_targets(original: Any, *args: Any, **kwargs: Any) -> list[str]:
        return [
            name
            for name in original(*args, **kwargs)
            if not name.startswith(("model.layers.5", "model.layers.6"))
        ]


@fake("Layers on one base weight share one adapter.", caught_by=["replication.stack:adapters-apart"])
def shares_adapters_of_copies(patch: Patches) -> None:
    made: dict[int, Any] = {}

    @patch.replace(lora.LoraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        if not config.layer_replication:
            return original(self, config, name)
        return made.setdefault(id(self.weight), original(self, config, name))


@fake(
    "A Mistral model has the values adapted by default, and not the queries.",
    caught_by=["targets.default-mistral:adapted"],
)
def forgets_queries_of_mistral(patch: Patches) -> None:
    patch.item(lora.LoraModel.target_module_mapping, "mistral", ("v_proj",))


@fake(
    "Among convolutions the ones that the regular expression does not name are adapted.",
    caught_by=["targets.regex-convolutions:adapted", "targets.regex-convolutions:head-plain"],
)
def adapts_other_convolutions(patch: Patches) -> None:
    from peft_reference import injection

    @patch.replace(injection, "select_targets")
    def select_targets(original: Any, config: Any, targets: Any, modules: Any, *more: Any) -> list[str]:
        names = original(config, targets, modules, *more)
        other = [n for n, module in modules.items() if isinstance(module, nn.Conv2d) and n not in names]
        return other or names
