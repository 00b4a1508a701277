"""One run: the cases for one implementation, each executed once and judged, known failures and red prerequisites applied."""

from __future__ import annotations

import importlib.util
import itertools
import platform
import re
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from syrupy.data import SnapshotCollections
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from peft_conformance.cases import Case, Check, Clause, Verdict
from peft_conformance.expand import Expansion, expand
from peft_conformance.judge import judge
from peft_conformance.language import SpecErrors, Suite, find_specs_dir, load_suite
from peft_conformance.plain import text
from peft_conformance.report import plain
from peft_conformance.script import reproduce

RED = frozenset({"fail", "error", "changed", "blocked"})  # what blocks the clauses that need this one


class Refusal(Exception):
    """A run that cannot start: an option, an implementation or a spec file is wrong. The message is for the user."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    implementation: str | None
    device: str = "cpu"
    api_level: str | None = None
    profiles: tuple[str, ...] = ()
    matrix: str = "full"
    isolate: bool = False
    specs: Path | None = None
    update_snapshots: bool = False


class Run:
    """The suite, an implementation, and what is known so far. Verdicts are kept, observations are not.

    Raises Refusal when an option makes no sense, a spec file is wrong or the implementation cannot be imported.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        specs = options.specs or find_specs_dir()
        try:
            self.suite = load_suite(specs)
        except SpecErrors as errors:
            raise Refusal(f"the specs cannot be used\n{errors}") from None
        known = sorted({clause.profile for clause in self.suite.clauses})
        for profile in options.profiles:
            if profile not in known:
                raise Refusal(f"unknown --profile {profile!r}: choose from {', '.join(known)}")
        self.device = _device(options.device)
        self.snapshots = (options.specs or Path(__file__).parent) / "__snapshots__"
        self.implementation = _implementation(options)
        if options.update_snapshots and not self.implementation.baseline:
            self.close()
            raise Refusal(
                f"--snapshot-update is for the baseline only: {self.implementation.name} does not declare "
                "`baseline: true`, so what it does is compared with the snapshots, never stored as one"
            )
        self.api_level = options.api_level or self.implementation.api_level
        everything = self._expand(
            "full", ()
        )  # expectations and prerequisites do not depend on what is selected
        narrowed = options.matrix != "full" or options.profiles
        expansion = self._expand(options.matrix, options.profiles) if narrowed else everything
        self.cases = [
            *expansion.cases,
            *(left.case for left in expansion.skipped if left.verdict == "unsupported"),
        ]
        self.not_applicable = Counter[str]()
        for left in expansion.skipped:
            if left.verdict == "not-applicable":
                self.not_applicable[left.case.clause.profile] += len(left.case.checks)
        self._unsupported = {
            s.case.id: s.reason
            for e in (everything, expansion)
            for s in e.skipped
            if s.verdict == "unsupported"
        }
        self._everything = everything
        self._by_clause: dict[str, list[Case]] = {}
        for case in everything.cases:
            self._by_clause.setdefault(case.clause.id, []).append(case)
        self._verdicts: dict[str, dict[str, Verdict]] = {}
        self._seconds: dict[str, float] = {}

    def _expand(self, matrix: Any, profiles: tuple[str, ...]) -> Expansion:
        return expand(
            self.suite,
            api_level=self.api_level,
            matrix=matrix,
            offers=self.implementation.offers,
            lacks=self.implementation.lacks,
            profile=profiles or None,
        )

    def close(self) -> None:
        """Stop the implementation's process, if it has one."""
        self.implementation.close()

    def describe(self) -> dict[str, Any]:
        """What is measured, with what, and what was asked for: the header of every report."""
        implementation = self.implementation
        return {
            "implementation": {
                "name": implementation.name,
                "version": implementation.version,
                "module": implementation.module,
                "api_level": self.api_level,
                "isolated": implementation.isolated,
            },
            "torch": _version("torch"),
            "transformers": _version("transformers"),
            "python": platform.python_version(),
            "device": self.device,
            "matrix": self.options.matrix,
            "profiles": sorted(self.options.profiles),
        }

    # Verdicts

    def verdict(self, case: Case, check: Check) -> Verdict:
        """The verdict of one check; the first check of a case executes it."""
        return self._verdicts_of(case)[check.id]

    def _verdicts_of(self, case: Case) -> dict[str, Verdict]:
        if case.id not in self._verdicts:
            start = time.perf_counter()
            self._verdicts[case.id] = {verdict.check: verdict for verdict in self._decide(case)}
            self._seconds[case.id] = time.perf_counter() - start
        return self._verdicts[case.id]

    def _decide(self, case: Case) -> list[Verdict]:
        if case.id in self._unsupported:
            return _all(case, "unsupported", self._unsupported[case.id])
        if reason := self._not_run(case):
            return _all(case, "not-run", reason)
        for clause in case.clause.needs:
            if (other := self._prerequisite(clause, case)) and (red := self._first_red(other)):
                return _all(case, "blocked", f"needs {clause}, and {other.id}:{red.check} is {red.verdict}")
        observation = self.implementation.execute(case.program)
        verdicts = judge(case, observation, self.suite, snapshots=self._stored(case))
        return apply(verdicts, case, self.implementation)

    def _not_run(self, case: Case) -> str | None:
        if self.device != "cuda" and "cuda" in _devices(case.program):
            return "no cuda"
        for model in case.program["models"].values():
            for package in model.get("requires", ()):
                if importlib.util.find_spec(package) is None:
                    return f"no {package}"
        return None

    def _prerequisite(self, clause: str, case: Case) -> Case | None:
        """The case of the clause at the same values of the shared axes, else its first; None when none applies."""
        cases = self._by_clause.get(clause, [])
        shared = (
            c for c in cases if all(c.axes[axis] == case.axes[axis] for axis in c.axes.keys() & case.axes)
        )
        return next(shared, cases[0] if cases else None)

    def _first_red(self, case: Case) -> Verdict | None:
        return next((v for v in self._verdicts_of(case).values() if v.verdict in RED), None)

    # Snapshots

    def _stored(self, case: Case) -> dict[str, str]:
        """The stored snapshots of a case, by check id."""
        files = {c.id: self.snapshots / snapshot_file(case, c) for c in case.checks if c.word == "snapshot"}
        return {check: file.read_text(encoding="utf-8") for check, file in files.items() if file.is_file()}

    def with_snapshot(self, verdict: Verdict, matches: Callable[[str], bool]) -> Verdict:
        """The verdict of a snapshot check after syrupy has seen what was observed, and under update has stored it."""
        if not isinstance(verdict.observed, str) or not matches(verdict.observed):
            return verdict
        if self.options.update_snapshots:
            return replace(
                verdict, verdict="pass", expected=verdict.observed, detail="stored as the snapshot"
            )
        return verdict

    # What no check answers to

    def loose_ends(self) -> Iterator[tuple[str, str]]:
        """Expectations and, for the baseline, stored snapshots that belong to no check, each with what to do about it."""
        for entry in unmatched(self.implementation, self._everything):
            yield entry
        if self.implementation.baseline and self.api_level == self.implementation.api_level:
            cases = [*self._everything.cases, *(left.case for left in self._everything.skipped)]
            known = {snapshot_file(case, c) for case in cases for c in case.checks if c.word == "snapshot"}
            for file in sorted(self.snapshots.glob("*.txt")):
                if file.name not in known:
                    yield f"snapshot:{file.stem}", f"no check names the snapshot {file.name}: delete the file"

    # For the reader

    def row(self, case: Case, check: Check, verdict: Verdict) -> dict[str, Any]:
        """One line of the report: a check with its verdict, as plain data."""
        return plain(
            {
                "id": f"{case.id}:{check.id}",
                "case": case.id,
                "clause": case.clause.id,
                "check": check.id,
                "level": check.level,
                "profile": case.clause.profile,
                "axes": case.axes,
                "text": case.clause.text,
                "verdict": verdict.verdict,
                "expected": verdict.expected,
                "observed": verdict.observed,
                "detail": verdict.detail,
                "seconds": round(self._seconds[case.id], 4),
            }
        )

    def explain(self, case: Case, check: Check, verdict: Verdict) -> str:
        """What a failing check prints: the promise, its source, expected beside observed, its lines, a script."""
        clause = case.clause
        file = clause.file.relative_to(self.suite.specs.parent)
        parts = [
            f"{check.level}  {clause.text}",
            *(f"      {source}" for source in sources(self.suite, clause)),
            *([f"      decided: {clause.decided}"] if clause.decided else []),
            *([f"      because: {check.because}"] if check.because else []),
            _beside("verdict", verdict.verdict) if verdict.verdict != "fail" else "",
            _beside("expected", verdict.expected),
            _beside("observed", verdict.observed),
            _beside("detail", verdict.detail) if verdict.detail else "",
            f"{file}:{check.line}",
            textwrap.indent(yaml_lines(clause.file, check.line), "    "),
            "reproduce:",
            textwrap.indent(reproduce(case, verdict, self.implementation), "    "),
        ]
        return "\n".join(part for part in parts if part)


class SnapshotFile(SingleFileSnapshotExtension):
    """One text file for each snapshot, named by the check's id: a change reads as a diff of that promise."""

    _write_mode = WriteMode.TEXT
    file_extension = "txt"

    @classmethod
    def get_snapshot_name(cls, *, test_location: Any, index: Any = 0) -> str:
        """The file's name without its ending."""
        return Path(snapshot_file(test_location.item.case, test_location.item.check)).stem

    @classmethod
    def dirname(cls, *, test_location: Any) -> str:
        """The folder that the run keeps its snapshots in."""
        return str(test_location.item.run.snapshots)

    def discover_snapshots(self, **_: Any) -> SnapshotCollections:
        """None: which snapshots are left over does not depend on what a run selects (`Run.loose_ends`)."""
        return SnapshotCollections()


def snapshot_file(case: Case, check: Check) -> str:
    """The name of a check's snapshot file: its id, with what file systems refuse replaced."""
    return re.sub(r"[^\w.,=+\-\[\]]", "_", f"{case.id}--{check.id}") + ".txt"


def sources(suite: Suite, clause: Clause) -> list[str]:
    """Where a clause comes from, a line each: document and place, or the releases in which it was observed."""
    lines = []
    for source in clause.sources:
        if "observed" in source:
            users = source.get("relied-on-by")
            lines.append(
                f"observed in {source['observed']}" + (f", relied on by {', '.join(users)}" if users else "")
            )
            continue
        document = suite.sources.get(source["document"], {})
        sentence = next((s for s in document.get("sentences", ()) if s["id"] == source["sentence"]), None)
        place = f": {sentence['place']}" if sentence else ""
        lines.append(f"{document.get('title', source['document'])}{place}")
    return lines


def yaml_lines(file: Path, line: int) -> str:
    """The entry that begins on this line of a spec file, as written, without the common indentation."""
    first, *rest = file.read_text(encoding="utf-8").splitlines()[line - 1 :]
    depth = len(first) - len(first.lstrip())
    inside = itertools.takewhile(
        lambda text: not text.strip() or len(text) - len(text.lstrip()) > depth, rest
    )
    return textwrap.dedent("\n".join([first, *inside])).rstrip()


def _beside(label: str, value: Any) -> str:
    shown = value if isinstance(value, str) else text(value, limit=2000)
    return f"{label:<9} " + textwrap.indent(shown, " " * 10).lstrip(" ")


def _all(case: Case, verdict: str, reason: str) -> list[Verdict]:
    return [Verdict(case.id, check.id, verdict, detail=reason) for check in case.checks]


def _devices(value: Any) -> set[str]:
    """Every device that the steps of a program name."""
    if isinstance(value, dict):
        own = {value["device"]} if isinstance(value.get("device"), str) else set()
        return own.union(*map(_devices, value.values()))
    return set().union(*map(_devices, value)) if isinstance(value, list) else set()


def _device(wanted: str) -> str:
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise Refusal("--device cuda: torch sees no CUDA device here; use --device auto or cpu")
    return "cpu"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
