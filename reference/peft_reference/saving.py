"""Adapters on disk: `adapter_config.json`, `adapter_model.safetensors` and a model card in a folder, and
back.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import CONFIG_NAME, PEFT_VERSION, PeftConfig
from .registry import method_name

SAFETENSORS_WEIGHTS_NAME = "adapter_model.safetensors"
WEIGHTS_NAME = "adapter_model.bin"
PathLike = str | os.PathLike[str]

_SAVED = ".saved"  # a folder of files that are whole and wait for being moved to their places
_GIVEN_UP = 3600.0  # seconds after which nobody is still writing

_PIPELINE_TAGS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}


def write_files(folder: Path, files: Mapping[str, str | Callable[[Path], Any]]) -> None:
    """Write several files (text, or a function that writes to a path) so that all of them are new or none is.

    They are first written into a folder beside their places. Renaming that folder is the moment from which
    the new ones count; a process that dies later leaves the moving to whoever reads or writes here next.
    Nothing waits for the disk, which takes longer than all the rest: a machine that dies can lose the files.
    Raises IsADirectoryError, before anything is written, if a folder has the name of a file.
    """
    for name in files:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder, and a file of that name is to be written.")
    for left in folder.glob(".saving.*"):  # by a process that died before its files were whole
        if time.time() - left.stat().st_mtime > _GIVEN_UP:
            shutil.rmtree(left, ignore_errors=True)
    part = folder / f".saving.{os.getpid()}"
    part.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            if isinstance(content, str):
                (part / name).write_text(content, encoding="utf-8")
            else:
                content(part / name)
        finish_save(folder)
        os.rename(part, folder / _SAVED)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finish_save(folder)


def finish_save(folder: Path) -> None:
    """Move files that were written whole to their places; weights in the other format are outdated then."""
    saved = folder / _SAVED
    if not saved.is_dir():
        return
    for new, old in ((SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME), (WEIGHTS_NAME, SAFETENSORS_WEIGHTS_NAME)):
        if (saved / new).exists():
            (folder / old).unlink(missing_ok=True)
    for path in saved.iterdir():
        os.replace(path, folder / path.name)
    saved.rmdir()


def adapter_folder(save_directory: PathLike, adapter_name: str) -> Path:
    """Where an adapter is saved: the folder itself for 'default', else a sub-folder of its name.

    ValueError for a name that is no name of a folder and could lead elsewhere.
    """
    root = Path(save_directory)
    if adapter_name == "default":
        return root
    if adapter_name in ("", ".", "..") or set(adapter_name) & set("/\\:\0"):
        raise ValueError(
            f"Adapter name {adapter_name!r} is no name for a folder and could save outside of {root}. "
            "Please rename the adapter."
        )
    return root / adapter_name


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
    method = method_name(config.peft_type)
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

    `kwargs` may hold the options of `hf_hub_download`; others are ignored.
    """
    if os.path.isdir(model_id):
        folder = Path(model_id, subfolder or "")
        finish_save(folder)
        return folder / filename if (folder / filename).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    known = inspect.signature(hf_hub_download).parameters
    options = {key: value for key, value in kwargs.items() if key in known and value is not None}
    try:
        return Path(hf_hub_download(str(model_id), filename, subfolder=subfolder, **options))
    except (EntryNotFoundError, HFValidationError):  # also when it is not in the cache, and there is no net
        return None


def not_found(model_id: PathLike, names: str, subfolder: str | None = None) -> ValueError:
    """The error for files that are nowhere, saying where they were looked for."""
    if os.path.isdir(model_id):
        return ValueError(f"There is no file {names} in '{Path(model_id, subfolder or '')}'.")
    return ValueError(
        f"There is no file {names} to be had from '{model_id}': there is no such folder, and no such Hub "
        "repository in the local cache or within reach."
    )


@contextmanager
def naming(what: PathLike) -> Iterator[None]:
    """Let errors begin with what they are about, if they do not speak of it yet."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if str(what) in said:
            raise
        raise type(error)(f"{what}: {said}") from error


def load_peft_weights(
    model_id: PathLike,
    device: str | None = None,
    key_mapping: dict[str, str] | None = None,
    **hf_hub_download_kwargs: Any,
) -> dict[str, Tensor]:
    """The tensors of a saved adapter, under checkpoint keys, on `device` (default: CPU).

    `adapter_model.safetensors` wins over `adapter_model.bin`, which is read without running code from it.
    `key_mapping`: regex -> replacement, applied to the keys below `base_model.model.`. Raises ValueError if
    there is no weight file or it is not a mapping from keys to tensors.
    """
    names = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
    found = (find_file(model_id, name, **hf_hub_download_kwargs) for name in names)
    path = next((path for path in found if path), None)
    if path is None:
        raise not_found(model_id, " or ".join(names), hf_hub_download_kwargs.get("subfolder"))
    tensors = _read_tensors(path)
    return {_renamed(key, key_mapping or {}): tensor.to(device or "cpu") for key, tensor in tensors.items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.name.endswith(".safetensors"):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes made it stumble over
        raise ValueError(f"{path} is no complete file of adapter weights: {error!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold tensors by key, found {type(content).__name__}.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} should hold tensors by key, found {type(value).__name__} at {key!r}.")
    return content


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
