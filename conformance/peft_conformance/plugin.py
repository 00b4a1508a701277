"""The suite as a pytest plugin: options, an item for each check, failures that explain themselves, a summary.

pytest loads this module in every run, so that it imports nothing heavy until the suite itself is collected.
"""

from __future__ import annotations

import gc
import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from peft_conformance.cases import Case, Check, Verdict
    from peft_conformance.opening import Opening, Options
    from peft_conformance.run import Run

SUITE_FILE = Path(__file__).resolve().with_name("test_conformance.py")
RUN = pytest.StashKey["Run"]()
DONE = pytest.StashKey[set[str]]()  # ids of checks whose verdicts are taken over from an earlier run
CHANGED = "peft-conformance-changed"  # key of a worker's input: clauses that --changed has found
TAKEN_OVER = "peft-conformance-taken-over"  # key of a worker's input: checks that need not run again


def pytest_addoption(parser: pytest.Parser) -> None:
    """The runner's options, in a group of their own."""
    group = parser.getgroup("peft-conformance", "conformance of a PEFT implementation")
    group.addoption(
        "--impl",
        metavar="NAME",
        help="reference, peft, peft==VERSION, a module, an implementation's .yaml file or a checkout folder",
    )
    group.addoption(
        "--device", choices=("cpu", "cuda", "auto"), default="cpu", help="devices that cases may use (cpu)"
    )
    group.addoption("--api-level", metavar="VERSION", help="judge by this API level, not the one claimed")
    group.addoption(
        "--profile", action="append", metavar="NAME", help="only this profile or consumer (repeatable)"
    )
    group.addoption(
        "--matrix",
        choices=("smoke", "pairwise", "full"),
        default="full",
        help="how many points of each clause's matrix become cases (full)",
    )
    group.addoption(
        "--report", metavar="DIR", type=Path, help="write results.jsonl, summary.md and badges there"
    )
    group.addoption(
        "--record",
        action="store_true",
        help="keep what is observed, as observations.jsonl.gz in --report DIR",
    )
    group.addoption(
        "--resume", action="store_true", help="go on with an interrupted run that has the same --report"
    )
    group.addoption(
        "--changed",
        nargs="?",
        const="HEAD",
        metavar="REF",
        help="only clauses whose specs have changed, or the cards and models that they use (since HEAD)",
    )
    group.addoption("--isolate", action="store_true", help="run the implementation in a process of its own")
    group.addoption("--specs", metavar="DIR", type=Path, help="use the specs in this folder, not our own")


def pytest_configure(config: pytest.Config) -> None:
    """Open the run before anything is collected, so that a wrong option is a usage error and nothing else."""
    if not hasattr(config, "workerinput") and suite_is_asked_for(config):
        open_run(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the implementation's own process, if there is one, and end without a look at each object left."""
    if (run := config.stash.get(RUN, None)) is not None:
        run.close()
        gc.freeze()  # pytest, then Python, would search all that was imported for garbage: a second


def suite_is_asked_for(config: pytest.Config) -> bool:
    """Whether the command line's paths (or packages, with --pyargs) reach the suite's file."""
    here = config.invocation_params.dir
    reach = {SUITE_FILE, *SUITE_FILE.parents}
    if any((here / path).resolve() in reach for path in config.getoption("ignore") or ()):
        return False
    if (
        config.option.impl is None
    ):  # a plain `pytest` above an environment that holds this package is not about us
        reach = {SUITE_FILE, *SUITE_FILE.parents[:2]}
    for arg in config.args:
        name = arg.split("::")[0]
        package = name.split(".")[0] == SUITE_FILE.parent.name and not (here / name).exists()
        path = SUITE_FILE.parent if package and config.getoption("pyargs") else (here / name).resolve()
        if path in reach:
            return True
    return False


def open_run(config: pytest.Config) -> Run | None:
    """The run that the options describe, opened once; raises UsageError for an option that makes no sense.

    None in a controller that knows from an earlier process what it has to tell; its workers open theirs.
    """
    if RUN in config.stash:
        return config.stash[RUN]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no case needs the hub, and asking in vain takes long
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None:
        run = open_controller(config)
    else:
        run = config.stash[RUN] = started(options_of(config))
        config.stash[DONE] = set(worker.get(TAKEN_OVER, ()))
    if run and config.option.record and not config.option.collectonly:
        config.pluginmanager.register(Recorder(run, config))
    return run


def open_controller(config: pytest.Config) -> Run | None:
    """The run of the process that reports, None where it performs nothing and knows what it has to tell."""
    from peft_conformance import opening
    from peft_conformance.report import resumable

    start, option, options = time.monotonic(), config.option, options_of(config)
    # A worker that the implementation has killed leaves no snapshot report: not worth an error as well.
    config.addinivalue_line("filterwarnings", "ignore:syrupy. received:UserWarning")
    performs_nothing = getattr(option, "dist", "no") != "no" and not option.record and not option.collectonly
    shelf = opening.shelf(options) if performs_nothing else None
    known, run = opening.kept(options, shelf), None
    if known is None:
        run = config.stash[RUN] = started(options, option.report)
        known = opening.of(run)
        if shelf:
            shelf.put(known)
    if option.resume:
        known.results.rows = resumable(option.report, known.results.header)
    config.stash[DONE] = {row["id"] for row in known.results.rows}
    config.pluginmanager.register(Session(known, option, run.clauses if run else None, start))
    return run


def options_of(config: pytest.Config) -> Options:
    """What the command line asks for."""
    from peft_conformance.opening import Options

    option = config.option
    if option.resume and option.report is None:
        raise pytest.UsageError("--resume needs --report DIR: the folder that the interrupted run wrote to")
    if option.record and option.report is None:
        raise pytest.UsageError("--record needs --report DIR: what is observed is kept beside the report")
    return Options(
        implementation=option.impl,
        device=option.device,
        api_level=option.api_level,
        profiles=tuple(option.profile or ()),
        matrix=option.matrix,
        isolate=option.isolate,
        specs=option.specs,
        update_snapshots=getattr(option, "update_snapshots", False),
        selection=selection(config),
        changed=option.changed,
        clauses=getattr(config, "workerinput", {}).get(CHANGED),
    )


def started(options: Options, report: Path | None = None) -> Run:
    """A run. Where there is none to be had, a UsageError says why, as does the report if one is asked for."""
    from peft_conformance.report import Stream
    from peft_conformance.run import Refusal, Run
    from peft_conformance.suite_cache import without_collector

    try:
        with without_collector():
            return Run(options)
    except Refusal as refusal:
        if refusal.results and report:
            Stream(refusal.results, report).close()
        raise pytest.UsageError(str(refusal)) from None


def selection(config: pytest.Config) -> str:
    """What the command line selects by keyword, by what has changed, and by node id."""
    chosen = [arg.partition("::")[2] for arg in config.args if "::" in arg]
    since = config.option.changed and f"--changed={config.option.changed}"
    return " ".join(filter(None, [config.option.keyword, config.option.markexpr, since, *chosen]))


# Collection


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Collect the suite's file as checks, not as Python functions."""
    if module_path.resolve() != SUITE_FILE:
        return None
    # Outside of the root folder pytest would leave the path out of the ids.
    place = Path(os.path.relpath(module_path, parent.config.rootpath)).as_posix()
    return SuiteFile.from_parent(parent, path=module_path, nodeid=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Any:
    """What is collected stays until the end: no collector need walk through it again and again."""
    if not suite_is_asked_for(session.config):
        return (yield)
    from peft_conformance.suite_cache import without_collector

    with without_collector():
        result = yield
    gc.freeze()
    return result


class _Hooks:
    """pytest's hooks but for those that set up logging three times for each check: a third of the cost."""

    def __init__(self, config: pytest.Config) -> None:
        self._call = config.pluginmanager.subset_hook_caller
        self._without = [config.pluginmanager.get_plugin("logging-plugin")]

    def __getattr__(self, name: str) -> Any:
        caller = self._call(name, remove_plugins=filter(None, self._without))
        setattr(self, name, caller)
        return caller


class SuiteFile(pytest.File):
    """The suite: a check of a case is one item; so is an expectation or a snapshot that nothing names."""

    def collect(self) -> Iterator[pytest.Item]:
        """One item for each check, those of one case beside each other."""
        try:
            run = open_run(self.config)
        except pytest.UsageError as error:
            raise self.CollectError(str(error)) from None
        assert run, "it is the controller that may do without one, and it collects nothing"
        done, option = self.config.stash[DONE], self.config.option
        wants_logs = option.log_level or option.log_file or option.log_cli_level
        hooks = self.ihook if wants_logs or self.config.getini("log_cli") else _Hooks(self.config)
        for name, complaint in run.loose_ends() if run.clauses is None else ():
            yield LooseEnd.from_parent(self, name=name, nodeid=f"{self.nodeid}::{name}", complaint=complaint)
        for case in run.cases:
            for check in case.checks:
                name = f"{case.id}:{check.id}"
                if name in done:
                    continue
                node = f"{self.nodeid}::{name}"
                yield CheckItem.from_parent(
                    self, name=name, nodeid=node, run=run, case=case, check=check, hooks=hooks
                )


class Red(Exception):
    """A check that is not as it should be; its text is the whole of what pytest prints."""


class SuiteItem(pytest.Item):
    """An item whose failures are told in the reader's words."""

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The complaint; a traceback, which takes longer than a case, only where our own code is at fault."""
        told = isinstance(excinfo.value, (Red, pytest.xfail.Exception))
        return str(excinfo.value) if told else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """The heading of a failure."""
        # The space at the end keeps pytest from printing the dots of the id as `::`, as it does for classes.
        return self.path, None, f"{self.name} "


class CheckItem(SuiteItem):
    """One check of one case. The case is executed by the first of its checks that runs."""

    def __init__(self, *, run: Run, case: Case, check: Check, hooks: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run, self.case, self.check, self._hooks = run, case, check, hooks
        self.row: dict[str, Any] | None = None  # once it has a verdict
        # -k can then select by topic and profile too
        self.extra_keyword_matches.update({case.clause.topic, case.clause.profile})

    def runtest(self) -> None:
        """Pass, skip, xfail or fail as the verdict says."""
        run = self.run
        verdict = run.verdict(self.case, self.check)
        if self.check.word == "snapshot":
            verdict = run.with_snapshot(verdict, lambda text: matches_snapshot(self, text))
        self.row = run.row(self.case, self.check, verdict)
        self.user_properties += [
            (key, self.row[key]) for key in ("clause", "check", "level", "profile", "verdict")
        ]
        raise_outcome(verdict, lambda: run.explain(self.case, self.check, verdict))

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Where the check is written down, and the heading of a failure."""
        return self.case.clause.file, self.check.line - 1, super().reportinfo()[2]

    @property
    def ihook(self) -> Any:
        """The hooks that are called for this item."""
        return self._hooks

    @property
    def obj(self) -> Any:
        """What syrupy calls the test function; it asks for its module and name."""
        return CheckItem.runtest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a check without telling that it begins, nor of a set-up and a teardown in which nothing happened.

    Under -n these are four of the seven messages about a check. Whoever asks for more than dots gets all.
    """
    option = item.config.option
    if not isinstance(item, CheckItem) or option.verbose > 0 or option.durations or option.xmlpath:
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Let the report of a check carry its row, which may have to travel from a worker to the controller."""
    report = yield
    if isinstance(item, CheckItem) and report.when == "call":
        report.row = json.dumps(item.row)
    return report


class LooseEnd(SuiteItem):
    """Something that no check of the suite answers to: an expectation or a stored snapshot. Always red."""

    def __init__(self, *, complaint: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.complaint = complaint

    def runtest(self) -> None:
        """Fail with the complaint."""
        raise Red(self.complaint)


def raise_outcome(verdict: Verdict, explain: Callable[[], str]) -> None:
    """Turn a verdict into pytest's own outcome: nothing for a pass, else the matching exception."""
    kind = verdict.verdict
    if kind in {"fail", "error", "stale", "changed"}:
        raise Red(explain())
    if kind == "expected-failure":
        pytest.xfail(verdict.detail)
    if kind == "blocked":
        pytest.skip(f"blocked: {verdict.detail}")


def matches_snapshot(item: CheckItem, text: str) -> bool:
    """Compare with the stored snapshot through syrupy; under --snapshot-update, store it."""
    import warnings

    from syrupy.assertion import SnapshotAssertion
    from syrupy.location import PyTestLocation

    from peft_conformance.run import SnapshotFile

    assertion = SnapshotAssertion(
        session=item.config._syrupy,  # type: ignore[attr-defined]
        extension_class=SnapshotFile,
        test_location=PyTestLocation(item),
        update_snapshots=item.config.option.update_snapshots,
    )
    with warnings.catch_warnings():
        # Our files are named by checks, not by Python files; raised, this would keep them from being stored.
        warnings.filterwarnings("ignore", "\\s*Can not relate snapshot", UserWarning)
        return bool(assertion == text)


# Around the run


class Recorder:
    """Keeps what a process observes in a part of its own; the controller makes one file of the parts."""

    def __init__(self, run: Run, config: pytest.Config) -> None:
        from peft_conformance.observations import make_ready, part

        self.run, folder = run, config.option.report
        worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        if worker is None:
            make_ready(folder, resumed=bool(config.stash[DONE]))
        run.record(part(folder, worker["workerid"] if worker else "main"), with_surface=worker is None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """The part is whole. Workers come here before the controller hears that they are done."""
        assert self.run.recorder
        self.run.recorder.close()


class Session:
    """Hooks of a run of the suite, registered when one is opened: other pytest runs never see them."""

    def __init__(
        self, known: Opening, options: Namespace, changed: Collection[str] | None, start: float
    ) -> None:
        from peft_conformance.report import Stream

        self.results, self.importing = known.results, known.importing
        self.options, self.changed, self.start = options, changed, start
        self.stream = (
            Stream(self.results, options.report) if options.report and not options.collectonly else None
        )
        self.recording: Path | None = None
        self.junit: Any = None
        self.taken_over = len(self.results.rows)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Look for pytest's JUnit report, in which checks are to be named as everywhere else."""
        from _pytest.junitxml import xml_key

        self.junit = session.config.stash.get(xml_key, None)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without workers, what is to run is known now."""
        if not hasattr(session.config, "workerinput") and session.items:
            self.begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """With workers, each says what is to run, and all say the same."""
        self.begin(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """What a worker has to leave out; so has one that takes the place of a dead one."""
        node.workerinput[TAKEN_OVER] = sorted(node.config.stash[DONE])
        node.workerinput[CHANGED] = None if self.changed is None else sorted(self.changed)

    @property
    def nothing_changed(self) -> bool:
        """Whether nothing was to be run, and rightly so."""
        return self.changed is not None and not self.changed

    def begin(self, ids: list[str]) -> None:
        """Begin the report, once."""
        if "total" not in self.results.header:
            total = self.taken_over + sum(is_check(nodeid) for nodeid in ids)
            self.results.header["total"] = total
            self.results.start_up = time.monotonic() - self.start
            if self.stream:
                self.stream.open()

    def pytest_report_header(self) -> str:
        """What is being measured, and with what."""
        from peft_conformance.report import one_line

        line = f"implementation: {one_line(self.results.header)}"
        if self.changed is None:
            return line
        return f"{line}\nchanged since {self.options.changed}: {len(self.changed)} clauses"

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Under -n, give all checks of a case to one worker, unless the user chose another --dist."""
        if self.options.dist != "load":
            return None
        from peft_conformance.scheduling import ByCase

        return ByCase(config, log, SUITE_FILE.name, self.importing)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather the verdict that a report carries; on the controller it may come from any worker."""
        row = json.loads(getattr(report, "row", "null"))
        if row:
            self.add("check", row)
            if self.junit is not None:
                case = self.junit.node_reporter(report)
                case.add_attribute("classname", row["clause"])
                case.add_attribute("name", row["id"])
        if report.failed and not row and f"/{SUITE_FILE.name}::" in report.nodeid:
            name = report.nodeid.partition("::")[2]
            self.add("loose-end", {"name": name, "complaint": report.longreprtext})

    def add(self, kind: str, line: dict[str, Any]) -> None:
        """A verdict or a loose end, kept and written down at once."""
        (self.results.rows if kind == "check" else self.results.loose_ends).append(line)
        if self.stream:
            self.stream.add(kind, line)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the report; a run in which nothing was judged is not a success."""
        if session.config.pluginmanager.has_plugin("hypothesispytest"):
            gc.unfreeze()  # it now asks what refers to some object, and knows nothing of what is frozen
        if self.options.collectonly:
            return
        results, code = self.results, pytest.ExitCode
        self.begin([])
        results.seconds = time.monotonic() - self.start
        results.complete = len(results.rows) == results.header["total"]
        if self.stream:
            self.stream.close()
        if self.options.record:
            from peft_conformance.observations import join

            self.recording = join(self.options.report)
        if session.exitstatus == code.NO_TESTS_COLLECTED and (self.taken_over or self.nothing_changed):
            session.exitstatus = code.OK
        if session.exitstatus == code.OK and results.red:  # in what was taken over
            session.exitstatus = code.TESTS_FAILED
        if session.exitstatus == code.OK and not results.judged and not self.nothing_changed:
            session.exitstatus = code.NO_TESTS_COLLECTED

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Every warning; counts per profile; what is overdue; and aloud, that nothing was judged."""
        if self.options.collectonly:
            return
        from peft_conformance.report import closing

        restore_ids(report for reports in terminalreporter.stats.values() for report in reports)
        say = terminalreporter.write_line
        terminalreporter.section(f"conformance of {self.results.header['implementation']['name']}")
        if self.nothing_changed:
            say(f"no clause has changed since {self.options.changed}: there is nothing to run")
        for line, colour in closing(self.results) if not self.nothing_changed else ():
            say(line, **({colour: True} if colour else {}))
        if self.taken_over:
            say(f"{self.taken_over} of these verdicts are taken over from the run that was interrupted")
        if not self.results.complete:
            say(*self.results.caveats(), yellow=True)
        if self.options.report is not None:
            say(f"report: {self.options.report / 'results.jsonl'}")
        if self.recording is not None:
            say(f"recording: {self.recording}")


def is_check(nodeid: str) -> bool:
    """Whether a node id is that of a check: neither a loose end nor something that is none of ours."""
    place, _, name = nodeid.partition("::")
    return place.endswith(SUITE_FILE.name) and not name.startswith(("expectation-", "snapshot:"))


def restore_ids(reports: Iterable[Any]) -> None:
    """Give the summary our ids as they are: pytest 9 splits them at a `[` and ends them with a `]` again."""
    for report in reports:
        if getattr(report, "nodeid", "").endswith("]") or not isinstance(report, pytest.TestReport):
            continue
        node: Any = getattr(report, "id", None)
        if getattr(node, "params", None) is not None:
            report._id = type(node)(path=node.path, names=tuple(report.nodeid.split("::")[1:]))
