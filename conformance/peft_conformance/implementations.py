"""What `--impl` names: a description, a release, a module or a checkout, made ready to perform cases.

`resolve` is the way in. An implementation runs in this process, or in one of its own where its code is
unknown or its version is not the installed one. A crash, a hang or a restart that fails becomes that case's
observation.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peft_conformance import descriptions
from peft_conformance.channel import Died, NotStarted, Worker
from peft_conformance.descriptions import described, is_version
from peft_conformance.environments import ImplementationError, fetch, unmet
from peft_conformance.language import closest
from peft_conformance.ranges import contains
from peft_conformance.worker import import_failure, raised, versions

if TYPE_CHECKING:  # the driver imports torch, which a process that performs nothing need not
    from peft_conformance.driver import Observation, Subject

API_LEVEL = "0.21.2"  # of an implementation that claims none: the level that the specs describe
TIME_LIMIT = 60.0  # seconds for one case
MEMORY_LIMIT = 4096  # MiB of data for a process of its own: ten times what torch and transformers take


class TimeLimit(BaseException):
    """A case took too long. No `Exception`, so that the implementation does not catch it."""


@dataclass
class Implementation:
    """An implementation that can perform cases, once `start` has been called."""

    name: str
    module: str
    version: str = "unknown"
    api_level: str = API_LEVEL
    offers: tuple[str, ...] | Literal["all"] = "all"
    lacks: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # public name -> where it has it
    isolated: bool = True  # in a process of its own
    baseline: bool = False
    time_limit: float = TIME_LIMIT
    memory_limit: int = MEMORY_LIMIT
    expectations: tuple[dict[str, Any], ...] = ()
    package: str | None = None  # the distribution that holds the module
    paths: tuple[str, ...] = ()  # folders that its process looks into first
    home: str | None = None  # the one of them that the module has to come from
    release: bool = False  # `version` of its package is to be fetched
    transformers: dict[str, str] = field(default_factory=dict)  # its versions -> the release they need
    covered: tuple[str, ...] = ()  # the releases that are measured
    file: Path | None = None  # its description
    versions: dict[str, str | None] = field(
        default_factory=dict
    )  # python, torch, transformers, where it runs
    _subject: Subject | None = None
    _worker: Worker | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What observations say of it."""
        return {
            "name": self.name,
            "version": self.version,
            "api_level": self.api_level,
            "module": self.module,
        }

    def start(self) -> Implementation:
        """Import it, here or in its own process, and learn its version. Raises `ImplementationError`."""
        if self.isolated:
            self._worker = Worker(self.module, list(self.paths), self.memory_limit)
            try:
                hello = self._worker.start()
            except NotStarted as error:
                self._worker.close()
                raise self._not_started(str(error), error.versions) from None
            version, file, self.versions = hello["version"], hello["file"], self._worker.versions
        else:
            sys.path[:0] = [path for path in self.paths if path not in sys.path]
            try:
                root = importlib.import_module(self.module)
            except (Exception, SystemExit) as error:
                raise self._not_started(import_failure(self.module, error), versions()) from None
            version, file = getattr(root, "__version__", None), getattr(root, "__file__", None)
            self.versions = versions()
        if self.home and not (file and Path(file).resolve().is_relative_to(Path(self.home).resolve())):
            self.close()
            message = f"{self.name}: module {self.module!r} is not in {self.home}, but found in {file}"
            raise ImplementationError(message, "broken-wheel" if self.isolated else "import")
        if self.version == "unknown":
            self.version = version or _installed(self.package or self.module) or "unknown"
        if self.api_level == "package":
            self.api_level = self.version if is_version(self.version) else API_LEVEL
        if not self.isolated:
            from peft_conformance.driver import Subject

            self._subject = Subject(root, self.identity, self.names)
        return self

    def _not_started(self, said: str, have: dict[str, str | None]) -> ImplementationError:
        """What an import that fails amounts to, with what the implementation needs where that is known."""
        name = self.name if self.version == "unknown" else f"{self.name} {self.version}"
        installed = have.get("transformers") or "none"
        if (needed := self.needed_transformers(self.version)) not in (None, installed):
            message = f"{name}: it needs transformers {needed}, and {installed} is there: {said}"
            return ImplementationError(message, "requires")
        if lacking := unmet(self.package or self.module, self.paths):
            return ImplementationError(f"{name}: it needs {'; and '.join(lacking)}: {said}", "requires")
        if re.search(r"(from|No module named) '(transformers|huggingface_hub|tokenizers)\b", said):
            message = (
                f"{name}: it does not work with transformers {installed}: {said}\na description (.yaml) may "
                'name the release that it needs, as in transformers: "4.57.6"'
            )
            return ImplementationError(message, "requires")
        return ImplementationError(f"{name}: {said}", "import")

    def needed_transformers(self, version: str) -> str | None:
        """The release of transformers that its description names for a version; None where any will do."""
        known = version if is_version(version) else "0"
        fitting = (need for range, need in self.transformers.items() if not range or contains(range, known))
        return next(fitting, None)

    def execute(self, program: dict[str, Any]) -> Observation:
        """Perform a program (`Case.program`); a death or a hang is told in the observation's `crash`."""
        try:
            if self._worker:
                question = {"program": program, "identity": self.identity, "names": self.names}
                return self._worker.perform(question, self.time_limit)
            assert self._subject, "start() comes first"
            from peft_conformance.driver import run_case

            with _alarm(self.time_limit):
                return run_case(program, self._subject)
        except Died as error:
            return self._crash(program, error.kind, str(error))
        except (TimeLimit, TimeoutError):
            return self._crash(program, "timeout", f"no answer after {self.time_limit:g} seconds")
        except BaseException as error:
            if isinstance(error, (Exception, KeyboardInterrupt)):  # a mistake of ours; the user's Ctrl-C
                raise
            return self._crash(program, **raised(error))

    def unavailable(self, program: dict[str, Any]) -> str | None:
        """Why a program cannot be performed; an implementation that is there can be asked to perform any."""
        return None

    def close(self) -> None:
        """End its process, if it has one."""
        if self._worker:
            self._worker.close()

    def _crash(self, program: dict[str, Any], kind: str, message: str) -> Observation:
        nothing: dict[str, Any] = {"entities": {}, "globals": {}}
        return {
            "case": program.get("case"),
            "implementation": self.identity,
            "crash": {"kind": kind, "message": message},
            "steps": [],
            "entities": {},
            "captures": {},
            "frame": {"before": nothing, "after": nothing},
            "tensors": {},
        }


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` in the code inside after so many seconds, where the platform can do that."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, ring)
    remaining = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *remaining)
        signal.signal(signal.SIGALRM, before)


# --- from a name to an implementation


def resolve(text: str, *, isolate: bool = False) -> Implementation:
    """The implementation that `--impl` names, imported and ready.

    `text` is a name of `implementations/<name>.yaml`, `<name>==<version>`, the path of such a file or of a
    checkout, or a module. `isolate` asks for a process of its own. Raises `ImplementationError`: what is
    wrong, what there is.
    """
    found = find(text.strip())
    return replace(found, isolated=found.isolated or isolate).start()


def find(text: str) -> Implementation:
    """What `resolve` starts: the implementation with all that it needs, nothing imported yet."""
    return _equipped(_named(text))


def claimed(text: str) -> Implementation | None:
    """What is known of an implementation that `resolve` cannot reach; None if its name means nothing."""
    try:
        found = _named(text)
    except ImplementationError:
        return None
    if found.api_level != "package":
        return found
    return replace(found, api_level=found.version if is_version(found.version) else API_LEVEL)


def _named(text: str) -> Implementation:
    """The implementation as described; nothing is fetched."""
    known = described()
    if text in known:
        return describe(known[text])
    if match := re.fullmatch(r"([\w.-]+)==([\w.!+-]+)", text):
        return _release(match[1], match[2], known)
    path = Path(text).expanduser()
    if text.endswith((".yaml", ".yml")):
        found = describe(path)
        return replace(found, paths=(*found.paths, os.getcwd()))
    if text and path.is_dir() and (os.sep in text or not _is_module(text)):
        return _checkout(path.resolve(), known)
    if _is_module(text):
        return replace(_claims_of(text, known), name=text, paths=(os.getcwd(),))
    raise ImplementationError(
        f"unknown implementation {text!r}{_meant(text, known)}\n"
        f"known: {', '.join(known)}; or NAME==VERSION of one of these, a module that can be imported, "
        "the path of a description (.yaml) or of a checkout"
    )


def describe(file: Path) -> Implementation:
    """The implementation that a description describes, not yet started. Raises `ImplementationError`."""
    fields = descriptions.read(file)
    for key in ("offers", "covered", "expectations"):
        if isinstance(fields.get(key), list):
            fields[key] = tuple(fields[key])
    if place := fields.pop("path", None):
        fields |= {"paths": (place,), "home": place}
    return Implementation(**{"isolated": place is not None, **fields}, file=file)


def _equipped(found: Implementation) -> Implementation:
    """With its release, if that is asked for, and the transformers that it needs, if another is installed: in
    a process of its own.
    """
    version = found.version
    if found.release and found.package:
        home = str(fetch(found.package, version))
        found = replace(found, paths=(home,), home=home)
    elif found.home is None:
        version = _installed(found.package or found.module) or version
    needed = found.needed_transformers(version)
    if needed is None or needed == _installed("transformers"):
        return found
    overlay = str(fetch("transformers", needed, dependencies=True))
    return replace(found, paths=(*found.paths, overlay), isolated=True)


def _claims_of(module: str, known: dict[str, Path]) -> Implementation:
    """The claims and known failures that go with a module's name: those of its description, if it has one."""
    for file in known.values():
        found = describe(file)
        if found.module == module:
            return replace(found, isolated=True, baseline=False)
    return Implementation(module, module)


def _is_module(text: str) -> bool:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", text):
        return False
    here = Path(os.getcwd(), *text.split("."))
    if here.with_suffix(".py").is_file() or (here / "__init__.py").is_file():
        return True
    try:
        return importlib.util.find_spec(text) is not None
    except (ImportError, ValueError):
        return False


def _checkout(folder: Path, known: dict[str, Path]) -> Implementation:
    for root in (folder / "src", folder):
        packages = {f.parent.name for f in root.glob("*/__init__.py")} - {"tests", "test", "docs", "examples"}
        likely = [name for name in ("peft", folder.name.replace("-", "_")) if name in packages]
        if likely or len(packages) == 1:
            module = (likely or list(packages))[0]
            claims = _claims_of(module, known)
            return replace(claims, name=folder.name, paths=(str(root),), home=str(root))
        if packages:
            there = ", ".join(sorted(packages))
            raise ImplementationError(
                f"{folder}: which package is meant, {there}? write a description (.yaml)"
            )
    raise ImplementationError(f"{folder}: no package there, neither src/<package> nor <package>")


def _release(name: str, version: str, known: dict[str, Path]) -> Implementation:
    if name not in known:
        raise ImplementationError(
            f"unknown implementation {name!r} in '{name}=={version}'{_meant(name, known)}\n"
            f"known: {', '.join(known)}"
        )
    if not is_version(version):
        raise ImplementationError(f"{version!r} is no version; a release is named like {name}==0.18.1")
    found = describe(known[name])
    if found.package is None:
        raise ImplementationError(f"{name} has no releases: its description names no package")
    level = version if found.api_level == "package" else found.api_level
    return replace(found, version=version, api_level=level, release=True, isolated=True, baseline=False)


def _meant(text: str, known: dict[str, Path]) -> str:
    hint = closest(text, known)
    return f"; did you mean {hint!r}?" if hint else ""


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
