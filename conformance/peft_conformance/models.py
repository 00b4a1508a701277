"""Models and inputs from their declarations: the same numbers for the same seed, on every machine.

A `chain` declaration lists modules that are created and applied in that order; a `transformers` declaration
names a model class and a small random config. `source` writes the same model and input as plain Python, for a
script that stands alone.
"""

from __future__ import annotations

import copy
import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from . import layers

DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "bfloat16", "float32", "float64", "int64", "float8_e4m3fn")
    if hasattr(torch, name)
}


OUTPUTS = ("logits", "last_hidden_state", "start_logits", "end_logits", "loss")  # of transformers models


class ModelError(Exception):
    """A declaration that cannot be built: a mistake of the specs, never of an implementation."""


def _conv1d(**arguments: Any) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(**arguments)


OWN = {cls.__name__: cls for cls in (layers.Affine, layers.Experts)}

# Class name -> constructor: what a chain may consist of.
LAYERS: dict[str, Callable[..., nn.Module]] = {
    **{
        name: getattr(nn, name)
        for name in (
            "Linear",
            "Embedding",
            "Conv1d",
            "Conv2d",
            "Conv3d",
            "ReLU",
            "BatchNorm1d",
            "LayerNorm",
            "Dropout",
            "Flatten",
            "MultiheadAttention",
            "LSTM",
        )
    },
    "Conv1D": _conv1d,
    **OWN,
}


# Class name -> how a chain calls it, for those that take or return more than one tensor.
CALLS: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], str]] = {
    "MultiheadAttention": (lambda module, x: module(x, x, x)[0], "{}(x, x, x)[0]"),
    "LSTM": (lambda module, x: module(x)[0], "{}(x)[0]"),
}


class Chain(nn.Module):
    """Modules at declared paths, applied one after the other."""

    links: tuple[tuple[str, str], ...]  # path and declared class

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give `x` to the first module, its output to the second, and so on."""
        for path, cls in self.links:
            module = self.get_submodule(path)
            x = CALLS[cls][0](module, x) if cls in CALLS else module(x)
        return x


@cache
def _chain_class(name: str) -> type[Chain]:
    return type(name, (Chain,), {"__module__": __name__})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from the CPU generator under a seed and put it back: the caller's random state does not move."""
    generator = torch.random.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _containers(paths: list[str]) -> dict[str, bool]:
    """Inner path -> whether its children are numbered (a ModuleList), parents before children."""
    found: dict[str, bool] = {}
    for path in paths:
        parts = path.split(".")
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), parts[depth].isdigit())
    return found


def build(
    declaration: dict[str, Any],
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    training: bool = False,
) -> nn.Module:
    """The declared model with weights drawn in float32 under `seed` and cast to `dtype` on `device`.

    Weights depend on declaration and seed alone; the global generators are left as they were. A model that
    is declared weightless is always on the meta device, and may be of any size. Raises
    `ModelError` for a declaration that names an unknown class.
    """
    if declaration.get("weightless"):
        device = "meta"
    with _seeded(seed), torch.device("meta" if device == "meta" else "cpu"):
        model = _chain(declaration) if "chain" in declaration else _transformers(declaration["transformers"])
    return model.to(device=device, dtype=DTYPES[dtype]).train(training)


def _chain(declaration: dict[str, Any]) -> Chain:
    model = _chain_class(declaration.get("class_name", "Chain"))()
    entries = [(path, name, *rest) for path, name, *rest in declaration["chain"]]
    for path, numbered in _containers([entry[0] for entry in entries]).items():
        _place(model, path, nn.ModuleList() if numbered else nn.Module())
    for path, name, *rest in entries:
        if name not in LAYERS:
            raise ModelError(f"a chain cannot hold {name!r}; known classes: {', '.join(sorted(LAYERS))}")
        _place(model, path, LAYERS[name](**(rest[0] if rest else {})))
    for first, *others in declaration.get("tied", []):
        for path in others:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, model.get_parameter(first))
    model.links = tuple((path, cls) for path, cls, *_ in entries)
    return model


def _place(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    model.get_submodule(parent).add_module(leaf, module)


def _transformers(spec: dict[str, Any]) -> nn.Module:
    import transformers

    try:
        config_class, model_class = (
            getattr(transformers, spec["config_class"]),
            getattr(transformers, spec["class"]),
        )
    except AttributeError as error:
        raise ModelError(f"transformers {transformers.__version__} has no such model: {error}") from error
    return model_class(config_class(**copy.deepcopy(spec["config"])))


def greedy(new_tokens: int) -> dict[str, Any]:
    """The arguments of `generate` for so many tokens, whatever they are and without chance."""
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    return {**lengths, "do_sample": False, "pad_token_id": 0}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let the library log nothing, and let it not spend seconds on collecting what others have left
    behind. What a run has frozen already stays frozen: else every later collection goes through the suite.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
        logging.set_verbosity(level)


def make_input(
    declaration: dict[str, Any],
    name: str = "default",
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str | None, torch.Tensor]:
    """The declared input by the keyword it is passed under (`None`: the first position), and what is passed
    beside it.

    Ids are int64 in `[0, high)` or the declared `values`; floats are standard normal, drawn in float32 and
    cast to `dtype`.
    """
    if name not in declaration["inputs"]:
        raise ModelError(f"no input {name!r}; the model declares: {', '.join(declaration['inputs'])}")
    generator = torch.Generator().manual_seed(seed)

    def draw(spec: dict[str, Any]) -> torch.Tensor:
        if "values" in spec:
            return torch.tensor(spec["values"], device=device)
        if spec["kind"] == "ids":
            return torch.randint(spec.get("high", 2), spec["shape"], generator=generator).to(device)
        return torch.randn(spec["shape"], generator=generator).to(device, DTYPES[dtype])

    return {keyword: draw(spec) for keyword, spec in _inputs(declaration, name).items()}


def _inputs(declaration: dict[str, Any], name: str) -> dict[str | None, dict[str, Any]]:
    """The tensors of a declared input by keyword, in the order in which they are drawn."""
    spec = declaration["inputs"][name]
    return {spec.get("keyword"): spec, **spec.get("beside", {})}


# --- the same as source


def source(declaration: dict[str, Any]) -> str:
    """Python that defines `build_model(seed)`: the model of `build` in float32 on the CPU, without
    importing us.
    """
    body = (
        _chain_source(declaration)
        if "chain" in declaration
        else _transformers_source(declaration["transformers"])
    )
    return body + "\n\n"


def input_source(
    declaration: dict[str, Any],
    name: str = "default",
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str | None, str]:
    """Expressions for the tensors that `make_input` gives; the first makes the `generator` of the others."""
    texts: dict[str | None, str] = {}
    for keyword, spec in _inputs(declaration, name).items():
        generator = "torch.Generator().manual_seed"
        draw = f"generator={'generator' if texts else f'{generator}({seed})'}"
        if "beside" in spec:
            draw = f"generator=(generator := {generator}({seed}))"
        if "values" in spec:
            text = f"torch.tensor({list(spec['values'])})"
        elif spec["kind"] == "ids":
            text = f"torch.randint({spec.get('high', 2)}, {tuple(spec['shape'])}, {draw})"
        else:
            text = f"torch.randn({tuple(spec['shape'])}, {draw})"
            text += "" if dtype == "float32" else f".to(torch.{dtype})"
        texts[keyword] = text + ("" if device == "cpu" else f".to({device!r})")
    return texts


def _chain_source(declaration: dict[str, Any]) -> str:
    name = declaration.get("class_name", "Chain")
    entries = [(path, cls, *rest) for path, cls, *rest in declaration["chain"]]
    made = [
        (path, f"torch.nn.{'ModuleList' if n else 'Module'}()")
        for path, n in _containers([e[0] for e in entries]).items()
    ]
    for path, cls, *rest in entries:
        arguments = ", ".join(f"{k}={v!r}" for k, v in (rest[0] if rest else {}).items())
        made.append((path, f"{'' if cls in ('Conv1D', *OWN) else 'torch.nn.'}{cls}({arguments})"))
    lines = [f"{inspect.getsource(OWN[cls])}\n" for cls in dict.fromkeys(e[1] for e in entries) if cls in OWN]
    lines += (
        ["from transformers.pytorch_utils import Conv1D\n\n"]
        if any(e[1] == "Conv1D" for e in entries)
        else []
    )
    lines += [f"class {name}(torch.nn.Module):", "    def __init__(self):", "        super().__init__()"]
    for path, text in made:
        parent, _, leaf = path.rpartition(".")
        lines.append(
            f"        {_attribute('self', parent)}.add_module({leaf!r}, {text})"
            if leaf.isdigit()
            else f"        {_attribute('self', path)} = {text}"
        )
    for first, *others in declaration.get("tied", []):
        lines += [f"        {_attribute('self', path)} = {_attribute('self', first)}" for path in others]
    lines += ["", "    def forward(self, x):"]
    calls = [(_attribute("self", path), CALLS.get(cls, (None, "{}(x)"))[1]) for path, cls, *_ in entries]
    lines += [f"        x = {call.format(module)}" for module, call in calls]
    lines += [
        "        return x",
        "",
        "",
        "def build_model(seed):",
        "    torch.manual_seed(seed)",
        f"    return {name}()",
    ]
    return "\n".join(lines)


def _attribute(root: str, path: str) -> str:
    """`layers.0.attn` below `self` as an expression: `self.layers[0].attn`."""
    for part in path.split(".") if path else []:
        root += f"[{part}]" if part.isdigit() else f".{part}"
    return root


def _transformers_source(spec: dict[str, Any]) -> str:
    config = ", ".join(f"{k}={v!r}" for k, v in spec["config"].items())
    return "\n".join(
        [
            f"from transformers import {spec['config_class']}, {spec['class']}",
            "",
            "",
            "def build_model(seed):",
            "    torch.manual_seed(seed)",
            f"    return {spec['class']}({spec['config_class']}({config}))",
        ]
    )
