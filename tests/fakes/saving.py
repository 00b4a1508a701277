"""Faults of adapters on disk: files, names, fields, loading, damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft_reference import config, model, saving, state_dict
from peft_reference.methods import lora
from peft_reference.model import PeftModel
from torch import nn

from .fake import Patches, fake

# Files ---------------------------------------------------------------------------------------------


@fake("The weights are saved under another file name.", caught_by=["checkpoint.files:three-files"])
def saves_under_another_name(patch: Patches) -> None:
    patch.set(saving, "SAFETENSORS_WEIGHTS_NAME", "pytorch_lora_weights.safetensors")


@fake(
    "The default adapter is saved into a sub-folder too.",
    caught_by=["checkpoint.files:three-files", "checkpoint.selected:default-there"],
)
def saves_default_in_a_subfolder(patch: Patches) -> None:
    @patch.replace(saving, "adapter_folder")
    def adapter_folder(original: Any, save_directory: Any, adapter_name: str) -> Path:
        return Path(save_directory) / adapter_name

    @patch.replace(saving, "find_file")
    def find_file(original: Any, model_id: Any, filename: str, subfolder: Any = None, **kwargs: Any) -> Any:
        return original(model_id, filename, subfolder, **kwargs) or original(
            model_id, filename, subfolder or "default", **kwargs
        )


@fake(
    "Every adapter is saved into the folder itself, over the others.",
    caught_by=["checkpoint.selected:other-there"],
)
def saves_all_in_one_folder(patch: Patches) -> None:
    @patch.replace(saving, "adapter_folder")
    def adapter_folder(original: Any, save_directory: Any, adapter_name: str) -> Path:
        return Path(save_directory)


@fake(
    "The config of every adapter is written at the top.",
    caught_by=["checkpoint.name-folder:in-its-folder", "checkpoint.name-folder:none-at-the-top"],
)
def saves_configs_at_the_top(patch: Patches) -> None:
    @patch.replace(saving, "write_files")
    def write_files(original: Any, folder: Path, files: dict[str, Any]) -> None:
        fields = {name: content for name, content in files.items() if name.endswith(".json")}
        top = folder.parent if folder.name == "other" else folder
        original(folder, {name: content for name, content in files.items() if name not in fields})
        original(top, fields)


@fake(
    "selected_adapters is ignored.",
    caught_by=["checkpoint.selected:default-not", "checkpoint.selected:other-not"],
)
def saves_unselected_adapters(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        kwargs.pop("selected_adapters", None)
        original(self, save_directory, **kwargs)


@fake("safe_serialization is ignored, files are pickled.", caught_by=["checkpoint.files:three-files"])
def always_pickles(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        original(self, save_directory, **{**kwargs, "safe_serialization": False})


@fake("Every process writes.", caught_by=["checkpoint.not-main-process:nothing-written"])
def every_process_writes(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        original(self, save_directory, **{**kwargs, "is_main_process": True})


@fake(
    "save_pretrained writes nothing.",
    caught_by=["checkpoint.files:three-files", "checkpoint.selected:other-there"],
)
def writes_nothing(patch: Patches) -> None:
    patch.replace(saving, "write_files")(
        lambda original, folder, files: folder.mkdir(parents=True, exist_ok=True)
    )


@fake("No model card is written.", caught_by=["checkpoint.files:three-files"])
def writes_no_card(patch: Patches) -> None:
    patch.replace(saving, "save_model_card")(lambda original, folder, config, tags: None)


@fake("The base model's weights are saved beside the adapter's.", caught_by=["checkpoint.files:three-files"])
def saves_the_base_model(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        original(self, save_directory, **kwargs)
        saving.save_file(
            {k: t.clone() for k, t in self.get_base_model().state_dict().items()},
            Path(save_directory, "model.safetensors"),
        )


@fake(
    "Weights are saved in float16.",
    caught_by=["checkpoint.tensors:same-tensors", "load.round-trip:same-output"],
)
def files_in_half_precision(patch: Patches) -> None:
    @patch.replace(saving, "_independent")
    def _independent(original: Any, tensors: Any) -> Any:
        return {key: tensor.half() for key, tensor in original(tensors).items()}


@fake(
    "Saving freezes and moves the live config to inference mode.",
    caught_by=["config_json.inference-mode:live"],
    points=[{"inference": False}],
)
def saving_changes_the_live_config(patch: Patches) -> None:
    @patch.replace(PeftModel, "_config_to_save")
    def _config_to_save(original: Any, self: Any, held: Any) -> Any:
        held.inference_mode = True
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        return original(self, held)


@fake(
    "A folder that is a file is overwritten, an unknown adapter is passed over.",
    caught_by=["checkpoint.selected-unknown:raises"],
)
def saving_never_refuses(patch: Patches) -> None:
    @patch.replace(PeftModel, "save_pretrained")
    def save_pretrained(original: Any, self: Any, save_directory: Any, **kwargs: Any) -> None:
        if Path(save_directory).is_file():
            Path(save_directory).unlink()
        if selected := kwargs.get("selected_adapters"):
            kwargs["selected_adapters"] = [name for name in selected if name in self.peft_config]
            if not kwargs["selected_adapters"]:
                return
        original(self, save_directory, **kwargs)


# The config file -----------------------------------------------------------------------------------


def written(patch: Patches, change: Any) -> None:
    """Let `change(fields)` stand in for what the config file holds."""

    @patch.replace(config.PeftConfig, "to_json")
    def to_json(original: Any, self: Any) -> str:
        return json.dumps(change(json.loads(original(self))))


@fake(
    "The config file holds the defaults of the method, not what the config says.",
    caught_by=[
        "config_json.values:r",
        "config_json.values:alpha",
        "checkpoint.several:first-config",
        "checkpoint.several:second-config",
        "checkpoint.several:second-scaling",
    ],
)
def writes_default_fields(patch: Patches) -> None:
    @patch.replace(PeftModel, "_config_to_save")
    def _config_to_save(original: Any, self: Any, held: Any) -> Any:
        return type(held)(target_modules=held.target_modules)


@fake(
    "Every value of the config file is written as Python would print it.",
    caught_by=[
        "config_json.lora-fields:r",
        "config_json.lora-fields:bias",
        "config_json.values:targets",
        "config_json.inference-mode:stored",
    ],
)
def writes_values_as_text(patch: Patches) -> None:
    def printed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: printed(inner) for key, inner in value.items()}
        return [printed(inner) for inner in value] if isinstance(value, list) else repr(value)

    written(patch, printed)


@fake(
    "Empty mappings of the config file are written as null.",
    caught_by=["config_json.lora-fields:rank-pattern"],
)
def writes_empty_mappings_as_null(patch: Patches) -> None:
    written(patch, lambda fields: {key: None if value == {} else value for key, value in fields.items()})


@fake(
    "Options that the implementation lacks are left out of the config file.",
    caught_by=["config_json.lora-fields:documented-fields", "config_json.newer-fields:fields"],
)
def writes_known_options_only(patch: Patches) -> None:
    lacks = (
        "loftq_config",
        "layer_replication",
        "megatron_config",
        "megatron_core",
        "trainable_token_indices",
        "lora_bias",
    )
    written(patch, lambda fields: {key: value for key, value in fields.items() if key not in lacks})


@fake("The runtime config is written.", caught_by=["config_json.newer-fields:no-runtime-config"])
def writes_the_runtime_config(patch: Patches) -> None:
    written(patch, lambda fields: {**fields, "runtime_config": {"ephemeral_gpu_offload": False}})


@fake(
    "The config file says what the live config says of inference_mode.",
    caught_by=["config_json.inference-mode:stored"],
    points=[{"inference": False}],
)
def writes_the_live_inference_mode(patch: Patches) -> None:
    import dataclasses

    @patch.replace(PeftModel, "_config_to_save")
    def _config_to_save(original: Any, self: Any, held: Any) -> Any:
        return dataclasses.replace(original(self, held), inference_mode=held.inference_mode)


@fake(
    "auto_mapping is not written, the base model's class name stands where its name belongs.",
    caught_by=["config_json.base-model:no-name", "config_json.base-model:mapping"],
)
def writes_the_class_as_the_name(patch: Patches) -> None:
    def changed(fields: dict[str, Any]) -> dict[str, Any]:
        name = (fields["auto_mapping"] or {}).get("base_model_class")
        return {
            **fields,
            "base_model_name_or_path": name,
            "revision": "main",
            "auto_mapping": {"base_model": name, "base_model_class": None},
        }

    written(patch, changed)


@fake(
    "Base model and revision are left out of the file.",
    caught_by=["config_json.named-base:name", "config_json.named-base:revision"],
)
def writes_no_base_model(patch: Patches) -> None:
    written(patch, lambda fields: {**fields, "base_model_name_or_path": None, "revision": None})


@fake("Sets are written as text.", caught_by=["config_json.values:targets-list"])
def writes_sets_as_text(patch: Patches) -> None:
    written(
        patch,
        lambda fields: {
            key: ",".join(map(str, v)) if isinstance(v, list) else v for key, v in fields.items()
        },
    )


@fake(
    "A config is read as the base class, with the fields that all methods share.",
    caught_by=["config_json.round-trip:class"],
)
def reads_the_base_class(patch: Patches) -> None:
    @patch.replace(config.PeftConfig, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(cls, *args, **kwargs)
        found.__class__ = Read
        return found

    class Read(lora.LoraConfig):
        pass


@fake(
    "A config that is read has the defaults of the method.",
    caught_by=["config_json.round-trip:r", "config_json.round-trip:alpha"],
)
def reads_defaults(patch: Patches) -> None:
    @patch.replace(config.PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, data: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        found = original(cls, data, *args, **kwargs)
        return type(found)(target_modules=found.target_modules, peft_type=found.peft_type)


@fake(
    "alpha is 16 where the file does not say.",
    caught_by=["config_json.minimal:defaults", "config_json.minimal:same-output"],
)
def reads_missing_fields_as_other_defaults(patch: Patches) -> None:
    @patch.replace(config.PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, data: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return original(cls, {"lora_alpha": 16, **data}, *args, **kwargs)


@fake(
    "Unknown fields of a config file are dropped in silence.", caught_by=["config_json.unknown-fields:warns"]
)
def drops_unknown_fields_silently(patch: Patches) -> None:
    import warnings

    @patch.replace(config.PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return original(cls, *args, **kwargs)


@fake(
    "A config file with unknown fields loses its alpha.", caught_by=["config_json.unknown-fields:same-output"]
)
def unknown_fields_spoil_the_rest(patch: Patches) -> None:
    import dataclasses

    @patch.replace(config.PeftConfig, "from_dict")
    def from_dict(original: Any, cls: Any, data: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        known = {f.name for f in dataclasses.fields(lora.LoraConfig)}
        if set(data) - known:
            found = original(cls, data, *args, **kwargs)
            found.lora_alpha = 8
            return found
        return original(cls, data, *args, **kwargs)


@fake(
    "Of each list of names only the first is read, and the type as it is spelled in Python.",
    caught_by=[
        "config_json.round-trip:targets",
        "config_json.round-trip:excluded",
        "config_json.round-trip:peft-type",
    ],
)
def reads_half_of_the_config(patch: Patches) -> None:
    @patch.replace(config.PeftConfig, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(cls, *args, **kwargs)
        found.target_modules = set(sorted(found.target_modules)[:1])
        found.exclude_modules = set(sorted(found.exclude_modules or ())[1:])
        found.peft_type = "PeftType.LORA"
        return found


# Loading -------------------------------------------------------------------------------------------


def loaded(patch: Patches, change: Any) -> None:
    """Call `change(model, adapter)` after an adapter was loaded."""

    @patch.replace(PeftModel, "_load")
    def _load(original: Any, self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        outcome = original(self, adapter_name, *args, **kwargs)
        change(self, adapter_name)
        return outcome


@fake(
    "Loading adds the adapter and forgets its weights.",
    caught_by=[
        "load.round-trip:same-output",
        "load.transformers:same-output",
        "load.transformers:same-weights",
        "load.several:first-output",
        "load.subfolder:same-output",
        "load.no-model-card:same-output",
        "load.extras:same-output",
        "bad_files.foreign-keys:lin0-loaded",
    ],
)
def loads_no_weights(patch: Patches) -> None:
    @patch.replace(model, "_read_weights")
    def _read_weights(original: Any, *args: Any, **kwargs: Any) -> Any:
        return {key: torch.zeros_like(tensor) for key, tensor in original(*args, **kwargs).items()}


@fake(
    "A loaded adapter trains although nobody asked for it.",
    caught_by=["load.frozen:nothing-trains", "load.adapter-frozen:other"],
    points=[{"trainable": False}],
)
def loaded_adapters_train(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(cls, *args, **kwargs)
        made.set_requires_grad(list(made.peft_config))
        return made

    @patch.replace(PeftModel, "load_adapter")
    def load_adapter(
        original: Any, self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        outcome = original(self, model_id, adapter_name, *args, **kwargs)
        self.set_requires_grad(adapter_name)
        return outcome


@fake("is_trainable is ignored.", caught_by=["load.adapter-frozen:other"], points=[{"trainable": True}])
def ignores_is_trainable(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("is_trainable", None)
        return original(cls, *args, **kwargs)

    @patch.replace(PeftModel, "load_adapter")
    def load_adapter(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("is_trainable", None)
        return original(self, *args, **kwargs)


@fake(
    "load_adapter activates what it loads.",
    caught_by=["load.several:first-still-active", "load.adapter-frozen:not-active"],
)
def load_adapter_activates(patch: Patches) -> None:
    @patch.replace(PeftModel, "load_adapter")
    def load_adapter(
        original: Any, self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        outcome = original(self, model_id, adapter_name, *args, **kwargs)
        self.set_adapter(adapter_name)
        return outcome


@fake(
    "A loaded adapter is called default, whatever name is given.",
    caught_by=["load.round-trip:named"],
    points=[{"name": "other"}],
)
def loads_as_default(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("adapter_name", None)
        return original(cls, model, model_id, *args, **kwargs)


@fake(
    "from_pretrained returns a module that forwards to a PeftModel and is none.",
    caught_by=["load.round-trip:class"],
)
def loads_a_lookalike(patch: Patches) -> None:
    class Loaded(nn.Module):
        def __init__(self, inside: Any) -> None:
            super().__init__()
            self.__dict__["inside"] = inside

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["inside"], name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.__dict__["inside"](*args, **kwargs)

    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        return Loaded(original(cls, *args, **kwargs))


@fake(
    "Adapters that are loaded are not raised to float32.",
    caught_by=["load.round-trip:adapter-float32"],
    points=[{"dtype": "bfloat16"}],
)
def loaded_adapters_are_not_cast(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        return original(cls, *args, **{**kwargs, "autocast_adapter_dtype": False})


@fake(
    "The config of an adapter that is loaded for training says that it is for inference.",
    caught_by=["load.trainable:config-says-so"],
)
def trainable_config_says_inference(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(cls, *args, **kwargs)
        made.active_peft_config.inference_mode = True
        return made


@fake(
    "load_peft_weights returns what it read in float16, without the prefix.",
    caught_by=["checkpoint.read-weights:same"],
)
def reads_weights_in_half_precision(patch: Patches) -> None:
    @patch.replace(saving, "load_peft_weights")
    def load_peft_weights(original: Any, *args: Any, **kwargs: Any) -> Any:
        return {key: tensor.half() for key, tensor in original(*args, **kwargs).items()}


@fake(
    "Sub-folders are ignored on loading.",
    caught_by=["load.subfolder:same-output", "load.several:second-output"],
)
def ignores_subfolders(patch: Patches) -> None:
    @patch.replace(saving, "find_file")
    def find_file(original: Any, model_id: Any, filename: str, subfolder: Any = None, **kwargs: Any) -> Any:
        return original(model_id, filename, None, **kwargs) or original(
            model_id, filename, subfolder, **kwargs
        )


@fake("The config that is passed to from_pretrained is ignored.", caught_by=["load.config-argument:scaling"])
def ignores_the_given_config(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("config", None)
        return original(cls, *args, **kwargs)


@fake("from_pretrained works on a copy of the base model.", caught_by=["load.round-trip:in-place"])
def loads_into_a_copy(patch: Patches) -> None:
    import copy

    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return original(cls, copy.deepcopy(model), *args, **kwargs)


@fake(
    "Loading through the meta device leaves the adapter there.",
    caught_by=[
        "low_memory.from-pretrained:nothing-on-meta",
        "low_memory.load-adapter:nothing-on-meta",
        "load.extras:nothing-on-meta",
    ],
)
def loading_leaves_meta(patch: Patches) -> None:
    from peft_reference import layer

    @patch.replace(model, "set_peft_model_state_dict")
    def set_peft_model_state_dict(
        original: Any, peft_model: Any, weights: Any, name: str, ignore: bool, low: bool
    ) -> Any:
        if low:
            return state_dict.IncompatibleKeys([], [])
        return original(peft_model, weights, name, ignore, low)

    @patch.replace(layer.BaseTunerLayer, "forward")
    def forward(original: Any, self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if any(p.is_meta for p in self.parameters()):
            return self.base_layer(x, *args, **kwargs)
        return original(self, x, *args, **kwargs)


@fake(
    "A loaded adapter keeps the type of the file.",
    caught_by=["low_memory.dtype-without-autocast:layer-dtype"],
)
def loading_keeps_the_files_type(patch: Patches) -> None:
    def as_saved(held: Any, adapter: str) -> None:
        for name, parameter in held.named_parameters():
            if f".{adapter}." in f"{name}." and "lora_" in name:
                parameter.data = parameter.data.float()

    loaded(patch, as_saved)


@fake(
    "A folder without weights gives an adapter as it was initialised.",
    caught_by=[
        "bad_files.no-weights:raises",
        "bad_files.truncated:raises*",
        "bad_files.nonsense-weights:raises",
    ],
)
def unreadable_weights_are_none(patch: Patches) -> None:
    @patch.replace(saving, "load_peft_weights")
    def load_peft_weights(original: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except (ValueError, OSError):
            return {}


@fake(
    "An unreadable config file counts as a LoRA config for every linear layer.",
    caught_by=["bad_files.broken-json:raises*", "bad_files.type-missing:raises*"],
)
def unreadable_configs_are_lora(patch: Patches) -> None:
    @patch.replace(config.PeftConfig, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, *args, **kwargs)
        except (ValueError, TypeError):
            return lora.LoraConfig(target_modules="lin0|layer|head|layers.0.attn.q", r=4)


@fake(
    "The base model is wrapped before the files are read, and stays so after an error.",
    caught_by=[
        "bad_files.truncated:not-adapted",
        "bad_files.no-weights:not-adapted",
        "bad_files.broken-json:not-adapted",
    ],
    like="peft 0.21.2",
)
def wraps_before_reading(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, model, *args, **kwargs)
        except Exception:
            if not hasattr(model, "peft_config"):
                cls(model, lora.LoraConfig(target_modules=r"lin0|lin1|layer|head|.*attn\.[qv]|linear"))
            raise


@fake(
    "A failing load_adapter leaves config and layers of the new adapter behind.",
    caught_by=[
        "bad_files.load-adapter:nothing-of-first",
        "bad_files.load-adapter:nothing-of-second",
        "bad_files.load-adapter:frame",
    ],
    like="peft 0.21.2",
)
def failed_load_leaves_the_adapter(patch: Patches) -> None:
    @patch.replace(PeftModel, "load_adapter")
    def load_adapter(
        original: Any, self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return original(self, model_id, adapter_name, *args, **kwargs)
        except Exception:
            if adapter_name not in self.peft_config:
                self.add_adapter(adapter_name, lora.LoraConfig(target_modules=r"lin0|layer"))
            raise


@fake(
    "Weights of layers that the config does not target adapt those layers as well.",
    caught_by=["bad_files.foreign-keys:lin1-not-adapted"],
)
def foreign_keys_add_layers(patch: Patches) -> None:
    @patch.replace(PeftModel, "from_pretrained")
    def from_pretrained(original: Any, cls: Any, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        weights = saving.load_peft_weights(model_id)
        found: Any = kwargs.get("config") or config.PeftConfig.from_pretrained(model_id)
        owners = {
            key.removeprefix("base_model.model.").split(".lora_")[0] for key in weights if ".lora_" in key
        }
        if not isinstance(found.target_modules, str):
            found.target_modules = {*found.target_modules, *owners}
        return original(cls, model, model_id, *args, **{**kwargs, "config": found})


@fake(
    "Where a weight does not fit, no weight is loaded.",
    caught_by=["bad_files.size-mismatch-ignored:fitting-loaded"],
)
def ignored_mismatch_loads_nothing(patch: Patches) -> None:
    @patch.replace(model, "set_peft_model_state_dict")
    def set_peft_model_state_dict(
        original: Any, peft_model: Any, weights: Any, name: str, ignore: bool, low: bool
    ) -> Any:
        return original(peft_model, {} if ignore else weights, name, ignore, low)


@fake(
    "Weights that do not fit are cut to size.",
    caught_by=["bad_files.size-mismatch-ignored:misfitting-kept", "bad_files.size-mismatch:raises"],
)
def cuts_weights_to_size(patch: Patches) -> None:
    @patch.replace(model, "set_peft_model_state_dict")
    def set_peft_model_state_dict(
        original: Any, peft_model: Any, weights: Any, name: str, ignore: bool, low: bool
    ) -> Any:
        shapes = {key.replace(f".{name}", ""): p.shape for key, p in peft_model.named_parameters()}
        cut = {}
        for key, tensor in weights.items():
            want = shapes.get(key, tensor.shape)
            if len(want) == tensor.dim() and want != tensor.shape:
                full = torch.ones(want, dtype=tensor.dtype)
                inside = tuple(slice(0, min(a, b)) for a, b in zip(want, tensor.shape, strict=True))
                full[inside] = tensor[inside]
                tensor = full
            cut[key] = tensor
        return original(peft_model, cut, name, ignore, low)
