"""JSON Schema, in words: what was found, what would be right, and the known word that was probably meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from peft_conformance.reading import SpecError, closest, describe, line_at

# Keys of a step or check beside the one that says what it does.
NOT_WORDS = {"id", "level", "because", "as", "args", "on", "label", "raises"}


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


def _descend(
    validator: Any,
    instance: Any,
    schema: Any,
    path: Any = None,
    schema_path: Any = None,
    resolver: Any = None,
) -> Iterator[Any]:
    """The errors of a part; its validator is kept, since making one costs more than most parts take."""
    for error in _part_validator(validator, schema).iter_errors(instance):
        if path is not None:
            error.path.appendleft(path)
        if schema_path is not None:
            error.schema_path.appendleft(schema_path)
        yield error


def _part_validator(validator: Any, schema: Any) -> Any:
    # By identity: schemas are not hashable, and the validator that is kept keeps its schema from being freed.
    if (found := _PARTS.get(id(schema))) is None:
        found = _PARTS[id(schema)] = validator.evolve(schema=schema)
    return found


def _one_of(validator: Any, branches: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """`oneOf` without trying each branch, where the branches are told apart by a key that each requires."""
    told = [_told_by_keys(branch, instance) for branch in branches]
    if None in told:
        yield from Draft202012Validator.VALIDATORS["oneOf"](validator, branches, instance, schema)
    elif sum(map(bool, told)) != 1:
        yield ValidationError("none, or more than one, of several keys")


_FORMATS = FormatChecker(formats=())
_FORMATS.checks("api-range", raises=InvalidSpecifier)(lambda text: SpecifierSet(str(text)) is not None)
_FORMATS.checks("date", raises=ValueError)(lambda text: date.fromisoformat(str(text)) is not None)
_FORMATS.checks("regex", raises=re.error)(lambda text: re.compile(str(text)) is not None)
_Validator = extend(Draft202012Validator, {"allOf": _all_of, "oneOf": _one_of})
_Validator.descend = _descend
_PARTS: dict[int, Any] = {}


@cache
def _schemas() -> dict[str, Any]:
    """The schemas by file name, each `$ref` replaced by what it names, so that nothing is looked up later."""
    files = (find_specs_dir() / "schema").glob("*.schema.json")
    schemas = {file.name: json.loads(file.read_text("utf-8")) for file in files}

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
    findings = (f for error in validator(ref).iter_errors(data) for f in _findings(error))
    found = dict.fromkeys(findings)  # in order, each once
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

    def of_another_type(subs: list[Any]) -> bool:
        return any(s.validator == "type" and len(s.absolute_path) == len(path) for s in subs)

    fitting = [subs for subs in by_branch.values() if not of_another_type(subs)]
    if fitting:  # the branches of the right type: report the one that was nearly met
        for sub in min(fitting, key=len):
            yield from _findings(sub)
    else:
        wanted = [
            _wanted(s) for subs in by_branch.values() for s in subs if s.absolute_path == error.absolute_path
        ]
        message = f"{_place(path)}: expected {' or '.join(dict.fromkeys(wanted))}, found {describe(found)}"
        yield _Finding(path, "type", message)


def _chosen_by_key(words: list[str], found: dict[str, Any], path: tuple[str | int, ...]) -> _Finding:
    """An object that has none, or more than one, of the keys of which one says what it is."""
    what = {"same_object": "check", "make_model": "step"}.get(words[0], _place(path))
    present = [word for word in words if word in found]
    others = [k for k in found if k not in NOT_WORDS]
    if present:
        return _Finding(path, "several", f"{what} has {' and '.join(map(repr, present))}: choose one")
    if others and what in ("check", "step"):
        name = others[0]
        return _Finding((*path, name), "oneOf", f"unknown {what} {name!r}", closest(name, words))
    return _Finding(path, "oneOf", f"{what} without any of {_listed(words)}")


def _leaf(error: Any, place: str) -> str:
    value, found = error.validator_value, error.instance
    kind = str(error.validator)
    if kind == "enum" and place == "call":
        return f"unknown operation {found!r}"
    if kind == "enum":
        return f"{place}: {found!r} is not one of {_listed(value)}"
    if kind == "format":
        why = {"api-range": "a PEP 440 range", "date": "a day of the calendar"}.get(
            value, f"a regular expression ({error.cause})"
        )
        return f"{place}: {found!r} is not {why}"
    if kind in ("type", "pattern"):
        return f"{place}: expected {_wanted(error)}, found {describe(found)}"
    return {
        "const": f"{place}: expected {describe(value)}, found {describe(found)}",
        "minLength": f"{place}: {found!r} is too short to say anything: at least {value} characters",
        "minItems": f"{place}: {_count(found)} given, at least {value} needed",
        "maxItems": f"{place}: {_count(found)} given, at most {value} allowed",
        "uniqueItems": f"{place}: an item is listed twice",
        "minProperties": f"{place} says too little, add one of {_listed(_unused(error))}",
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


def _listed(words: Iterable[object]) -> str:
    names = [str(w) for w in words]
    return ", ".join(names) if len(names) <= 8 else ", ".join([*names[:7], "…"])


def _unused(error: Any) -> list[str]:
    return [key for key in error.schema.get("properties", ()) if key not in error.instance]


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
