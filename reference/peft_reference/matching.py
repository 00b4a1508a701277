"""Which modules a config means: names, suffixes, regexes, `all-linear`, excludes, layer indices, patterns,
keys.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from .adapters import MODEL_PREFIX, without_compile
from .errors import NoMatchingPeftModuleError
from .layer import BaseTunerLayer
from .operators import Conv1D, Linear, operator_of
from .tokens import TrainableTokensWrapper
from .tying import base_module
from .wrappers import ModulesToSaveWrapper

INSIDE_WRAPPERS = (".original_module", ".token_adapter")  # no modules of their own: wrappers are matched
Targets = str | set[str]
Modules = dict[str, nn.Module]
T = TypeVar("T")


def names_module(entries: str | Iterable[str] | None, name: str) -> bool:
    """Whether a string (regex for the whole name) or one of several names (equal, or dotted suffix) means
    `name`.
    """
    if isinstance(entries, str):
        return re.fullmatch(entries, name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in entries or ())


def is_target(targets: Targets, config: Any, name: str) -> bool:
    """Whether `targets` mean a module, and the config's layer indices allow it; excludes come on top."""
    if not name or isinstance(targets, str):
        return bool(name) and names_module(targets, name)
    return name in targets or (
        names_module(targets, name) and _in_layers(config, name)
    )  # full names bypass indices


def _in_layers(config: Any, name: str) -> bool:
    wanted = getattr(config, "layers_to_transform", None)
    if wanted is None or wanted == []:
        return True
    patterns = getattr(config, "layers_pattern", None) or r"[^.]+"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:.*\.)?(?:{pattern})\.(\d+)\.", name)
        if found:
            return int(found.group(1)) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def pattern_matches(pattern: str, name: str) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern`, a regex from the start or after a dot, means
    `name`.
    """
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def pattern_value(patterns: dict[str, T] | None, name: str, default: T) -> T:
    """The value of the first pattern that means `name`, else `default`."""
    return next((value for key, value in (patterns or {}).items() if pattern_matches(key, name)), default)


def warn_unmatched_patterns(config: Any, targets: list[str]) -> None:
    """RuntimeWarning for pattern keys that mean none of the adapted modules."""
    for field in config._patterns:
        patterns = getattr(config, field, None) or {}
        unmatched = [key for key in patterns if not any(pattern_matches(key, name) for name in targets)]
        if unmatched:
            text = f"{field} has keys that match none of the adapted modules: {unmatched}."
            warnings.warn(text, RuntimeWarning, stacklevel=5)


def is_transformers_model(model: nn.Module) -> bool:
    """Whether `model` is a transformers model; decided without importing transformers."""
    base = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    return base is not None and isinstance(model, base)


def resolve_targets(
    config: Any,
    model: nn.Module,
    modules: Modules,
    defaults: Mapping[str, Collection[str] | str],
    optional: bool = False,
) -> Targets:
    """`target_modules` as a regex or a set of names: None by architecture, `all-linear` by looking at the
    layers. If `optional`, there need not be any.
    """
    targets = config.target_modules
    if targets is None:
        if optional and model_type(model) not in defaults:
            return set()
        targets = default_for(model, defaults, "target_modules")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return _all_linear(config, model, modules)
    return targets if isinstance(targets, str) else set(targets)


def default_for(model: nn.Module, defaults: Mapping[str, T], field: str) -> T:
    """What `defaults` say for the model's architecture; ValueError if it is unknown and `field` is needed."""
    known_as = model_type(model)
    if known_as not in defaults:
        what = f"model type {known_as!r}" if known_as else type(model).__name__
        raise ValueError(f"`{field}` has to be given: there is no default for {what}.")
    return defaults[known_as]


def model_type(model: nn.Module) -> Any:
    """What the model's config, an object or a dict, says about its architecture; None without one."""
    config = getattr(model, "config", None)
    as_dict = config if isinstance(config, dict) else getattr(config, "__dict__", {})
    return as_dict.get("model_type") or getattr(config, "model_type", None)


def _all_linear(config: Any, model: Any, modules: Modules) -> set[str]:
    """Every linear layer, without a transformers model's output head."""
    known = is_transformers_model(model)
    head = model.get_output_embeddings() if known else None
    classifiers = ("classifier", "score") if known and config.task_type == "SEQ_CLS" else ()
    return {
        name
        for name, module in modules.items()
        if operator_of(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)
        in (Linear, Conv1D)
        and module is not head
        and name.split(".")[0] not in classifiers
    }


def select_targets(config: Any, targets: Targets, modules: Modules, optional: bool = False) -> list[str]:
    """The names of the modules to adapt, in the model's order; NoMatchingPeftModuleError if none are, unless
    there are no targets and they are `optional`.
    """
    if optional and not targets:
        return []
    exclude = getattr(config, "exclude_modules", None)
    matched = [name for name in modules if is_target(targets, config, name)]
    selected = [name for name in matched if not names_module(exclude, name)]
    if selected:
        if exclude and not any(names_module(exclude, name) for name in modules):
            warnings.warn(f"exclude_modules={exclude} excludes nothing.", stacklevel=5)
        return selected
    if matched:
        raise NoMatchingPeftModuleError(
            f"exclude_modules={exclude} excludes everything that target_modules={config.target_modules} "
            f"selects ({', '.join(matched)})."
        )
    if not targets:
        raise NoMatchingPeftModuleError("`target_modules` is empty: there is nothing to adapt.")
    limits = {field: getattr(config, field, None) for field in ("layers_to_transform", "layers_pattern")}
    raise NoMatchingPeftModuleError(
        f"Target modules {targets} not found in the base model."
        + "".join(f" {field}={value} restricts them." for field, value in limits.items() if value is not None)
    )


def select_by_keys(
    config: Any, targets: Targets | None, modules: Modules, keys: Iterable[str], slots: Collection[str]
) -> list[str]:
    """The names of the modules that a checkpoint's keys belong to, whatever the config says.

    RuntimeWarning if `targets` (None or empty: nothing said) mean other modules; NoMatchingPeftModuleError
    if no key belongs to a module. Keys may begin with `base_model.model.` (a PeftModel's) or contain
    `_orig_mod` (compiled).
    """
    owners = {owner for key in keys if (owner := _owner(key, slots)) is not None}
    plain = {without_compile(name): name for name in modules}
    found = {owner: _find(owner, plain) for owner in owners}
    selected = [name for name in modules if name in set(found.values())]
    if not selected:
        raise NoMatchingPeftModuleError(
            f"Target modules {sorted(owners)} not found in the base model: no key of the state_dict "
            "belongs to one of its modules."
        )
    exclude = getattr(config, "exclude_modules", None)
    meant = {n for n in modules if targets and is_target(targets, config, n) and not names_module(exclude, n)}
    only_keys = sorted(
        owner for owner, name in found.items() if name is None or (targets and name not in meant)
    )
    only_config = sorted(meant - set(selected))
    if only_keys or only_config:
        warnings.warn(
            "The state_dict and the PEFT config do not agree on the modules to adapt; the state_dict "
            f"decides. Only in the state_dict: {only_keys}. Only in the config: {only_config}.",
            RuntimeWarning,
            stacklevel=5,
        )
    return selected


def _find(owner: str, plain: Mapping[str, str]) -> str | None:
    """The module's name in the model: with or without a PeftModel's prefix, or what it is a part of."""
    outer = owner.partition(".base_layer.")[0]  # a part of a compound layer
    names = (name.removeprefix(prefix) for name in (owner, outer) for prefix in ("", MODEL_PREFIX))
    return next((plain[name] for name in names if name in plain), None)


def _owner(key: str, slots: Collection[str]) -> str | None:
    """The module that a checkpoint key belongs to: what stands before the last slot name."""
    parts = without_compile(key).split(".")
    at = [i for i, part in enumerate(parts) if part in slots and i > 0]
    return ".".join(parts[: at[-1]]) if at else None


def select_to_save(config: Any, modules: Modules, adapter_name: str) -> Modules:
    """The modules to train and save whole; of nested ones the outermost.

    ValueError if one is called like the adapter, TypeError if one cannot be wrapped.
    """
    entries = tuple(getattr(config, "modules_to_save", None) or ())
    if adapter_name in entries:
        raise ValueError(
            f"modules_to_save names '{adapter_name}', which is the adapter's name too. Rename one."
        )
    saved: Modules = {}
    for name, module in modules.items():
        # any suffix, dot or not, as in PEFT: `classifier` also saves DistilBERT's `pre_classifier`
        if name.endswith(entries) and name and not name.startswith(tuple(f"{outer}." for outer in saved)):
            if isinstance(module, TrainableTokensWrapper):
                raise ValueError(f"'{name}' has trainable tokens and cannot be trained whole as well.")
            if not isinstance(module, ModulesToSaveWrapper):
                ModulesToSaveWrapper.check(module, name)
            saved[name] = module
    return saved


def own_embedding(model: Any, modules: Modules) -> str:
    """The name of a transformers model's input embedding, or what the default for any other is."""
    embedding = model.get_input_embeddings() if is_transformers_model(model) else None
    return next(
        (n for n, m in modules.items() if embedding in (m, base_module(m)) and embedding is not None),
        "embed_tokens",
    )


def select_tokens(config: Any, model: Any, modules: Modules) -> dict[str, list[int]]:
    """Module name -> the tokens whose rows `trainable_token_indices` asks for. A list means the input
    embedding, or what is called `embed_tokens`; a dict names its modules by the ends of their names.

    ValueError for a name that no module has.
    """
    given = getattr(config, "trainable_token_indices", None)
    if not given:
        return {}
    if not isinstance(given, dict):
        given = {own_embedding(model, modules): given}
    found: dict[str, list[int]] = {}
    for key, indices in given.items():
        named = [n for n in modules if n and n.endswith(key) and not n.endswith(INSIDE_WRAPPERS)]
        if not named:
            raise ValueError(f"trainable_token_indices names '{key}', which is not found in the base model.")
        found.update((name, list(indices)) for name in named)
    return found


def select_parameters(config: Any, modules: Modules) -> dict[str, list[str]]:
    """Module name -> the names of its own parameters that `target_parameters` means, in the model's order.

    ValueError for a parameter of the model itself, which cannot be wrapped.
    """
    wanted = getattr(config, "target_parameters", None)
    found: dict[str, list[str]] = {}
    for name, module in modules.items() if wanted else ():
        for key, parameter in base_module(module)._parameters.items():
            if parameter is not None and names_module(wanted, f"{name}.{key}".removeprefix(".")):
                if not name:
                    raise ValueError(f"'{key}' belongs to the model itself, and has to be in a module.")
                found.setdefault(name, []).append(key)
    return found
