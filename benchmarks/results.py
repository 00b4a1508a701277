"""What a run says: ratios of the reference to the other contenders, the targets, and the tables made of them.

`python -m benchmarks.results` writes README's table from the committed run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Row

FILE = Path(__file__).parent / "results" / "latest.json"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"

Document = dict[str, Any]
Entry = dict[str, Any]  # a row of a document


def entry(
    row: Row, seconds: dict[str, list[float]], memory: dict[str, int], unit: tuple[str, float]
) -> Entry:
    """A row as it is kept: times in multiples of the reference's in some row, and no second anywhere."""
    told: Entry = {"id": row.id, "operation": row.operation, "method": row.method, "point": row.point}
    if row.curve:
        told["curve"] = row.curve
    told["unit"], of_one = unit
    told["times"] = {name: [_round(s / of_one) for s in each] for name, each in seconds.items()}
    told["ratios"] = {
        name: _spread([a / b for a, b in zip(seconds["reference"], each, strict=False)])
        for name, each in seconds.items()
        if name != "reference" and "reference" in seconds
    }
    if memory:
        told["peak bytes"] = memory
    return told


def _spread(ratios: list[float]) -> list[float]:
    """Median, least and greatest."""
    return [*map(_round, (statistics.median(ratios), min(ratios), max(ratios)))]


def _round(number: float) -> float:
    return float(f"{number:.4g}")


@dataclass(frozen=True)
class Target:
    """A promise of the reference about some rows."""

    text: str
    limit: float
    value: Callable[[Entry], float | None]  # of a row; none where it is not about that row
    over: Callable[[Iterable[float]], float] = max  # the rows' values

    def told(self, document: Document) -> dict[str, Any] | None:
        """The value of a run, with the row it is of; none where it has no such row."""
        values = {row["id"]: value for row in document["rows"] if (value := self.value(row)) is not None}
        if not values:
            return None
        worst = self.over(values.values())
        over = sum(value > self.limit for value in values.values())
        where = next(id for id, value in values.items() if value == worst)
        return {"value": worst, "row": where, "rows": len(values), "over": over, "met": worst <= self.limit}


def against(
    other: str, *operations: str, least: bool = False, **point: Any
) -> Callable[[Entry], float | None]:
    """The ratio to a contender in these operations and points; `least`: the spread's lower end."""

    def value(row: Entry) -> float | None:
        if operations and row["operation"] not in operations:
            return None
        if any(row["point"].get(key) != wanted for key, wanted in point.items()):
            return None
        spread = row["ratios"].get(other)
        return spread and spread[1 if least else 0]

    return value


def memory(row: Entry) -> float | None:
    """The peak of the reference to upstream's."""
    peaks = row.get("peak bytes", {})
    return peaks["reference"] / peaks["upstream"] if {"reference", "upstream"} <= peaks.keys() else None


def thousandth(row: Entry) -> float | None:
    """Adapter number 1000 to number 1: times along a curve are multiples of the curve's first."""
    if row["operation"] != "inject" or row["point"].get("adapters") != 1000 or ":1000" in row["unit"]:
        return None
    return statistics.median(row["times"]["reference"])


TARGETS = (
    Target("no row slower than upstream, within spread", 1.0, against("upstream", least=True)),
    Target("adapter number 1000 to number 1", 1.3, thousandth),
    Target(
        "adapter number 100, 112 layers, to upstream",
        0.1,
        against("upstream", "inject", layers=112, adapters=100),
    ),
    Target("forward of LoRA to hand-written `addmm`", 1.15, against("addmm", "forward")),
    Target("import after torch, to upstream", 0.25, against("upstream", "import")),
    Target("no row with a higher peak of memory than upstream", 1.0, memory),
)


def lines(document: Document) -> list[tuple[str, str, list[Entry]]]:
    """(operation, method, rows) of the table, in the order of the run."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for row in document["rows"]:
        if not row.get("curve"):
            found.setdefault((row["operation"], row["method"]), []).append(row)
    return [(*key, rows) for key, rows in found.items()]


def span(values: Iterable[float]) -> str:
    """One number, or from which to which."""
    least, *_, most = sorted(values) * 2
    texts = [f"{v:.2f}" if v >= 0.095 else f"{v:.3f}" for v in (least, most)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} – {texts[1]}"


def cells(rows: list[Entry]) -> list[str]:
    """Ratios of time to each contender, and of memory, over some rows."""
    found = []
    for other in ("upstream", "addmm", "base"):
        values = [row["ratios"][other][0] for row in rows if other in row["ratios"]]
        found.append(span(values) if values else "")
    peaks = [value for row in rows if (value := memory(row)) is not None]
    return [*found, span(peaks) if peaks else ""]


def judged(document: Document) -> list[tuple[str, str, str, str]]:
    """(target, limit, value, verdict) of those that the run has rows of."""
    found = []
    for target in TARGETS:
        if told := target.told(document):
            said = "met" if told["met"] else f"not met: {told['over']} of {told['rows']} rows, {told['row']}"
            found.append((target.text, f"{target.limit:g}", span([told["value"]]), said))
    return found


def block(document: Document) -> str:
    """README's tables in Markdown."""
    machine = document["machine"]
    said = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    out = [
        "| ratio of time: reference to | upstream | `addmm` by hand | bare layer | peak memory to upstream |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for operation, method, rows in lines(document):
        out.append("| " + " | ".join([f"{operation}, {method} ({len(rows)})", *cells(rows)]) + " |")
    out += ["", "| target | limit | measured | |", "| --- | ---: | ---: | --- |"]
    out += ["| " + " | ".join(line) + " |" for line in judged(document)]
    out += ["", f"{machine['cpu']}, {machine['cores']} cores, one thread; {said}."]
    return "\n".join(out)


def write_readme(document: Document, file: Path = README) -> None:
    """Put the tables between the marks of README. Raises `ValueError` where it has none."""
    text = file.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file}: no lines {BEGIN} and {END}, between which the table goes")
    file.write_text(f"{before}{begin}{block(document)}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    write_readme(json.loads(FILE.read_text("utf-8")))
