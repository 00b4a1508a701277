"""Faults of PeftModel's members: mixed batches, weighted combinations, saved modules, status."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import types
from typing import Any

from peft_reference import combining, holder, injection, layer, model, status, wrappers
from peft_reference.methods import lora, lora_weighted

from .activating import layers_of
from .fake import Patches, fake

# Batches of several adapters -----------------------------------------------------------------------


@fake(
    "Each sample of a mixed batch gets the adapter of its neighbour.",
    caught_by=[
        *(f"mixed_batch.per-sample:{who}" for who in ("default", "other", "base")),
        *(f"mixed_batch.transformers:{who}" for who in ("default", "other", "base")),
        *(f"mixed_batch.modules-to-save:{who}" for who in ("default", "other", "base")),
    ],
)
def mixed_batch_shifts_the_names(patch: Patches) -> None:
    @patch.replace(holder.Batch, "apply")
    def apply(original: Any, self: Any, samples: int, compute: Any) -> Any:
        names = self.names[1:] + self.names[:1]
        return original(holder.Batch(names, self.repeat), samples, compute)


@fake(
    "__base__ stands for the active adapters.",
    caught_by=["mixed_batch.per-sample:base", "mixed_batch.transformers:base"],
)
def mixed_batch_base_is_adapted(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "_adapt_per_sample")
    def _adapt_per_sample(original: Any, self: Any, batch: Any, x: Any, y: Any) -> Any:
        names = tuple(self.active_adapters[0] if n == "__base__" else n for n in batch.names)
        return original(self, holder.Batch(names, batch.repeat), x, y)


@fake(
    "In a mixed batch every sample goes through the active adapter's copy of a saved module.",
    caught_by=["mixed_batch.modules-to-save:other", "mixed_batch.modules-to-save:base"],
)
def mixed_batch_ignores_saved_modules(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.acting_copy()(*args, **kwargs)


@fake(
    "A mixed batch is computed in training mode, while adapters are merged, and with unknown names.",
    caught_by=[f"mixed_batch.{why}:raises*" for why in ("training", "merged", "unknown-name")],
)
def mixed_batch_checks_nothing(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "_check_per_sample")
    def _check_per_sample(original: Any, self: Any, found: Any, names: Any) -> None:
        pass


@fake(
    "Too many names are cut off, and samples without a name get the base model.",
    caught_by=[
        "mixed_batch.length:raises-short",
        "mixed_batch.length:raises-long",
        "mixed_batch.length:raises-empty",
    ],
)
def mixed_batch_fits_any_length(patch: Patches) -> None:
    @patch.replace(holder.Batch, "apply")
    def apply(original: Any, self: Any, samples: int, compute: Any) -> Any:
        names = (*self.names, *["__base__"] * samples)[:samples]
        return original(holder.Batch(names), samples, compute)


@fake(
    "adapter_names acts although the adapters are disabled.",
    caught_by=["mixed_batch.disabled:base-output"],
)
def mixed_batch_wins_over_disabling(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        off = [m for m in self.modules() if getattr(m, "_disable_adapters", False)]
        if "adapter_names" not in kwargs:
            return original(self, *args, **kwargs)
        for module in off:
            module._disable_adapters = False
        try:
            return original(self, *args, **kwargs)
        finally:
            for module in off:
                module._disable_adapters = True


@fake(
    "The hooks that carry adapter_names to the layers stay when the call fails.",
    like="peft 0.21.2",
    caught_by=[f"mixed_batch.{why}:frame" for why in ("length", "merged", "training", "unknown-name")],
)
def mixed_batch_leaves_hooks_after_an_error(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except ValueError:
            for tuner_layer in layers_of(self):
                tuner_layer.register_forward_pre_hook(lambda module, args: None)
            raise


@fake(
    "A mixed batch leaves its last adapter active.",
    caught_by=[
        f"mixed_batch.{why}:frame" for why in ("per-sample", "transformers", "modules-to-save", "disabled")
    ],
)
def mixed_batch_activates(patch: Patches) -> None:
    @patch.replace(model.PeftModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        y = original(self, *args, **kwargs)
        for name in kwargs.get("adapter_names", ())[-1:]:
            for tuner_layer in layers_of(self):
                tuner_layer._active_adapter = [name, "__base__"]
        return y


# Weighted combinations -----------------------------------------------------------------------------


@fake(
    "add_weighted_adapter ignores the weights.",
    caught_by=[
        "add_weighted_adapter.cat:weighted-sum",
        "add_weighted_adapter.svd:exact",
        "add_weighted_adapter.linear-one:negated-delta",
        "add_weighted_adapter.products:delta",
        "add_weighted_adapter.dropped-products:delta",
    ],
    points=[{}, {"density": 0.5}],
)
def combines_without_weights(patch: Patches) -> None:
    @patch.replace(lora_weighted, "_fill")
    def _fill(original: Any, tuner_layer: Any, contents: Any, inputs: Any, combination: Any) -> None:
        original(tuner_layer, contents, [(name, 1.0) for name, _ in inputs], combination)


@fake(
    "Weights lose their sign.",
    like="peft before 0.18",
    caught_by=["add_weighted_adapter.cat:weighted-sum", "add_weighted_adapter.linear-one:negated-delta"],
)
def combines_with_positive_weights(patch: Patches) -> None:
    @patch.replace(lora_weighted, "_fill")
    def _fill(original: Any, tuner_layer: Any, contents: Any, inputs: Any, combination: Any) -> None:
        original(tuner_layer, contents, [(name, abs(weight)) for name, weight in inputs], combination)


@fake(
    "cat and linear forget the scaling of the adapters.",
    caught_by=[
        "add_weighted_adapter.cat:weighted-sum",
        "add_weighted_adapter.linear-one:same-delta",
        "add_weighted_adapter.rank-stabilised:weighted-sum",
    ],
)
def combines_without_scaling(patch: Patches) -> None:
    @patch.replace(lora_weighted, "_fill")
    def _fill(original: Any, tuner_layer: Any, *args: Any) -> None:
        kept, tuner_layer.scaling = tuner_layer.scaling, dict.fromkeys(tuner_layer.scaling, 1.0)
        original(tuner_layer, *args)
        tuner_layer.scaling = kept


@fake(
    "The combined adapter keeps the rank-stabilised scaling of the first.",
    like="peft 0.21.2",
    caught_by=["add_weighted_adapter.rank-stabilised:weighted-sum"],
)
def combines_with_rank_stabilised_scaling(patch: Patches) -> None:
    @patch.replace(lora_weighted, "_config")
    def _config(original: Any, configs: Any, *args: Any) -> Any:
        config = original(configs, *args)
        config.use_rslora = configs[0].use_rslora
        return config


@fake(
    "The sign that ties elects counts for nothing: all entries are averaged.",
    caught_by=["add_weighted_adapter.products:delta", "add_weighted_adapter.dropped-products:delta"],
    points=[{"kind": "ties_svd"}, {"kind": "dare_ties_svd"}],
)
def combines_without_sign_election(patch: Patches) -> None:
    @patch.replace(combining, "elected_sign")
    def elected_sign(original: Any, tensors: Any, method: str) -> Any:
        return tensors.sign()


@fake(
    "The sign is always elected by total magnitude.",
    caught_by=["add_weighted_adapter.products:delta"],
    points=[{"kind": "ties_svd", "sign": "frequency"}],
)
def combines_by_total_magnitude(patch: Patches) -> None:
    @patch.replace(combining, "elected_sign")
    def elected_sign(original: Any, tensors: Any, method: str) -> Any:
        return original(tensors, "total")


@fake(
    "Trimming keeps the smallest entries.",
    caught_by=["add_weighted_adapter.products:delta"],
    points=[{"kind": "magnitude_prune_svd", "density": 0.6}],
)
def trims_the_largest(patch: Patches) -> None:
    @patch.replace(combining, "trim")
    def trim(original: Any, tensor: Any, density: float) -> Any:
        return tensor - original(tensor, 1 - density)


@fake(
    "What DARE keeps is not rescaled.",
    caught_by=["add_weighted_adapter.dropped-products:delta"],
    points=[{"density": 0.5}],
)
def drops_without_rescaling(patch: Patches) -> None:
    @patch.replace(combining, "drop_and_rescale")
    def drop_and_rescale(original: Any, tensor: Any, density: float) -> Any:
        return original(tensor, density) * density


@fake(
    "DARE drops nothing.",
    caught_by=["add_weighted_adapter.dropped-products:delta"],
    points=[{"density": 0.5}],
)
def drops_nothing(patch: Patches) -> None:
    @patch.replace(combining, "drop_and_rescale")
    def drop_and_rescale(original: Any, tensor: Any, density: float) -> Any:
        return tensor / density


@fake(
    "svd always has the largest rank of the inputs.",
    caught_by=["add_weighted_adapter.svd:exact", "add_weighted_adapter.svd:ranks"],
)
def svd_ignores_the_rank(patch: Patches) -> None:
    @patch.replace(lora_weighted, "_rank")
    def _rank(original: Any, configs: Any, combination: Any, svd_rank: Any) -> int:
        return original(configs, combination, None)


@fake(
    "svd puts the singular values into neither factor.",
    caught_by=["add_weighted_adapter.svd:best-of-largest-rank", "add_weighted_adapter.svd:exact"],
)
def svd_forgets_the_singular_values(patch: Patches) -> None:
    @patch.replace(combining.Combination, "split")
    def split(original: Any, self: Any, product: Any, rank: int) -> Any:
        A, B = original(self, product, rank)
        return A, B / B.norm(dim=0).clamp(min=1e-12)


@fake(
    "cat has the largest of the ranks.",
    caught_by=["add_weighted_adapter.cat:weighted-sum", "add_weighted_adapter.cat:rank"],
)
def cat_cuts_the_rank(patch: Patches) -> None:
    @patch.replace(lora_weighted, "_rank")
    def _rank(original: Any, configs: Any, combination: Any, svd_rank: Any) -> int:
        if combination.kind != "cat":
            return original(configs, combination, svd_rank)
        return max(config.r for config in configs)

    @patch.replace(combining, "padded")
    def padded(original: Any, tensor: Any, dim: int, size: int) -> Any:
        return original(tensor.narrow(dim, 0, min(size, tensor.shape[dim])), dim, size)


@fake(
    "The combined adapter is made active.",
    caught_by=["add_weighted_adapter.inactive:still-active", "add_weighted_adapter.inactive:output-kept"],
)
def combining_activates(patch: Patches) -> None:
    @patch.replace(lora.LoraModel, "add_weighted_adapter")
    def add_weighted_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.set_adapter(kwargs.get("adapter_name", "sum"))


@fake(
    "A call of add_weighted_adapter that fails leaves the new adapter behind.",
    like="peft 0.21.2",
    caught_by=[
        f"add_weighted_adapter.{why}:frame"
        for why in (
            "invalid-type",
            "unknown-adapter",
            "ranks-differ",
            "density",
            "sign-method",
            "one-weight-each",
        )
    ],
)
def combining_leaves_an_adapter_after_an_error(patch: Patches) -> None:
    @patch.replace(lora.LoraModel, "add_weighted_adapter")
    def add_weighted_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except ValueError:
            self.add_adapter(kwargs["adapter_name"], copy.deepcopy(next(iter(self.peft_config.values()))))
            raise


@fake(
    "add_weighted_adapter takes any type, name, rank, density and number of weights.",
    caught_by=[
        "add_weighted_adapter.invalid-type:raises",
        "add_weighted_adapter.unknown-adapter:raises",
        "add_weighted_adapter.ranks-differ:raises",
        "add_weighted_adapter.density:raises-none-given",
        "add_weighted_adapter.density:raises-below",
        "add_weighted_adapter.sign-method:raises",
        "add_weighted_adapter.one-weight-each:raises",
    ],
)
def combining_never_refuses(patch: Patches) -> None:
    @patch.replace(lora.LoraModel, "add_weighted_adapter")
    def add_weighted_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(ValueError):
            original(self, *args, **kwargs)


@fake(
    "Combining initialises the new adapter as the first was, and takes another part out of the base weight.",
    like="peft 0.21.2",
    caught_by=["add_weighted_adapter.keeps-base:output-kept", "add_weighted_adapter.keeps-base:frame"],
    points=[{"init": "pissa"}, {"init": "olora"}],
)
def combining_changes_the_base(patch: Patches) -> None:
    @patch.replace(lora_weighted, "_fill")
    def _fill(original: Any, tuner_layer: Any, *args: Any) -> None:
        original(tuner_layer, *args)
        tuner_layer.get_base_layer().weight.data.mul_(0.9)


@fake(
    "linear is the default type.",
    caught_by=["add_weighted_adapter.signature:parameters"],
)
def combining_is_linear_by_default(patch: Patches) -> None:
    def add_weighted_adapter(
        self: Any,
        adapters: Any,
        weights: Any,
        adapter_name: str,
        combination_type: str = "linear",
        **options: Any,
    ) -> None:
        pass

    patch.set(lora.LoraModel, "add_weighted_adapter", add_weighted_adapter)


# Status and merging --------------------------------------------------------------------------------


def _changes_layers(patch: Patches, **facts: Any) -> None:
    @patch.replace(status, "_layer_status")
    def _layer_status(original: Any, *args: Any) -> Any:
        return dataclasses.replace(original(*args), **facts)


@fake(
    "The status of a layer never says that it is merged or disabled.",
    caught_by=[
        "model_status.merged:layer",
        "model_status.merged:layer-disabled",
        "model_status.merged:model-disabled",
    ],
)
def status_is_always_normal(patch: Patches) -> None:
    _changes_layers(patch, merged_adapters=[], enabled=True)


@fake(
    "The status of a model says that nothing is merged and everything is as in the first layer.",
    caught_by=[
        "model_status.merged:model",
        *(f"model_status.irregular:{what}" for what in ("merged", "enabled", "active", "trains")),
    ],
)
def status_is_never_irregular(patch: Patches) -> None:
    @patch.replace(status, "_merged")
    def _merged(original: Any, tuner_model: Any) -> Any:
        return []

    @patch.replace(status, "_common")
    def _common(original: Any, values: Any) -> Any:
        return next(iter(values), False)


@fake(
    "The status forgets the types, names layers by their class and counts nothing.",
    caught_by=[
        "model_status.layers:lora-layer",
        "model_status.model:facts",
        "model_status.injected:plain-name",
        "model_status.injected:base-type",
        "model_status.injected:no-adapter-model",
        "model_status.injected:no-types",
        "model_status.injected:active",
    ],
)
def status_tells_little(patch: Patches) -> None:
    _changes_layers(patch, name="layer", active_adapters=[])

    @patch.replace(status, "get_model_status")
    def get_model_status(original: Any, *args: Any, **kwargs: Any) -> Any:
        lost = {"base_model_type": "model", "adapter_model_type": "", "peft_types": None, "total_params": 0}
        return dataclasses.replace(original(*args, **kwargs), **lost)


@fake(
    "The functions return something else than the methods.",
    caught_by=["model_status.layers:function-agrees"],
)
def status_functions_differ(patch: Patches) -> None:
    @patch.replace(status, "get_layer_status")
    def get_layer_status(original: Any, *args: Any, **kwargs: Any) -> Any:
        return [types.SimpleNamespace(name=layer.name) for layer in original(*args, **kwargs)]

    patch.set(model.AdaptedModel, "get_layer_status", lambda self: _true_layers(self))


@fake(
    "The function for the status of a model returns something else than the method.",
    caught_by=["model_status.model:function-agrees"],
)
def status_of_models_differs(patch: Patches) -> None:
    @patch.replace(status, "get_model_status")
    def get_model_status(original: Any, *args: Any, **kwargs: Any) -> Any:
        return types.SimpleNamespace(enabled=True)

    patch.set(model.AdaptedModel, "get_model_status", lambda self: _true_model(self))


_true_layers, _true_model = status.get_layer_status, status.get_model_status


@fake(
    "Asking for the status puts the model into training mode and forgets to go back.",
    caught_by=[
        f"model_status.{which}:frame" for which in ("layers", "model", "injected", "merged", "irregular")
    ],
)
def status_starts_training(patch: Patches) -> None:
    @patch.replace(status, "_named_holders")
    def _named_holders(original: Any, tuner_model: Any) -> Any:
        tuner_model.train()
        return original(tuner_model)


@fake(
    "An index beyond the layers finds a layer: there is one entry too many.",
    caught_by=["model_status.layers:raises"],
)
def status_lists_layers_twice(patch: Patches) -> None:
    @patch.replace(status, "get_layer_status")
    def get_layer_status(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) * 2


@fake(
    "has_active_enabled_adapter is true whatever is active or disabled.",
    like="peft 0.21.2",
    caught_by=["model_status.active-enabled:disabled", "model_status.active-enabled:inactive"],
)
def some_adapter_always_acts(patch: Patches) -> None:
    patch.set(model.AdaptedModel, "has_active_enabled_adapter", True)


@fake(
    "has_active_enabled_adapter is never true, and asking for it moves the model to training mode.",
    caught_by=["model_status.active-enabled:usually", "model_status.active-enabled:frame"],
)
def no_adapter_ever_acts(patch: Patches) -> None:
    patch.set(model.AdaptedModel, "has_active_enabled_adapter", property(lambda self: self.train() is None))


@fake(
    "Merging on top of another adapter replaces it.",
    caught_by=[
        *(f"merging.on-top:{what}" for what in ("both-act", "both-named")),
        *(f"merging.added-later:{what}" for what in ("both-act", "both-named")),
    ],
)
def merging_replaces_what_is_merged(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "merge")
    def merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        self.unmerge()
        names = kwargs.pop("adapter_names", None) or self.active_adapters
        original(self, *args, adapter_names=names[-1:], **kwargs)


@fake(
    "Unmerging takes back the last merge only.",
    caught_by=["merging.on-top:base-back"],
)
def unmerging_takes_back_one_merge(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "merge")
    def merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        self._saved_base = None
        original(self, *args, **kwargs)


@fake(
    "Merging changes the output and leaves a hook behind.",
    caught_by=[
        "merging.delete-active:same-output",
        *(f"merging.{which}:frame" for which in ("on-top", "added-later", "delete-active")),
    ],
)
def merging_leaves_hooks(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "merge")
    def merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.weight.data.add_(0.01)
        self.register_forward_pre_hook(lambda module, args: None)


@fake(
    "After the active adapter was deleted its name is merged all the same, and no other.",
    caught_by=["merging.delete-active:other-merged"],
)
def merging_marks_nothing(patch: Patches) -> None:
    @patch.replace(layer.BaseTunerLayer, "merge")
    def merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.merged_adapters = ["default"]


# Loading a further adapter -------------------------------------------------------------------------


@fake("load_adapter leaves the type of the weights alone.", caught_by=["load.adapter-autocast:raised"])
def loads_in_half_precision(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "load_adapter")
    def load_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **{**kwargs, "autocast_adapter_dtype": False})


@fake("load_adapter raises the weights without being asked.", caught_by=["load.adapter-autocast:kept"])
def loads_in_single_precision(patch: Patches) -> None:
    @patch.replace(model.AdaptedModel, "load_adapter")
    def load_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **{**kwargs, "autocast_adapter_dtype": True})
