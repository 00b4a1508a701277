"""What takes long to find out and is the same in the next process: kept in the cache folder.

It is valid as long as no byte of the spec files, the schemas and this package has changed. What is kept under
another key, cut off or out of reach is as good as nothing. PEFT_CONFORMANCE_FRESH=1 goes without.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from peft_conformance.environments import cache_dir
from peft_conformance.report import write_whole

if TYPE_CHECKING:
    from peft_conformance.language import Suite

PACKAGE = Path(__file__).resolve().parent
READERS = ("PyYAML", "jsonschema", "packaging")  # what files are read and checked with, beside our own code
MOST = 24  # files of one kind that are kept: the last ones written
Value = TypeVar("Value")


def kept(specs: Path, load: Callable[[Path], Suite], package: Path = PACKAGE) -> Suite:
    """What `load` makes of a specs folder, from the cache if that was done before with these very files."""
    return Shelf("suites", specs, package=package).kept(lambda: load(specs))


class Shelf:
    """One place in the cache, for what follows from a specs folder and what is `asked`, as far as the `facts`
    are the same.
    """

    def __init__(
        self, kind: str, specs: Path, asked: object = "", facts: object = "", *, package: Path = PACKAGE
    ) -> None:
        place = hashlib.sha256(os.fsencode(specs) + repr(asked).encode()).hexdigest()[:16]
        self.file = cache_dir() / kind / f"{place}.pickle"
        self.fresh = bool(os.environ.get("PEFT_CONFORMANCE_FRESH"))
        self.key = b"" if self.fresh else _key(specs, package, repr((asked, facts)))

    def kept(self, make: Callable[[], Value]) -> Value:
        """What lies there, else what `make` makes, which is then put there."""
        value: Value | None = self.get()
        if value is None:
            value = make()
            self.put(value)
        return value

    def get(self) -> Any:
        """What lies there; None if there is nothing, or nothing that still holds."""
        if self.fresh:
            return None
        with contextlib.suppress(Exception):  # a pickle that is damaged can raise anything
            content = self.file.read_bytes()
            if content.startswith(self.key):
                with without_collector():
                    return pickle.loads(content[len(self.key) :])
        return None

    def put(self, value: object) -> None:
        """Put it there, if the folder can be written to."""
        if self.fresh:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, self.key + pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            files = sorted(self.file.parent.glob("*.pickle"), key=lambda file: file.stat().st_mtime)
            for file in files[:-MOST]:
                file.unlink()


def _key(specs: Path, package: Path, details: str) -> bytes:
    """A digest of everything that what is kept depends on, its own place included: it holds paths."""
    readers = [metadata.version(name) for name in READERS]
    whole = hashlib.sha256(repr((specs, sys.version, readers, details)).encode())
    files = [*specs.rglob("*.yaml"), *specs.rglob("*.yml"), *specs.rglob("*.json"), *package.glob("*.py")]
    for file in sorted(files):
        whole.update(os.fsencode(file) + hashlib.sha256(file.read_bytes()).digest())
    return whole.digest()


@contextmanager
def without_collector() -> Iterator[None]:
    """Without looking for garbage while much is made and nothing thrown away: half as much time again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
