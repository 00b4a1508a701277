"""`pytest benchmarks`: its rows, its arithmetic, and that README has what is committed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("memray")
pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # a folder of the checkout, in no installed package

from benchmarks import forward, graphs, growth, lifecycle, results, startup, suite  # noqa: E402
from benchmarks.measure import LIBRARIES, Row, Work  # noqa: E402

BESIDE = {"layers": 112, "adapters": 100}
ROW = "forward-LoRA-width:64-batch:1-active:1-dtype:fp32"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A quick run of one row: what it printed, and the file it wrote."""
    folder = tmp_path_factory.mktemp("benchmarks")
    paths = os.pathsep.join(filter(None, ["reference", "conformance", os.environ.get("PYTHONPATH")]))
    # Timing is switched off in what looks like a worker of pytest-xdist.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "--quick", "-k", ROW, f"--output={folder}"],
        cwd=ROOT,
        env={**ours, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "latest.json").read_text("utf-8"))


def test_a_run_prints_ratios_and_targets(run: tuple[str, dict[str, Any]]) -> None:
    text, document = run
    (row,) = document["rows"]
    assert f"1/1  {ROW}" in text
    assert "forward of LoRA to hand-written `addmm`" in text
    assert row["id"] == ROW
    assert {name: len(times) for name, times in row["times"].items()} == dict.fromkeys(
        ("reference", "upstream", "base", "addmm", "addmm module"), 2
    )
    assert row["ratios"].keys() == {"upstream", "base", "addmm", "addmm module"}
    assert document["versions"].keys() == {"python", "peft", "torch", "transformers"}
    assert document["threads"] == 1


def test_every_operation_of_every_method_has_rows() -> None:
    rows = [row for kind in (startup, lifecycle, forward, growth, suite) for row in kind.rows()]
    assert len({row.id for row in rows}) == len(rows)
    shared = ("get_peft_model", "inject", "delete_adapter", "set_adapter", "merge", "unmerge", "forward")
    more = ("get_peft_model_state_dict", "set_peft_model_state_dict", "save_pretrained", "from_pretrained")
    table = {(row.operation, row.method) for row in rows if not row.curve}
    for method in ("LoRA", "IA3", "LoHa", "OFT", "VeRA"):
        assert {operation for operation, of in table if of == method} >= {*shared, *more}
    assert {row.curve for row in rows} == {"", "layers", "adapters", "rank"}


@pytest.mark.filterwarnings("ignore")
def test_graph_breaks_are_counted() -> None:
    """Poly's graph breaks in both libraries, LoRA's does not."""
    assert len(graphs.methods()) > 30
    assert [graphs.breaks(library, "poly") > 0 for library in LIBRARIES.values()] == [True, True]
    assert graphs.breaks(LIBRARIES["reference"], "lora") == 0


def test_a_red_run_of_the_suite_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "ROOT", Path(__file__).parent)
    with pytest.raises(RuntimeError, match="--matrix=smoke"):
        suite.SuiteRun("smoke").seconds()


def test_contenders_take_turns() -> None:
    """A ratio is of two times that were taken one after the other."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-k", "import"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    chunks = [line.rpartition("torch-")[2] for line in done.stdout.splitlines() if ":torch-" in line]
    assert chunks == [f"{turn}-{who}]" for turn in ("memory", 1, 2, 3) for who in ("reference", "upstream")]


def test_contenders_that_do_not_compute_the_same_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "addmm", lambda x, weight, bias, pairs, scaling: x)
    with pytest.raises(AssertionError, match="not close"):
        forward.layer_work("forward", "LoRA", 64, 1)


@pytest.mark.parametrize("method", ["IA3", "LoHa", "OFT", "VeRA"])
def test_other_methods_are_compared_where_they_compute_the_same(method: str) -> None:
    assert forward.layer_work("forward", method, 64, 1).keys() == {"reference", "upstream", "base"}


@pytest.mark.filterwarnings("ignore:Already found")
def test_an_adapter_that_is_not_active_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-written sum has as many adapters as are active together."""
    works = forward.layer_work("forward", "LoRA", 64, 2, active=3)
    assert works.keys() == {"reference", "upstream", "base", "addmm", "addmm module"}
    monkeypatch.setattr(torch, "addmm", lambda result, *_, **__: result)
    with pytest.raises(AssertionError, match="not close"):
        forward.layer_work("forward", "LoRA", 64, 2, active=3)


def test_peak_memory_is_of_the_call_alone() -> None:
    def work(size: int) -> Work:
        before = lambda: kept.append(torch.zeros(4_000_000))  # noqa: E731
        kept: list[torch.Tensor] = []
        return Work(lambda: torch.zeros(size), before=before, after=kept.clear)

    assert 4_000_000 <= work(1_000_000).peak() < 4_200_000
    assert work(10).peak() < 200_000


def test_what_needs_something_in_between_is_not_repeated_in_a_round() -> None:
    assert Work(lambda: None).portions()["iterations"] > 1
    calls: list[str] = []
    portions = Work(lambda: calls.append("call"), after=lambda: calls.append("after")).portions()
    assert portions["iterations"] == 1
    assert calls == ["call", "after"] * 2


def test_no_second_is_kept() -> None:
    """A machine of half the speed leaves the same file."""
    row = Row("forward", "LoRA", {"width": 64}, dict)
    seconds = {"reference": [2.0, 3.0, 4.0], "upstream": [4.0, 4.0, 4.0]}
    slower = {name: [2 * s for s in each] for name, each in seconds.items()}
    told = results.entry(row, seconds, {}, ("a", 2.0))
    assert told == results.entry(row, slower, {}, ("a", 4.0))
    assert told["times"] == {"reference": [1.0, 1.5, 2.0], "upstream": [2.0, 2.0, 2.0]}
    assert told["ratios"] == {"upstream": [0.75, 0.5, 1.0]}  # median, least, greatest


def _document(*rows: tuple[str, dict[str, Any], dict[str, list[float]]]) -> dict[str, Any]:
    told = [
        {"id": f"{operation}-{i}", "operation": operation, "method": "LoRA", "point": point, "ratios": ratios}
        for i, (operation, point, ratios) in enumerate(rows)
    ]
    return {"rows": told, "sweep": {}}


@pytest.mark.parametrize(
    ("text", "rows", "value", "met"),
    [
        ("no row slower", [("merge", {}, {"upstream": [1.1, 0.99, 1.2]})], 0.99, True),
        ("no row slower", [("merge", {}, {"upstream": [1.1, 1.01, 1.2]})], 1.01, False),
        ("forward of LoRA", [("forward", {}, {"addmm": [w, 1.0, 2.0]}) for w in (1.1, 1.2)], 1.2, False),
        ("forward of LoRA", [("forward and backward", {}, {"addmm": [1.2, 1, 2]})], None, None),
        ("adapter beside", [("inject", BESIDE, {"upstream": [0.02, 0, 1]})], 0.02, True),
        ("adapter beside", [("inject", {**BESIDE, "layers": 16}, {"upstream": [0.2, 0, 1]})], None, None),
        ("import", [("import", {"after": "torch"}, {"upstream": [0.3, 0.2, 0.4]})], 0.3, False),
    ],
)  # fmt: skip
def test_a_target_is_judged_by_its_worst_row(text: str, rows: list[Any], value: Any, met: Any) -> None:
    (target,) = [target for target in results.TARGETS if target.text.startswith(text)]
    told = target.told(_document(*rows))
    assert (told and (told["value"], told["met"])) == (None if value is None else (value, met))


def test_memory_is_judged_by_the_ratio_of_the_peaks() -> None:
    document = _document(("merge", {}, {}), ("unmerge", {}, {}))
    for row, peak in zip(document["rows"], (90, 110), strict=True):
        row["peak bytes"] = {"reference": peak, "upstream": 100}
    target = next(target for target in results.TARGETS if "memory" in target.text)
    told = target.told(document)
    assert told == {"value": 1.1, "row": "unmerge-1", "rows": 2, "over": 1, "met": False}


def test_graph_breaks_are_judged_by_method_and_the_suite_by_its_limit() -> None:
    suite_row = ("suite", {"matrix": "smoke"}, {"limit": [1.2, 0.9, 1.3]})
    document = {**_document(suite_row), "graph breaks": {"a": {"reference": 0}, "b": {"reference": 2}}}
    told = {text: (value, said) for text, _, value, said in results.judged(document)}
    assert told == {
        "graph breaks of a method under `torch.compile`": ("2.00", "not met: 1 of 2 rows, b"),
        "the suite, smoke matrix, `-n 2`, to 10 s": ("1.20", "not met: 1 of 1 rows, suite-0"),
    }


def test_number_1000_is_judged_by_a_whole_sweep() -> None:
    target = next(target for target in results.TARGETS if "1000" in target.text)
    sweep = {"each": 20, "adapters": [1, 501, 981], "reference": [1.0, 1.0, 1.4]}
    assert target.told({"rows": [], "sweep": sweep})["met"] is False
    sweep["reference"][-1] = 1.3
    assert target.told({"rows": [], "sweep": sweep})["met"] is True
    assert target.told({"rows": [], "sweep": {**sweep, "adapters": [1, 251, 481]}}) is None
    assert target.told({"rows": [], "sweep": {}}) is None


def test_readme_has_the_tables_of_the_committed_run() -> None:
    text = results.README.read_text("utf-8")
    block = text.partition(results.BEGIN + "\n")[2].partition(results.END)[0]
    assert block.strip() == results.block(json.loads(results.FILE.read_text("utf-8")))


def test_the_tables_go_between_the_marks(run: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    _, document = run
    assert "| forward, one adapter | " in results.block(document)
    file = tmp_path / "README.md"
    file.write_text(f"above\n{results.BEGIN}\nold\n{results.END}\nbelow\n", "utf-8")
    results.write_readme(document, file)
    assert file.read_text("utf-8") == (
        f"above\n{results.BEGIN}\n{results.block(document)}\n{results.END}\nbelow\n"
    )
    file.write_text("no marks\n", "utf-8")
    with pytest.raises(ValueError, match=r"README\.md: no lines"):
        results.write_readme(document, file)


def test_the_page_shows_each_picture_that_a_run_gives(tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots")
    drawn = {file.name for file in plots.draw(json.loads(results.FILE.read_text("utf-8")), tmp_path)}
    page = ROOT / "docs" / "speed.md"
    shown = set(re.findall(r"\]\(speed/(\S+)\)", page.read_text("utf-8")))
    assert shown == drawn == {file.name for file in plots.FOLDER.iterdir()}
    assert len(drawn) == 4
