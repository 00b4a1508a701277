"""A run as pictures for docs/speed.md: `python -m benchmarks.plots` draws them from the committed run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.results import FILE, Document, Entry

FOLDER = Path(__file__).parent.parent / "docs" / "speed"
STYLES: dict[
    str, dict[str, Any]
] = {  # of a contender: told apart by marker and dashes too, not by colour alone
    "reference": {"color": "#0b6e4f", "marker": "o", "linestyle": "-"},
    "upstream": {"color": "#b5541c", "marker": "s", "linestyle": "--"},
    "addmm": {"color": "#4a4a4a", "marker": "^", "linestyle": ":"},
}
LABELS = {"adapters": "adapters that the model has", "layers": "adapted layers", "rank": "rank"}


def draw(document: Document, folder: Path = FOLDER) -> list[Path]:
    """Write a picture for each curve of a run, and one of the forward pass; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams.update({"svg.hashsalt": "speed", "svg.fonttype": "none", "font.size": 9})
    drawn = []
    for curve in dict.fromkeys(row["curve"] for row in document["rows"] if row.get("curve")):
        rows = [row for row in document["rows"] if row.get("curve") == curve]
        drawn.append(_figure(folder / f"{curve}.svg", [_growth(curve, part) for part in _by_operation(rows)]))
    rows = [row for row in document["rows"] if row["operation"] == "forward" and "addmm" in row["times"]]
    kinds: dict[tuple[str, int], list[Entry]] = {}
    for row in rows:
        kinds.setdefault((row["point"]["dtype"], row["point"]["active"]), []).append(row)
    panels = [_forward(f"{dtype}, {active} active", own) for (dtype, active), own in sorted(kinds.items())]
    if panels:
        drawn.append(_figure(folder / "forward.svg", panels))
    return drawn


def _by_operation(rows: Iterable[Entry]) -> list[list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for row in rows:
        found.setdefault(row["operation"], []).append(row)
    return [*found.values()]


def _growth(curve: str, rows: list[Entry]) -> Any:
    """A panel: time of one operation against what grows, as multiples of the first point of the reference."""

    def panel(axes: Axes) -> None:
        first = statistics.median(rows[0]["times"]["reference"])
        for contender in rows[0]["times"]:
            points = [
                (row["point"][curve], [time / first for time in row["times"][contender]])
                for row in rows
                if contender in row["times"]
            ]
            _line(axes, contender, points)
        axes.set(title=rows[0]["operation"], xlabel=LABELS[curve], xscale="log")
        low, high = axes.get_ylim()
        if high > 8 * low:
            axes.set_yscale("log")
        else:  # what hardly grows is seen to hardly grow
            axes.set_ylim(0, high)
        axes.set_ylabel("time (reference's first = 1)")

    return panel


def _forward(title: str, rows: list[Entry]) -> Any:
    """A panel: time of a forward pass against the width, as multiples of the hand-written one's."""

    def panel(axes: Axes) -> None:
        for contender in ("reference", "upstream"):
            for batch, dashes in ((1, "-"), (64, ":")):
                points = [
                    (row["point"]["width"], _quotients(row["times"], contender, "addmm"))
                    for row in rows
                    if row["point"]["batch"] == batch
                ]
                _line(axes, contender, points, linestyle=dashes, label=f"{contender}, batch {batch}")
        axes.axhline(1.15, color="#4a4a4a", linewidth=0.8)
        axes.annotate(
            "1.15", (1, 1.15), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
        )
        axes.set(title=title, xlabel="width", xscale="log", ylim=(0.8, None))
        axes.set_ylabel("time (hand-written = 1)")

    return panel


def _quotients(times: dict[str, list[float]], over: str, under: str) -> list[float]:
    """Of each repetition, which had both contenders in turn."""
    return [a / b for a, b in zip(times[over], times[under], strict=False)]


def _line(axes: Axes, contender: str, points: list[tuple[float, list[float]]], **more: Any) -> None:
    """Medians as a line, with a band from the least to the greatest repetition."""
    style = {**STYLES.get(contender, {}), "label": contender, "markersize": 3.5, "linewidth": 1.2, **more}
    x = [at for at, _ in points]
    axes.plot(x, [statistics.median(times) for _, times in points], **style)
    low, high = [min(times) for _, times in points], [max(times) for _, times in points]
    axes.fill_between(x, low, high, color=style.get("color"), alpha=0.15, linewidth=0)


def _figure(file: Path, panels: list[Any]) -> Path:
    columns = min(len(panels), 3 if len(panels) != 4 else 2)
    lines = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(3.3 * columns, 2.7 * lines), squeeze=False, layout="constrained"
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, which="major", linewidth=0.3)
    for axes in [*grid.flat][len(panels) :]:
        axes.set_visible(False)
    grid.flat[0].legend(fontsize=7, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file


if __name__ == "__main__":
    for written in draw(json.loads(FILE.read_text("utf-8"))):
        print(written.relative_to(Path.cwd()) if written.is_relative_to(Path.cwd()) else written)
