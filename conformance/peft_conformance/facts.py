"""What a method's card says of one case, as plain data: its config's parameters, its tensors' shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.version import Version

from peft_conformance.formula import FormulaError, evaluate, holds
from peft_conformance.language import Method
from peft_conformance.ranges import contains

Shape = list[Any]  # sizes; "?" for one that the card leaves open
CONVOLUTIONS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}  # kind -> dimensions of its kernel


def parameters(method: Method, level: Version) -> list[dict[str, Any]]:
    """The parameters that the config class has at an API level, with their defaults where the card says."""
    fields = method.card["config"].get("fields", {})
    found = []
    for name, entry in fields.items():
        if contains(entry.get("api", ">=0"), level):
            stated = "default" in entry and name != "peft_type"  # which the class itself knows
            found.append({"name": name} | ({"default": entry["default"]} if stated else {}))
    return found


def usual_fields(method: Method, level: Version) -> dict[str, Any]:
    """The values of a config's fields in the cases: the method's options among the defaults."""
    listed = method.card["config"].get("fields", {})
    fields = {p["name"]: p["default"] for p in parameters(method, level) if "default" in p}
    return fields | {name: value for name, value in method.options().items() if name in listed or not listed}


def shapes(method: Method, kind: str, arguments: Mapping[str, Any], level: Version) -> dict[str, Shape]:
    """The tensors that a checkpoint has of an adapter on a layer, by the card's names, with their shapes.

    `kind` and `arguments` are the layer's, as a model declares it. Raises `FormulaError` for a size that
    the card does not explain.
    """
    fields = usual_fields(method, level)
    if arguments.get("bias") is False:
        fields |= method.card["config"].get("without_bias", {})
    known = _sizes(kind, arguments)
    numbers = {k: v for k, v in fields.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    symbols = {**numbers, **{name: size for name, size in known.items() if isinstance(size, (int, float))}}
    for name, choices in method.card.get("sizes", {}).items():
        formula = fitting(choices, kind, fields)
        if formula is not None:
            symbols[name] = evaluate(str(formula), symbols)

    def dimensions(shape: Sequence[Any]) -> Shape:
        apart = any(str(part).startswith("*") for part in shape)  # the kernel has dimensions of its own
        own = {**symbols, "in": known["channels"]} if apart else symbols
        result: Shape = []
        for part in shape:
            if str(part).startswith("*"):
                result += known[str(part)]
            elif part == "?":
                result.append(part)
            else:
                result.append(int(evaluate(str(part), own)))
        return result

    found = {}
    for name, entry in method.card.get("tensors", {}).items():
        saved = entry["role"] != "unsaved" and fields.get(entry.get("saved_when"), True)
        saved = saved and not (entry.get("needs") == "bias" and arguments.get("bias") is False)
        if saved and kind in entry.get("on", [kind]) and holds(entry.get("when", {}), fields):
            shape = entry["shape"]
            if shape and isinstance(shape[0], Mapping):
                shape = fitting(shape, kind, fields)
            if shape is None:
                raise FormulaError(f"card {method.card['method']}: no shape of {name} fits the config")
            found[entry.get("saved_as", name)] = dimensions(shape)
    return found


def fitting(choices: Any, kind: str, fields: Mapping[str, Any]) -> Any:
    """The value itself, or the first of several that fits the layer and the config; None if none does."""
    if not isinstance(choices, list):
        return choices
    fitting = (
        c["value"] for c in choices if kind in c.get("on", [kind]) and holds(c.get("when", {}), fields)
    )
    return next(fitting, None)


def _sizes(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes may name of a layer: matrices are (out, in), kernels flattened into `in`; `*` is a list."""
    kernel: list[int] = []
    if kind in CONVOLUTIONS:
        size = arguments["kernel_size"]
        kernel = list(size) if isinstance(size, list) else [size] * CONVOLUTIONS[kind]
    out, channels = {
        "Linear": lambda a: (a["out_features"], a["in_features"]),
        "Conv1D": lambda a: (a["nf"], a["nx"]),
        "Embedding": lambda a: (a["embedding_dim"], a["num_embeddings"]),
        "MultiheadAttention": lambda a: (3 * a["embed_dim"], a["embed_dim"]),
        "LayerNorm": lambda a: (a["normalized_shape"], 1),
    }.get(kind, lambda a: (a["out_channels"], a["in_channels"]))(arguments)
    groups = arguments.get("groups", 1)
    return {
        "out": out,
        "in": channels // groups * math.prod(kernel),
        "channels": channels // groups,
        "dim": out,
        "num": channels,
        "max_in": channels,
        "max_out": out,
        "kernel": math.prod(kernel),
        "groups": groups,
        "bias": int(arguments.get("bias", True)),
        "*kernel": kernel,
        "*ones": [1] * len(kernel),
        "*two_kernel_sizes": [*kernel, 1][:2],
    }
