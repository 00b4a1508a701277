"""One run: each case executed once on an implementation and judged, known failures taken into account."""

from __future__ import annotations

import importlib.util
import itertools
import re
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from syrupy.data import SnapshotCollections
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from peft_conformance import consumers, surface
from peft_conformance.cases import Case, Check, Clause, Verdict, case_id
from peft_conformance.changes import changed_clauses
from peft_conformance.descriptions import described, is_version
from peft_conformance.environments import ImplementationError
from peft_conformance.expand import Expansion, Ground
from peft_conformance.expectations import KnownFailures, known_version, overdue, places, review_lines
from peft_conformance.fingerprint import implementation_digest, suite_fingerprint
from peft_conformance.implementations import (
    Implementation,
    claimed,
    resolve,
)
from peft_conformance.judge import judge
from peft_conformance.language import SpecErrors, Suite, find_specs_dir, load_suite
from peft_conformance.observations import Writer
from peft_conformance.opening import SNAPSHOTS, Options
from peft_conformance.recorded import Recorded, claims
from peft_conformance.report import Results, as_text, plain
from peft_conformance.script import reproduce
from peft_conformance.suite_cache import Shelf
from peft_conformance.worker import versions

RED = frozenset({"fail", "error", "changed", "blocked"})  # what blocks the clauses that need this one
TRAINER = "accelerate"  # the package that a `train` step needs


class Refusal(Exception):
    """A run that cannot start: an option, an implementation or a spec file is wrong, as the message says."""

    results: Results | None = None  # of an implementation that cannot be built: nothing was run, and why


class Run:
    """The suite, an implementation, and what is known so far. Verdicts are kept, observations are not.

    Raises Refusal when an option makes no sense, a spec file is wrong or an implementation is not to be had.
    """

    def __init__(self, options: Options, recorded: Recorded | None = None) -> None:
        self.options = options
        try:
            self.suite = load_suite(options.specs or find_specs_dir())
        except SpecErrors as errors:
            raise Refusal(f"the specs cannot be used\n{errors}") from None
        self._check(options)
        self.snapshots = (options.specs or Path(__file__).parent) / SNAPSHOTS
        self.clauses = self._changed(options)  # None: all of them
        if recorded is not None:
            self.implementation: Implementation = recorded
            self.machine, self.packages = recorded.machine, recorded.packages
        else:
            self.machine, self.packages = _machine(options.device), _packages(self.suite)
            try:
                self.implementation = _implementation(options)
            except Refusal as refusal:
                if reason := str(refusal).partition(f"--impl {options.implementation}: ")[2]:
                    refusal.results = self._not_built(reason)
                raise
        self.device: str = self.machine["device"]
        self._learn_level()
        self.suite, chosen = self._chosen()
        self._ground = self._new_ground()
        self._clauses = {clause.id: clause for clause in self.suite.clauses}
        self._needed: dict[str, Case] = {}
        self._named_devices: dict[str, set[str]] = {}
        cards = self.suite.cards.items()
        self._packages_of = {f"method-{m.lower()}": c["packages"] for m, c in cards if "packages" in c}
        self.recorder: Writer | None = None  # gets every observation that is made
        self._verdicts: dict[str, dict[str, Verdict]] = {}
        self._seconds: dict[str, float] = {}
        self._whole: dict[str, Expansion] = {}
        self.cases = [case for case in chosen.cases if not self._not_run(case)]
        self.left_out = self._count(chosen)

    def _learn_level(self) -> None:
        self.api_level = self.options.api_level or self.implementation.api_level
        version = known_version(self.implementation.version, self.api_level)
        self.known = KnownFailures(self.implementation.expectations, version)

    def _not_built(self, reason: str) -> Results | None:
        """Results that say of each check that it was not run, and why; None where nobody knows what of."""
        found = claimed((self.options.implementation or "").strip())
        if found is None:
            return None
        self.implementation = found
        self._learn_level()
        chosen = self._asked_for()
        brief = " ".join(reason.split())
        header = {**self.describe(), "status": "not-built", "reason": brief, "total": 0}
        return Results(header, left_out=self._count(chosen, brief), complete=False)

    def _check(self, options: Options) -> None:
        self._consumers = consumers.Consumers(self.suite)
        try:
            self._selected = consumers.selected(self.suite, options.profiles)
        except KeyError as error:
            raise Refusal(f"--profile: {error.args[0]}") from None
        if options.api_level is not None and not is_version(options.api_level):
            raise Refusal(f"--api-level {options.api_level!r} is no version; one is written like 0.21")

    def _changed(self, options: Options) -> Collection[str] | None:
        if options.changed is None or options.clauses is not None:
            return options.clauses
        try:
            return changed_clauses(self.suite, options.changed, self.snapshots)
        except ValueError as error:
            raise Refusal(str(error)) from None

    def _count(self, chosen: Expansion, not_built: str | None = None) -> list[dict[str, Any]]:
        """The checks that get no item, since they say nothing of this implementation: how many, and why."""
        level = f"at other API levels than {self.api_level}"
        reasons = [
            ("not-run", reason, case) for case in chosen.cases if (reason := not_built or self._not_run(case))
        ]
        reasons += [
            (s.verdict, s.reason if s.verdict == "unsupported" else level, s.case) for s in chosen.skipped
        ]
        counts = Counter[tuple[str, tuple[str, ...], str, str]]()
        for verdict, reason, case in reasons:
            users = tuple(self._consumers.of(case.clause, case.axes))
            counts[case.clause.profile, users, verdict, reason] += len(case.checks)
        keys = ("profile", "consumers", "verdict", "reason", "checks")
        return [plain(dict(zip(keys, (*what, n), strict=True))) for what, n in sorted(counts.items())]

    def _new_ground(self) -> Ground:
        offers, lacks = self.implementation.offers, self.implementation.lacks
        return Ground(self.suite, api_level=self.api_level, offers=offers, lacks=lacks)

    def _asked_for(self) -> Expansion:
        """The cases that were asked for."""
        return self._new_ground().expand(self.options.matrix, self._selected, self.clauses)

    def _chosen(self) -> tuple[Suite, Expansion]:
        """The same, with the suite whose clauses they hold; those of all of our own clauses from the cache,
        if a process has made them before.
        """
        if self.options.specs is not None or self.clauses is not None:
            return self.suite, self._asked_for()
        i, options = self.implementation, self.options
        asked = (options.matrix, options.profiles, self.api_level, i.offers, i.lacks)
        return Shelf("cases", self.suite.specs, asked).kept(lambda: (self.suite, self._asked_for()))

    def _everything(self, clause: str) -> Expansion:
        """A clause at all of its points, on which expectations may fall whatever is run."""
        if clause not in self._whole:
            self._whole[clause] = self._ground.expand(clauses={clause})
        return self._whole[clause]

    def close(self) -> None:
        """Stop the implementation's process, if it has one."""
        self.implementation.close()

    def describe(self) -> dict[str, Any]:
        """What is measured, with what, and what was asked for: the header of every report."""
        i = self.implementation
        digest = i.digest if isinstance(i, Recorded) else implementation_digest(i, self.known)
        return {
            "implementation": {
                "name": i.name,
                "version": i.version,
                "module": i.module,
                "api_level": self.api_level,
                "isolated": i.isolated,
                "digest": digest,
                **({"package": i.package} if i.package else {}),
                **({"names": i.names} if i.names else {}),
            },
            **self.machine,
            **i.versions,  # where it runs, not where we do
            "matrix": self.options.matrix,
            "profiles": sorted(self.options.profiles),
            "selection": self.options.selection,
            "suite": suite_fingerprint(self.suite.specs, self.snapshots),
            "status": "built",
        }

    def record(self, path: Path, *, with_surface: bool) -> None:
        """Keep every observation from now on in a part of a recording, and what the implementation offers."""
        about = {"claims": claims(self.implementation), "packages": self.packages}
        self.recorder = Writer(path, {**self.describe(), **about})
        if with_surface:
            observation = self.implementation.execute(surface.program(self.suite.operations))
            self.recorder.surface(surface.found(observation))

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
        if reason := self._absent(case):
            return _all(case, "not-run", reason)
        if reason := self._blocked(case):
            return _all(case, "blocked", reason)
        if reason := self.implementation.unavailable(case.program):
            return _all(case, "not-run", reason)
        observation = self.implementation.execute(case.program)
        if self.recorder:
            self.recorder.add(case, observation)
        verdicts = judge(case, observation, self.suite, snapshots=self.stored(case))
        return [self.known.apply(verdict) for verdict in verdicts]

    def _not_run(self, case: Case) -> str | None:
        """Why a case gets no item; one that is blocked gets one, whether it could be performed or not."""
        if reason := self._absent(case):
            return reason
        reason = self.implementation.unavailable(case.program)
        return None if reason and self._blocked(case) else reason

    def cannot(self, case: Case) -> str | None:
        """Why there is nothing to observe of a case: something is not there, or it was not recorded."""
        return self._absent(case) or self.implementation.unavailable(case.program)

    def _blocked(self, case: Case) -> str | None:
        """Which check of a clause that this one needs is red."""
        for clause in case.clause.needs:
            if (other := self._prerequisite(clause, case)) and (red := self._first_red(other)):
                return f"needs {clause}, and {other.id}:{red.check} is {red.verdict}"
        return None

    def _absent(self, case: Case) -> str | None:
        """The device or package that a case needs and that is not there."""
        if self.device != "cuda" and "cuda" in {*self._devices(case.clause), *map(str, case.axes.values())}:
            return "no cuda"
        needed = {
            package for model in case.program["models"].values() for package in model.get("requires", ())
        }
        if case.clause.axis_sets:  # a clause that names its method says itself what it needs
            needed.update(*(self._packages_of.get(capability, ()) for capability in case.requires))
        if any("train" in step for step in case.clause.steps):
            needed.add(TRAINER)
        for package in sorted(needed):
            if not self.packages.get(package, True):
                return f"no {package}"
        return None

    def _devices(self, clause: Clause) -> set[str]:
        """The devices that a clause names itself; those of its axes are each case's own."""
        if clause.id not in self._named_devices:
            self._named_devices[clause.id] = _devices([*clause.given, *clause.when])
        return self._named_devices[clause.id]

    def _prerequisite(self, clause: str, case: Case) -> Case | None:
        """The clause's case at the same values of the shared axes, else its first; None when none applies."""
        needed = self._clauses[clause]
        places = self._ground.to_run(needed)
        if not places:
            return None
        shared = (p for p in places if all(p[axis] == case.axes[axis] for axis in p.keys() & case.axes))
        point = next(shared, places[0])
        name = case_id(clause, point)
        if name not in self._needed:
            self._needed[name] = self._ground.case(needed, point)
        return self._needed[name]

    def _first_red(self, case: Case) -> Verdict | None:
        return next((v for v in self._verdicts_of(case).values() if v.verdict in RED), None)

    # Snapshots

    def stored(self, case: Case) -> dict[str, str]:
        """The stored snapshots of a case, by check id."""
        files = {c.id: self.snapshots / snapshot_file(case, c) for c in _snapshots(case)}
        return {check: file.read_text(encoding="utf-8") for check, file in files.items() if file.is_file()}

    def with_snapshot(self, verdict: Verdict, matches: Callable[[str], bool]) -> Verdict:
        """The verdict of a snapshot check once syrupy has seen what was observed, and perhaps stored it."""
        if verdict.verdict == "error" or not matches(verdict.observed):
            return verdict
        if self.options.update_snapshots and verdict.verdict == "fail":
            return replace(
                verdict, verdict="pass", expected=verdict.observed, detail="stored as the snapshot"
            )
        return verdict

    def overdue(self, today: date) -> list[str]:
        """The known failures of this version whose review date has passed, a line each."""
        return review_lines(overdue(self.known.entries, today))

    # What no check answers to

    def loose_ends(self) -> Iterator[tuple[str, str]]:
        """Expectations, and for the baseline snapshots, that belong to no check, with what to do about it."""
        named = {place.clause for entry in self.known.entries for place in places(entry)}
        expected = [self._everything(clause) for clause in sorted(named)]
        at_level = [case for found in expected for case in found.cases]
        at_level += [s.case for found in expected for s in found.skipped if s.verdict == "unsupported"]
        ids = [f"{case.id}:{check.id}" for case in at_level for check in case.checks]
        for number, (place, entry) in enumerate(self.known.unmatched(ids), 1):
            yield (
                f"expectation-{number}:{place}",
                f"No check at API level {self.api_level} is the one that this expectation of "
                f"{self.implementation.name} speaks of; correct or remove it.\nbecause   {entry['because']}",
            )
        if not self.implementation.baseline or self.api_level != self.implementation.api_level:
            return
        known = {snapshot_file(case, c) for case in self._with_snapshots() for c in _snapshots(case)}
        for file in sorted(self.snapshots.glob("*.txt")):
            if file.name not in known:
                yield (
                    f"snapshot:{file.stem}",
                    f"No check is the one that {file.name} is stored for; delete it.",
                )

    def _with_snapshots(self) -> Iterator[Case]:
        """Every case of the clauses that compare with snapshots, at other API levels too."""
        for clause in self.suite.clauses:
            if any(check.word == "snapshot" for variant in clause.variants for check in variant.checks):
                found = self._everything(clause.id)
                yield from (*found.cases, *(s.case for s in found.skipped))

    # For the reader

    def results(self) -> Results:
        """What is known before the first case is judged; to be filled with rows and loose ends."""
        return Results(self.describe(), left_out=self.left_out, overdue=self.overdue(date.today()))

    def judge_all(self) -> Results:
        """Every case judged at once, without pytest."""
        results = self.results()
        results.loose_ends += [{"name": name, "complaint": text} for name, text in self.loose_ends()]
        for case, check in self.checks():
            results.rows.append(self.row(case, check, self.verdict(case, check)))
        results.header["total"] = len(results.rows)
        return results

    def checks(self) -> Iterator[tuple[Case, Check]]:
        """The checks of the cases that were chosen, in their order."""
        yield from ((case, check) for case in self.cases for check in case.checks)

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
                "consumers": self._consumers.of(case.clause, case.axes),
                "axes": case.axes,
                "verdict": verdict.verdict,
                "expected": verdict.expected,
                "observed": verdict.observed,
                "detail": verdict.detail,
                **({"judged": verdict.judged} if verdict.judged else {}),
                "seconds": round(self._seconds[case.id], 4),
            }
        )

    def explain(self, case: Case, check: Check, verdict: Verdict) -> str:
        """What a failing check prints: promise, source, expected beside observed, YAML lines, a script."""
        clause = case.clause
        file = clause.file.relative_to(self.suite.specs.parent)
        parts = [
            f"{check.level}  {clause.text}",
            *(f"      {source}" for source in sources(self.suite, clause)),
            *([f"      decided: {clause.decided}"] if clause.decided else []),
            *([f"      because: {check.because}"] if check.because else []),
            _beside("verdict", verdict.verdict) if verdict.verdict != "fail" else "",
            _beside("expected", verdict.expected) if verdict.verdict != "error" else "",
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


def _snapshots(case: Case) -> list[Check]:
    return [check for check in case.checks if check.word == "snapshot"]


def sources(suite: Suite, clause: Clause) -> list[str]:
    """Where a clause comes from, a line each: document and place, or the releases that showed it."""
    lines = []
    for source in clause.sources:
        if "observed" in source:
            users = source.get("relied-on-by")
            lines.append(
                f"observed in {source['observed']}" + (f", relied on by {', '.join(users)}" if users else "")
            )
            continue
        document: dict[str, Any] = suite.sources.get(source["document"], {})
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
    """A value after its label; several phrases that do not fit on one line stand below each other."""
    shown = as_text(value)
    if len(shown) > 90 and isinstance(value, list) and all(isinstance(item, str) for item in value):
        shown = "\n".join(value)
    return f"{label:<9} {textwrap.indent(shown, ' ' * 10).lstrip(' ')}"


def _all(case: Case, verdict: str, reason: str) -> list[Verdict]:
    return [Verdict(case.id, check.id, verdict, detail=reason) for check in case.checks]


def _devices(value: Any) -> set[str]:
    """Every device that steps name."""
    if isinstance(value, dict):
        own = {value["device"]} if isinstance(value.get("device"), str) else set()
        return own.union(*map(_devices, value.values()))
    return set().union(*map(_devices, value)) if isinstance(value, list) else set()


def _implementation(options: Options) -> Implementation:
    if options.implementation is None:
        raise Refusal(
            f"say which implementation is measured: --impl NAME\nchoose {', '.join(described())}, "
            "NAME==VERSION, a module, the path of a description (.yaml) or of a checkout"
        )
    try:
        implementation = resolve(options.implementation, isolate=options.isolate)
    except ImplementationError as error:
        raise Refusal(f"--impl {options.implementation}: {error}") from None
    if options.update_snapshots and not implementation.baseline:
        implementation.close()
        raise Refusal(
            f"--snapshot-update is for the baseline only: {implementation.name} does not declare "
            "`baseline: true`; what it does is compared with the snapshots, never stored as one"
        )
    return implementation


def _machine(device: str) -> dict[str, Any]:
    """What an implementation is measured with here."""
    return {**versions(), "device": _device(device)}


def _packages(suite: Suite) -> dict[str, bool]:
    """Which of the packages that cases may need are here."""
    needed = {package for model in suite.models.values() for package in model.get("requires", ())}
    needed.update(*(card.get("packages", ()) for card in suite.cards.values()))
    return {package: importlib.util.find_spec(package) is not None for package in sorted({TRAINER, *needed})}


def _device(wanted: str) -> str:
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise Refusal("--device cuda: torch sees no CUDA device here; use --device auto or cpu")
    return "cpu"
