"""Several implementations in one go: a pytest process for each, as many at once as there are cores.

Each writes its report into a folder of its own; what an earlier call has left there is gone on with. A table
of all of them comes last, as `matrix.md` and `matrix.json`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from peft_conformance import report
from peft_conformance.implementations import ImplementationError, claimed, describe, described, find
from peft_conformance.report import Results

LOG = "pytest.log"
PATIENCE = 30.0  # seconds that a run has to write its partial report after Ctrl-C
TICK = 0.3  # seconds between two looks at the runs
CHECKED, RED, INTERRUPTED, NOT_RUN = 0, 1, 3, 4  # exit statuses
# Only these plugins, whichever happen to be installed.
PLUGINS = ("xdist.plugin", "syrupy", "peft_conformance.plugin")
VERDICT = re.compile(rb'"verdict": "([a-z-]+)"')


@dataclass
class Run:
    """One implementation's run: its process while that goes on, its results afterwards."""

    name: str  # as --impl takes it
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    total: int | None = None  # known once pytest has collected
    verdicts: Counter[str] = field(default_factory=Counter)
    results: Results | None = None
    reason: str = ""  # why there are no results
    started: float = 0.0
    _read: int = 0  # bytes of its rows that are counted

    @property
    def done(self) -> int:
        """Checks that have a verdict so far."""
        return self.verdicts.total()

    @property
    def red(self) -> int:
        """Red checks so far."""
        return sum(self.verdicts[verdict] for verdict in report.RED)

    def look(self) -> None:
        """Count the rows that have been written since the last look."""
        try:
            with (self.folder / report.PART).open("rb") as part:
                part.seek(self._read)
                new = part.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            if line.startswith(b'{"kind": "header"'):
                self.total = json.loads(line)["total"]
            elif line.startswith(b'{"kind": "check"') and (found := VERDICT.search(line)):
                self.verdicts[found[1].decode()] += 1

    def finish(self, status: int) -> None:
        """Take up what a process that ended has left."""
        with suppress(OSError, ValueError):
            if status in (0, 1, 2, 4, 5):  # ended in good order; 4 with a report is one that was not built
                self.results = report.read(self.folder / report.FILE)
            else:
                self.results = report.read_partial(self.folder / report.PART)
        if self.results is None:
            said = deque((self.folder / LOG).read_text("utf-8", "replace").split("\n"), 200)
            words = next((line for line in reversed(said) if line.strip()), "it said nothing")
            self.reason = f"pytest ended with status {status}: {words.strip()} (see {LOG})"
            return
        self.reason = self.results.header.get("reason", "")
        self.verdicts = Counter(row["verdict"] for row in self.results.rows)
        self.total = self.results.header.get("total")

    @property
    def outcome(self) -> str:
        """How it went, in a few words."""
        if self.results is None or not self.results.built:
            return f"not run: {self.reason or 'interrupted before it began'}"
        seconds = f" in {self.results.seconds:.0f} s" if self.results.seconds is not None else ""
        unfinished = "" if self.results.complete else f"INCOMPLETE, {self.done} of {self.total}: "
        return f"{unfinished}{self.done} checks, {self.results.red} red{seconds}"

    @property
    def label(self) -> str:
        """Name and version."""
        if self.results is None:
            return self.name
        implementation = self.results.header["implementation"]
        return f"{implementation['name']} {implementation['version']}"


def all_releases() -> list[str]:
    """The reference, and the releases that descriptions list as covered."""
    found = {name: describe(file) for name, file in described().items()}
    releases = [f"{name}=={version}" for name, known in found.items() for version in known.covered]
    return [name for name, known in found.items() if known.baseline] + releases


def plan(names: Sequence[str], output: Path) -> list[Run]:
    """A run for each implementation, the longest first. Raises `ImplementationError` for a wrong name."""
    runs: dict[str, Run] = {}
    for name in names:
        if claimed(name) is None:
            find(name)  # says what is wrong with it
        runs.setdefault(name, Run(name, output / _folder_name(name)))
    taken = Counter(run.folder for run in runs.values())
    if twice := [run.name for run in runs.values() if taken[run.folder] > 1]:
        raise ImplementationError(f"{' and '.join(twice)} would write into the same folder")
    # What has no version is measured by the newest level, and the newest level has the most checks.
    return sorted(runs.values(), key=lambda run: _level(run.name), reverse=True)


def _folder_name(name: str) -> str:
    """A file's or a folder's own name, else the name as --impl takes it."""
    path = Path(name)
    if path.exists():
        name = path.stem if path.is_file() else path.resolve().name
    return re.sub(r"[^\w.=+-]+", "_", name)


def _level(name: str) -> tuple[int, ...]:
    version = name.partition("==")[2]
    return tuple(map(int, re.findall(r"\d+", version))) if version else (1 << 30,)


class Matrix:
    """Runs, and the options of pytest that they share."""

    def __init__(self, runs: Sequence[Run], arguments: Sequence[str], jobs: int, console: Console) -> None:
        self.runs, self.arguments, self.console = runs, list(arguments), console
        self.at_once = max(1, min(jobs, len(runs)))
        self.workers = max(1, jobs // len(runs))  # of each run, when there are more cores than runs
        self.interrupted = False

    def run(self) -> None:
        """Run them all; Ctrl-C ends those that go on in good order and leaves the others as they are."""
        waiting, going = deque(self.runs), list[Run]()
        with _terminated_like_interrupted(), self._shown() as shown:
            try:
                while waiting or going:
                    while waiting and len(going) < self.at_once:
                        going.append(self._start(waiting.popleft()))
                    time.sleep(TICK)
                    for run in going[:]:
                        run.look()
                        status = run.process.poll() if run.process else 0
                        if status is not None:
                            run.finish(status)
                            going.remove(run)
                        shown.update(run)
            except KeyboardInterrupt:
                self.interrupted = True
                self._interrupt(going)
                for run in going:
                    shown.update(run)

    def _start(self, run: Run) -> Run:
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pytest", *(word for plugin in PLUGINS for word in ("-p", plugin))]
        command += [
            "--pyargs",
            "peft_conformance.test_conformance",
            f"--impl={run.name}",
            "-p",
            "no:cacheprovider",
        ]
        command += [
            f"--report={run.folder}",
            "--resume",
            "-q",
            "--color=no",
            "-n",
            str(self.workers if self.workers > 1 else 0),
        ]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        with (run.folder / LOG).open("wb") as log:
            run.process = subprocess.Popen(
                [*command, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and it is passed on once
            )
        run.started = time.monotonic()
        return run

    def _interrupt(self, going: list[Run]) -> None:
        """Let each run write what it has; whoever does not in time leaves its rows as they were streamed."""
        for run in going:
            if run.process:
                run.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        for run in going:
            assert run.process
            try:
                status = run.process.wait(max(0.1, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                with suppress(ProcessLookupError):
                    os.killpg(run.process.pid, signal.SIGKILL)
                status = run.process.wait()
            run.finish(status)

    @contextmanager
    def _shown(self) -> Iterator[Display]:
        if not self.console.is_terminal:
            yield Display(self.console)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bars(self.console, progress, self.runs)

    def status(self) -> int:
        """The exit status of the whole."""
        built = [run.results for run in self.runs if run.results and run.results.built]
        if self.interrupted:
            return INTERRUPTED
        if any(results.red for results in built):
            return RED
        if len(built) < len(self.runs):
            return NOT_RUN
        return CHECKED if all(results.complete for results in built) else INTERRUPTED

    def table(self) -> list[list[str]]:
        """Implementation by profile by verdict."""
        return report.comparison(
            (run.label, run.results.counts() if run.results else {}) for run in self.runs
        )

    def table_for_consumers(self) -> list[list[str]]:
        """Implementation by consumer by verdict; a heading alone where no consumer relies on what was run."""
        counted = [(run.label, run.results.counts_for_consumers()) for run in self.runs if run.results]
        return report.comparison([(label, counts) for label, counts in counted if counts])

    def write(self, folder: Path) -> None:
        """`matrix.md` and `matrix.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        listed = [f"`{run.name}`: {run.outcome}" for run in self.runs]
        parts = ["# Implementations by profile and verdict\n", report.markdown_table(self.table())]
        if len(consumers := self.table_for_consumers()) > 1:
            parts += ["## For those who rely on it\n", report.markdown_table(consumers)]
        parts.append(report.bullets("Runs", listed))
        for run in self.runs:
            if run.results:
                found = report.digest(run.results.having(*report.RED))
                ends = ((end["name"], end["complaint"].partition("\n")[0]) for end in run.results.loose_ends)
                found += [f"`{name}`: {complaint}" for name, complaint in ends]
                parts.append(report.bullets(f"Red: {run.label}", found))
        report.write_whole(folder / "matrix.md", "\n".join(part for part in parts if part))
        entries = [self._entry(run, folder) for run in self.runs]
        whole = {"format": report.FORMAT, "interrupted": self.interrupted, "runs": entries}
        report.write_whole(folder / "matrix.json", json.dumps(whole, indent=2) + "\n")

    def _entry(self, run: Run, folder: Path) -> dict[str, Any]:
        entry: dict[str, Any] = {"impl": run.name, "report": run.folder.relative_to(folder).as_posix()}
        if run.results is None:
            return {**entry, "status": "not-run", "reason": run.outcome}
        header = run.results.header
        return {
            **entry,
            **{key: header[key] for key in ("implementation", "suite", "matrix", "profiles", "status")},
            "reason": run.reason,
            "complete": run.results.complete,
            "red": run.results.red,
            "counts": run.results.counts(),
            "consumers": run.results.counts_for_consumers(),
        }


class Display:
    """Where there is no terminal: a line when a run begins, at each quarter, and when it ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._said: dict[str, str] = {}

    def update(self, run: Run) -> None:
        """Say what is new of a run."""
        if run.process is None or run.process.poll() is not None:
            self.say(run, run.outcome)
        elif not run.total:
            self.say(run, "begins")
        elif quarter := 4 * run.done // run.total * 25:
            self.say(run, f"{quarter} % of {run.total} checks, {run.red} red", key=str(quarter))

    def say(self, run: Run, words: str, key: str | None = None) -> None:
        """A line, unless it is the last one again."""
        if self._said.get(run.name) != (key or words):
            self._said[run.name] = key or words
            self.console.print(f"{run.name}: {words}", markup=False, highlight=False)


class Bars(Display):
    """In a terminal: a bar for each run."""

    def __init__(self, console: Console, progress: Progress, runs: Sequence[Run]) -> None:
        super().__init__(console)
        self.progress = progress
        self.tasks: dict[str, TaskID] = {
            run.name: progress.add_task(run.folder.name, start=False, total=None, state="waits")
            for run in runs
        }

    def update(self, run: Run) -> None:
        """Move a run's bar."""
        task = self.tasks[run.name]
        if not self.progress.tasks[task].started:
            self.progress.start_task(task)
        over = run.process is None or run.process.poll() is not None
        state = run.outcome if over else f"{run.red} red" if run.total else "is made ready"
        self.progress.update(task, total=run.total, completed=run.done, state=state)
        if over:
            self.progress.stop_task(task)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A request to end (as CI sends it) is handled as Ctrl-C is."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
