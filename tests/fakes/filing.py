"""Faults with hostile files, formats and options of loading, configs on disk, the Auto classes, helpers."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import peft_reference
import torch
from peft_reference import auto, config, injection, kbit, model, registry, saving, state_dict
from peft_reference.config import PeftConfig
from peft_reference.methods import defaults, refused
from peft_reference.methods.lora import LoraConfig, LoraLayer
from peft_reference.model import PeftModel
from peft_reference.utils import error as errors_below
from torch import nn

from .fake import Patches, fake

# Hostile folders -----------------------------------------------------------------------------------


@fake(
    "Pickles are loaded as they come.",
    caught_by=["hostile.pickles:no-code-run"],
    like="torch.load before 2.6, called without weights_only",
    points=[{"fault": "saved-with-code"}],
)
def pickles_run_code(patch: Patches) -> None:
    @patch.replace(saving, "_read_tensors")
    def _read_tensors(original: Any, path: Path) -> Any:
        if path.suffix == ".bin":
            torch.load(path, weights_only=False)
        return original(path)


@fake(
    "A safetensors file that cannot be read is tried as a pickle.",
    caught_by=["hostile.weights:no-code-run"],
    points=[{"fault": "saved-with-code"}],
)
def tensors_may_be_pickles(patch: Patches) -> None:
    @patch.replace(saving, "_read_tensors")
    def _read_tensors(original: Any, path: Path) -> Any:
        try:
            return original(path)
        except ValueError:
            with path.open("rb") as file:
                torch.load(file, weights_only=False)
            raise


@fake(
    "An adapter's name is a path below the folder, or wherever it leads.",
    caught_by=["hostile.name:nothing-elsewhere", "hostile.name:raises"],
    like="0.21.2",
)
def names_are_paths(patch: Patches) -> None:
    @patch.replace(saving, "adapter_folder")
    def adapter_folder(original: Any, save_directory: Any, adapter_name: str) -> Path:
        return Path(save_directory, "" if adapter_name == "default" else adapter_name)


@fake(
    "The model is changed before the weights are read, and stays so.",
    caught_by=[
        "hostile.weights:not-adapted",
        "hostile.pickles:not-adapted",
        "hostile.missing-copy:not-adapted",
        "hostile.second-adapter:no-other",
        "hostile.second-adapter:frame",
        "options.device:not-adapted",
    ],
    like="0.21.2",
)
def adapts_before_reading(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, **kwargs)
        except (ValueError, RuntimeError, KeyError):
            cls(kwargs["model"], PeftConfig.from_pretrained(kwargs["model_id"]))
            raise

    @patch.replace(PeftModel, "load_adapter")
    def load_adapter(original: Any, self: Any, model_id: Any, adapter_name: str, **kwargs: Any) -> Any:
        try:
            return original(self, model_id, adapter_name, **kwargs)
        except (ValueError, RuntimeError):
            self.add_adapter(adapter_name, PeftConfig.from_pretrained(model_id))
            raise


@fake(
    "The model is adapted with the defaults before the config is read, and stays so.",
    caught_by=["hostile.config:not-adapted", "hostile.rank:not-adapted", "hostile.fields:not-adapted"],
)
def adapts_before_reading_the_config(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, **kwargs)
        except (ValueError, TypeError):
            if not any(isinstance(layer, LoraLayer) for layer in kwargs["model"].modules()):
                cls(kwargs["model"], LoraConfig(target_modules=["lin0"]))
            raise


# Formats and options -------------------------------------------------------------------------------


@fake(
    "safe_serialization=False is ignored.",
    caught_by=["options.pickled:files"],
)
def never_pickles(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        original(self, save_directory, **{**kwargs, "safe_serialization": True})


@fake(
    "Pickled weights are rounded.",
    caught_by=["options.pickled:same-content", "options.pickled:same-output", "law.files:same-output"],
    points=[{"safe": False}],
)
def pickles_are_rounded(patch: Patches) -> None:
    @patch.replace(saving, "save_adapter")
    def save_adapter(original: Any, folder: Any, tensors: Any, held: Any, safe: bool) -> None:
        original(folder, tensors if safe else {k: t.half().float() for k, t in tensors.items()}, held, safe)


@fake(
    "Weights in the other format stay beside the new ones.",
    caught_by=["options.last-saved:last-output"],
    like="0.21.2",
    points=[{"first-safe": True, "last-safe": False}],
)
def leaves_the_other_format(patch: Patches) -> None:
    @patch.replace(saving, "finish_save")
    def finish_save(original: Any, folder: Path) -> None:
        old = folder / saving.SAFETENSORS_WEIGHTS_NAME
        kept = old.read_bytes() if old.is_file() else None
        original(folder)
        if kept is not None and not old.exists():
            old.write_bytes(kept)


@fake("A folder that is not there is not made, its parent is used.", caught_by=["options.new-folder:made"])
def makes_no_folders(patch: Patches) -> None:
    @patch.replace(saving, "adapter_folder")
    def adapter_folder(original: Any, save_directory: Any, adapter_name: str) -> Path:
        folder: Path = original(save_directory, adapter_name)
        return folder if folder.exists() else folder.parent


@fake(
    "key_mapping is ignored.",
    caught_by=[
        "options.key-mapping:loaded-under-new-name",
        "options.key-mapping:loaded-beside",
        "options.key-mapping:nothing-unexpected",
        "options.key-mapping:nothing-missing",
    ],
    points=[{"low": False}],
)
def ignores_key_mappings(patch: Patches) -> None:
    patch.replace(saving, "_renamed")(lambda original, key, mapping: key)


@fake(
    "key_mapping sees the prefix.",
    caught_by=["options.key-mapping:loaded-under-new-name"],
    points=[{"low": False}],
)
def maps_keys_with_the_prefix(patch: Patches) -> None:
    @patch.replace(saving, "_renamed")
    def _renamed(original: Any, key: str, mapping: dict[str, str]) -> str:
        return original("/" + key, mapping).removeprefix("/")


@fake(
    "torch_device is ignored.",
    caught_by=["options.device:raises-nowhere", "options.device:raises-nowhere-beside"],
)
def ignores_the_device(patch: Patches) -> None:
    @patch.replace(model, "_read_weights")
    def _read_weights(original: Any, model_id: Any, key_mapping: Any, options: dict[str, Any]) -> Any:
        return original(model_id, key_mapping, {**options, "torch_device": None})


@fake(
    "Weights are read as zeros.",
    caught_by=[
        "options.pickled:same-output",
        "options.device:same-output",
        "options.last-saved:last-output",
        "options.ignored-mismatch:fitting-loaded",
        "guide.fields-left-out:same-output",
        "auto.causal:same-output",
        "auto.no-task:same-output",
        "auto.encoder-decoder:seq2seq-output",
        "auto.encoder-decoder:features-output",
        "auto.heads:*-output",
        "auto.allowlist:loads-what-is-allowed",
        "law.files:same-output",
    ],
)
def reads_zeros(patch: Patches) -> None:
    @patch.replace(saving, "_read_tensors")
    def _read_tensors(original: Any, path: Path) -> Any:
        return {key: torch.zeros_like(tensor) for key, tensor in original(path).items()}


@fake(
    "With ignore_mismatched_sizes, whatever there is takes the place of the tensor.",
    caught_by=["options.ignored-mismatch:misfitting-kept"],
)
def takes_what_does_not_fit(patch: Patches) -> None:
    @patch.replace(state_dict, "set_peft_model_state_dict")
    def set_state(original: Any, base: Any, tensors: Any, name: str = "default", *args: Any) -> Any:
        outcome = original(base, tensors, name, *args)
        for key, parameter in base.named_parameters():
            saved = tensors.get(key.replace(f".{name}.", "."))
            if saved is not None and saved.shape != parameter.shape:
                parameter.data = saved.clone()
        return outcome


@fake(
    "What was loaded can be trained, and the base model too.",
    caught_by=[
        "law.files:frozen",
        "auto.causal:adapter",
        "auto.causal:base-frozen",
        "auto.no-task:frozen",
    ],
    points=[{"trainable": False}],
)
def loads_everything_trainable(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        return original(cls, *args, **kwargs).requires_grad_(True)


@fake("A config may be anything that is given.", caught_by=["options.wrong-config:raises"])
def takes_any_config(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        return original(cls, *args, config=config if isinstance(config, PeftConfig) else None, **kwargs)


@fake(
    "Saving and loading touch what they were given: the saved model can be trained in all its parts.",
    caught_by=[
        "options.pickled:frame",
        "options.last-saved:frame",
        "options.new-folder:frame",
        "guide.card:frame",
        "guide.bert-defaults:frame",
        "guide.dora:frame",
        "guide.type-and-base:frame",
        "guide.ia3-json:frame",
        "law.files:frame",
    ],
)
def saving_thaws_the_model(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for parameter in self.parameters():
            parameter.requires_grad_(not parameter.requires_grad)


@fake(
    "Loading leaves a note in the folder that it reads.",
    caught_by=["options.*:frame", "guide.fields-left-out:frame", "guide.both-files:frame", "auto.*:frame"],
)
def reading_leaves_a_note(patch: Patches) -> None:
    @patch.replace(saving, "find_file")
    def find_file(original: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(model_id).is_dir():
            Path(model_id, "note.txt").write_text("read")
        return original(model_id, *args, **kwargs)


# The Auto classes ----------------------------------------------------------------------------------


def around_auto(patch: Patches, do: Any) -> None:
    """Let `do(original, cls, *args, **kwargs)` stand in for `from_pretrained` of the Auto classes."""
    patch.replace(auto._BaseAutoPeftModel, "from_pretrained")(do)


@fake(
    "The Auto classes give objects of another class.",
    caught_by=[
        "auto.causal:class",
        "auto.no-task:class",
        "auto.encoder-decoder:*-class",
        "auto.heads:sequences-class",
        "auto.heads:tokens-class",
        "auto.heads:questions-class",
    ],
)
def auto_gives_another_class(patch: Patches) -> None:
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = original(cls, *args, **kwargs)
        loaded.__class__ = type("AutoModelWithAdapter", (type(loaded),), {})
        return loaded

    around_auto(patch, from_pretrained)


@fake(
    "Without a task the base model gets a head.",
    caught_by=["auto.no-task:base-class", "auto.no-task:same-output"],
)
def auto_adds_a_head(patch: Patches) -> None:
    @patch.replace(auto._BaseAutoPeftModel, "_base_class")
    def _base_class(original: Any, cls: Any, held: Any, allowed: Any) -> Any:
        import transformers

        found = original(cls, held, allowed)
        return transformers.AutoModelForMaskedLM if cls is auto.AutoPeftModel else found


@fake(
    "The Auto classes ignore the adapter's name and is_trainable.",
    caught_by=["auto.causal:adapter", "auto.causal:named-as-asked"],
    points=[{"name": "other", "trainable": True}, {"name": "default", "trainable": True}],
)
def auto_ignores_options(patch: Patches) -> None:
    def from_pretrained(original: Any, cls: Any, path: Any = None, *args: Any, **kwargs: Any) -> Any:
        path = kwargs.pop("pretrained_model_name_or_path", path)
        return original(cls, path, **{k: v for k, v in kwargs.items() if k == "import_allowlist"})

    around_auto(patch, from_pretrained)


@fake(
    "The Auto classes take any task, and import anything.",
    caught_by=[
        "auto.wrong-class:raises-other-task",
        "auto.wrong-class:raises-other-head",
        "auto.wrong-class:raises-no-task",
        "auto.no-mapping:raises",
        "auto.allowlist:raises-unknown-library",
        "auto.allowlist:raises-not-on-the-list",
    ],
)
def auto_takes_anything(patch: Patches) -> None:
    @patch.replace(auto._BaseAutoPeftModel, "_base_class")
    def _base_class(original: Any, cls: Any, held: Any, allowed: Any) -> Any:
        import transformers

        language = held.task_type is not None
        return transformers.AutoModelForCausalLM if language else transformers.AutoModel


@fake("The Auto classes can be called.", caught_by=["auto.constructor:raises"])
def auto_can_be_called(patch: Patches) -> None:
    patch.replace(auto._BaseAutoPeftModel, "__init__")(lambda original, self, *args, **kwargs: None)


# Configs -------------------------------------------------------------------------------------------


@fake("A config comes with a card of its own.", caught_by=["peft_config.save:one-file"])
def configs_come_with_cards(patch: Patches) -> None:
    @patch.replace(PeftConfig, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any) -> None:
        original(self, save_directory)
        Path(save_directory, "README.md").write_text("a config")


@fake(
    "Configs that are read or made by type are of a class of their own.",
    caught_by=["peft_config.save:class", "peft_config.by-type:class", "peft_config.by-type:class-of-dict"],
)
def configs_of_another_class(patch: Patches) -> None:
    @patch.replace(PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(cls, *args, **kwargs)
        made.__class__ = type("AnyConfig", (type(made),), {})
        return made


@fake(
    "Configs that are read or made by type have the defaults.",
    caught_by=[
        "peft_config.save:same-fields",
        "peft_config.by-type:same-defaults",
        "peft_config.by-type:r",
        "peft_config.by-type:r-of-dict",
        "peft_config.by-type:task",
        "peft_config.no-overrides:as-in-the-file",
    ],
)
def configs_forget_values(patch: Patches) -> None:
    @patch.replace(PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        return type(original(cls, *args, **kwargs))()


@fake(
    "Values that are passed to from_pretrained override those of the file.",
    caught_by=["peft_config.no-overrides:as-in-the-file"],
    like="0.3",
)
def configs_are_overridden(patch: Patches) -> None:
    @patch.replace(PeftConfig, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(cls, *args, **kwargs)
        for name, value in kwargs.items():
            if hasattr(found, name):
                setattr(found, name, value)
        return found


@fake(
    "to_dict gives a view, with everything as text and the choices for one run.",
    caught_by=[
        "peft_config.to-dict:a-dict",
        "peft_config.to-dict:fields",
        "peft_config.to-dict:no-runtime",
        "peft_config.to-dict:r",
        "peft_config.to-dict:targets",
    ],
)
def to_dict_is_something_else(patch: Patches) -> None:
    @patch.replace(PeftConfig, "to_dict")
    def to_dict(original: Any, self: Any) -> Any:
        texts = {name: repr(value) for name, value in original(self).items() if value is not None}
        return types.MappingProxyType({**texts, "runtime_config": "{}"})


@fake("Every kind of config says of itself that it is not what it is.", caught_by=["peft_config.kinds:*"])
def kinds_upside_down(patch: Patches) -> None:
    def upside_down(original: Any, self: Any) -> bool:
        return not original(self)

    for cls, name in (
        (PeftConfig, "is_prompt_learning"),
        (PeftConfig, "is_adaption_prompt"),
        (config.PromptLearningConfig, "is_prompt_learning"),
        (refused.AdaptionPromptConfig, "is_adaption_prompt"),
    ):
        patch.replace(cls, name)(upside_down)


@fake(
    "A config inside a config comes back as a namespace without its values.",
    caught_by=["peft_config.sub-configs:class", "peft_config.sub-configs:rho", "peft_config.sub-configs:tau"],
)
def sub_configs_are_namespaces(patch: Patches) -> None:
    @patch.replace(PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(cls, *args, **kwargs)
        if getattr(made, "eva_config", None):
            made.eva_config = types.SimpleNamespace(rho=2.0, tau=0.99)
        return made


@fake(
    "A config inside a config is stored as a list of pairs.", caught_by=["peft_config.sub-configs:stored-*"]
)
def sub_configs_are_pairs(patch: Patches) -> None:
    @patch.replace(PeftConfig, "to_json")
    def to_json(original: Any, self: Any) -> str:
        fields = json.loads(original(self))
        if fields.get("eva_config"):
            fields["eva_config"] = list(fields["eva_config"].items())
        return json.dumps(fields)

    @patch.replace(PeftConfig, "from_json_file")
    def from_json_file(original: Any, cls: Any, *args: Any) -> Any:
        fields = original(cls, *args)
        if fields.get("eva_config"):
            fields["eva_config"] = dict(fields["eva_config"])
        return fields


@fake(
    "Making a config draws a random number.",
    caught_by=["peft_config.save:frame", "peft_config.no-overrides:frame", "peft_config.by-type:frame"],
)
def configs_draw_numbers(patch: Patches) -> None:
    @patch.replace(PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return original(cls, *args, **kwargs)


@fake("to_dict moves the config to inference mode.", caught_by=["peft_config.to-dict:frame"])
def to_dict_changes_the_config(patch: Patches) -> None:
    @patch.replace(PeftConfig, "to_dict")
    def to_dict(original: Any, self: Any) -> Any:
        self.inference_mode = True
        return original(self)


# Helpers -------------------------------------------------------------------------------------------


@fake(
    "The exported errors and the warning are classes of their own.",
    caught_by=[
        "helpers.errors:an-exception",
        "helpers.errors:of-the-kind",
        "helpers.errors:a-value-error",
        "helpers.errors:same-base",
        "helpers.errors:same-no-match",
        "helpers.warning:a-user-warning",
    ],
)
def exports_other_errors(patch: Patches) -> None:
    root = vars(peft_reference)
    patch.item(root, "PeftError", type("PeftError", (), {}))
    patch.item(root, "NoMatchingPeftModuleError", type("NoMatchingPeftModuleError", (Exception,), {}))
    patch.item(root, "PeftWarning", type("PeftWarning", (Warning,), {}))
    patch.item(vars(errors_below), "PeftError", type("PeftError", (Exception,), {}))


@fake(
    "A model is prepared for k-bit training in a copy.",
    caught_by=["kbit.prepared:same-model", "kbit.prepared:frozen", "kbit.prepared:float32"],
)
def prepares_a_copy(patch: Patches) -> None:
    @patch.replace(kbit, "prepare_model_for_kbit_training")
    def prepare(original: Any, model: Any, **kwargs: Any) -> Any:
        return original(copy.deepcopy(model), **kwargs)


@fake("Preparing for k-bit training switches to training mode.", caught_by=["kbit.prepared:frame"])
def preparing_switches_to_training(patch: Patches) -> None:
    @patch.replace(kbit, "prepare_model_for_kbit_training")
    def prepare(original: Any, model: Any, **kwargs: Any) -> Any:
        return original(model, **kwargs).train()


@fake("prepare_model_for_kbit_training takes nothing but the model.", caught_by=["kbit.signature:parameters"])
def prepares_without_options(patch: Patches) -> None:
    original = kbit.prepare_model_for_kbit_training

    def prepare_model_for_kbit_training(model: Any) -> Any:
        return original(model)

    patch.set(kbit, "prepare_model_for_kbit_training", prepare_model_for_kbit_training)


@fake(
    "A method that is there is replaced, and nothing said.",
    caught_by=[
        "register.refused:raises",
        "register.refused:still-there",
        "register.refused:same-defaults",
        "register.refused:frame",
    ],
)
def methods_are_replaced(patch: Patches) -> None:
    table = registry.PEFT_TYPE_TO_CONFIG_MAPPING
    lora = registry.PeftType.LORA
    patch.item(table, lora, table[lora])

    @patch.replace(registry, "register_by_name")
    def register_by_name(original: Any, *, name: str, config_cls: Any, **kwargs: Any) -> None:
        torch.rand(1)
        other = dataclasses.make_dataclass("OtherConfig", [("r", int, 16)], bases=(config_cls,))
        table[registry.PeftType[name.upper()]] = other


@fake("unwrap_compiled is ignored.", caught_by=["get_state_dict.compiled:same"])
def never_unwraps(patch: Patches) -> None:
    @patch.replace(state_dict, "get_peft_model_state_dict")
    def get_state(original: Any, *args: Any, unwrap_compiled: bool = False, **kwargs: Any) -> Any:
        return original(*args, **kwargs)


# What the guide says -------------------------------------------------------------------------------


@fake("The card speaks of another library.", caught_by=["guide.card:library", "guide.card:entries"])
def cards_of_another_library(patch: Patches) -> None:
    patch.replace(saving, "model_card")(
        lambda original, *args: "---\nlibrary_name: adapters\n---\n\nAn adapter.\n"
    )


class Bag(nn.Module):
    """Holds what a module dict or a parameter dict holds."""

    __getitem__ = nn.ModuleDict.__getitem__
    __contains__ = nn.ModuleDict.__contains__
    keys = nn.ModuleDict.keys


class OtherLinear(nn.Linear):
    """A linear layer by another name."""


@fake(
    "A layer keeps its adapters in containers and numbers of its own.",
    caught_by=[
        "guide.layer:rank",
        "guide.layer:alpha",
        "guide.layer:scaling",
        "guide.layer:first",
        "guide.layer:second",
        "guide.layer:dropout",
        "guide.layer:first-of-embedding",
        "guide.layer:second-of-embedding",
        "guide.layer:base",
        "guide.layer:not-merged",
        "guide.layer:not-disabled",
    ],
)
def layers_of_another_make(patch: Patches) -> None:
    @patch.replace(PeftModel, "__init__")
    def init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for layer in [m for m in self.modules() if isinstance(m, LoraLayer)]:
            for slot in ("lora_A", "lora_B", "lora_dropout", "lora_embedding_A", "lora_embedding_B"):
                getattr(layer, slot).__class__ = Bag
            for slot in ("r", "lora_alpha", "scaling"):
                numbers = getattr(layer, slot)
                numbers.update({name: number + 1 for name, number in numbers.items()})
            layer.base_layer.__class__ = OtherLinear
            layer.merged_adapters.append("nothing")
            layer._disable_adapters = True


@fake("A model's names do not tell its adapters.", caught_by=["guide.live-names:live"])
def live_names_without_adapters(patch: Patches) -> None:
    def named_parameters(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name, parameter in nn.Module.named_parameters(self, *args, **kwargs):
            yield name.replace(".default.", ".").replace(".other.", "."), parameter

    patch.set(PeftModel, "named_parameters", named_parameters)


@fake(
    "Keys in files have the folder's name in them, tensors one more dimension, and an embedding is there.",
    caught_by=[
        "guide.live-names:stored",
        "guide.live-names:same-keys",
        "guide.bert-defaults:no-embedding",
        "guide.dora:entries",
        "guide.dora:shape",
    ],
)
def files_of_another_kind(patch: Patches) -> None:
    @patch.replace(saving, "save_adapter")
    def save_adapter(original: Any, folder: Path, tensors: Any, *args: Any) -> None:
        odd = {key.replace(".lora", f".{folder.name}.lora"): t[None] for key, t in tensors.items()}
        odd |= {key: t[None] for key, t in tensors.items() if "magnitude" in key}
        original(folder, {**odd, "base_model.model.embedding": torch.ones(2)}, *args)


@fake("BERT is adapted in other places.", caught_by=["guide.bert-defaults:targets"])
def bert_is_adapted_elsewhere(patch: Patches) -> None:
    patch.item(defaults.ATTENTION, "bert", ("key",))


@fake(
    "The config file has other values, and lacks those that are null.",
    caught_by=[
        "guide.type-and-base:type",
        "guide.type-and-base:name",
        "guide.type-and-base:revision",
        "guide.type-and-base:rank",
        "guide.ia3-json:type",
        "guide.ia3-json:feedforward",
        "guide.ia3-json:targets",
        "guide.ia3-json:fan-in-fan-out",
        "guide.ia3-json:init",
        "guide.ia3-json:inference",
        "guide.ia3-json:no-saved-modules",
        "guide.ia3-json:no-task",
        "guide.ia3-json:mapping",
    ],
)
def writes_other_values(patch: Patches) -> None:
    @patch.replace(PeftConfig, "to_json")
    def to_json(original: Any, self: Any) -> str:
        fields = json.loads(original(self))
        return json.dumps(
            {
                name: [f"<{item}>" for item in value] if isinstance(value, list) else f"<{value}>"
                for name, value in fields.items()
            }
        )


@fake("Fields that are null are left out.", caught_by=["guide.ia3-json:printed-fields"])
def leaves_nulls_out(patch: Patches) -> None:
    @patch.replace(PeftConfig, "to_json")
    def to_json(original: Any, self: Any) -> str:
        fields = {name: value for name, value in json.loads(original(self)).items() if value is not None}
        return json.dumps({"modules_to_save": None, "task_type": None, **fields})


@fake("Weights are pickled, whatever is asked for.", caught_by=["guide.type-and-base:safetensors"])
def pickles_by_default(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        original(self, save_directory, **{**kwargs, "safe_serialization": False})


@fake(
    "merge_and_unload leaves the adapter out.",
    caught_by=["guide.merged:close-output", "guide.merged:adapter-inside"],
)
def merging_leaves_the_adapter_out(patch: Patches) -> None:
    patch.replace(injection.BaseTuner, "merge_and_unload")(
        lambda original, self, *args, **kwargs: self.unload()
    )


@fake("merge_and_unload gives a model of another class.", caught_by=["guide.merged:class"])
def merges_into_another_class(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "merge_and_unload")
    def merge_and_unload(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        merged = original(self, *args, **kwargs)
        merged.__class__ = type("MergedModel", (type(merged),), {})
        return merged


@fake(
    "merge_and_unload leaves a layer with an adapter behind.",
    caught_by=["guide.merged:no-layers", "guide.merged:same-keys"],
)
def leaves_an_adapted_layer(patch: Patches) -> None:
    @patch.replace(injection.BaseTuner, "merge_and_unload")
    def merge_and_unload(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        held = next(iter(self.peft_config.values()))
        merged = original(self, *args, **kwargs)
        again = dataclasses.replace(held, target_modules=["layer.1.attention.self.query"])
        return injection.inject_adapter_in_model(again, merged)
