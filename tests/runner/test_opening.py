"""What a controller knows from an earlier process, and which worker gets what: runs of the real suite."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft_conformance import opening, report
from peft_conformance.opening import Options
from peft_conformance.run import Run
from peft_conformance.scheduling import AHEAD, ByCase
from suite_runs import run_suite

TELLS = """
import sys
def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"the controller has torch: {'torch' in sys.modules}")
"""
DESCRIPTION = """schema: "1.0"
name: mine
module: mine
api_level: "0.21"
offers: [inject]
"""


def test_the_second_run_needs_no_torch_before_its_workers_and_reports_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tells.py").write_text(TELLS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PEFT_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PEFT_CONFORMANCE_FRESH", raising=False)

    def run(selected: str, folder: str) -> str:
        words = ("-p", "tells", "-n2", "--matrix=smoke", "-k", selected, f"--report={folder}")
        return run_suite(tmp_path, "reference", *words, specs=None).text

    first = run("inject.several or counts.pages", "first")
    second = run("inject.several", "second")
    assert "the controller has torch: True" in first
    assert "the controller has torch: False" in second
    one, two = (report.read(tmp_path / name / report.FILE) for name in ("first", "second"))
    assert two.header.pop("selection") == "inject.several"
    assert one.header.pop("selection") == "inject.several or counts.pages"
    assert (one.header.pop("total"), two.header.pop("total")) == (len(one.rows), len(two.rows))
    assert two.header == one.header
    assert two.left_out == one.left_out != []
    assert 0 < len(two.rows) < len(one.rows)
    assert {row["verdict"] for row in two.rows} == {"pass"}


@pytest.mark.parametrize(
    "asked",
    [
        {"device": "auto"},
        {"api_level": "0.18"},
        {"isolate": True},
        {"specs": Path("specs")},
        {"update_snapshots": True},
        {"changed": "HEAD"},
        {"implementation": "referense"},
        {"implementation": None},
    ],
    ids=str,
)
def test_what_only_a_run_can_tell_is_not_kept(asked: dict[str, Any]) -> None:
    assert opening.shelf(Options(**{"implementation": "reference", **asked})) is None


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """The key under which the opening of an implementation of one file is kept."""
    monkeypatch.setenv("PEFT_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PEFT_CONFORMANCE_FRESH", raising=False)
    (tmp_path / "mine.yaml").write_text(DESCRIPTION)
    (tmp_path / "mine.py").write_text("one = 1\n")
    monkeypatch.chdir(tmp_path)

    def of(**asked: Any) -> bytes:
        shelf = opening.shelf(Options(**{"implementation": "mine.yaml", **asked}))
        assert shelf
        return shelf.key

    return of


def test_another_selection_has_the_same_opening(key: Callable[..., bytes]) -> None:
    assert key() == key(selection="law") != key(matrix="smoke")
    assert key(profiles=("model",)) != key()


@pytest.mark.parametrize("change", ["code", "description", "installed", "path", "snapshots", "day"])
def test_any_change_makes_it_another(
    change: str, key: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    if change == "installed":
        monkeypatch.syspath_prepend(packages)
    before = key()
    if change == "code":
        (tmp_path / "mine.py").write_text("one = 2\n")
    elif change == "description":
        (tmp_path / "mine.yaml").write_text(DESCRIPTION.replace("inject", "inject, forward"))
    elif change == "installed":
        os.utime(packages, ns=(0, 0))
    elif change == "path":
        monkeypatch.syspath_prepend(tmp_path)
    elif change == "snapshots":
        monkeypatch.setattr(opening, "SNAPSHOTS", "others")
    else:
        monkeypatch.setattr(opening, "date", SimpleNamespace(today=lambda: "tomorrow"))
    assert key() != before


def test_kept_cases_are_those_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PEFT_CONFORMANCE_FRESH", raising=False)

    def cases(**asked: Any) -> set[str]:
        return {case.id for case in Run(Options("reference", **{"matrix": "smoke", **asked})).cases}

    smoke = cases()
    assert cases() == smoke
    assert cases(profiles=("checkpoint",)) < smoke < cases(matrix="pairwise")
    assert cases(api_level="0.12") != smoke
    assert cases(clauses={"config_json.lora-fields"}) == {"config_json.lora-fields"} < smoke
    assert cases() == smoke


class Worker:
    """As much of a worker as a scheduler sees."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway, self.given = SimpleNamespace(id=name), list[int]()

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True


IDS = [f"x/suite.py::{case}:{check}" for case in "abcdefgh" for check in ("one", "two", "three")]
Scheduled = tuple[ByCase, Worker, Worker]


def scheduled(importing: str) -> Scheduled:
    """Eight cases of three checks each, handed out to two workers."""
    options = SimpleNamespace(loadscopereorder=False)
    config: Any = SimpleNamespace(getvalue={"tx": ["2*popen"]}.get, option=options)
    scheduler = ByCase(config, None, "suite.py", set(importing))
    workers = Worker("gw0"), Worker("gw1")
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, IDS)
    scheduler.schedule()
    return scheduler, *workers


def cases(worker: Worker) -> str:
    given = [IDS[index].partition("::")[2].partition(":") for index in worker.given]
    assert [check for *_, check in given] == ["one", "two", "three"] * (len(given) // 3)
    return "".join(case for case, *_ in given[::3])


def test_the_first_worker_begins_with_what_imports_most_and_the_other_at_the_other_end() -> None:
    scheduler, first, second = scheduled(importing="cd")
    assert (cases(first), cases(second)) == ("cd", "hg")
    assert len(first.given) == AHEAD
    scheduler.mark_test_complete(first, first.given[0])
    assert cases(first) == "cda"
    for index in second.given[:4]:
        scheduler.mark_test_complete(second, index)
    assert cases(second) == "hgfe"
    assert not second.shutting_down
    for index in first.given[1:7]:
        scheduler.mark_test_complete(first, index)
    assert cases(first) == "cdab"
    assert first.shutting_down


def test_the_last_cases_that_import_are_left_to_the_first_worker_as_long_as_it_lives() -> None:
    scheduler, first, second = scheduled(importing="abcdefg")
    assert (cases(first), cases(second)) == ("ab", "h")
    assert second.shutting_down
    assert not first.shutting_down
    assert scheduler.remove_node(first) == IDS[0]  # its case is not handed on
    another = Worker("gw2")
    scheduler.add_node(another)
    scheduler.add_node_collection(another, IDS)
    scheduler.schedule()
    for index in another.given:  # which grows meanwhile
        scheduler.mark_test_complete(another, index)
    assert set(cases(another)) == set("bcdefg")
    assert another.shutting_down
