"""How pytest runs the rows: memory first, then repetition by repetition, the contenders of a row in turn."""

from __future__ import annotations

import gc
import itertools
import json
import os
import platform
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft_conformance.report import write_whole
from rich.console import Console
from rich.table import Table

from benchmarks import forward, growth, lifecycle, results, startup, suite
from benchmarks.measure import Elsewhere, Row, Work

MEMORY = "memory"
KINDS = (startup, lifecycle, forward, growth, suite)


class Measurements:
    """What was measured so far, and the work of the row that is being measured."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.memory: dict[str, dict[str, int]] = {}
        self.breaks: dict[str, dict[str, int]] = {}  # method -> library -> graph breaks
        self.rows: dict[str, Row] = {}
        self.begun: set[str] = set()
        self.total = 0
        self._current: tuple[str, Mapping[str, Work | Elsewhere], dict[str, dict[str, int]]] = ("", {}, {})

    def work(self, row: Row, contender: str) -> tuple[Work | Elsewhere, dict[str, int]]:
        """What a contender does in a row, and in what portions; built once, until another row comes."""
        if self._current[0] != row.id:
            self._current = ("", {}, {})
            gc.collect()
            self._current = (row.id, row.prepare(), {})
            self.rows[row.id] = row
        _, works, portions = self._current
        work = works[contender]
        if contender not in portions:
            portions[contender] = {} if isinstance(work, Elsewhere) else work.portions()
        return work, portions[contender]

    def document(self, cpu: str) -> results.Document:
        """All that was measured, as it is kept."""
        entries, units = [], {}
        for id, seconds in self.seconds.items():
            row = self.rows[id]
            reference = statistics.median(seconds.get("reference") or next(iter(seconds.values())))
            series = (row.curve, row.operation, row.method) if row.curve else id
            unit = units.setdefault(series, (id, reference))
            entries.append(results.entry(row, seconds, self.memory.get(id, {}), unit))
        _, first = units.get(("adapters", "inject", "LoRA"), ("", 0.0))
        packages = ("peft", "torch", "transformers")
        return {
            "machine": {"cpu": cpu, "cores": os.cpu_count()},
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "rows": entries,
            "sweep": growth.sweep(first) if first else {},
            "graph breaks": self.breaks,
        }


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a run measures, and where it writes."""
    group = parser.getgroup("adapters")
    group.addoption("--quick", action="store_true", help="two repetitions of each row, and no memory")
    group.addoption("--output", metavar="DIR", type=Path, help="write what was measured to DIR/latest.json")


def pytest_configure(config: pytest.Config) -> None:
    """One thread: what the machine does beside it disturbs least."""
    torch.set_num_threads(1)
    config.measurements = Measurements()  # type: ignore[attr-defined]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each chunk, in the order in which they are measured."""
    if "turn" not in metafunc.fixturenames:
        return
    quick = metafunc.config.getoption("quick")
    chunks = []
    for row in itertools.chain.from_iterable(kind.rows() for kind in KINDS):
        repetitions = range(1, (2 if quick else row.repetitions) + 1)
        for turn, contender in itertools.product(
            [*([] if quick or not row.memory else [MEMORY]), *repetitions], row.contenders
        ):
            chunks.append(
                pytest.param(row, turn, contender, id=f"{row.id}-{turn}-{contender.replace(' ', '_')}")
            )
    metafunc.parametrize(("row", "turn", "contender"), chunks)


def told(item: pytest.Item) -> str:
    """The line that a test has a part in: its row's, or that of all graph breaks."""
    row: Row | None = item.callspec.params.get("row")  # type: ignore[attr-defined]
    return row.id if row else "graph breaks"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """A line for each row, to see how far it is."""
    measured: Measurements = item.config.measurements  # type: ignore[attr-defined]
    if (id := told(item)) not in measured.begun:
        measured.begun.add(id)
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"{len(measured.begun)}/{measured.total}  {id}")  # type: ignore[union-attr]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the rows that `-k` leaves."""
    measured: Measurements = config.measurements  # type: ignore[attr-defined]
    gc.freeze()  # what is there by now stays: collections between chunks take a hundredth
    measured.total = len({told(item) for item in items})


def pytest_report_teststatus(report: pytest.TestReport) -> Any:
    """No line of dots: thousands of chunks."""
    return ("passed", "", "") if report.passed and report.when == "call" else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of ratios, and the targets."""
    measured: Measurements = config.measurements  # type: ignore[attr-defined]
    if not measured.seconds and not measured.breaks:
        return
    machine = config.hook.pytest_benchmark_generate_machine_info(config=config)
    document = measured.document(machine["cpu"].get("brand_raw") or platform.machine())
    console = Console(width=150)
    table = Table(
        "operation",
        "method",
        "at",
        "to upstream",
        "to addmm",
        "to base",
        "peak memory",
        title="reference to others",
    )
    for row in document["rows"]:
        at = " ".join(f"{key}={value}" for key, value in row["point"].items())
        spread = {name: f"{of[0]:.2f} ({of[1]:.2f} – {of[2]:.2f})" for name, of in row["ratios"].items()}
        shown = [spread.get(name, "") for name in ("upstream", "addmm", "base")]
        table.add_row(row["operation"], row["method"], at, *shown, results.cells([row])[-1])
    console.print(table)
    targets = Table("target", "limit", "measured", "", title="targets")
    for line in results.judged(document):
        targets.add_row(*line)
    console.print(targets)
    if folder := config.getoption("output"):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / results.FILE.name, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
