"""Faults of trainable tokens, of adapters on tied weights, of bare parameters and of saved embeddings."""

from __future__ import annotations

import copy
from typing import Any

from peft_reference import adapters, injection, matching, saving, state_dict, tokens, tying, wrappers
from peft_reference.methods import lora, lora_parameter
from torch import nn

from .fake import Patches, fake

TOKENS = tokens.TrainableTokensLayer
PARAM = lora_parameter.ParamWrapper

# Trainable tokens --------------------------------------------------------------------------------


@fake(
    "All rows of the embedding are trained, not only those of the named tokens.",
    caught_by=["tokens.only-rows:rows", "tokens.others-untouched:same", "tokens.state-dict:no-matrix"],
)
def all_rows_train(patch: Patches) -> None:
    @patch.replace(TOKENS, "create_rows")
    def create_rows(original: Any, self: Any, indices: Any) -> Any:
        return original(self, range(len(self.weight)))


@fake(
    "Trained rows are added to the base's rows instead of standing in their place.",
    caught_by=["tokens.identity:identity"],
)
def rows_are_added(patch: Patches) -> None:
    @patch.replace(TOKENS, "fold")
    def fold(original: Any, self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        rows, stored = self.trainable_tokens_delta[adapter], self.op.canonical(weight)
        added = stored.index_add(0, self._indices(adapter), rows.to(stored.dtype))
        return self.op.canonical(added), bias


@fake(
    "The rows that are trained are those after the named ones.",
    caught_by=["tokens.identity:identity"],
)
def rows_are_off_by_one(patch: Patches) -> None:
    @patch.replace(TOKENS, "_indices")
    def _indices(original: Any, self: Any, adapter: str) -> Any:
        return (original(self, adapter) + 1) % len(self.weight)


@fake(
    "Trained rows are frozen.",
    caught_by=["tokens.only-rows:rows", "tokens.gradients:rows"],
)
def rows_are_frozen(patch: Patches) -> None:
    @patch.replace(TOKENS, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        pass

    @patch.replace(TOKENS, "create_rows")
    def create_rows(original: Any, self: Any, indices: Any) -> Any:
        contents = original(self, indices)
        contents["trainable_tokens_delta"].requires_grad_(False)
        return contents


@fake(
    "Trained rows do not act.",
    caught_by=["tokens.identity:acts", "tokens.others-untouched:hit"],
)
def rows_do_not_act(patch: Patches) -> None:
    @patch.replace(TOKENS, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        return y


@fake(
    "The base embedding trains as well.",
    caught_by=["tokens.only-rows:base-frozen", "tokens.gradients:base"],
)
def embedding_trains_too(patch: Patches) -> None:
    @patch.replace(TOKENS, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.weight.requires_grad_(True)


@fake(
    "Disabled adapters leave the trained rows in place.",
    caught_by=["tokens.identity:disabled-is-base"],
)
def disabled_rows_stay(patch: Patches) -> None:
    @patch.replace(TOKENS, "enable_adapters")
    def enable_adapters(original: Any, self: Any, enabled: bool) -> None:
        pass


@fake(
    "The output head has trained rows though the weights are not tied.",
    caught_by=["tokens.only-rows:head-alone", "tying.tokens-list-untied:head-as-it-was"],
)
def head_gets_rows_too(patch: Patches) -> None:
    @patch.replace(matching, "select_tokens")
    def select_tokens(original: Any, config: Any, model: Any, modules: Any) -> Any:
        found = original(config, model, modules)
        if isinstance(config.trainable_token_indices, list) and "lm_head" in modules:
            found.setdefault("lm_head", config.trainable_token_indices)
        return found


@fake(
    "Trained rows are not in the state dict.",
    caught_by=["tokens.state-dict:rows", "tokens.round-trip:same-output"],
)
def rows_are_not_saved(patch: Patches) -> None:
    @patch.replace(TOKENS, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        return iter(())


@fake(
    "Rows of tied weights are saved at both ends.",
    caught_by=["tokens.state-dict:once"],
    points=[{"model": "tiny-llama-tied"}],
)
def tied_rows_are_saved_twice(patch: Patches) -> None:
    @patch.replace(TOKENS, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        return tokens.BaseTunerLayer.state_entries(self, adapter)


@fake(
    "merge_and_unload leaves the wrapper of the trained rows in the model.",
    caught_by=["tokens.merge:embedding", "tokens.merge:head", "tokens.merge:nothing-left"],
    points=[{"model": "tiny-llama-tied", "config": "one"}],
)
def unload_keeps_the_tokens_wrapper(patch: Patches) -> None:
    @patch.replace(tying, "base_module")
    def base_module(original: Any, module: Any) -> Any:
        return module if isinstance(module, (tokens.TrainableTokensWrapper, TOKENS)) else original(module)


@fake(
    "merge_and_unload drops the trained rows.",
    caught_by=["tokens.merge:as-adapted", "tokens.merge-and-back:as-adapted"],
)
def merge_drops_the_rows(patch: Patches) -> None:
    @patch.replace(TOKENS, "merged_base")
    def merged_base(original: Any, self: Any, *args: Any) -> Any:
        return self.weight, self.bias


@fake(
    "A name in trainable_token_indices that no module has is ignored.",
    caught_by=["tokens.unknown-layer:raises"],
)
def unknown_tokens_are_ignored(patch: Patches) -> None:
    @patch.replace(matching, "select_tokens")
    def select_tokens(original: Any, config: Any, model: Any, modules: Any) -> Any:
        try:
            return original(config, model, modules)
        except ValueError:
            return {}


@fake(
    "Beside trained tokens LoRA does not train.",
    caught_by=["tokens.only-rows:lora-too"],
)
def tokens_freeze_lora(patch: Patches) -> None:
    @patch.replace(injection.Injection, "apply")
    def apply(original: Any, self: Any) -> Any:
        done = original(self)
        for layer in adapters.holders(self.model) if self.config.trainable_token_indices else ():
            if isinstance(layer, lora.LoraLayer):
                layer.set_requires_grad(self.adapter_name, False)
        return done


@fake(
    "Loaded rows train, wanted or not.",
    caught_by=["tokens.round-trip:frozen"],
)
def loaded_rows_train(patch: Patches) -> None:
    @patch.replace(TOKENS, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, names: Any, requires_grad: bool = True) -> None:
        original(self, names, True)


@fake(
    "Unmerging puts the base's rows into the trained ones.",
    caught_by=["tokens.merge-and-back:after-as-before"],
)
def unmerging_resets_the_rows(patch: Patches) -> None:
    @patch.replace(TOKENS, "unmerge")
    def unmerge(original: Any, self: Any) -> None:
        original(self)
        for adapter, rows in self.trainable_tokens_delta.items():
            rows.data.copy_(self.weight[self._indices(adapter)])


# Tied weights --------------------------------------------------------------------------------------


@fake(
    "ensure_weight_tying is ignored: the ends are adapted as they are named.",
    caught_by=["tying.copies-tied:one-copy", "tying.lora-tied:head-a-is-b"],
)
def ties_are_ignored(patch: Patches) -> None:
    @patch.replace(tying.Ties, "follow")
    def follow(original: Any, self: Any, chosen: Any, modules: Any) -> Any:
        for group in self.groups if self.ensure else ():
            if any(name in chosen for name in group):
                chosen.update((name, modules[name]) for name in group if name in modules)
        return {}


@fake(
    "The ends begin with the same values, and each trains on its own.",
    caught_by=["tying.copies-tied:one-copy", "tying.lora-tied:head-a-is-b", "tying.lora-tied:head-b-is-a"],
    like="peft 0.21.2, in bfloat16",
)
def tied_copies_come_apart(patch: Patches) -> None:
    @patch.replace(tying.TiedFactor, "weight")
    def weight(original: Any, self: Any) -> Any:
        return vars(self).setdefault("own", original(self).detach().clone())

    @patch.replace(injection.Injection, "_plan_copies")
    def _plan_copies(original: Any, self: Any, saved: Any, leaders: Any) -> None:
        original(self, saved, leaders)
        for name in leaders:
            module = self.contents[self.placed[name]]
            module.weight = nn.Parameter(module.weight.detach().clone())


@fake(
    "Every pair of ends is tied when asked for, even where the model is not tied.",
    caught_by=["tying.copies-separate:two-copies", "tying.warns:warns"],
    points=[{"config": "ensure"}],
)
def untied_ends_are_tied(patch: Patches) -> None:
    @patch.replace(tying, "tied_groups")
    def tied_groups(original: Any, modules: Any) -> Any:
        names = [name for name in modules if name.endswith(("embed_tokens", "lm_head"))]
        return [names] if len(names) == 2 else original(modules)


@fake(
    "A tied model is adapted as one, asked for or not.",
    caught_by=[
        "tying.copies-one:head-as-it-was",
        "tying.lora-one:head-as-it-was",
        "tying.warns-separate:warns",
    ],
    points=[{"model": "tiny-llama-tied"}],
)
def ties_unasked(patch: Patches) -> None:
    @patch.replace(tying.Ties, "__init__")
    def __init__(original: Any, self: Any, modules: Any, ensure: bool) -> None:
        original(self, modules, ensure)
        self.ensure = True


@fake(
    "Nothing is said about ties.",
    caught_by=["tying.warns:warns", "tying.warns-separate:warns"],
)
def ties_in_silence(patch: Patches) -> None:
    patch.set(tying, "warnings", type("Silent", (), {"warn": staticmethod(lambda *a, **k: None)}))


@fake(
    "A tied LoRA is merged at both ends, so that the one weight gets the delta twice.",
    caught_by=["tying.lora-tied-merge:merged-as-adapted", "tying.lora-tied-merge:unloaded-as-adapted"],
    like="peft 0.21.2",
)
def tied_delta_is_added_twice(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "merge")
    def merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        tied, self.tied_to = self.tied_to, {}
        try:
            original(self, *args, **kwargs)
        finally:
            self.tied_to = tied


@fake(
    "low_cpu_mem_usage gives each key of a file a tensor of its own.",
    caught_by=["tying.copies-tied:loaded-one", "tokens.round-trip:same-output"],
    like="peft 0.21.2",
    points=[{"low": True, "model": "tiny-llama-tied"}],
)
def loading_cuts_ties(patch: Patches) -> None:
    @patch.replace(state_dict, "_shared_parameters")
    def _shared_parameters(original: Any, model: Any) -> Any:
        return []


@fake(
    "merge_and_unload gives each tied end a weight of its own.",
    caught_by=["tying.copies-tied:merged-one", "tying.lora-tied-merge:tied"],
)
def unloading_unties(patch: Patches) -> None:
    from peft_reference import merging

    @patch.replace(merging, "unload")
    def unload(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        plain = original(model, *args, **kwargs)
        head = getattr(plain, "lm_head", None)
        if head is not None:
            head.weight = nn.Parameter(head.weight.detach().clone())
        return plain


@fake(
    "Trainable tokens of tied weights are separate.",
    caught_by=["tying.tokens-tied:one"],
)
def tied_tokens_are_separate(patch: Patches) -> None:
    @patch.replace(TOKENS, "share")
    def share(original: Any, self: Any, leader: Any, adapter: str, contents: Any) -> Any:
        return copy.deepcopy(original(self, leader, adapter, contents))


@fake(
    "Different tokens at tied ends are made the first's.",
    caught_by=["tying.tokens-conflict:raises", "tying.tokens-separate:two"],
    points=[{"model": "tiny-llama-tied", "config": "different"}],
)
def different_tokens_are_made_the_same(patch: Patches) -> None:
    @patch.replace(tying.Ties, "follow_tokens")
    def follow_tokens(original: Any, self: Any, indices: Any, modules: Any) -> Any:
        for group in self.groups:
            named = [name for name in group if name in indices]
            indices.update((name, indices[named[0]]) for name in named)
        return original(self, indices, modules)


@fake(
    "Only the first adapter is tied.",
    caught_by=["tying.lora-second:both-ends"],
    like="peft 0.21.2",
)
def second_adapter_is_not_tied(patch: Patches) -> None:
    @patch.replace(tying.Ties, "follow")
    def follow(original: Any, self: Any, chosen: Any, modules: Any) -> Any:
        again = any(isinstance(module, lora.LoraLayer) for module in modules.values())
        return {} if again else original(self, chosen, modules)


@fake(
    "Without a tie the other end is adapted, in the place of the one that is named.",
    caught_by=["tying.lora-one:embedding", "tying.lora-one:head-as-it-was"],
    points=[{"model": "tiny-llama-tied"}],
)
def the_other_end_is_adapted(patch: Patches) -> None:
    @patch.replace(tying.Ties, "follow")
    def follow(original: Any, self: Any, chosen: Any, modules: Any) -> Any:
        for group in self.groups if not self.ensure else ():
            named = [name for name in group if name in chosen]
            others = [name for name in group if name in modules and name not in chosen]
            if named and others:
                del chosen[named[0]]
                chosen[others[0]] = modules[others[0]]
        return original(self, chosen, modules)


@fake(
    "A tied LoRA has rank 1 at the end that follows.",
    caught_by=["tying.lora-tied:rank"],
)
def followers_have_rank_one(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "share")
    def share(original: Any, self: Any, *args: Any) -> Any:
        return original(self, *args) | {"r": 1}


@fake(
    "LoRA on an embedding is frozen.",
    caught_by=["tying.lora-separate:the-others"],
)
def embedding_factors_are_frozen(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, names: Any, requires_grad: bool = True) -> None:
        original(self, names, requires_grad and not isinstance(self.get_base_layer(), nn.Embedding))


@fake(
    "Files have the original modules in the place of their trained copies.",
    caught_by=["tying.copies-tied:loaded-same"],
)
def originals_are_saved(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        for live, saved, tensor in original(self, adapter):
            own = self.original_module.state_dict().get(saved, tensor)
            yield live, saved, own


# Bare parameters -------------------------------------------------------------------------------------


@fake(
    "The last dimension of a stack is taken for the experts.",
    caught_by=["parameters.per-expert:stack-a"],
)
def experts_are_the_last_dimension(patch: Patches) -> None:
    @patch.replace(PARAM, "num_experts")
    def num_experts(original: Any, self: Any) -> int:
        return self.weight.shape[-1] if self.weight.dim() == 3 else 1

    @patch.replace(PARAM, "features")
    def features(original: Any, self: Any) -> Any:
        shape = self.weight.shape
        return (shape[1], shape[0]) if self.weight.dim() == 3 else original(self)

    @patch.replace(PARAM, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        A, B = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        experts, r = self.num_experts, self.r[adapter]
        stacked = B.view(-1, r, experts).permute(2, 0, 1) @ A.view(experts, r, -1)
        stacked = stacked.permute(1, 2, 0) if self.weight.dim() == 3 else stacked
        return self.scaling[adapter] * stacked.reshape(self.weight.shape)


@fake(
    "All experts share one pair of factors.",
    caught_by=["parameters.per-expert:stack-a", "parameters.per-expert:stack-b"],
)
def experts_share_factors(patch: Patches) -> None:
    @patch.replace(PARAM, "new_factors")
    def new_factors(original: Any, self: Any, r: int, bias: bool) -> Any:
        return lora.LoraLayer.new_factors(self, r, bias)

    @patch.replace(PARAM, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        product = self.lora_B[adapter].weight @ self.lora_A[adapter].weight
        return self.scaling[adapter] * product.expand(self.weight.shape)


@fake(
    "The adapted values are put into the module for the forward pass and stay there when it fails.",
    caught_by=["parameters.untouched:frame", "parameters.untouched:still-parameters"],
)
def parameter_is_left_replaced(patch: Patches) -> None:
    @patch.replace(PARAM, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        base: Any = self.get_base_layer()
        own = {}
        for layer in self.nested():
            effective, name = layer.effective(), layer.parameter_name
            if effective is not None:
                own[name] = base._parameters.pop(name)
                base.__dict__[name] = effective
        output = base(*args, **kwargs)
        for name, parameter in own.items():
            del base.__dict__[name]
            base._parameters[name] = parameter
        return output


@fake(
    "Forward passes write the adapted values into the parameter.",
    caught_by=["parameters.untouched:frame", "parameters.adapts:disabled-is-base"],
)
def parameter_is_overwritten(patch: Patches) -> None:
    @patch.replace(PARAM, "effective")
    def effective(original: Any, self: Any) -> Any:
        weight = original(self)
        if weight is not None:
            self.weight.data.copy_(weight)
        return weight


@fake(
    "Of several parameters of one module only the last is adapted in the forward pass.",
    caught_by=["parameters.gradients:factors", "parameters.merge:merged-as-adapted"],
)
def only_the_outer_parameter_acts(patch: Patches) -> None:
    @patch.replace(PARAM, "effective")
    def effective(original: Any, self: Any) -> Any:
        return None if self.parameter_name == "up" else original(self)


@fake(
    "An adapter with other target_parameters is added beside the others.",
    caught_by=["parameters.same-set:raises"],
)
def other_parameters_are_accepted(patch: Patches) -> None:
    @patch.replace(injection.Injection, "_plan_parameters")
    def _plan_parameters(original: Any, self: Any, parameters: Any, modules: Any, layer_cls: Any) -> None:
        if any(isinstance(module, PARAM) for module in modules.values()):
            parameters = {n: ps for n, ps in parameters.items() if isinstance(modules[n], PARAM)}
            held = {
                n: [p.parameter_name for p in m.nested()] for n, m in modules.items() if isinstance(m, PARAM)
            }
            parameters = held if parameters or held else parameters
        original(self, parameters, modules, layer_cls)


@fake(
    "A parameter of one dimension is left alone in silence.",
    caught_by=["parameters.dimensions:raises"],
)
def flat_parameters_are_skipped(patch: Patches) -> None:
    @patch.replace(matching, "select_parameters")
    def select_parameters(original: Any, config: Any, modules: Any) -> Any:
        found = original(config, modules)
        flat = {
            n: [k for k in keys if tying.base_module(modules[n])._parameters[k].dim() > 1]
            for n, keys in found.items()
        }
        return {n: keys for n, keys in flat.items() if keys} or (found and {next(iter(found)): []})


@fake(
    "A string in target_parameters is taken as one name.",
    caught_by=["parameters.no-regex:raises"],
)
def string_of_parameters_is_a_name(patch: Patches) -> None:
    @patch.replace(lora.LoraConfig, "__post_init__")
    def __post_init__(original: Any, self: Any) -> None:
        given, self.target_parameters = self.target_parameters, None
        original(self)
        self.target_parameters = ["experts.up"] if isinstance(given, str) else given


@fake(
    "A second adapter on the same parameters computes with the first one's factors.",
    caught_by=["parameters.second-adapter:second-fresh"],
)
def second_adapter_uses_the_first(patch: Patches) -> None:
    @patch.replace(PARAM, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        return original(self, self.all_adapters()[0])


@fake(
    "Adapters of parameters do not act.",
    caught_by=["parameters.adapts:acts", "parameters.merge:acts"],
)
def parameters_are_not_adapted(patch: Patches) -> None:
    @patch.replace(PARAM, "effective")
    def effective(original: Any, self: Any) -> Any:
        return None


@fake(
    "The factors of parameters are frozen.",
    caught_by=["parameters.adapts:adapter-trains"],
)
def parameter_factors_are_frozen(patch: Patches) -> None:
    @patch.replace(PARAM, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, names: Any, requires_grad: bool = True) -> None:
        original(self, names, False)


@fake(
    "An adapted parameter trains beside its factors.",
    caught_by=["parameters.adapts:base-frozen", "parameters.gradients:base"],
)
def adapted_parameters_train(patch: Patches) -> None:
    @patch.replace(PARAM, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, names: Any, requires_grad: bool = True) -> None:
        original(self, names, requires_grad)
        self.weight.requires_grad_(requires_grad)


@fake(
    "A matrix is taken for two experts.",
    caught_by=["parameters.per-expert:matrix-a", "parameters.per-expert:matrix-b"],
)
def matrices_have_two_experts(patch: Patches) -> None:
    @patch.replace(PARAM, "new_factors")
    def new_factors(original: Any, self: Any, r: int, bias: bool) -> Any:
        return original(self, r if self.weight.dim() == 3 else 2 * r, bias)


@fake(
    "A module that fails half-way gives its input back.",
    caught_by=["parameters.untouched:raises"],
)
def failures_are_swallowed(patch: Patches) -> None:
    @patch.replace(PARAM, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except ValueError:
            return args[0]


@fake(
    "merge_and_unload leaves the layers around parameters in the model.",
    caught_by=["parameters.merge:class"],
)
def unload_keeps_parameter_layers(patch: Patches) -> None:
    @patch.replace(tying, "base_module")
    def base_module(original: Any, module: Any) -> Any:
        return module if isinstance(module, PARAM) else original(module)


@fake(
    "Of the factors of parameters only A is saved.",
    caught_by=["parameters.files:same-output"],
)
def only_a_of_parameters_is_saved(patch: Patches) -> None:
    @patch.replace(PARAM, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        return (entry for entry in original(self, adapter) if "lora_B" not in entry[0])


@fake(
    "Adapted parameters are saved with their factors.",
    caught_by=["parameters.files:no-base"],
)
def parameters_are_saved_too(patch: Patches) -> None:
    @patch.replace(PARAM, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        yield from original(self, adapter)
        depth = "base_layer." * len(list(self.nested()))
        yield depth + self.parameter_name, depth + self.parameter_name, self.weight.detach()


@fake(
    "Further adapters of a parameter get the rank of the first.",
    caught_by=["parameters.second-adapter:ranks"],
)
def parameters_keep_the_first_rank(patch: Patches) -> None:
    @patch.replace(PARAM, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> Any:
        config = copy.copy(config)
        config.r = next(iter(self.r.values()), config.r)
        return original(self, config, name)


# Embeddings in files -----------------------------------------------------------------------------------


@fake(
    "A resized vocabulary goes unnoticed.",
    caught_by=["embeddings.resized:embedding", "embeddings.resized:head"],
)
def resized_vocabulary_is_not_saved(patch: Patches) -> None:
    @patch.replace(saving, "base_vocab_size")
    def base_vocab_size(original: Any, model_id: str) -> Any:
        return 32


@fake(
    "Embeddings are saved whenever the base model's config is there.",
    caught_by=["embeddings.same-size:no-matrix"],
)
def embeddings_are_always_saved(patch: Patches) -> None:
    @patch.replace(saving, "base_vocab_size")
    def base_vocab_size(original: Any, model_id: str) -> Any:
        size = original(model_id)
        return None if size is None else size + 1


@fake(
    "Embeddings of a resized vocabulary are saved whatever save_embedding_layers says.",
    caught_by=["embeddings.resized:not-if-false"],
)
def saving_embeddings_cannot_be_prevented(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("save_embedding_layers") is False:
            kwargs["save_embedding_layers"] = "auto"
        return original(model, *args, **kwargs)


@fake(
    "Base weights in a checkpoint are not loaded.",
    caught_by=["embeddings.load:same-output", "embeddings.load-adapted:same-base"],
)
def saved_embeddings_are_not_loaded(patch: Patches) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_peft_model_state_dict(original: Any, model: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        def is_base(key: str) -> bool:
            return key.endswith(("base_layer.weight", "embed_tokens.weight", "lm_head.weight"))

        return original(model, {k: v for k, v in values.items() if not is_base(k)}, *args, **kwargs)
