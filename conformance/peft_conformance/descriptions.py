"""Descriptions: YAML files that say how an implementation is reached, what it claims and what it is known to
fail. One may extend another.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from peft_conformance.environments import ImplementationError
from peft_conformance.language import SpecError, SpecErrors, closest, read_yaml, schema_errors
from peft_conformance.ranges import contains
from peft_conformance.report import write_whole

MERGED = ("lacks", "names", "transformers")  # mappings: entries of the extending file win
OF_THE_MODULE = ("package", "covered")  # what says nothing of another module


def described() -> dict[str, Path]:
    """The implementations that have a description of ours, by name."""
    here = Path(__file__).resolve().parent
    inside = here / "implementations"  # of a wheel
    return {
        f.stem: f for f in sorted((inside if inside.is_dir() else here.parent / inside.name).glob("*.yaml"))
    }


def read(file: Path) -> dict[str, Any]:
    """What a description says, with what it extends; `path` is absolute. Raises `ImplementationError`."""
    try:
        data = _read(file, ())
        for key in ("module", "api_level"):
            if key not in data:
                raise SpecErrors([SpecError(file, 1, f"{key!r} is required in a file that extends no other")])
    except SpecErrors as errors:
        raise ImplementationError(f"the description cannot be used\n{errors}", "description") from None
    except OSError as error:
        raise ImplementationError(f"{file}: {error.strerror}", "description") from None
    return data


def _read(file: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    data = read_yaml(file)
    if errors := schema_errors(file, data, "implementation.schema.json"):
        raise SpecErrors(errors)
    own = {key: value for key, value in data.items() if key not in ("schema", "extends")}
    level = own.get("api_level", "package")
    if level != "package" and not is_version(level):
        message = f"api_level: {level!r} is no version; one is written like 0.21.2, or `package`"
        raise SpecErrors([SpecError(file, data.lines["api_level"], message)])
    if "path" in own:
        place = (file.resolve().parent / Path(own["path"]).expanduser()).resolve()
        if not place.is_dir():
            raise SpecErrors([SpecError(file, data.lines["path"], f"there is no folder {place}")])
        own["path"] = str(place)
    if isinstance(own.get("transformers"), str):
        own["transformers"] = {"": own["transformers"]}  # whatever its version
    if "extends" not in data:
        return own
    base = _base(file, data["extends"], data.lines["extends"], (*extending, file.resolve()))
    level = own.get("api_level", base.get("api_level"))
    if level != "package":  # its versions are its own: what is known of the base holds at the level it claims
        base = _as_of(base, str(level))
    left = {"baseline", *(OF_THE_MODULE if "module" in own else ())}
    merged = {**{key: value for key, value in base.items() if key not in left}, **own}
    for key in MERGED:
        if key in base and key in own:
            merged[key] = {**base[key], **own[key]}
    merged["expectations"] = [*base.get("expectations", ()), *own.get("expectations", ())]
    return merged


def _base(file: Path, name: str, line: int, extending: tuple[Path, ...]) -> dict[str, Any]:
    known = described()
    if name.endswith((".yaml", ".yml")):
        other = (file.resolve().parent / Path(name).expanduser()).resolve()
        if not other.is_file():
            raise SpecErrors([SpecError(file, line, f"extends {name}: there is no file {other}")])
    elif name in known:
        other = known[name].resolve()
    else:
        message = f"extends {name!r}: no implementation of ours ({', '.join(known)}), and no .yaml file"
        raise SpecErrors([SpecError(file, line, message, closest(name, known))])
    if other in extending:
        circle = " -> ".join(place.name for place in (*extending[extending.index(other) :], other))
        raise SpecErrors([SpecError(file, line, f"extends itself: {circle}")])
    return _read(other, extending)


def _as_of(base: dict[str, Any], level: str) -> dict[str, Any]:
    """A description for the one version `level`, with nothing left that depends on a version."""
    expectations = [
        {key: value for key, value in entry.items() if key != "versions"}
        for entry in base.get("expectations", ())
        if contains(entry.get("versions", ""), level)
    ]
    needed = next(
        (n for versions, n in base.get("transformers", {}).items() if contains(versions, level)), None
    )
    return {**base, "expectations": expectations, "transformers": {"": needed} if needed else {}}


def is_version(text: str) -> bool:
    """Whether this is a version such as 0.21.2."""
    try:
        return bool(Version(text))
    except InvalidVersion:
        return False


def write_start(name: str, module: str | None, output: Path | None) -> Path:
    """Write a first description, valid as it stands and enough for a module with PEFT's names; returns where.

    Raises ValueError for a name or module that cannot be one, and FileExistsError rather than write over a
    file.
    """
    module = module or name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise ValueError(f"{name!r} is no name: letters, digits and any of . _ - are, as in my-fork")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module):
        raise ValueError(f"{module!r} is no module that can be imported; say which with --module")
    file = (output or Path(f"{name}.yaml")).resolve()
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{output}: a description ends with .yaml")
    if file.exists():
        raise FileExistsError(f"{output or file.name} exists; it is left as it is")
    write_whole(file, TEMPLATE.format(name=name, module=module, file=file.name))
    return file


TEMPLATE = """\
# How the conformance suite reaches {name}, what it claims, and what it is known to fail.
# Use it with: pytest --pyargs peft_conformance.test_conformance --impl={file}
schema: "1.0"
name: "{name}"
module: {module} # imported in a process of its own; public names such as LoraConfig are looked up in it

# The release of PEFT whose behaviour it claims: clauses of other API levels do not apply.
api_level: "0.21.2"

# Take over the fields of another description, of ours or a file: fields given here win, mappings are merged,
# and the known failures of both hold (those that have a range of versions, at the API level claimed here).
# extends: peft

# Where the module is, if it is not installed; relative to this file.
# path: ../src

# The distribution that holds the module: from it the version is known if the module has no __version__.
# package: {name}

# Names that it has elsewhere: public name -> where to find it below the module.
# names:
#   functional.set_adapter: adapters.activate

# What it offers (everything, or a list of capabilities), and what it does not, each with its reason: clauses
# about that are reported as unsupported, never as passed.
offers: all
# lacks:
#   method-xlora: it routes tokens in a way of its own

# The transformers that it needs, if not the installed one: fetched once, for its process only.
# transformers: "4.57.6"

isolated: true # a process of its own, so that a crash is one case's verdict
# time_limit: 60 # seconds for one case
# memory_limit: 4096 # MiB of data that its process may hold

# Known failures. Each says which check, how it ends, why, and until when somebody has to look again.
expectations: []
#  - match: {{clause: delete.none-when-last, check: returns-none}}
#    outcome: fail
#    observed: [] # another wrong value is a new failure
#    because: returns an empty list where the docstring promises None
#    link: null
#    review_by: "2027-06-30"
"""
