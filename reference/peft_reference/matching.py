"""Which modules a config means: names, suffixes, regular expressions, `all-linear`, excludes, layer indices, patterns."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn

from .layer import BaseTunerLayer
from .operators import Conv1D, Linear, operator_of

ALL_LINEAR = "all-linear"
T = TypeVar("T")

# The layers that LoRA's authors and users adapt by default, by `model.config.model_type`.
_QV_PROJ = ["q_proj", "v_proj"]
DEFAULT_TARGETS: dict[str, list[str] | str] = {
    **dict.fromkeys(["t5", "mt5"], ["q", "v"]),
    **dict.fromkeys(["bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral"], _QV_PROJ),
    **dict.fromkeys(["stablelm", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"], _QV_PROJ),
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "electra", "layoutlm"], ["query", "value"]),
    **dict.fromkeys(["bloom", "gpt_neox", "chatglm", "falcon"], ["query_key_value"]),
    **dict.fromkeys(["RefinedWebModel", "RefinedWeb"], ["query_key_value"]),
    **dict.fromkeys(["gpt2", "gpt_bigcode"], ["c_attn"]),
    "blip-2": ["q", "v", *_QV_PROJ],
    "btlm": ["c_proj", "c_attn"],
    "codegen": ["qkv_proj"],
    "deberta": ["in_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "mpt": ["Wqkv"],
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "phi": [*_QV_PROJ, "fc1", "fc2"],
    "rwkv": ["key", "value", "receptance", "output"],
    "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
}


def names_module(entries: str | Iterable[str] | None, name: str) -> bool:
    """Whether a string (a regex for the whole name) or one of several names (equal, or a dotted suffix) means `name`."""
    if entries is None:
        return False
    if isinstance(entries, str):
        return re.fullmatch(entries, name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in entries)


def is_target(config: Any, name: str) -> bool:
    """Whether `target_modules`, `layers_to_transform` and `layers_pattern` select a module; excludes come on top."""
    targets = config.target_modules
    if isinstance(targets, str):
        return names_module(targets, name)
    if name in targets:  # a full name is not asked for its layer index
        return True
    return names_module(targets, name) and _in_layers(config, name)


def _in_layers(config: Any, name: str) -> bool:
    wanted = getattr(config, "layers_to_transform", None)
    if wanted is None or wanted == []:
        return True
    patterns = getattr(config, "layers_pattern", None) or [r"[^.]+"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:.*\.)?(?:{pattern})\.(\d+)\.", name)
        if found:
            index = int(found.group(1))
            return index == wanted if isinstance(wanted, int) else index in wanted
    return False


def pattern_matches(pattern: str, name: str) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern` (a regex, from the start or after a dot) means `name`."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def pattern_value(patterns: dict[str, T] | None, name: str, default: T) -> T:
    """The value of the first pattern that matches, else `default`."""
    return next((value for key, value in (patterns or {}).items() if pattern_matches(key, name)), default)


def model_type_of(model: nn.Module) -> str | None:
    """`model.config.model_type` for models that have it; the config may be a dict."""
    config = getattr(model, "config", None)
    return config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)


def is_transformers_model(model: nn.Module) -> bool:
    """Whether `model` is a transformers model; decided without importing transformers."""
    base = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    return base is not None and isinstance(model, base)


def all_linear_names(config: Any, model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    """The names `all-linear` stands for: every linear layer except a transformers model's output head."""
    head = model.get_output_embeddings() if is_transformers_model(model) else None  # type: ignore[operator]
    is_classifier = is_transformers_model(model) and config.task_type == "SEQ_CLS"
    names = set()
    for name, module in modules.items():
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        in_head = module is head or (is_classifier and name.split(".")[0] in ("classifier", "score"))
        if operator_of(layer) in (Linear, Conv1D) and not in_head:
            names.add(name)
    return names
