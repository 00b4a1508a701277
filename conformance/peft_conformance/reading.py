"""YAML as the spec language reads it: core scalars of YAML 1.2, a line for everything, and nothing clever."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20  # a spec file is read by people
MAX_ALIASES = 16
MAX_DEPTH = 40


@dataclass(frozen=True, order=True)
class SpecError:
    """One fault of a spec file: where it stands, what was found, and which known word was probably meant."""

    file: Path
    line: int
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"

    @property
    def text(self) -> str:
        """The message with its suggestion, without the place."""
        return self.message + (f"; did you mean {self.suggestion!r}?" if self.suggestion else "")


class SpecErrors(Exception):
    """Spec files that cannot be used; `errors` holds every fault that was found, in file order."""

    def __init__(self, errors: Iterable[SpecError]) -> None:
        self.errors = sorted(set(errors), key=lambda e: (str(e.file), e.line, e.message))
        super().__init__("\n".join(map(str, self.errors)))


def closest(word: object, known: Iterable[object]) -> str | None:
    """The known word that is spelled most like `word`, if any is near."""
    by_spelling = {str(k).casefold(): str(k) for k in known if str(k) != str(word)}
    matches = difflib.get_close_matches(str(word).casefold(), by_spelling, n=1)
    return by_spelling[matches[0]] if matches else None


class Map(dict[str, Any]):
    """A mapping that knows the line of each of its keys."""

    line: int = 0

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line, self.lines = line, dict[str, int]()


class Seq(list[Any]):
    """A list that knows the line of each of its items."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line, self.lines = line, list[int]()


def line_at(root: Any, path: Iterable[str | int]) -> int:
    """The line at which the value under `path` stands, or the last line on the way that is known."""
    line: int = getattr(root, "line", 1)
    for key in path:
        if isinstance(root, Map) and key in root:
            line = root.lines[str(key)]
        elif isinstance(root, Seq) and isinstance(key, int) and key < len(root):
            line = root.lines[key]
        else:
            break
        root = root[key]
    return line


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Composes nodes, with scalars resolved as in the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own design


_CORE = "tag:yaml.org,2002:"
SCALARS: dict[
    str, tuple[str | None, list[str], Any]
] = {  # tag -> (pattern of a plain scalar, its first characters, its value)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        list("-+0123456789"),
        lambda text: int(text, _base(text)),
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
    "str": (None, [], str),
}
for _name, (_pattern, _first, _) in SCALARS.items():
    if _pattern is not None:
        _Loader.add_implicit_resolver(_CORE + _name, re.compile(f"(?:{_pattern})$"), _first)


def _base(text: str) -> int:
    return {"0o": 8, "0x": 16}.get(text[:2], 10)


class _Reader:
    """Turns nodes into plain values, and collects what the language does not allow."""

    def __init__(self, file: Path) -> None:
        self.file, self.errors = file, list[SpecError]()
        self.seen: set[int] = set()
        self.aliases = 0

    def error(self, node: yaml.Node, message: str, suggestion: str | None = None) -> None:
        self.errors.append(SpecError(self.file, node.start_mark.line + 1, message, suggestion))

    def value(self, node: yaml.Node) -> Any:
        if id(node) in self.seen:
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                self.error(node, f"more than {MAX_ALIASES} aliases: a spec says what it means in place")
                raise SpecErrors(self.errors)
        self.seen.add(id(node))
        kind = node.tag.removeprefix(_CORE)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            items = Seq(node.start_mark.line + 1)
            for child in node.value:
                items.lines.append(child.start_mark.line + 1)
                items.append(self.value(child))
            return items
        if isinstance(node, yaml.ScalarNode) and kind in SCALARS:
            return self.scalar(node, kind)
        tag = node.tag.replace(_CORE, "!!")
        self.error(node, f"tag {tag} is not allowed: specs hold plain data")
        return None

    def mapping(self, node: yaml.MappingNode) -> Map:
        entries = Map(node.start_mark.line + 1)
        for key_node, value_node in node.value:
            key = self.value(key_node)
            if not isinstance(key, str):
                self.error(key_node, f"key {key!r} is no string; put it in quotes")
                key = str(key)
            if key == "<<" and not key_node.style:
                self.error(key_node, "merge keys are not part of the language: write the entries out")
            if key in entries:
                self.error(key_node, f"duplicate key {key!r}, first on line {entries.lines[key]}")
            entries[key] = self.value(value_node)
            entries.lines[key] = key_node.start_mark.line + 1
        return entries

    def scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        try:
            value = SCALARS[kind][2](node.value)
        except ValueError:
            self.error(node, f"{node.value!r} is no {kind}")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.error(
                node, f"{node.value!r} is no number that JSON can hold; put it in quotes if it is a word"
            )
        return value


def read_yaml(file: Path) -> Map:
    """The mapping in a spec file, with line numbers. Raises SpecErrors on anything the language forbids."""

    def fail(line: int, message: str) -> SpecErrors:
        return SpecErrors([SpecError(file, line, message)])

    data = file.read_bytes()
    if len(data) > MAX_BYTES:
        raise fail(1, f"{len(data)} bytes: a spec file has at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise fail(line, f"not UTF-8: byte 0x{data[error.start]:02x}") from None
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH and event.start_mark:
                raise fail(event.start_mark.line + 1, f"nested more than {MAX_DEPTH} deep")
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise fail(
            mark.line + 1 if mark else 1,
            "not YAML: " + ", ".join(filter(None, (error.context, error.problem))),
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise fail(line, f"not YAML: character {error.character!r} is not allowed") from None
    if node is None:
        raise fail(1, "the file is empty")
    reader = _Reader(file)
    value = reader.value(node)
    if not isinstance(value, Map) and not reader.errors:
        reader.error(node, f"expected a mapping, found {describe(value)}")
    if reader.errors:
        raise SpecErrors(reader.errors)
    return value


def describe(value: Any) -> str:
    """A value as a message names it: what it is for containers, itself for anything else."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
