"""What `--impl` names: a description, a release, a module or a checkout, made ready to perform cases.

`resolve` is the way in. An implementation runs in this process, or in one of its own where its code is
unknown or its version is not the installed one. A crash, a hang or a restart that fails becomes that case's
observation.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from peft_conformance.driver import Observation, Subject, run_case
from peft_conformance.language import SpecErrors, closest, read_yaml, schema_errors
from peft_conformance.worker import Died, NotStarted, Worker, import_failure

API_LEVEL = "0.21.2"  # of an implementation that claims none: the level that the specs describe
TIME_LIMIT = 60.0  # seconds for one case


class ImplementationError(Exception):
    """An implementation that cannot be reached; the message is for the person who typed its name."""


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
    expectations: tuple[dict[str, Any], ...] = ()
    package: str | None = None  # the distribution that holds the module
    paths: tuple[str, ...] = ()  # folders that its process looks into first
    transformers: dict[str, str] = field(default_factory=dict)  # its versions -> the release they need
    covered: tuple[str, ...] = ()  # the releases that are measured
    file: Path | None = None  # its description
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
            self._worker = Worker(self.module, list(self.paths))
            try:
                version = self._worker.start()["version"]
            except NotStarted as error:
                self._worker.close()
                raise ImplementationError(f"{self.name}: {error}") from None
        else:
            try:
                root = importlib.import_module(self.module)
            except (Exception, SystemExit) as error:
                raise ImplementationError(f"{self.name}: {import_failure(self.module, error)}") from None
            version = getattr(root, "__version__", None)
        if self.version == "unknown":
            self.version = version or _installed(self.package or self.module) or "unknown"
        if self.api_level == "package":
            self.api_level = self.version if _is_version(self.version) else API_LEVEL
        if not self.isolated:
            self._subject = Subject(root, self.identity, self.names)
        return self

    def execute(self, program: dict[str, Any]) -> Observation:
        """Perform a program (`Case.program`); a death or a hang is told in the observation's `crash`."""
        try:
            if self._worker:
                question = {"program": program, "identity": self.identity, "names": self.names}
                return self._worker.perform(question, self.time_limit)
            assert self._subject, "start() comes first"
            with _alarm(self.time_limit):
                return run_case(program, self._subject)
        except NotStarted as error:
            return self._crash(program, "import", str(error))
        except Died as error:
            return self._crash(program, "died", str(error))
        except (TimeLimit, TimeoutError):
            return self._crash(program, "timeout", f"no answer after {self.time_limit:g} seconds")

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
    """What `resolve` starts: the implementation as described, nothing imported yet."""
    known = described()
    if text in known:
        return describe(known[text])
    if match := re.fullmatch(r"([\w.-]+)==([\w.!+-]+)", text):
        return _release(match[1], match[2], known)
    path = Path(text).expanduser()
    if text.endswith((".yaml", ".yml")):
        return replace(describe(path), paths=(os.getcwd(),))
    if text and path.is_dir() and (os.sep in text or not _is_module(text)):
        return _checkout(path.resolve(), known)
    if _is_module(text):
        return replace(_claims_of(text, known), name=text, paths=(os.getcwd(),))
    raise ImplementationError(
        f"unknown implementation {text!r}{_meant(text, known)}\n"
        f"known: {', '.join(known)}; or NAME==VERSION of one of these, a module that can be imported, "
        "the path of a description (.yaml) or of a checkout"
    )


def claimed(text: str) -> Implementation | None:
    """What is known of an implementation that `resolve` cannot reach; None if its name means nothing."""
    known = described()
    match = re.fullmatch(r"([\w.-]+)==([\w.!+-]+)", text)
    try:
        if match is None:
            found = find(text)
        elif match[1] in known and _is_version(match[2]):
            found = replace(describe(known[match[1]]), version=match[2], isolated=True)
        else:
            return None
    except ImplementationError:
        return None
    if found.api_level != "package":
        return found
    return replace(found, api_level=found.version if _is_version(found.version) else API_LEVEL)


def described() -> dict[str, Path]:
    """The implementations that have a description of ours, by name."""
    here = Path(__file__).resolve().parent
    inside = here / "implementations"  # of a wheel
    return {
        f.stem: f for f in sorted((inside if inside.is_dir() else here.parent / inside.name).glob("*.yaml"))
    }


def describe(file: Path) -> Implementation:
    """The implementation that a description describes, not yet started. Raises `ImplementationError`."""
    try:
        data = read_yaml(file)
        if errors := schema_errors(file, data, "implementation.schema.json"):
            raise SpecErrors(errors)
    except SpecErrors as errors:
        raise ImplementationError(f"the description cannot be used\n{errors}") from None
    except OSError as error:
        raise ImplementationError(f"{file}: {error.strerror}") from None
    fields = {key: value for key, value in data.items() if key != "schema"}
    for key in ("offers", "covered", "expectations"):
        if isinstance(fields.get(key), list):
            fields[key] = tuple(fields[key])
    return Implementation(**{"isolated": False, **fields}, file=file)


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
            return replace(_claims_of(module, known), name=folder.name, paths=(str(root),))
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
    if not _is_version(version):
        raise ImplementationError(f"{version!r} is no version; a release is named like {name}==0.18.1")
    found = describe(known[name])
    if found.package is None:
        raise ImplementationError(f"{name} has no releases: its description names no package")
    paths = [fetch(found.package, version)]
    for versions, needed in found.transformers.items():
        if (
            SpecifierSet(versions).contains(version, prereleases=True)
            and _installed("transformers") != needed
        ):
            paths.append(fetch("transformers", needed, dependencies=True))
    level = version if found.api_level == "package" else found.api_level
    claims = replace(found, version=version, api_level=level, paths=tuple(map(str, paths)))
    return replace(claims, isolated=True, baseline=False)


def _meant(text: str, known: dict[str, Path]) -> str:
    hint = closest(text, known)
    return f"; did you mean {hint!r}?" if hint else ""


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_version(text: str) -> bool:
    try:
        return bool(Version(text))
    except InvalidVersion:
        return False


# --- releases, fetched once


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
    with _lock(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            partial = Path(tempfile.mkdtemp(prefix="partial-", dir=target.parent))
            try:
                _install(package, version, partial, dependencies)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def _install(package: str, version: str, folder: Path, dependencies: bool) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(folder), *([] if dependencies else ["--no-deps"]), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = done.stderr
    if available := re.search(r"\(from versions: (?!none)([^)]*)\)", said):
        newest = ", ".join(available[1].split(", ")[-8:])
        raise ImplementationError(f"there is no {package} {version}; the newest releases are {newest}")
    if "(from versions: none)" in said:
        reason = "pip finds no release of it at all; is the package index within reach?"
    else:
        reason = (said.strip().splitlines() or [f"pip ended with exit status {done.returncode}"])[-1]
    raise ImplementationError(f"{package} {version} cannot be fetched: {reason}")


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold a file's lock; on a platform without them another process may do the same work at once."""
    with file.open("w") as handle:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
