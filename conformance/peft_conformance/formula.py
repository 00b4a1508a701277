"""The oracle: a method's formula, evaluated in float64 over the tensors that were observed.

`evaluate` knows a small closed grammar over Python's `ast`: names, numbers, `+ - * / @ **`, unary minus,
indexing and slicing (`v[:, None]`, `B[:out]`), and the functions of `FUNCTIONS`. `effective` and
`apply_layer` put a card's formulas to the one layer of a model; matrices are canonical, (out, in) or (dim,
num), kernels flattened into `in`, which is then a multiple of `kernel`.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_conformance import script_parts

Value = Any  # a float64 tensor or a number


class FormulaError(ValueError):
    """A formula that says something the grammar or its symbols do not offer: a mistake in a card."""


class Misfit(FormulaError):
    """Tensors whose shapes do not fit the formula: what an implementation observed wrong can cause."""


OPERATORS: dict[type, Callable[..., Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.MatMult: operator.matmul,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


def _sqrt(x: Value) -> Value:
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def _skew(entries: Tensor, size: float) -> Tensor:
    """Rows of n(n - 1) / 2 entries above the diagonal -> matrices of size n with Q = -Qᵀ."""
    n = int(size)
    upper = torch.zeros(*entries.shape[:-1], n, n, dtype=entries.dtype)
    rows, columns = torch.triu_indices(n, n, 1)
    upper[..., rows, columns] = entries
    return upper - upper.mT


def _near_root(n: Value) -> int:
    """The largest divisor of a whole number that is no larger than its root."""
    return max(d for d in range(1, math.isqrt(int(n)) + 1) if int(n) % d == 0)


def _shuffle(x: Tensor, n: int) -> Tensor:
    """The rows of n groups of n equal parts, part j of group i where part i of group j was."""
    return x.unflatten(0, (n, n, -1)).transpose(0, 1).flatten(0, 2)


def _grid(x: Tensor, n: int) -> Tensor:
    """A matrix as n × n blocks: (rows / n, columns / n, n, n)."""
    return x.unflatten(1, (-1, n)).unflatten(0, (-1, n)).transpose(1, 2)


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "sqrt": _sqrt,
    "min": min,  # of two numbers
    "max": max,
    "ceil": math.ceil,
    "with_rows": script_parts.with_rows,  # a matrix, or its transpose, of that many rows
    "near_root": _near_root,  # of a whole number, its divisor next to the root from below
    "cos": torch.cos,
    "sin": torch.sin,
    "reshape": script_parts.reshape,  # as torch's: -1 is what is left
    "kron": torch.kron,
    "transpose": script_parts.transpose,  # swaps the last two dimensions
    "diag": torch.diag,
    "relu": torch.relu,
    "take": lambda x, at: x[at.long()],  # the entries of a vector at the indices `at`, in their shape
    "tanh": torch.tanh,
    "repeat": script_parts.repeat,  # each entry n times, side by side
    "cycle": lambda x, n: x.repeat(1, -(-n // x.shape[-1]))[:, :n],  # n columns, those of x over and over
    "shuffle": _shuffle,
    "grid": _grid,
    "norm": lambda x: x.norm(dim=-1),  # of each row
    "qr": lambda x: torch.linalg.qr(x)[
        0
    ],  # an orthonormal basis of the columns, by Householder's reflections
    "split": script_parts.split,  # the first dimension as n equal groups
    "stack": script_parts.stack,  # a stack of matrices as one, each below the one before
    "softmax": script_parts.softmax,  # of each row
    "topk_softmax": script_parts.topk_softmax,  # of each row's k largest entries
    "sigmoid": script_parts.sigmoid,
    "shares": script_parts.shares,  # each entry divided by the sum of its row
    "mean_row": script_parts.mean_row,
    "weighted": script_parts.weighted,  # the sum of matrices, each times its weight
    "skew": _skew,
    "cayley": lambda q: (script_parts.one(q) - q) @ torch.linalg.inv(script_parts.one(q) + q),
    "neumann": script_parts.neumann,  # a series of k powers of a matrix
    "householder": script_parts.householder,  # a product of reflections, by their vectors
    "butterfly": script_parts.butterfly,  # a product of sparse matrices, by their blocks
    "quarter": script_parts.quarter,  # each pair turned by a quarter
    "inv": torch.linalg.inv,
    "shorten": script_parts.shorten,  # rows, to a length
    "low_rank": script_parts.low_rank,  # of a matrix, the closest one of rank r
    "minor_space": script_parts.minor_space,  # the projection onto the r last left singular vectors
    "one": script_parts.one,  # the identity of a square matrix's size
    "rms": script_parts.rms,  # of all entries
    "block_diag": lambda x: torch.block_diag(*x),  # a stack of matrices -> one matrix
    "scatter": script_parts.scatter,  # rows, columns, at, values: zeros but for `values` at `at`
    "drawn_places": script_parts.drawn_places,  # seed, rows, columns, n: the places that a seed draws
    "replace_rows": script_parts.replace_rows,  # of a matrix, by index
    "circulant": script_parts.circulant,  # entries k of a stack -> matrices C[a, b] = k[(b - a) mod n]
    "blocks": script_parts.blocks,  # a grid of matrices -> one matrix
    "inverse_fourier": script_parts.inverse_fourier,  # its real part, of a matrix
    "idwt2": script_parts.idwt2,  # one level, of a matrix, by the low-pass filter
    "daubechies": script_parts.daubechies,  # the low-pass filter of order 1 or 2
}

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse(formula: str) -> tuple[ast.expr, set[str]]:
    """The tree of a formula and the symbols it names; raises `FormulaError` on anything outside the grammar.

    Python's reserved words are symbols here like any other: the papers' letters include `in` and `lambda`.
    """
    try:
        readable = _WORD.sub(
            lambda m: m[0] + "_" * keyword.iskeyword(m[0]) if m[0] != "None" else m[0], formula
        )
        tree = ast.parse(readable, mode="eval").body
    except SyntaxError as error:
        raise FormulaError(f"formula {formula!r}: {error.msg} at column {error.offset}") from None
    symbols: set[str] = set()

    def visit(node: ast.expr, inside_index: bool = False) -> None:
        match node:
            case ast.Name():
                symbols.add(_symbol(node))
            case ast.Constant(value=value) if type(value) in (int, float) or (inside_index and value is None):
                pass
            case ast.BinOp() if type(node.op) in OPERATORS:
                visit(node.left)
                visit(node.right)
            case ast.UnaryOp() if type(node.op) in OPERATORS:
                visit(node.operand)
            case ast.Subscript():
                visit(node.value)
                items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                for item in items:
                    bounds = [item.lower, item.upper, item.step] if isinstance(item, ast.Slice) else [item]
                    for bound in filter(None, bounds):
                        visit(bound, inside_index=not isinstance(item, ast.Slice))
            case ast.Call(func=ast.Name() as function) if not node.keywords:
                if function.id not in FUNCTIONS:
                    known = ", ".join(sorted(FUNCTIONS))
                    raise FormulaError(f"formula {formula!r}: no function {function.id!r}; there are {known}")
                for argument in node.args:
                    visit(argument)
            case _:
                found = ast.unparse(node)
                raise FormulaError(
                    f"formula {formula!r}: {found!r} ({type(node).__name__}) is not in the grammar"
                )

    visit(tree)
    return tree, symbols


def _symbol(node: ast.Name) -> str:
    word = node.id.removesuffix("_")
    return word if keyword.iskeyword(word) else node.id


def evaluate(formula: str, symbols: Mapping[str, Tensor | float]) -> Value:
    """The value of a formula. Tensors are taken to float64; whole numbers stay whole: they can bound a slice.

    Raises `FormulaError`, naming formula and symbol, for what is not in the grammar or not among `symbols`,
    and `Misfit` for shapes that an operator refuses.
    """
    tree, wanted = parse(formula)
    for symbol in sorted(wanted - symbols.keys()):
        raise FormulaError(
            f"formula {formula!r}: no symbol {symbol!r}; there are {', '.join(sorted(symbols))}"
        )
    values = {name: s.to(torch.float64) if isinstance(s, Tensor) else s for name, s in symbols.items()}

    def index(node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            return slice(*(bound and value(bound) for bound in (node.lower, node.upper, node.step)))
        return None if isinstance(node, ast.Constant) and node.value is None else value(node)

    def value(node: ast.expr) -> Value:
        match node:
            case ast.Name():
                return values[_symbol(node)]
            case ast.Constant():
                return node.value
            case ast.BinOp():
                return attempt(node, OPERATORS[type(node.op)], value(node.left), value(node.right))
            case ast.UnaryOp():
                return attempt(node, OPERATORS[type(node.op)], value(node.operand))
            case ast.Subscript(slice=ast.Tuple(elts=items)):
                return attempt(node, operator.getitem, value(node.value), tuple(map(index, items)))
            case ast.Subscript():
                return attempt(node, operator.getitem, value(node.value), index(node.slice))
            case ast.Call(func=ast.Name(id=function)):
                return attempt(node, FUNCTIONS[function], *map(value, node.args))
        raise AssertionError(f"parse let {ast.dump(node)} through")

    def attempt(node: ast.expr, function: Callable[..., Value], *operands: Value) -> Value:
        try:
            return function(*operands)
        except (RuntimeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
            given = [f"shape {list(o.shape)}" if isinstance(o, Tensor) else repr(o) for o in operands]
            reason = str(error).splitlines()[0]
            raise Misfit(
                f"formula {formula!r}: {ast.unparse(node)} of {', '.join(given)}: {reason}"
            ) from None

    return value(tree)


@dataclass(frozen=True)
class Adapter:
    """One adapter on the layer: its method's card, its config's fields, its tensors by the card's names."""

    name: str
    card: Mapping[str, Any]
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer type: whether its weight is stored as (in, out) or (num, dim), and torch's own function."""

    transposed: bool
    call: Callable[..., Tensor]


CONV_ARGUMENTS = ("stride", "padding", "dilation", "groups")
LAYERS = {
    "Linear": Layer(False, F.linear),
    "Conv1D": Layer(True, lambda x, w, b: F.linear(x, w.mT, b)),
    "Embedding": Layer(True, lambda x, w, b: F.embedding(x, w)),
    "Conv1d": Layer(False, F.conv1d),
    "Conv2d": Layer(False, F.conv2d),
    "Conv3d": Layer(False, F.conv3d),
}


def _symbols(
    adapter: Adapter, layer: str, known: Mapping[str, Any], overrides: Mapping[str, float]
) -> dict[str, Any]:
    """What the card's formulas may name: sizes, W, b, config fields, tensors, and the card's own symbols."""
    fields = {**adapter.fields, **overrides}
    numbers = {k: v for k, v in fields.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    lists = {k: torch.tensor(v) for k, v in fields.items() if isinstance(v, list) and _whole(v)}
    symbols: dict[str, Any] = {**numbers, **lists, **known}
    for name, tensor in adapter.card.get("tensors", {}).items():
        symbol = tensor.get("symbol", name)
        if layer not in tensor.get("on", [layer]):
            symbols.setdefault(symbol, 0.0)  # another tensor of the card may stand for it on this layer
        elif name in adapter.tensors:
            found = adapter.tensors[name].to(torch.float64)
            symbols[symbol] = (
                found.flatten(1) if layer in ("Conv1d", "Conv2d", "Conv3d") and found.ndim > 2 else found
            )
        elif "when" in tensor and not holds(tensor["when"], fields):
            symbols[symbol] = 0.0  # a tensor that this config does not call for adds nothing
        elif tensor.get("needs") == "bias" and not isinstance(known.get("b"), Tensor):
            symbols[symbol] = 0.0
        elif not tensor.get("optional"):
            raise Misfit(f"adapter {adapter.name!r} has no tensor {name} on this layer")
    for name, choices in adapter.card.get("symbols", {}).items():
        if name not in overrides:
            symbols[name] = evaluate(_chosen(adapter, name, choices, layer, overrides), symbols)
    return symbols


def _whole(values: Sequence[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _chosen(
    adapter: Adapter,
    name: str,
    choices: str | Sequence[Mapping[str, Any]],
    layer: str,
    overrides: Mapping[str, float],
) -> str:
    """The formula itself, or the first of several that fits the config and the layer."""
    if isinstance(choices, str):
        return choices
    fields = {**adapter.fields, **overrides}
    for choice in choices:
        if layer in choice.get("on", [layer]) and holds(choice.get("when", {}), fields):
            return str(choice["value"])
    raise FormulaError(f"card {adapter.card['method']}: no value of {name!r} fits the config")


def holds(when: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether each field has the value that is stated, or one of those that are listed; of options that are
    an object, those that are named count.
    """
    return all(_has(fields.get(name), value) for name, value in when.items())


def _has(found: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(found, Mapping) and holds(value, found.get("fields", found))
    return bool(found == value or (isinstance(value, list) and found in value))


def relation(
    sides: Sequence[str], layer: str, weight: Tensor, before: Tensor | None, adapter: Adapter
) -> list[Tensor]:
    """The values of formulas about one adapter on a layer: W is its weight now, W0 the one it had `before`.

    Raises as `effective`.
    """
    if layer not in LAYERS:
        raise FormulaError(f"no oracle for layers of type {layer}; there are {', '.join(LAYERS)}")
    stored = {"W": weight} if before is None else {"W": weight, "W0": before}
    known: dict[str, Any] = {
        name: tensor.double().mT if LAYERS[layer].transposed else tensor.double().flatten(1)
        for name, tensor in stored.items()
    }
    known |= {"out": known["W"].shape[0], "in": known["W"].shape[1]}
    symbols = _symbols(adapter, layer, known, {})
    return [torch.as_tensor(evaluate(side, symbols), dtype=torch.float64) for side in sides]


def scaled_factors(adapter: Adapter, layer: str, weight: Tensor) -> tuple[float, Tensor, Tensor]:
    """Scaling, A and B of an adapter on a layer, kernels flattened, by the symbols s, A and B of its card."""
    known = {"W": weight, "b": 0.0, "out": 0, "in": 0}
    symbols = _symbols(adapter, layer, known, {})
    if missing := {"s", "A", "B"} - symbols.keys():
        raise FormulaError(f"card {adapter.card['method']}: no symbol {', '.join(sorted(missing))}")
    return float(symbols["s"]), symbols["A"].double(), symbols["B"].double().flatten(1)


def effective(
    layer: str,
    weight: Tensor,
    bias: Tensor | None,
    adapters: Sequence[Adapter],
    overrides: Mapping[str, float],
    x: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer with `adapters` active, in the layer's own storage order, in float64.

    A formula may name the layer's input, `x`, whose vectors are the rows of a matrix there: some methods have
    a weight only for a given input.

    How several combine is the cards' `active_together`: `sum` adds each one's change of the base, `compose`
    changes the result of the one before, `one` allows a single adapter. `overrides` replaces config fields
    and card symbols. Raises `FormulaError` for what the cards cannot say, `Misfit` for tensors that do not
    fit.
    """
    if layer not in LAYERS:
        raise FormulaError(f"no oracle for layers of type {layer}; there are {', '.join(LAYERS)}")
    stored = weight.to(torch.float64)
    base = stored.mT if LAYERS[layer].transposed else stored.flatten(1)  # (out, in·kernel) or (dim, num)
    base_bias: Value = 0.0 if bias is None else bias.to(torch.float64)
    w, b = base, base_bias
    for adapter in adapters:
        if bias is None:
            without = adapter.card.get("config", {}).get("without_bias", {})
            adapter = replace(adapter, fields={**adapter.fields, **without})
        together = adapter.card.get("active_together", "one")
        if together == "one" and len(adapters) > 1:
            raise FormulaError(f"card {adapter.card['method']}: one adapter at a time, given {len(adapters)}")
        from_w, from_b = (w, b) if together == "compose" else (base, base_bias)
        kernel = math.prod(stored.shape[2:])
        known = {"W": from_w, "W0": base, "b": from_b, "kernel": kernel}
        known |= {"out": base.shape[0], "in": base.shape[1]}
        if x is not None and x.is_floating_point():
            known["x"] = x.double().reshape(-1, x.shape[-1])
        symbols = _symbols(adapter, layer, known, overrides)
        new_w = _chosen(adapter, "weight", adapter.card["weight"], layer, overrides)
        new_b = _chosen(adapter, "bias", adapter.card.get("bias", "b"), layer, overrides)
        w = w + (_sized(evaluate(new_w, symbols), base.shape, "weight") - from_w)
        b = b + (_sized(evaluate(new_b, symbols), base.shape[:1], "bias") - from_b)
    if bias is None and not (isinstance(b, Tensor) and b.any()):
        b = None  # whatever a formula makes of no bias is no bias
    return (w.mT if LAYERS[layer].transposed else w.reshape(stored.shape)), b


def _sized(value: Value, shape: Sequence[int], what: str) -> Value:
    """A formula's value, unless broadcasting has given it another shape than the layer's."""
    if isinstance(value, Tensor) and list(value.shape) != list(shape):
        raise Misfit(f"the formula gives a {what} of shape {list(value.shape)}, the layer's is {list(shape)}")
    return value


def padding_sides(padding: int | Sequence[int], dims: int) -> list[int]:
    """What torch's `pad` takes for a convolution's `padding`."""
    sizes = [padding] * dims if isinstance(padding, int) else list(padding)
    return [size for size in reversed(sizes) for _ in range(2)]


def apply_layer(
    layer: str, arguments: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The layer's output for input `x`, with the `arguments` that the model's declaration gives the layer.

    Raises `Misfit` where weight or bias are not of the declared layer's shapes.
    """
    used = {name: arguments[name] for name in CONV_ARGUMENTS if name in arguments}
    mode = arguments.get("padding_mode", "zeros")
    try:
        if mode != "zeros":  # the input is padded first, from its last dimension on, on both sides
            x = F.pad(x.double(), padding_sides(used.pop("padding", 0), x.dim() - 2), mode=mode)
        return LAYERS[layer].call(x.double() if x.is_floating_point() else x, weight, bias, **used)
    except (RuntimeError, IndexError) as error:
        raise Misfit(f"{layer} of input {list(x.shape)} and weight {list(weight.shape)}: {error}") from None
