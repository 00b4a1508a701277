"""Faults of the classes for tasks: routing, heads, what forward and generate pass on."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from peft_reference import model, registry, state_dict, tasks, wrappers
from peft_reference.methods import adalora
from peft_reference.model import AdaptedModel, PeftModel
from torch import nn

from .fake import Patches, fake

HEADED = (
    tasks.PeftModelForSequenceClassification,
    tasks.PeftModelForTokenClassification,
    tasks.PeftModelForQuestionAnswering,
)
CLASSES = tuple(tasks.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.values())

# Routing -------------------------------------------------------------------------------------------


@fake(
    "The task type is not looked at: every model becomes a plain PeftModel.",
    caught_by=[
        *(f"task.routing:{task}" for task in ("causal-lm", "seq-cls", "token-cls")),
        "task.sequence-to-sequence:class",
        *("task.routing:question-ans", "task.routing:feature-extraction"),
        *("client.causal-language-model:class-of-loaded", "client.sequence-to-sequence:class-of-loaded"),
    ],
)
def ignores_task_type(patch: Patches) -> None:
    @patch.replace(model, "_class_for")
    def _class_for(original: Any, config: Any) -> type[PeftModel]:
        return PeftModel


@fake("A task type is known by its string alone, not as a member.", caught_by=["task.routing:by-member"])
def knows_task_types_as_strings_only(patch: Patches) -> None:
    @patch.replace(model, "_class_for")
    def _class_for(original: Any, config: Any) -> type[PeftModel]:
        return PeftModel if isinstance(config.task_type, registry.TaskType) else original(config)


@fake(
    "A task class made directly is a plain PeftModel.",
    caught_by=["task.direct:class", "task.direct:head-trains"],
)
def classes_made_directly_are_plain(patch: Patches) -> None:
    @patch.replace(tasks, "PeftModelForSequenceClassification")
    def made(original: Any, *args: Any, **kwargs: Any) -> PeftModel:
        return PeftModel(*args, **kwargs)


@fake(
    "Any task type is taken, and what prompt learning is for is adapted as a whole.",
    caught_by=["task.unknown:raises", "task.prompt-learning-needs-task:raises"],
)
def takes_any_task(patch: Patches) -> None:
    from peft_reference import config

    @patch.replace(config.PeftConfig, "__post_init__")
    def __post_init__(original: Any, self: Any) -> None:
        task, self.task_type = self.task_type, None
        original(self)
        self.task_type = task

    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> Any:
        if peft_config.is_prompt_learning:
            return model.requires_grad_(False)
        return original(model, peft_config, *args, **kwargs)


# Heads ---------------------------------------------------------------------------------------------


@fake(
    "The heads of tasks are not added to what is trained and saved.",
    caught_by=[
        *("task.sequence-head:head-trains", "task.sequence-head:has-head", "task.token-head:head-trains"),
        *("task.token-head:head-saved", "task.answer-head:head-trains", "task.answer-head:head-saved"),
    ],
    points=[{"own": "norm", "model": "tiny-llama-seqcls"}],
)
def forgets_heads(patch: Patches) -> None:
    for cls in HEADED:
        patch.set(cls, "head_names", ())


@fake(
    "The head of a task takes the place of the modules that the caller wants to save.",
    caught_by=["task.sequence-head:own-name-kept"],
    points=[{"own": "norm", "model": "tiny-llama-seqcls"}],
)
def heads_in_the_place_of_own_names(patch: Patches) -> None:
    @patch.replace(PeftModel, "_heads_added")
    def _heads_added(original: Any, self: Any, config: Any) -> Any:
        config.modules_to_save = None if self.head_names else config.modules_to_save
        return original(self, config)


@fake(
    "The heads of an adapter that is added are trainable at once.",
    caught_by=["task.head-of-second-adapter:own-copy"],
)
def added_heads_train_at_once(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "_add")
    def _add(original: Any, self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        done = original(self, adapter_name, *args, **kwargs)
        for module in self.modules():
            if isinstance(module, wrappers.ModulesToSaveWrapper):
                module.modules_to_save[adapter_name].requires_grad_(True)
        return done


@fake(
    "Whichever head was added last acts.",
    caught_by=["task.head-of-second-adapter:inactive-first"],
)
def the_last_head_acts(patch: Patches) -> None:
    @patch.replace(wrappers.ModulesToSaveWrapper, "acting_copy")
    def acting_copy(original: Any, self: Any) -> nn.Module:
        copies = list(self.modules_to_save.values())
        return copies[-1] if copies and not self.disable_adapters else original(self)


@fake(
    "The first head acts and trains, whichever adapter is active.",
    caught_by=[
        f"task.head-of-second-adapter:{check}" for check in ("acts", "trains", "first-frozen", "saved")
    ],
)
def the_first_head_stays(patch: Patches) -> None:
    @patch.replace(PeftModel, "set_adapter")
    def set_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        heads = [m for m in self.modules() if isinstance(m, wrappers.ModulesToSaveWrapper)]
        before = [(head, list(head._active_adapter)) for head in heads]
        flags = [(p, p.requires_grad) for head in heads for p in head.parameters()]
        original(self, *args, **kwargs)
        for head, active in before:
            head._active_adapter = active
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

    @patch.replace(wrappers.ModulesToSaveWrapper, "state_entries")
    def state_entries(original: Any, self: Any, adapter: str) -> Any:
        return original(self, adapter) if adapter == "default" else iter(())


@fake(
    "Every task trains the output layer, or the pooler, of its model.",
    caught_by=[
        *("task.no-head:causal-lm-adapter-only", "task.sequence-to-sequence:adapter-only"),
        "task.no-head:feature-extraction-adapter-only",
    ],
)
def trains_every_output_layer(patch: Patches) -> None:
    for cls in set(CLASSES) - set(HEADED):
        patch.set(cls, "head_names", ("lm_head", "pooler"))


@fake(
    "The wrapper names its head by the whole path.",
    caught_by=["task.head-name:classifier", "task.head-name:score", "task.head-name:qa-outputs"],
)
def names_the_path_of_the_head(patch: Patches) -> None:
    @patch.replace(PeftModel, "cls_layer_name")
    def cls_layer_name(original: Any, self: Any) -> str:
        return f"base_model.model.{original(self)}"


@fake("The wrapper has a copy of the model's config.", caught_by=["task.config-attribute:same"])
def copies_the_config_of_the_model(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "__getattr__")
    def __getattr__(original: Any, self: Any, name: str) -> Any:
        found = original(self, name)
        return copy.copy(found) if name == "config" else found


# Forward -------------------------------------------------------------------------------------------


@fake(
    "The forward methods show no parameters.",
    caught_by=[
        *("task.signatures:causal-lm", "task.signatures:seq-cls", "task.signatures:token-cls"),
        *("task.signatures:seq-2-seq-lm", "task.signatures:question-ans"),
        "task.signatures:feature-extraction",
    ],
)
def forward_takes_anything(patch: Patches) -> None:
    for cls in CLASSES:

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return PeftModel.forward(self, *args, **kwargs)

        owner = next(base for base in cls.__mro__ if "forward" in vars(base))
        if owner.__module__ == tasks.__name__:
            patch.set(owner, "forward", forward)


@fake(
    "The labels are moved by one place before the base model sees them.",
    caught_by=["task.labels:fresh", "task.labels:of-adapted-model", "task.labels:disabled"],
)
def moves_the_labels(patch: Patches) -> None:
    @patch.replace(tasks._TaskModel, "_given")
    def _given(original: Any, self: Any, **arguments: Any) -> dict[str, Any]:
        if (labels := arguments.get("labels")) is not None:
            arguments["labels"] = labels.roll(1, -1)
        return original(self, **arguments)


@fake(
    "What decides the loss is computed without the adapters.",
    caught_by=["task.labels:adapted", "task.labels:of-adapted-model"],
)
def loss_of_the_base_model(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("labels") is None:
            return original(self, *args, **kwargs)
        with self.disable_adapter():
            return original(self, *args, **kwargs)


@fake(
    "Attention masks are dropped on the way to the base model.",
    caught_by=["task.inputs:as-base", "task.inputs:as-inside"],
    points=[{"input": "masked"}],
)
def drops_masks(patch: Patches) -> None:
    @patch.replace(tasks._TaskModel, "_given")
    def _given(original: Any, self: Any, **arguments: Any) -> dict[str, Any]:
        return original(self, **arguments | {"attention_mask": None})


@fake(
    "The task classes compute what the base model does, without adapters.",
    caught_by=["task.inputs:adapted", "task.features:adapted"],
)
def tasks_without_adapters(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self) is PeftModel:
            return original(self, *args, **kwargs)
        with self.disable_adapter():
            return original(self, *args, **kwargs)


@fake(
    "The hidden states of the task for features are those of the embeddings.",
    caught_by=["task.features:as-base"],
)
def features_of_the_embeddings(patch: Patches) -> None:
    @patch.replace(tasks.PeftModelForFeatureExtraction, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, output_hidden_states=True, **kwargs)
        output["last_hidden_state"] = output.hidden_states[0]
        return output


# Generation and training ---------------------------------------------------------------------------


@fake(
    "generate works on the base model, as if there were no adapters.",
    caught_by=[
        *("client.causal-language-model:adapted", "client.sequence-to-sequence:adapted"),
        *("client.generate-without-task:adapted", "client.generate-without-task:as-inside"),
    ],
)
def generates_without_adapters(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "generate")
    def generate(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.disable_adapter():
            return original(self, *args, **kwargs)


@fake(
    "Ids that are passed by position are generated for without adapters.",
    caught_by=["client.causal-language-model:by-position"],
)
def generates_by_position_without_adapters(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "generate")
    def generate(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.disable_adapter() if args else contextlib.nullcontext():
            return original(self, *args, **kwargs)


@fake(
    "generate gives the tokens backwards.",
    caught_by=[
        *("client.causal-language-model:fresh", "client.sequence-to-sequence:fresh"),
        *("client.generate-without-task:fresh", "client.causal-language-model:disabled"),
    ],
)
def generates_backwards(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "generate")
    def generate(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs).flip(-1)


@fake(
    "No gradient ever arrives at what is trained.",
    caught_by=[
        *("client.trains:adapter-trained", "client.causal-language-model:adapter-trained"),
        *("client.sequence-to-sequence:adapter-trained", "client.heads:head-trained"),
    ],
)
def stops_gradients(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "__init__")
    def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: 0 * gradient)


@fake(
    "The base model trains along under the Trainer.",
    caught_by=["client.trains:frame", "client.heads:frame", "client.causal-language-model:frame"],
)
def the_base_trains_along(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "forward")
    def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            with torch.no_grad():
                for name, parameter in self.get_base_model().named_parameters():
                    if "lora_" not in name and "modules_to_save" not in name:
                        parameter.mul_(0.999)
        return original(self, *args, **kwargs)


@fake(
    "Loaded weights, but for lora_A, have the opposite sign.",
    caught_by=[
        *("client.trains:same-weights", "client.trains:same-output"),
        *("client.heads:same-weights", "client.heads:same-output"),
        *("client.causal-language-model:same-tokens", "client.sequence-to-sequence:same-tokens"),
    ],
)
def loads_the_opposite(patch: Patches) -> None:
    @patch.replace(model, "_read_weights")
    def _read_weights(original: Any, *args: Any, **kwargs: Any) -> Any:
        weights = original(*args, **kwargs)
        return {key: value if "lora_A" in key else -value for key, value in weights.items()}


@fake("What is loaded for inference trains.", caught_by=["client.heads:head-frozen-when-loaded"])
def loaded_heads_train(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "_load")
    def _load(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = original(self, *args, **kwargs)
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        return outcome


# What is wrapped and counted -----------------------------------------------------------------------


@fake(
    "A task class works on a copy of the model, and trains all of it.",
    caught_by=[
        *("task.routing:same-base", "task.no-head:causal-lm-base-frozen"),
        *("task.sequence-to-sequence:base-frozen", "task.no-head:feature-extraction-base-frozen"),
    ],
)
def task_classes_copy_the_model(patch: Patches) -> None:
    @patch.replace(PeftModel, "__init__")
    def __init__(original: Any, self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is PeftModel:
            original(self, model, *args, **kwargs)
        else:
            original(self, copy.deepcopy(model), *args, **kwargs)
            self.requires_grad_(True)


@fake("A task class has a copy of the config.", caught_by=["task.direct:very-config"])
def task_classes_copy_the_config(patch: Patches) -> None:
    @patch.replace(PeftModel, "__init__")
    def __init__(original: Any, self: Any, model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, model, copy.copy(peft_config), *args, **kwargs)


@fake(
    "The state dict has the original of a saved module beside the trained copy.",
    caught_by=["task.sequence-head:head-saved"],
)
def saves_the_original_head(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_peft_model_state_dict(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(model, *args, **kwargs)
        return found | {"base_model.model.original": torch.zeros(1)}


@fake(
    "The originals of saved modules count as trained, and every adapter's parameters count twice.",
    caught_by=[
        "counts.llama-2-7b:*",
        "counts.pages:*",
        "counts.custom-model:trainable-and-all",
        "counts.other-methods:*",
    ],
)
def counts_too_much(patch: Patches) -> None:
    @patch.replace(AdaptedModel, "get_nb_trainable_parameters")
    def get_nb_trainable_parameters(original: Any, self: Any) -> tuple[int, int]:
        trainable, total = original(self)
        return 2 * trainable, total + trainable


@fake(
    "AdaLoRA makes up a number of training steps where none, or nonsense, is given.",
    caught_by=["counts.adalora-needs-steps:raises-without", "counts.adalora-needs-steps:raises-nonsense"],
)
def makes_up_training_steps(patch: Patches) -> None:
    @patch.replace(adalora.AdaLoraConfig, "__post_init__")
    def __post_init__(original: Any, self: Any) -> None:
        self.total_step = self.total_step if (self.total_step or 0) > 0 else 1000
        original(self)
