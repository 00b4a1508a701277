"""`PeftModel`: a model with adapters that can be switched, merged, saved and loaded; and `get_peft_model`."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import saving
from .adapters import cast_adapter_dtype, holders
from .config import CONFIG_NAME, PeftConfig
from .errors import PeftWarning
from .injection import BaseTuner, Injection
from .layer import BaseTunerLayer
from .matching import is_transformers_model
from .registry import PeftType, method_name, tuner_for
from .state_dict import (
    IncompatibleKeys,
    adapter_entries,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from .status import TunerLayerStatus, TunerModelStatus, get_layer_status, get_model_status


class AdaptedModel(nn.Module):
    """What `PeftModel` and `PeftMixedModel` have in common: a model that adapters were added to, in place.

    `base_model` is the tuner and `base_model.model` the model that was passed, so every parameter's name
    begins with `base_model.model.`. Attributes that are not found here are looked up in the tuner and in the
    model. Errors of the constructor are those of `inject_adapter_in_model`; the model is unchanged after
    one.
    """

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> None:
        super().__init__()
        tuner_cls = self.tuner_for(peft_config)
        _warn_about_name(adapter_name, tuner_cls.method_for(peft_config))
        self.base_model = tuner_cls(model, peft_config, adapter_name, low_cpu_mem_usage)
        self.training = model.training
        cast_adapter_dtype(model, adapter_name, autocast_adapter_dtype)
        self._base_changed = peft_config.changes_base  # for good: deleting the adapter brings nothing back

    @classmethod
    def tuner_for(cls, config: PeftConfig) -> type[BaseTuner]:
        """The class of `base_model`; ValueError if this config's method is not for this kind of model."""
        return tuner_for(config, cls.__name__)

    # Looking -------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Adapter name -> config."""
        return self.base_model.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """The names of the active adapters; [] when there are none."""
        return self.base_model.active_adapters

    @property
    def modules_to_save(self) -> set[str] | None:
        """The names in all adapters' `modules_to_save`, None if there are none."""
        return {
            name for c in self.peft_config.values() for name in getattr(c, "modules_to_save", None) or ()
        } or None

    def get_base_model(self) -> nn.Module:
        """The model that was passed."""
        return self.base_model.model

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether any adapter acts: one is active, and the adapters are not disabled."""
        return any(
            not holder.disable_adapters and any(map(holder.has_adapter, holder.active_adapters))
            for holder in holders(self.base_model)
        )

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """The status of each adapted layer, in the model's order."""
        return get_layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """The status of the whole model."""
        return get_model_status(self)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(number of trainable parameters, number of all)."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print both numbers and the percentage."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: "
            f"{100 * trainable / total:.4f}"
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's output.

        `adapter_names` names an adapter for each sample of the batch, in place of the active ones;
        `__base__` stands for none. ValueError as `BaseTuner.per_sample`, and for a wrong number of names.
        """
        if "adapter_names" not in kwargs:
            return self.base_model(*args, **kwargs)
        with self.base_model.per_sample(kwargs.pop("adapter_names")):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the base model's `generate` returns; AttributeError without one.

        `adapter_names` as in `forward`, one for each prompt.
        """
        copies = _copies(self.get_base_model(), kwargs)
        with self.base_model.per_sample(kwargs.pop("adapter_names", None), copies):
            return self.base_model.generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "base_model" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.base_model, name)

    # Adapters ------------------------------------------------------------------------------------

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add an adapter, inactive and frozen until `set_adapter`; nothing else changes.

        ValueError for a name that exists, a method that cannot join the others, or a second adapter with
        biases.
        """
        self._add(adapter_name, peft_config, low_cpu_mem_usage, autocast_adapter_dtype)

    def _add(
        self, adapter_name: str, config: PeftConfig, low_cpu_mem_usage: bool, autocast: bool
    ) -> Injection:
        if adapter_name in self.peft_config:
            raise ValueError(f"An adapter '{adapter_name}' already exists.")
        _warn_about_name(adapter_name, self.base_model.method_for(config))
        base_changed = self._base_changed or config.changes_base
        if base_changed:
            warnings.warn(
                "An adapter that begins by changing the base weights (PiSSA, CorDA, OLoRA, ...) should be "
                "alone: save it as plain LoRA with `path_initial_model_for_weight_conversion`.",
                stacklevel=4,
            )
        done = self.base_model.add_adapter(adapter_name, config, low_cpu_mem_usage)
        cast_adapter_dtype(self.get_base_model(), adapter_name, autocast)
        self._base_changed = base_changed
        return done

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters, active or not."""
        self.base_model.set_requires_grad(adapter_names, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its config; ValueError if it does not exist or is merged."""
        self.base_model.delete_adapter(adapter_name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Compute the base model's output inside the `with` block; afterwards everything is as before.

        Blocks can be nested. If only some layers were disabled before, a warning is given and all are
        enabled after.
        """
        found = holders(self.get_base_model())
        disabled = [holder for holder in found if holder.disable_adapters]
        if found and len(disabled) == len(found):
            yield
            return
        if disabled:
            warnings.warn(
                "Some adapter layers were disabled already, all will be enabled afterwards.", stacklevel=3
            )
        flags = [
            (p, p.requires_grad) for h in found for a in h.all_adapters() for p in h.adapter_parameters(a)
        ]
        self.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self.base_model.enable_adapter_layers()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    # Saving and loading --------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write each adapter's weights, config and model card; 'default' into the folder, others into
        sub-folders.

        `path_initial_model_for_weight_conversion`: the adapter as it began; PiSSA, CorDA, OLoRA, LoRA-GA and
        LoftQ are then written as plain LoRA of twice the rank, for the base model as it was.

        `state_dict=` (live keys) is used instead of the model's own tensors. Files appear complete or not at
        all. ValueError if the path is a file, an adapter is unknown, or its name would lead out of the
        folder.
        """
        if os.path.isfile(save_directory):
            raise ValueError(f"{save_directory} is a file, and adapters are saved in a folder.")
        if path_initial_model_for_weight_conversion is not None:
            initial = saving.load_peft_weights(path_initial_model_for_weight_conversion)
        names = list(self.peft_config) if selected_adapters is None else list(selected_adapters)
        unknown = [name for name in names if name not in self.peft_config]
        if unknown:
            raise ValueError(f"selected_adapters names {unknown}; there are: {list(self.peft_config)}.")
        folders = {name: saving.adapter_folder(save_directory, name) for name in names}
        given: Any = kwargs.get("state_dict")
        embeddings: Any = save_embedding_layers
        state_dicts = {
            name: get_peft_model_state_dict(self, given, name, save_embedding_layers=embeddings)
            for name in names
        }
        configs = {name: self._config_to_save(self.peft_config[name]) for name in names}
        if path_initial_model_for_weight_conversion is not None:
            for name in names:
                convert = self.base_model.method_for(configs[name]).as_plain
                if convert is None:
                    raise ValueError(
                        "path_initial_model_for_weight_conversion is for LoRA, not for "
                        f"{configs[name].peft_type}."
                    )
                configs[name], state_dicts[name] = convert(configs[name], state_dicts[name], initial)
        if not is_main_process:
            return
        for name, folder in folders.items():
            config = configs[name]
            saving.save_adapter(folder, state_dicts[name], config, safe_serialization)
        saving.save_model_card(Path(save_directory), config, self._card_tags(config))

    def _config_to_save(self, config: PeftConfig) -> PeftConfig:
        """A copy of the config as files have it: for inference, and naming the base model."""
        model = self.get_base_model()
        mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        return dataclasses.replace(
            config,
            inference_mode=True,
            base_model_name_or_path=config.base_model_name_or_path or saving.base_model_name(model),
            auto_mapping=mapping if config.task_type is None else None,
        )

    def _card_tags(self, config: PeftConfig) -> list[str]:
        base = config.base_model_name_or_path
        tags = [f"base_model:adapter:{base}"] if base else []
        tags.append(method_name(config.peft_type).lower())
        return [*tags, "transformers"] if is_transformers_model(self.get_base_model()) else tags

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Add a saved adapter to `model`, in place; frozen and in eval mode unless `is_trainable`.

        `config` replaces the saved one; weights are read to `torch_device`; `subfolder` and other `kwargs`
        say which files, as for `hf_hub_download`. ValueError for files that are missing or broken,
        RuntimeError for weights of other shapes (unless `ignore_mismatched_sizes=True`); the model is
        unchanged after an error.
        """
        if config is not None and not isinstance(config, PeftConfig):
            raise ValueError(f"config should be a PeftConfig, got a {type(config).__name__}.")
        if config is None:
            config = PeftConfig.from_pretrained(model_id, **kwargs).located(model_id, **kwargs)
        config.inference_mode = not is_trainable
        _set_offload(config, ephemeral_gpu_offload)
        weights = _read_weights(model_id, key_mapping, kwargs)
        wrapper_cls: Any = _class_for(config) if cls is PeftModel else cls
        with saving.naming(f"{CONFIG_NAME} of {model_id}"):
            peft_model = wrapper_cls(
                model,
                config,
                adapter_name,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
            )
        with saving.naming(f"adapter_model of {model_id}"):
            peft_model._load(
                adapter_name,
                weights,
                peft_model.base_model.injection,
                autocast_adapter_dtype,
                low_cpu_mem_usage,
                kwargs,
            )
        peft_model.base_model.injection.forget()
        return peft_model if is_trainable else peft_model.eval()

    def load_adapter(
        self,
        model_id: str | os.PathLike[str],
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> IncompatibleKeys:
        """Add a saved adapter, inactive; an existing name keeps its config and gets the weights.

        Returns `missing_keys` (of this adapter) and `unexpected_keys`. The model is put into eval mode
        unless `is_trainable`. Errors as `from_pretrained`, and ValueError for another PEFT type; the model
        is then unchanged.
        """
        done = None
        config = None
        if adapter_name not in self.peft_config:
            config = PeftConfig.from_pretrained(model_id, **kwargs)
            config.inference_mode = not is_trainable
            _set_offload(config, ephemeral_gpu_offload)
        weights = _read_weights(model_id, key_mapping, {**kwargs, "torch_device": torch_device})
        if config is not None:
            with saving.naming(f"{CONFIG_NAME} of {model_id}"):
                done = self._add(adapter_name, config, low_cpu_mem_usage, autocast_adapter_dtype)
        with saving.naming(f"adapter_model of {model_id}"):
            outcome = self._load(
                adapter_name, weights, done, autocast_adapter_dtype, low_cpu_mem_usage, kwargs
            )
        if is_trainable:
            self.set_requires_grad(adapter_name)
        else:
            self.eval()
        return outcome

    def _load(
        self,
        adapter_name: str,
        weights: dict[str, Tensor],
        injection: Injection | None,
        autocast: bool,
        low_cpu_mem_usage: bool,
        options: dict[str, Any],
    ) -> IncompatibleKeys:
        """Set the weights of an adapter that was just injected, or take the injection back."""
        ignore = options.get("ignore_mismatched_sizes", False)
        try:
            outcome = set_peft_model_state_dict(self, weights, adapter_name, ignore, low_cpu_mem_usage)
        except BaseException:
            if injection is not None:
                injection.undo()
            raise
        cast_adapter_dtype(self.get_base_model(), adapter_name, autocast)
        own = {entry.live for entry in adapter_entries(self, self.peft_config[adapter_name], adapter_name)}
        missing = [key for key in outcome.missing_keys if key in own]
        saving.warn_if_missing(missing)
        return IncompatibleKeys(missing, outcome.unexpected_keys)


class PeftModel(AdaptedModel):
    """A model with adapters of one method, in place.

    Subclasses for a task (in `tasks`) name the heads of their models, which are trained and saved whole with
    each adapter: the names are added to the config's `modules_to_save`.
    """

    head_names: ClassVar[tuple[str, ...]] = ()  # as models of the task call them

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> None:
        with self._heads_added(peft_config):
            super().__init__(model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        _prepare_for_training(model)
        self.peft_type: PeftType = peft_config.peft_type  # type: ignore[assignment]

    @property
    def active_adapter(self) -> str | None:
        """The name of the (first) active adapter; None when there is none."""
        return next(iter(self.active_adapters), None)

    @property
    def active_peft_config(self) -> PeftConfig:
        """The active adapter's config."""
        return self.peft_config[self.active_adapter]  # type: ignore[index]

    def _add(
        self, adapter_name: str, config: PeftConfig, low_cpu_mem_usage: bool, autocast: bool
    ) -> Injection:
        if config.peft_type != self.peft_type:
            raise ValueError(
                f"A {config.peft_type} adapter cannot join {self.peft_type} adapters in one PeftModel."
            )
        with self._heads_added(config):
            return super()._add(adapter_name, config, low_cpu_mem_usage, autocast)

    @contextmanager
    def _heads_added(self, config: Any) -> Iterator[None]:
        """The config names the task's heads among its `modules_to_save`, unless the block fails.

        A new list: the one that was given may belong to the caller.
        """
        given = getattr(config, "modules_to_save", None)
        missing = [name for name in self.head_names if name not in (given or ())]
        if missing:
            config.modules_to_save = [*(given or ()), *missing]
        try:
            yield
        except BaseException:
            if missing:
                config.modules_to_save = given
            raise

    @property
    def cls_layer_name(self) -> str:
        """The name of the model's head; AttributeError if this class has none or the model lacks it."""
        names = [name for name, _ in self.get_base_model().named_children() if name in self.head_names]
        if not names:
            raise AttributeError(f"A {type(self).__name__} of this model has no classification layer.")
        return names[0]

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make one adapter the active one, and trainable unless `inference_mode`; ValueError if it is
        unknown.
        """
        if not isinstance(adapter_name, str):
            raise TypeError(
                f"PeftModel.set_adapter takes one name, got {adapter_name!r}: to activate several "
                "adapters, call base_model.set_adapter."
            )
        self.base_model.set_adapter(adapter_name, inference_mode)


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> AdaptedModel:
    """Add an adapter to `model`, in place, and return it wrapped in the `PeftModel` of the config's task
    (`PeftMixedModel` if `mixed`).

    The config object is kept, not copied: the base model's name and `revision` are written into it. Float16
    and bfloat16 adapters become float32 if `autocast_adapter_dtype`. ValueError for an unknown PEFT type,
    for targets that are not found and for whatever else `inject_adapter_in_model` refuses; the model is
    unchanged after an error.
    """
    from .mixed import PeftMixedModel  # it is an AdaptedModel itself

    wrapper_cls: type[AdaptedModel] = PeftMixedModel if mixed else _class_for(peft_config)
    wrapper_cls.tuner_for(peft_config).method_for(peft_config)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        warnings.warn(
            "This model is modified for the second time. To start over with another config, call `.unload()` "
            "on its PeftModel.",
            PeftWarning,
            stacklevel=2,
        )
    if getattr(model, "peft_config", None):
        warnings.warn(
            "The model has a `peft_config` already and will hold several adapters.",
            PeftWarning,
            stacklevel=2,
        )
    old_name, new_name = peft_config.base_model_name_or_path, saving.base_model_name(model)
    if getattr(peft_config, "init_lora_weights", None) == "eva" and not low_cpu_mem_usage:
        warnings.warn(
            "EVA replaces the adapter's weights: low_cpu_mem_usage=True leaves memory for larger batches.",
            stacklevel=2,
        )
    if old_name is not None and old_name != new_name:
        warnings.warn(
            f"The config names the base model '{old_name}', and this one is '{new_name}', which is recorded.",
            PeftWarning,
            stacklevel=2,
        )
    if revision is not None and peft_config.revision not in (None, revision):
        warnings.warn(
            f"The config's revision {peft_config.revision} is replaced by {revision}.",
            PeftWarning,
            stacklevel=2,
        )
    peft_model = wrapper_cls(
        model,
        peft_config,
        adapter_name,
        autocast_adapter_dtype=autocast_adapter_dtype,
        low_cpu_mem_usage=low_cpu_mem_usage,
    )
    peft_model.base_model.injection.forget()
    peft_config.base_model_name_or_path = new_name
    peft_config.revision = revision if revision is not None else peft_config.revision
    return peft_model


def _class_for(config: PeftConfig) -> type[PeftModel]:
    """The class of the config's task; `PeftModel` itself without one."""
    from .tasks import MODEL_TYPE_TO_PEFT_MODEL_MAPPING  # subclasses of PeftModel

    return MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(getattr(config, "task_type", None) or "", PeftModel)


def _prepare_for_training(model: Any) -> None:
    """What a frozen transformers model needs so that adapters inside it can be trained."""
    if getattr(model, "is_gradient_checkpointing", False) and is_transformers_model(model):
        # a checkpointed block gives gradients only if its input wants one, and frozen embeddings do not
        model.enable_input_require_grads()
    if hasattr(getattr(model, "config", None), "pretraining_tp"):
        model.config.pretraining_tp = 1  # otherwise the model slices weights, past the adapted layers


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast trainable parameters to float32 and all others to `dtype` (float16 or bfloat16)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def _warn_about_name(adapter_name: str, tuner_cls: type[BaseTuner]) -> None:
    if isinstance(adapter_name, str) and adapter_name and adapter_name in tuner_cls.prefix:
        warnings.warn(
            f"The adapter's name '{adapter_name}' is part of the prefix '{tuner_cls.prefix}': other "
            "implementations may not load its weights.",
            stacklevel=4,
        )


def _set_offload(config: PeftConfig, ephemeral_gpu_offload: bool) -> None:
    """Hand the wish on to the method; one that has no such choice ignores it."""
    runtime = getattr(config, "runtime_config", None)
    if not ephemeral_gpu_offload:
        return
    if runtime is None:
        warnings.warn(
            f"ephemeral_gpu_offload is ignored: {config.peft_type} has no runtime_config.",
            PeftWarning,
            stacklevel=3,
        )
    else:
        runtime.ephemeral_gpu_offload = True


def _copies(model: Any, options: dict[str, Any]) -> int:
    """How many copies of each prompt `generate` works on: beams, or sequences to return."""
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    asked = (
        options.get(name) or getattr(config, name, None) or 1
        for name in ("num_beams", "num_return_sequences")
    )
    return max(asked)


def _read_weights(
    model_id: str | os.PathLike[str], key_mapping: dict[str, str] | None, options: dict[str, Any]
) -> dict[str, Tensor]:
    """The weights of an adapter, on the device that the options name (default: CPU)."""
    return saving.load_peft_weights(model_id, options.get("torch_device"), key_mapping, **options)
