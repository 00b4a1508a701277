"""The spec language: YAML files become a `Suite`, or errors that say where and what would be right.

Three layers: `read_yaml` (YAML 1.2 core scalars, every line number kept), `schema_errors` (JSON Schema, in
words) and `load_suite` (the files of a specs folder as records). What a schema cannot see is left to `lint`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from peft_conformance.cases import Check, Clause, Variant

MAX_BYTES = 1 << 20  # a spec file is read by people
MAX_ALIASES = 16
MAX_DEPTH = 40
FOLDERS = {  # folder below specs/ -> schema of its files
    "api": "clauses",
    "checkpoint": "clauses",
    "laws": "laws",
    "methods": "method",
    "vocabulary": "vocabulary",
    "sources": "sources",
}
NOT_WORDS = {"id", "level", "because"}  # keys of a check beside the one that names it
SECTIONS = {  # of the vocabulary -> what one entry is called
    "models": "model",
    "sets": "set",
    "tolerances": "tolerance",
    "errors": "error class",
    "capabilities": "capability",
    "operations": "operation",
}


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


# --- YAML -----------------------------------------------------------------------------------------


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
_SCALARS: dict[
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
for _name, (_pattern, _first, _) in _SCALARS.items():
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
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
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
            value = _SCALARS[kind][2](node.value)
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
        reader.error(node, f"expected a mapping, found {_describe(value)}")
    if reader.errors:
        raise SpecErrors(reader.errors)
    return value


# --- JSON Schema, in words ------------------------------------------------------------------------


def find_specs_dir() -> Path:
    """The specs of the checkout that this package lies in, or those inside an installed wheel."""
    for folder in (Path(__file__).parents[2] / "specs", Path(__file__).parent / "specs"):
        if (folder / "schema" / "common.schema.json").is_file():
            return folder
    raise FileNotFoundError(f"no specs beside or inside the package at {Path(__file__).parent}")


def _told_by_keys(condition: Any, instance: Any) -> bool | None:
    """Whether an instance has the keys, or their constants, that a condition asks for; None if unclear."""
    if isinstance(instance, dict) and set(condition) == {"required"}:
        return all(key in instance for key in condition["required"])
    if isinstance(instance, dict) and set(condition) == {"properties"}:
        wanted = condition["properties"]
        if all(set(schema) == {"const"} for schema in wanted.values()):
            return all(
                instance.get(key) == schema["const"] for key, schema in wanted.items() if key in instance
            )
    return None


def _all_of(validator: Any, parts: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """`allOf` that passes over conditions that plainly fail: a step is one of dozens of steps and calls."""
    for index, part in enumerate(parts):
        if "if" not in part or "else" in part or _told_by_keys(part["if"], instance) is not False:
            yield from validator.descend(instance, part, schema_path=index)


def _one_of(validator: Any, branches: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """`oneOf` without trying each branch, where the branches are told apart by a key that each requires."""
    told = [_told_by_keys(branch, instance) for branch in branches]
    if None in told:
        yield from Draft202012Validator.VALIDATORS["oneOf"](validator, branches, instance, schema)
    elif sum(map(bool, told)) != 1:
        yield ValidationError("none, or more than one, of several keys")


_FORMATS = FormatChecker(formats=())
_FORMATS.checks("api-range", raises=InvalidSpecifier)(lambda text: SpecifierSet(str(text)) is not None)
_FORMATS.checks("regex", raises=re.error)(lambda text: re.compile(str(text)) is not None)
_Validator = extend(Draft202012Validator, {"allOf": _all_of, "oneOf": _one_of})


@cache
def _schemas() -> dict[str, Any]:
    """The schemas by file name, each `$ref` replaced by what it names, so that nothing is looked up later."""
    schemas = {f.name: json.loads(f.read_text("utf-8")) for f in (find_specs_dir() / "schema").glob("*.json")}

    def link(value: Any, home: str) -> None:
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            if isinstance(item, dict) and "$ref" in item:
                value[key] = _named(schemas, item["$ref"], home)
            elif isinstance(item, (dict, list)):
                link(item, home)

    for name, schema in schemas.items():
        del schema["$schema"], schema["$id"]  # they would put the plain validator in the place of ours
        link(schema, name)
    return schemas


def _named(schemas: dict[str, Any], ref: str, home: str = "") -> Any:
    file, _, path = ref.partition("#/")
    found = schemas[file or home]
    for part in path.split("/") if path else ():
        found = found[part]
    return _named(schemas, found["$ref"], file or home) if "$ref" in found else found


@cache
def validator(ref: str) -> Any:
    """The validator for a schema or a definition in one: `clauses.schema.json#/$defs/step`."""
    return _Validator(_named(_schemas(), ref), format_checker=_FORMATS)


@dataclass(frozen=True)
class _Finding:
    path: tuple[str | int, ...]
    kind: str  # the schema keyword that was not met
    message: str
    suggestion: str | None = None
    key: str = ""  # for `required`: the key that is missing


def schema_errors(file: Path, data: Any, ref: str) -> list[SpecError]:
    """Every way in which `data` is not what the schema says, one message per fault."""
    found = {
        f: None for error in validator(ref).iter_errors(data) for f in _findings(error)
    }  # ordered, no doubles
    several = {f.path for f in found if f.kind == "several"}
    mended = {(f.path[:-1], f.suggestion) for f in found if f.kind == "additionalProperties"}
    return [
        SpecError(file, line_at(data, f.path), f.message, f.suggestion)
        for f in found
        if not (f.kind == "additionalProperties" and f.path[:-1] in several)
        and not (f.kind == "required" and (f.path, f.key) in mended)  # the misspelled key is reported already
    ]


def _findings(error: Any) -> Iterator[_Finding]:
    path, value, want, found = tuple(error.absolute_path), error.validator_value, error.schema, error.instance
    kind = str(error.validator)
    if kind in ("anyOf", "oneOf"):
        yield from _choice(error, path, kind)
    elif kind == "additionalProperties":
        known = want.get("properties", {})
        for key in [k for k in found if k not in known]:
            message = f"unknown key {key!r} in {_place(path)}"
            yield _Finding((*path, key), kind, message, closest(key, [k for k in known if k not in found]))
    elif kind == "required":
        for key in [k for k in value if k not in found]:
            yield _Finding(path, kind, f"{_place(path)} lacks {key!r}", key=key)
    elif "propertyNames" in error.absolute_schema_path:
        yield _Finding((*path, found), kind, _leaf(error, f"key {found!r} of {_place(path)}"), _near(error))
    else:
        yield _Finding(path, kind, _leaf(error, _place(path)), _near(error))


def _choice(error: Any, path: tuple[str | int, ...], kind: str) -> Iterator[_Finding]:
    """An instance that fits none (or, for oneOf, more than one) of several branches."""
    branches, found = error.validator_value, error.instance
    words = [b["required"][0] for b in branches if set(b) == {"required"}]
    if len(words) == len(branches):  # told apart by a key: steps, checks, then or variants
        if isinstance(found, dict):
            yield _chosen_by_key(words, found, path)
        return
    by_branch: dict[int, list[Any]] = {}
    for sub in error.context or ():
        by_branch.setdefault(int(sub.schema_path[0]), []).append(sub)
    own = len(error.absolute_path)
    fitting = [
        subs
        for subs in by_branch.values()
        if not any(s.validator == "type" and len(s.absolute_path) == own for s in subs)
    ]
    if fitting:  # the branches of the right type: report the one that was nearly met
        for sub in min(fitting, key=len):
            yield from _findings(sub)
    else:
        wanted = [_wanted(s) for subs in by_branch.values() for s in subs if len(s.absolute_path) == own]
        message = f"{_place(path)}: expected {' or '.join(dict.fromkeys(wanted))}, found {_describe(found)}"
        yield _Finding(path, "type", message)


def _chosen_by_key(words: list[str], found: dict[str, Any], path: tuple[str | int, ...]) -> _Finding:
    """An object that has none, or more than one, of the keys of which one says what it is."""
    what = {"same_object": "check", "make_model": "step"}.get(words[0], _place(path))
    present = [word for word in words if word in found]
    others = [k for k in found if k not in NOT_WORDS | {"as", "args", "on", "label", "raises"}]
    if present:
        return _Finding(path, "several", f"{what} has {' and '.join(map(repr, present))}: choose one")
    if others and what in ("check", "step"):
        return _Finding(
            (*path, others[0]), "oneOf", f"unknown {what} {others[0]!r}", closest(others[0], words)
        )
    return _Finding(path, "oneOf", f"{what} without any of {_listed(words)}")


def _leaf(error: Any, place: str) -> str:
    value, found = error.validator_value, error.instance
    kind = str(error.validator)
    if kind == "enum" and place == "call":
        return f"unknown operation {found!r}"
    if kind == "enum":
        return f"{place}: {found!r} is not one of {_listed(value)}"
    if kind == "format":
        why = "a PEP 440 range" if value == "api-range" else f"a regular expression ({error.cause})"
        return f"{place}: {found!r} is not {why}"
    if kind in ("type", "pattern"):
        return f"{place}: expected {_wanted(error)}, found {_describe(found)}"
    more = (
        [key for key in error.schema.get("properties", ()) if key not in found]
        if kind == "minProperties"
        else []
    )
    return {
        "const": f"{place}: expected {value!r}, found {_describe(found)}",
        "minLength": f"{place}: {found!r} is too short to say anything: at least {value} characters",
        "minItems": f"{place}: {_count(found)} given, at least {value} needed",
        "maxItems": f"{place}: {_count(found)} given, at most {value} allowed",
        "uniqueItems": f"{place}: an item is listed twice",
        "minProperties": f"{place} says too little, add one of {_listed(more)}",
        "maxProperties": f"{place} says too much, at most {value} keys are allowed",
    }.get(kind, f"{place}: {error.message}")


def _near(error: Any) -> str | None:
    return closest(error.instance, error.validator_value) if error.validator == "enum" else None


def _wanted(error: Any) -> str:
    schema = error.schema
    if "title" in schema:
        return str(schema["title"])
    if error.validator == "pattern":
        return f"text of the form {error.validator_value}"
    names = {"object": "a mapping", "array": "a list", "string": "a string", "boolean": "true or false"}
    names |= {"integer": "a whole number", "number": "a number"}
    return names.get(str(schema.get("type")), f"one of {_listed(schema.get('enum', []))}")


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else json.dumps(value) if isinstance(value, bool) else repr(value)


def _listed(words: Iterable[object]) -> str:
    names = [str(w) for w in words]
    return ", ".join(names) if len(names) <= 8 else ", ".join([*names[:7], f"… ({len(names)} in all)"])


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def _place(path: tuple[str | int, ...]) -> str:
    """The end of a path as a reader would name it: `args`, `then[2]`, `the file`."""
    if not path:
        return "the file"
    names = [i for i, key in enumerate(path) if isinstance(key, str)]
    if not names:
        return "the entry"
    return str(path[names[-1]]) + "".join(f"[{i}]" for i in path[names[-1] + 1 :])


# --- the suite ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suite:
    """Everything that a specs folder says. Mappings and lists keep their line numbers (`Map`, `Seq`)."""

    specs: Path
    clauses: tuple[Clause, ...] = ()  # laws included
    cards: dict[str, Map] = field(default_factory=dict)  # PEFT_TYPE -> method card
    models: dict[str, Map] = field(default_factory=dict)
    sets: dict[str, Map] = field(default_factory=dict)
    tolerances: dict[str, Map] = field(default_factory=dict)
    errors: dict[str, Map] = field(default_factory=dict)
    capabilities: dict[str, str] = field(default_factory=dict)
    operations: dict[str, Map] = field(default_factory=dict)
    sources: dict[str, Map] = field(default_factory=dict)  # document -> its sentence inventory
    rows: Map = field(default_factory=lambda: Map(1))  # `areas` and `excluded` of the behaviour inventory
    files: dict[Path, Map] = field(default_factory=dict)  # every file that was read

    def clause(self, clause_id: str) -> Clause:
        """The clause of that id. Raises KeyError with the nearest known id."""
        for clause in self.clauses:
            if clause.id == clause_id:
                return clause
        near = closest(clause_id, (c.id for c in self.clauses))
        raise KeyError(f"no clause {clause_id!r}" + (f"; did you mean {near!r}?" if near else ""))

    def set_values(self, name: str) -> tuple[str, ...]:
        """The values of a named set; one drawn from the cards lists lower-case methods, at any API level."""
        entry = self.sets.get(name, Map(1))
        if "cards" not in entry:
            return tuple(entry.get("values", ()))
        wanted = entry["cards"]
        return tuple(
            method.lower()
            for method, card in sorted(self.cards.items(), key=lambda item: (item[0] != "LORA", item[0]))
            if card["kind"] == wanted.get("kind", card["kind"])
            and wanted.get("injectable", True) in injectable(card).values()
        )

    def file_of(self, entry: Map) -> Path:
        """The file in which a card, an inventory or another whole document stands."""
        return next(file for file, data in self.files.items() if data is entry)


def injectable(card: Mapping[str, Any]) -> dict[str, bool]:
    """API range -> whether a card's method can be injected there."""
    value = card["injectable"]
    return value if isinstance(value, dict) else {">=0": value}


def load_suite(specs_dir: Path) -> Suite:
    """Read, check against the schemas, and assemble all spec files. Raises SpecErrors, all faults at once."""
    specs_dir = Path(specs_dir)
    errors: list[SpecError] = []
    files: dict[Path, Map] = {}
    for file in sorted([*specs_dir.rglob("*.yaml"), *specs_dir.rglob("*.yml")]):
        data, faults = _load_file(specs_dir, file)
        errors += faults
        files[file] = data
    if not files:
        errors.append(SpecError(specs_dir, 1, "no spec files here"))
    if errors:
        raise SpecErrors(errors)
    return _assemble(specs_dir, files)


def _load_file(specs_dir: Path, file: Path) -> tuple[Map, list[SpecError]]:
    """What a spec file holds, and every way in which it does not fit its folder's schema."""
    folder = file.relative_to(specs_dir).parts[0]
    if folder not in FOLDERS or file.parent != specs_dir / folder or file.suffix != ".yaml":
        known = ", ".join(f"{name}/*.yaml" for name in FOLDERS)
        return Map(1), [SpecError(file, 1, f"a spec file lies in one of {known}")]
    kind = "rows" if (folder, file.name) == ("sources", "rows.yaml") else FOLDERS[folder]
    try:
        data = read_yaml(file)
    except SpecErrors as failed:
        return Map(1), failed.errors
    errors = schema_errors(file, data, f"{kind}.schema.json")
    header = f"# yaml-language-server: $schema=../schema/{kind}.schema.json"
    if file.read_text("utf-8").split("\n", 1)[0].rstrip() != header:
        errors.append(SpecError(file, 1, f"the first line should be `{header}`"))
    return data, errors


def _assemble(specs_dir: Path, files: dict[Path, Map]) -> Suite:
    suite = Suite(specs_dir, files=files)
    errors: list[SpecError] = []
    clauses: list[Clause] = []

    def put(table: dict[str, Any], what: str, name: str, value: Any, file: Path, line: int) -> None:
        if name in table:
            errors.append(SpecError(file, line, f"{what} {name!r} is defined twice"))
        table[name] = value

    raw_clauses: list[tuple[Path, Map, Map, int]] = []
    for file, data in files.items():
        folder = file.parent.name
        for section in SECTIONS if folder == "vocabulary" else ():
            entries = data.get(section, Map(1))
            for name, value in entries.items():
                put(getattr(suite, section), SECTIONS[section], name, value, file, entries.lines[name])
        if folder == "methods":
            put(suite.cards, "card", data["method"], data, file, data.lines["method"])
        elif folder == "sources" and "document" in data:
            put(suite.sources, "document", data["document"], data, file, data.lines["document"])
        elif folder == "sources":
            suite.rows.update(data)
            suite.rows.lines.update(data.lines)
        for key in ("clauses", "laws"):
            items = data.get(key, Seq(1))
            raw_clauses += [(file, data, item, line) for item, line in zip(items, items.lines, strict=True)]
    if errors:
        raise SpecErrors(errors)
    clauses = [_clause(suite, *raw) for raw in raw_clauses]
    return Suite(**{**vars(suite), "clauses": tuple(clauses)})


def _clause(suite: Suite, file: Path, data: Map, raw: Map, line: int) -> Clause:
    def checks(items: Seq) -> tuple[Check, ...]:
        result = []
        for item, at in zip(items, items.lines, strict=True):
            word = next(key for key in item if key not in NOT_WORDS)
            level = item.get("level", raw["level"])
            result.append(Check(item["id"], word, item[word], level, at, item.get("because")))
        return tuple(result)

    variants = raw.get("variants") or [{"api": raw["api"], "then": raw["then"]}]
    axis_sets = {axis: v["set"] for axis, v in raw.get("matrix", {}).items() if isinstance(v, dict)}
    source = raw["source"]
    return Clause(
        id=raw["id"],
        level=raw["level"],
        text=raw["text"],
        sources=tuple(source) if isinstance(source, list) else (source,),
        api=raw["api"],
        profile=raw["profile"],
        topic=data["topic"],
        file=file,
        line=line,
        given=tuple(raw.get("given", ())),
        when=tuple(raw["when"]),
        modifies=tuple(raw.get("modifies", ())),
        variants=tuple(Variant(v["api"], checks(v["then"])) for v in variants),
        matrix={
            axis: suite.set_values(axis_sets[axis]) if axis in axis_sets else tuple(values)
            for axis, values in raw.get("matrix", {}).items()
        },
        axis_sets=axis_sets,
        exclude=tuple(raw.get("exclude", ())),
        requires=tuple(raw.get("requires", ())),
        needs=tuple(raw.get("needs", ())),
        rows=tuple(raw.get("rows", ())),
        decided=raw.get("decided"),
        law="laws" in data,
        lines=raw.lines,
    )
