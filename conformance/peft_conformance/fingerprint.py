"""What results depend on, as short digests: of the suite, and of an implementation as it stands."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from peft_conformance import plain
from peft_conformance.expectations import KnownFailures
from peft_conformance.implementations import Implementation

HERE = Path(__file__).resolve().parent
VERDICTS_COME_FROM = ("run", "worker")  # and from all that these import
OBSERVATIONS_COME_FROM = ("worker",)
LENGTH = 12


@cache
def suite_fingerprint(specs: Path, snapshots: Path) -> str:
    """Of the specs, the snapshots and the code that verdicts come from: two runs with the same one may be
    put together.
    """
    files = [*specs.rglob("*.yaml"), *specs.rglob("*.json"), *snapshots.glob("*.txt")]
    return _digest([*_contents(sorted(files)), *_contents(verdict_code())])


def verdict_code() -> list[Path]:
    """The files of ours on which every verdict depends."""
    return [HERE / f"{name}.py" for name in sorted(_reached(VERDICTS_COME_FROM))]


def implementation_digest(implementation: Implementation, known: KnownFailures) -> str:
    """Of what its description says about this version, and of the code that would be imported."""
    i = implementation
    claims: list[object] = [i.module, i.api_level, i.offers, i.lacks, i.names, i.isolated, i.baseline]
    claims += [i.time_limit, i.memory_limit]
    return _digest([plain.text([*claims, *known.entries], 1 << 30).encode(), *_contents(_code(i))])


def implementation_code(implementation: Implementation) -> str:
    """Of the code that would be imported."""
    return _digest(_contents(_code(implementation)))


def snapshots_digest(snapshots: Path) -> str:
    """Of the stored snapshots."""
    return _digest(_contents(sorted(snapshots.glob("*.txt"))))


def behaviour_digest(implementation: Implementation) -> str:
    """Of what an observation depends on beside its program: the implementation's code, the driver's, and
    what both run with.
    """
    driver = (HERE / f"{name}.py" for name in sorted(_reached(OBSERVATIONS_COME_FROM)))
    i = implementation
    around = [
        i.module,
        i.names,
        i.time_limit,
        i.paths,
        sys.version,
        *map(_installed, ("torch", "transformers")),
    ]
    return _digest([plain.text(around, 1 << 30).encode(), *_contents(_code(i)), *_contents(driver)])


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _code(implementation: Implementation) -> list[Path]:
    """The Python files of its package, where its process would find it first."""
    relative = Path(*implementation.module.split("."))
    for place in (*implementation.paths, *sys.path):
        package = Path(place) / relative
        if (package / "__init__.py").is_file():
            return sorted(package.rglob("*.py"))
        if package.with_suffix(".py").is_file():
            return [package.with_suffix(".py")]
    return []


def _reached(start: Iterable[str]) -> set[str]:
    """These modules of ours, and all that they import."""
    reached, ahead = set[str](), [*start]
    while ahead:
        if (name := ahead.pop()) not in reached:
            reached.add(name)
            ahead += _imports((HERE / f"{name}.py").read_text(encoding="utf-8"))
    return reached


def _imports(source: str) -> Iterator[str]:
    yield from re.findall(rf"^\s*from {HERE.name}\.(\w+) import ", source, re.MULTILINE)
    for names in re.findall(rf"^\s*from {HERE.name} import (.+)$", source, re.MULTILINE):
        yield from re.findall(r"\w+", names)


def _contents(files: Iterable[Path]) -> Iterator[bytes]:
    for file in files:
        yield file.name.encode()
        yield file.read_bytes()


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:LENGTH]
