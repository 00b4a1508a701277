"""What an implementation offers, whether a clause speaks of it or not: names, signatures, fields, members.

Taken by the driver in the implementation's own process (the step `survey`), before the first case. It is the
same in every process: no addresses, no order of sets, and no module that is an attribute only because it has
been imported.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peft_conformance.records import Record, mro, plain, signature

if TYPE_CHECKING:
    from peft_conformance.driver import Subject

NOT_OFFERED = {"TYPE_CHECKING"}  # constants that are imported everywhere


def program(operations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the driver is asked to do: look at the modules that these operations of the vocabulary live in."""
    from peft_conformance.driver import LAYER_CLASSES, PUBLIC_CONTEXTS  # it imports this module

    called = (operation["path"] for operation in operations.values())
    paths = sorted({*called, *LAYER_CLASSES.values(), *PUBLIC_CONTEXTS.values()})
    step = {"index": 0, "survey": {"id": "surface", "paths": paths}}
    return {"case": "surface", "given": [], "when": [step]}


def found(observation: Mapping[str, Any]) -> dict[str, Any]:
    """The surface that was recorded, or why there is none: `error`, `modules`, `names`."""
    crash = observation["crash"] or next(
        (step["error"] for step in observation["steps"] if step["error"]), None
    )
    if crash:
        said = f"{crash.get('kind') or crash.get('type')}: {crash['message']}"
        return {"error": said, "modules": {}, "names": {}}
    return {"error": None, **observation["entities"]["surface"]["value"]}


def survey(subject: Subject, paths: Iterable[str]) -> dict[str, Any]:
    """What is offered by the modules that these public names live in, and by the root module.

    `modules` says for each, by its path below the root, what `__all__` lists; `names` has a record for each
    public name, by its dotted path. A class or function with several names is told of under the first.
    """
    modules = {"": subject.root}
    for path in paths:
        module, place = subject.root, ""
        for part in subject.names.get(path, path).split(".")[:-1]:
            place = f"{place}.{part}".removeprefix(".")
            if not isinstance(module := _below(subject, place), types.ModuleType):
                break
            modules[place] = module
    package = subject.root.__name__.partition(".")[0]
    exports = {place: plain(getattr(module, "__all__", None)) for place, module in sorted(modules.items())}
    names: dict[str, Record] = {}
    first: dict[int, str] = {}
    for place, exported in exports.items():
        module = modules[place]
        for name in sorted({*dir(module), *(exported or ())}):
            record = None if name.startswith("_") else _offer(module, name, package, set(exported or ()))
            if record is None:
                continue
            path = f"{place}.{name}".removeprefix(".")
            names[path] = record
            if record["kind"] in ("class", "enum", "function"):
                other = first.setdefault(id(getattr(module, name)), path)
                names[path] = record if other == path else {"kind": "alias", "of": other}
    return {"modules": exports, "names": names}


def _below(subject: Subject, place: str) -> Any:
    try:
        return subject.find(place)[0]
    except Exception:  # this release does not have it, or something that it needs is missing
        return None


def _offer(module: types.ModuleType, name: str, package: str, exported: set[str]) -> Record | None:
    """The record of a public name; None for what a module merely has imported."""
    try:
        value = getattr(module, name)
    except Exception as error:
        return {"kind": "unavailable", "error": type(error).__name__} if name in exported else None
    ours = name in exported or _is_ours(value, package)
    if isinstance(value, types.ModuleType):
        return None
    if isinstance(value, type):
        return _class(value, package) if ours else None
    if inspect.isroutine(value):
        return {"kind": "function", "parameters": signature(value)} if ours else None
    constant = name.isupper() and name not in NOT_OFFERED
    return {"kind": "value", "value": plain(value)} if constant or name in exported else None


def _is_ours(value: Any, package: str) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == package


def _class(cls: type, package: str) -> Record:
    if issubclass(cls, enum.Enum):
        return {
            "kind": "enum",
            "mro": mro(cls),
            "value": {name: plain(m) for name, m in cls.__members__.items()},
        }
    record: Record = {"kind": "class", "mro": mro(cls), "parameters": signature(cls)}
    if dataclasses.is_dataclass(cls):
        record["fields"] = {f.name: _field(f) for f in dataclasses.fields(cls)}
    fields = record.get("fields", {})
    record["members"] = {
        name: _member(name, owner, cls)
        for name in sorted(set(dir(cls)) - set(fields))
        if not name.startswith("_") and (owner := _owner(name, cls)) and _is_ours(owner, package)
    }
    return record


def _owner(name: str, cls: type) -> type | None:
    """The class that a member comes from."""
    return next((base for base in cls.__mro__ if name in vars(base)), None)


def _member(name: str, owner: type, cls: type) -> Record:
    raw = vars(owner)[name]
    if isinstance(raw, property):
        return {"kind": "property"}
    if isinstance(raw, type):
        return {"kind": "class"}
    if isinstance(raw, (staticmethod, classmethod)):
        return {"kind": type(raw).__name__, "parameters": signature(getattr(cls, name))}
    if inspect.isroutine(raw):
        return {"kind": "method", "parameters": signature(raw)}
    return {"kind": "value", "value": plain(raw)}


def _field(field: dataclasses.Field[Any]) -> Record:
    if field.default is not dataclasses.MISSING:
        return {"required": False, "default": plain(field.default)}
    if field.default_factory is not dataclasses.MISSING:
        return {"required": False, "default": plain(field.default_factory())}
    return {"required": True}
