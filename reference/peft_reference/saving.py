"""Adapters on disk: `adapter_config.json`, `adapter_model.safetensors` and a model card in a folder, and
back.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import CONFIG_NAME, PEFT_VERSION, PeftConfig

SAFETENSORS_WEIGHTS_NAME = "adapter_model.safetensors"
WEIGHTS_NAME = "adapter_model.bin"
PathLike = str | os.PathLike[str]

_PIPELINE_TAGS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}


def write_files(folder: Path, files: Mapping[str, str | Callable[[Path], Any]]) -> None:
    """Write several files (text, or a function that writes to a path) so that each is complete or not there.

    Everything is first written beside its place; then the names are moved. A process that dies leaves every
    file either as it was or new.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f".{name}.{os.getpid()}.part" for name in files}
    try:
        for name, content in files.items():
            if isinstance(content, str):
                parts[name].write_text(content, encoding="utf-8")
            else:
                content(parts[name])
            with open(parts[name], "rb+") as written:
                os.fsync(written.fileno())
        for name, part in parts.items():
            os.replace(part, folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def adapter_folder(save_directory: PathLike, adapter_name: str) -> Path:
    """Where an adapter is saved: the folder itself for 'default', else a sub-folder; ValueError if that is
    outside.
    """
    root = Path(os.path.abspath(save_directory))
    if adapter_name == "default":
        return root
    folder = Path(os.path.abspath(root / adapter_name))
    if root not in folder.parents:
        raise ValueError(
            f"Adapter name {adapter_name!r} would save outside of {root}. Please rename the adapter."
        )
    return folder


def save_adapter(
    folder: Path, state_dict: dict[str, Tensor], config: PeftConfig, safe_serialization: bool
) -> None:
    """Write one adapter's weights and config; ValueError for weights that are still on the meta device."""
    for key, tensor in state_dict.items():
        if tensor.device.type == "meta":
            raise ValueError(f"'{key}' is on the meta device and has no values to save.")
    tensors = _independent(state_dict)
    files: dict[str, str | Callable[[Path], Any]] = {CONFIG_NAME: config.to_json()}
    if safe_serialization:
        files[SAFETENSORS_WEIGHTS_NAME] = lambda path: save_file(tensors, path, metadata={"format": "pt"})
    else:
        files[WEIGHTS_NAME] = lambda path: torch.save(tensors, path)
    write_files(folder, files)


def save_model_card(folder: Path, config: PeftConfig, tags: list[str]) -> None:
    """Write README.md, unless there is one: someone may have worked on it."""
    if not (folder / "README.md").exists():
        write_files(folder, {"README.md": model_card(config, tags)})


def _independent(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for key, tensor in state_dict.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        result[key] = tensor.clone() if storage.data_ptr() in seen or not whole else tensor
        seen.add(storage.data_ptr())
    return result


def model_card(config: PeftConfig, tags: list[str]) -> str:
    """The README.md beside an adapter."""
    method = getattr(config.peft_type, "value", config.peft_type)
    head = ["---"]
    if config.base_model_name_or_path:
        head.append(f"base_model: {config.base_model_name_or_path}")
    head.append("library_name: peft")
    task = getattr(config.task_type, "value", config.task_type)
    if task in _PIPELINE_TAGS:
        head.append(f"pipeline_tag: {_PIPELINE_TAGS[task]}")
    head += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    base = (
        f"`{config.base_model_name_or_path}`"
        if config.base_model_name_or_path
        else "a base model of your own"
    )
    body = [f"# {method} adapter", f"For {base}. The files hold the adapter only, not the base model."]
    return (
        "\n".join(head)
        + "\n\n"
        + "\n\n".join(body)
        + f"\n\n### Framework versions\n\n- PEFT {PEFT_VERSION}\n"
    )


def find_file(model_id: PathLike, filename: str, subfolder: str | None = None, **kwargs: Any) -> Path | None:
    """A file of an adapter: in the folder `model_id`, else in the Hub repository of that name; None if not
    there.
    """
    if os.path.isdir(model_id):
        path = Path(model_id, subfolder or "", filename)
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    accepted = (
        "cache_dir",
        "force_download",
        "local_files_only",
        "revision",
        "token",
        "repo_type",
        "proxies",
    )
    options = {key: value for key, value in kwargs.items() if key in accepted and value is not None}
    try:
        return Path(hf_hub_download(str(model_id), filename, subfolder=subfolder, **options))
    except (EntryNotFoundError, HFValidationError):
        return None


def load_peft_weights(
    model_id: PathLike,
    device: str | None = None,
    key_mapping: dict[str, str] | None = None,
    **hf_hub_download_kwargs: Any,
) -> dict[str, Tensor]:
    """The tensors of a saved adapter, under checkpoint keys, on `device` (default: CPU).

    `adapter_model.safetensors` wins over `adapter_model.bin`, which is read without running code from it.
    `key_mapping`: regex -> replacement, applied to the keys below `base_model.model.`. Raises ValueError if
    there is no weight file or it cannot be read.
    """
    path = find_file(model_id, SAFETENSORS_WEIGHTS_NAME, **hf_hub_download_kwargs) or find_file(
        model_id, WEIGHTS_NAME, **hf_hub_download_kwargs
    )
    if path is None:
        raise ValueError(f"There is neither {SAFETENSORS_WEIGHTS_NAME} nor {WEIGHTS_NAME} in '{model_id}'.")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path, device=str(device or "cpu"))
        else:
            tensors = torch.load(path, map_location=device or "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no complete file of adapter weights: {error}") from error
    return {_renamed(key, key_mapping or {}): tensor for key, tensor in tensors.items()}


def _renamed(key: str, mapping: dict[str, str]) -> str:
    prefix = "base_model.model." if key.startswith("base_model.model.") else ""
    inner = key.removeprefix(prefix)
    for pattern, replacement in mapping.items():
        inner, count = re.subn(pattern, replacement, inner)
        if count:
            break
    return prefix + inner


def base_vocab_size(model_id: str) -> int | None:
    """`vocab_size` in the base model's own config.json; None if that cannot be found."""
    try:
        path = find_file(model_id, "config.json")
    except OSError:  # the Hub cannot be reached, or has no such model for us
        return None
    return None if path is None else json.loads(path.read_text(encoding="utf-8")).get("vocab_size")


def base_model_name(model: nn.Module) -> str | None:
    """The `name_or_path` of a transformers model; None for other models and for an empty one."""
    config = getattr(model, "config", None)
    return getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None) or None


def warn_if_missing(missing: list[str]) -> None:
    """Say which of an adapter's weights a checkpoint lacks."""
    if missing:
        warnings.warn(f"The checkpoint is missing weights of the adapter: {missing}.", stacklevel=4)
