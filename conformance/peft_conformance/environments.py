"""Releases fetched with pip into a cache folder: each is complete or not there at all.

What stands in the way of an environment is an `ImplementationError` of some kind, with its reason.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

Kind = Literal[
    "name",  # nothing is called that
    "description",  # the file that describes it is wrong
    "no-release",  # the package has no such release
    "no-index",  # the package index is out of reach, or does not know the package
    "python",  # the release is not for this Python
    "broken-wheel",  # what was fetched cannot be installed, or does not hold what it should
    "dependencies",  # something that it depends on is not to be had
    "fetch",  # pip fails for another reason
    "requires",  # it needs another version of transformers, or of something else
    "import",  # it cannot be imported
]


class ImplementationError(Exception):
    """An implementation that cannot be reached; the message is for the person who typed its name.

    `kind` says what is in the way; `reason` is the message's first line, without advice.
    """

    def __init__(self, message: str, kind: Kind = "name") -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return str(self).strip().partition("\n")[0]

    @property
    def not_built(self) -> bool:
        """Whether the name was right and the environment could not be made: not run, for this reason."""
        return self.kind not in ("name", "description")


def cache_dir() -> Path:
    """Where fetched releases are kept: PEFT_CONFORMANCE_CACHE, or the platform's place for caches."""
    if chosen := os.environ.get("PEFT_CONFORMANCE_CACHE"):
        return Path(chosen).expanduser().resolve()
    places = {"Darwin": "~/Library/Caches", "Windows": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    place = places.get(platform.system()) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(place).expanduser() / "peft-conformance"


def fetch(package: str, version: str, *, dependencies: bool = False) -> Path:
    """The folder with this release of a package: installed by pip at the first call, complete or not there at
    all.

    Several processes may ask at once: one installs, the others wait. Raises `ImplementationError` when there
    is no such release, or no way to get it.
    """
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    target = cache_dir() / f"{package}-{version}-{python}-{platform.system()}-{platform.machine()}".lower()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f"{target.name}.lock")
    with _lock(lock):
        if not target.is_dir():
            begun = f"partial-{target.name}-"
            for abandoned in target.parent.glob(
                f"{begun}*"
            ):  # by a process that was killed: we hold the lock
                shutil.rmtree(abandoned, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=begun, dir=target.parent))
            try:
                _install(package, version, partial, dependencies)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def _install(package: str, version: str, folder: Path, dependencies: bool) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    # Dependencies come as wheels: to build a tokenizer takes a compiler and minutes.
    command += ["--target", str(folder), *(["--only-binary=:all:"] if dependencies else ["--no-deps"])]
    done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, check=False)
    if done.returncode:
        kind, reason = _why(package, version, done.stderr)
        raise ImplementationError(
            f"{reason or f'{package} {version} cannot be fetched: pip ended with {done.returncode}'}", kind
        )


def _why(package: str, version: str, said: str) -> tuple[Kind, str]:
    """What pip's complaint amounts to: its kind, and a line for the reader."""
    release = f"{package} {version}"
    ended = f"{release} cannot be fetched: "
    skipped = rf"(?<!\S){re.escape(version)} Requires-Python ([^;\n]*)"
    if wrong := re.search(rf"requires a different Python: \S+ not in '([^']*)'|{skipped}", said):
        needed = (wrong[1] or wrong[2]).strip()
        return "python", f"{release} needs Python {needed}, and this is {platform.python_version()}"
    missing = re.search(
        r"satisfies the requirement (\S+)(?: \(from (?!versions)[^)]*\))? \(from versions: ([^)]*)\)", said
    )
    if missing and not re.match(rf"{re.escape(package)}(?![\w.-])", missing[1], re.I):
        return (
            "dependencies",
            f"{ended}it depends on {missing[1]}, of which there is no release for this Python",
        )
    if missing and missing[2] != "none":
        newest = ", ".join(missing[2].split(", ")[-8:])
        return "no-release", f"there is no {release}; the newest releases are {newest}"
    if missing:
        return "no-index", f"{ended}pip finds no release of it at all; is the package index within reach?"
    lines = [line.removeprefix("ERROR: ") for line in said.strip().splitlines()] or [""]
    if broken := [line for line in lines if re.search(_BROKEN, line, re.I)]:
        return "broken-wheel", f"{ended}{broken[-1]}"
    if conflict := [
        line for line in lines if "conflicting dependencies" in line or "ResolutionImpossible" in line
    ]:
        return "dependencies", f"{ended}{conflict[0]}"
    return "fetch", f"{ended}{lines[-1]}" if lines[-1] else ""


_BROKEN = (
    r"wheel.* is invalid|invalid wheel|BadZipFile|not a zip file|bad magic number|do not match the hashes"
    r"|invalid metadata"
)


def unmet(package: str, folders: Sequence[str]) -> list[str]:
    """What a release states that it needs and does not find, in a few words each; it looks into `folders` and
    then where we do.
    """
    path = [*folders, *sys.path]
    found = []
    for text in own.requires or () if (own := _distribution(package, path)) else ():
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        there = _distribution(needed.name, path)
        if there is None:
            found.append(f"{needed.name}{needed.specifier}, which is not installed")
        elif not needed.specifier.contains(there.version, prereleases=True):
            found.append(f"{needed.name}{needed.specifier}, and {there.version} is installed")
    return found


def _distribution(name: str, path: Sequence[str]) -> metadata.Distribution | None:
    return next(iter(metadata.distributions(name=name, path=list(path))), None)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold a file's lock; on a platform without them another process may do the same work at once."""
    with file.open("w") as handle:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
