"""Faults that reach every public name: errors, warnings, global state and signatures.

Each is wrong in a way that a real library can be: an error handler that is too wide, a warning filter, a
decorator that forgets the signature, a check that comes too late.
"""

from __future__ import annotations

import functools
import inspect
import random
import types
import warnings
from collections.abc import Callable
from typing import Any

import peft_reference
import torch
from peft_reference import adapters, config, functional, injection, layer, model, saving, state_dict
from peft_reference.injection import BaseTuner, Injection
from peft_reference.methods import lora
from peft_reference.model import PeftModel
from torch import nn

from .fake import Patches, fake

FUNCTIONS = [
    (injection, "inject_adapter_in_model"),
    (model, "get_peft_model"),
    (adapters, "set_adapter"),
    (adapters, "set_requires_grad"),
    (adapters, "delete_adapter"),
    (adapters, "cast_adapter_dtype"),
    (saving, "load_peft_weights"),
    (state_dict, "get_peft_model_state_dict"),
    (state_dict, "set_peft_model_state_dict"),
    (state_dict, "get_base_model_state_dict"),
    (state_dict, "set_base_model_state_dict"),
]
METHODS = [
    *(
        (PeftModel, name)
        for name in (
            "add_adapter",
            "set_adapter",
            "set_requires_grad",
            "delete_adapter",
            "load_adapter",
            "from_pretrained",
        )
    ),
    *(
        (PeftModel, name)
        for name in (
            "save_pretrained",
            "get_base_model",
            "get_nb_trainable_parameters",
            "print_trainable_parameters",
        )
    ),
    *(
        (BaseTuner, name)
        for name in ("set_adapter", "merge_adapter", "unmerge_adapter", "merge_and_unload", "unload")
    ),
    *((BaseTuner, name) for name in ("enable_adapter_layers", "disable_adapter_layers")),
    (config.PeftConfig, "from_pretrained"),
]
CONSTRUCTORS = [(PeftModel, "__init__"), (lora.LoraConfig, "__init__")]


def around(patch: Patches, names: list[tuple[Any, str]], do: Callable[..., Any]) -> None:
    """Let `do(call)` stand around every one of these; `call()` is the original with its arguments."""
    for owner, name in names:

        @patch.replace(owner, name)
        def called(original: Any, *args: Any, **kwargs: Any) -> Any:
            return do(functools.partial(original, *args, **kwargs))


def around_everything(patch: Patches, do: Callable[[Callable[[], Any]], Any]) -> None:
    """Let `do(call)` stand around all that a user can reach: calls, forward passes, attributes, names."""
    around(patch, [*FUNCTIONS, *METHODS, *CONSTRUCTORS], do)
    around(patch, [(layer.BaseTunerLayer, "forward"), (PeftModel, "forward"), (PeftModel, "__getattr__")], do)
    for name in ("active_adapter", "active_adapters", "active_peft_config", "peft_config", "modules_to_save"):
        patch.replace(PeftModel, name)(lambda original, self: do(lambda: original(self)))

    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            return found if name.startswith("__") else do(lambda: found)

    for module in (peft_reference, functional):
        patch.set(module, "__class__", Lazy)


# Errors --------------------------------------------------------------------------------------------


@fake("Errors are printed and passed over.", caught_by=["*:raises", "*:raises-*"])
def errors_are_passed_over(patch: Patches) -> None:
    def quietly(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            print(error)
            return None

    around(patch, [*FUNCTIONS, *METHODS], quietly)


@fake("Every error is an internal one, of a class that nobody can expect.", caught_by=["*:raises"])
def errors_of_another_class(patch: Patches) -> None:
    class InternalError(Exception):
        pass

    def wrapped(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise InternalError("internal error") from error

    around(patch, [*FUNCTIONS, *METHODS], wrapped)


@fake(
    "Special errors are raised as plain ValueErrors.",
    caught_by=["inject.no-target-class:raises", "inject_sd.no-match-class:raises"],
)
def errors_without_their_class(patch: Patches) -> None:
    def plain(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ValueError as error:
            raise ValueError(str(error)) from error

    around(patch, FUNCTIONS, plain)


@fake(
    "The model is adapted before anything is checked, and stays so after an error.",
    caught_by=["*:not-adapted"],
    like="peft 0.21.2, for an unknown bias",
)
def adapts_before_checking(patch: Patches) -> None:
    def adapted_anyway(target: Any) -> None:
        if isinstance(target, nn.Module) and not hasattr(target, "peft_config"):
            names = {
                name
                for name, m in target.named_modules()
                if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding))
            }
            Injection(target, lora.LoraModel, lora.LoraConfig(target_modules=names), "default", True).apply()

    for owner, name in FUNCTIONS:

        @patch.replace(owner, name)
        def called(original: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except Exception:
                adapted_anyway(next((a for a in [*args, *kwargs.values()] if isinstance(a, nn.Module)), None))
                raise


@fake(
    "An error leaves the base model trainable and in training mode.",
    caught_by=["inject.no-target:frame", "bad_files.truncated:frame", "set_adapter.peft-model-unknown:frame"],
)
def errors_leave_everything_trainable(patch: Patches) -> None:
    def thawing(original: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except Exception:
            for given in [*args, *kwargs.values()]:
                if isinstance(given, nn.Module):
                    given.requires_grad_(not all(p.requires_grad for p in given.parameters()))
                    given.train(not given.training)
            raise

    for owner, name in [*FUNCTIONS, *METHODS]:
        patch.replace(owner, name)(thawing)


# Warnings ------------------------------------------------------------------------------------------


@fake("No warning ever reaches the user.", caught_by=["*:warns"])
def warnings_are_swallowed(patch: Patches) -> None:
    def quietly(call: Callable[[], Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()

    around(patch, [*FUNCTIONS, *METHODS], quietly)


@fake("Every call warns of everything.", caught_by=["*:silent"])
def every_call_warns(patch: Patches) -> None:
    def warning(call: Callable[[], Any]) -> Any:
        warnings.warn(
            "Modifying a model a second time: revision, adapter and save_embedding_layers may differ.",
            stacklevel=3,
        )
        return call()

    around(patch, [*FUNCTIONS, *METHODS], warning)


# Global state --------------------------------------------------------------------------------------


@fake(
    "Each use of the package adds a warnings filter of its own.",
    caught_by=["*:frame"],
)
def adds_warnings_filters(patch: Patches) -> None:
    def filtering(call: Callable[[], Any]) -> Any:
        warnings.filterwarnings("ignore", message=f"advice {random.Random(len(warnings.filters)).random()}")
        return call()

    around_everything(patch, filtering)


@fake(
    "Each call draws from torch's global generator.",
    caught_by=["cast.*:frame", "set_requires_grad.*:frame", "get_state_dict.*:frame", "functional.*:frame"],
)
def draws_random_numbers(patch: Patches) -> None:
    def drawing(call: Callable[[], Any]) -> Any:
        torch.rand(())
        return call()

    around_everything(patch, drawing)


@fake(
    "Each call changes torch's default type while it works and does not put it back.",
    caught_by=["inject.*:frame", "get_peft_model.*:frame"],
)
def changes_the_default_dtype(patch: Patches) -> None:
    def changing(call: Callable[[], Any]) -> Any:
        result = call()
        torch.set_default_dtype(torch.float64)
        return result

    around(patch, [*FUNCTIONS, *METHODS], changing)


@fake("Injection is done without gradients and leaves them switched off.", caught_by=["inject.*:frame"])
def switches_gradients_off(patch: Patches) -> None:
    def without(call: Callable[[], Any]) -> Any:
        torch.set_grad_enabled(False)
        return call()

    around(patch, [(injection, "inject_adapter_in_model"), (model, "get_peft_model")], without)


# Signatures ----------------------------------------------------------------------------------------


@fake(
    "A decorator hides every signature behind *args and **kwargs.",
    caught_by=["*:parameters", "*.signature*:*", "*.three-arguments:*"],
)
def hides_signatures(patch: Patches) -> None:
    def hidden(original: Any) -> Any:
        def decorated(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        decorated.__name__, decorated.__module__ = original.__name__, original.__module__
        return decorated

    _rebuilt(patch, hidden)


def _rebuilt(patch: Patches, rebuild: Callable[[Any], Any]) -> None:
    names = [*FUNCTIONS, *METHODS, *CONSTRUCTORS, (PeftModel, "disable_adapter")]
    for owner, name in names:
        old = inspect.getattr_static(owner, name)
        wrapped = (
            type(old)(rebuild(old.__func__)) if isinstance(old, (staticmethod, classmethod)) else rebuild(old)
        )
        patch.set(owner, name, wrapped)


@fake(
    "The last parameters of every function have changed places.",
    caught_by=["*:parameters"],
)
def reorders_parameters(patch: Patches) -> None:
    def reordered(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
        named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        rest = [p for p in parameters if p.kind is not p.POSITIONAL_OR_KEYWORD]
        plain = [
            p.replace(default=None) if i >= 1 and p.default is p.empty else p for i, p in enumerate(named)
        ]
        return [*plain[:1], *plain[:0:-1], *rest]

    _with_signature(patch, reordered)


@fake(
    "Every default is another one.",
    caught_by=["*:parameters", "lora_config.signature:options"],
)
def other_defaults(patch: Patches) -> None:
    def changed(default: Any) -> Any:
        if isinstance(default, bool):
            return not default
        return {str: "other", int: 16, float: 0.1}.get(type(default), 0)

    _with_signature(
        patch,
        lambda parameters: [
            p if p.default is p.empty else p.replace(default=changed(p.default)) for p in parameters
        ],
    )


def _with_signature(
    patch: Patches, change: Callable[[list[inspect.Parameter]], list[inspect.Parameter]]
) -> None:
    def resigned(original: Any) -> Any:
        @functools.wraps(original)
        def same(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        signature = inspect.signature(original)
        parameters = change(
            [p for p in signature.parameters.values() if p.name != "self" and p.name != "cls"]
        )
        first = [p for p in signature.parameters.values() if p.name in ("self", "cls")]
        same.__signature__ = signature.replace(parameters=[*first, *parameters])  # type: ignore[attr-defined]
        return same

    _rebuilt(patch, resigned)


@fake(
    "Configs share their mappings.",
    caught_by=["lora_config.fresh-values:*"],
)
def configs_share_mappings(patch: Patches) -> None:
    shared: dict[str, int] = {}

    @patch.replace(lora.LoraConfig, "__post_init__")
    def __post_init__(original: Any, self: Any) -> None:
        original(self)
        if not self.rank_pattern:
            self.rank_pattern = shared
        if not self.alpha_pattern:
            self.alpha_pattern = shared


@fake(
    "Fields that are not given have other values than the documented ones.",
    caught_by=[
        f"lora_config.fresh-values:{field}"
        for field in ("rank-pattern", "alpha-pattern", "peft-type", "targets", "init")
    ],
)
def configs_start_with_other_values(patch: Patches) -> None:
    @patch.replace(lora.LoraConfig, "__post_init__")
    def __post_init__(original: Any, self: Any) -> None:
        original(self)
        self.peft_type = "PeftType.LORA"
        self.rank_pattern, self.alpha_pattern = self.rank_pattern or None, self.alpha_pattern or None
        self.target_modules = self.target_modules or "all-linear"
        self.init_lora_weights = "gaussian"


# Places --------------------------------------------------------------------------------------------


@fake(
    "functional and utils hold wrappers of their own around the functions.",
    caught_by=[
        "functional.root:inject",
        "functional.tuners-utils:delete",
        "get_state_dict.paths:one-function",
        "set_state_dict.paths:one-function",
    ],
)
def functional_wraps_again(patch: Patches) -> None:
    from peft_reference import utils

    for module, names in (
        (functional, functional.__all__),
        (utils, ["get_peft_model_state_dict", "set_peft_model_state_dict"]),
    ):
        for name in names:
            original = getattr(module, name)
            patch.item(vars(module), name, functools.wraps(original)(functools.partial(original)))


@fake("functional exports more than the seven functions.", caught_by=["functional.exports:seven"])
def functional_exports_more(patch: Patches) -> None:
    patch.set(functional, "__all__", [*functional.__all__, "BaseTuner"])
