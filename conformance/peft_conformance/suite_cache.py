"""A suite as it was loaded and checked, kept for the next process: loading takes five times as long as that.

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
from typing import TYPE_CHECKING

from peft_conformance.environments import cache_dir
from peft_conformance.report import write_whole

if TYPE_CHECKING:
    from peft_conformance.language import Suite

PACKAGE = Path(__file__).resolve().parent
READERS = ("PyYAML", "jsonschema", "packaging")  # what files are read and checked with, beside our own code


def kept(specs: Path, load: Callable[[Path], Suite], package: Path = PACKAGE) -> Suite:
    """What `load` makes of a specs folder, from the cache if that was done before with these very files."""
    if os.environ.get("PEFT_CONFORMANCE_FRESH"):
        return load(specs)
    key = _key(specs, package)
    file = cache_dir() / "suites" / f"{hashlib.sha256(os.fsencode(specs)).hexdigest()[:16]}.pickle"
    with contextlib.suppress(Exception):  # a pickle that is damaged can raise anything
        content = file.read_bytes()
        if content.startswith(key):
            with without_collector():
                suite: Suite = pickle.loads(content[len(key) :])
                return suite
    suite = load(specs)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, key + pickle.dumps(suite, pickle.HIGHEST_PROTOCOL))
    return suite


def _key(specs: Path, package: Path) -> bytes:
    """A digest of everything that a loaded suite depends on, its own place included: it holds paths."""
    whole = hashlib.sha256(repr((specs, sys.version, [metadata.version(name) for name in READERS])).encode())
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
