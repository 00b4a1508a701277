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
from benchmarks.models import METHODS
from benchmarks.suite import LIMITS

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
    values: Callable[[Document], dict[str, float]]  # by row: each must keep to the limit

    def told(self, document: Document) -> dict[str, Any] | None:
        """The worst value of a run, with the row it is of; none where it has no such row."""
        values = self.values(document)
        if not values:
            return None
        row, worst = max(values.items(), key=lambda of: of[1])
        over = sum(value > self.limit for value in values.values())
        return {"value": worst, "row": row, "rows": len(values), "over": over, "met": not over}


def against(
    other: str, *operations: str, least: bool = False, **point: Any
) -> Callable[[Document], dict[str, float]]:
    """The ratio to a contender in these operations and points; `least`: the spread's lower end."""
    return lambda document: {
        row["id"]: row["ratios"][other][1 if least else 0]
        for row in document["rows"]
        if (not operations or row["operation"] in operations)
        and point.items() <= row["point"].items()
        and other in row["ratios"]
    }


def memory(row: Entry) -> float | None:
    """The peak of the reference to upstream's."""
    peaks = row.get("peak bytes", {})
    return peaks["reference"] / peaks["upstream"] if {"reference", "upstream"} <= peaks.keys() else None


def peaks(document: Document) -> dict[str, float]:
    """Those of all rows."""
    return {row["id"]: ratio for row in document["rows"] if (ratio := memory(row)) is not None}


def thousandth(document: Document) -> dict[str, float]:
    """The last of a thousand adapters, none deleted in between, to the first."""
    sweep = document["sweep"]
    whole = sweep and sweep["adapters"] and sweep["adapters"][-1] + sweep["each"] > 1000
    return {"sweep": sweep["reference"][-1]} if whole else {}


def breaks(document: Document) -> dict[str, float]:
    """Graph breaks of the reference by method."""
    return {method: of["reference"] for method, of in document.get("graph breaks", {}).items()}


TARGETS = (
    Target("no row slower than upstream, within spread", 1.0, against("upstream", least=True)),
    Target("adapter number 1000 to number 1", 1.3, thousandth),
    Target(
        "adapter beside 100 others, 112 layers, to upstream",
        0.1,
        against("upstream", "inject", layers=112, adapters=100),
    ),
    Target("forward of LoRA to hand-written `addmm`", 1.15, against("addmm", "forward")),
    Target("import after torch, to upstream", 0.25, against("upstream", "import")),
    Target("no row with a higher peak of memory than upstream", 1.0, peaks),
    Target("graph breaks of a method under `torch.compile`", 0, breaks),
    *(
        Target(f"the suite, {matrix} matrix, `-n 2`, to {limit:g} s", 1.0, against("limit", matrix=matrix))
        for matrix, limit in LIMITS.items()
    ),
)


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
    values = [value for row in rows if (value := memory(row)) is not None]
    return [*found, span(values) if values else ""]


def judged(document: Document) -> list[tuple[str, str, str, str]]:
    """(target, limit, value, verdict) of those that the run has rows of."""
    found = []
    for target in TARGETS:
        if told := target.told(document):
            said = "met" if told["met"] else f"not met: {told['over']} of {told['rows']} rows, {told['row']}"
            found.append((target.text, f"{target.limit:g}", span([told["value"]]), said))
    return found


def by_method(rows: list[Entry]) -> list[list[str]]:
    """A line for each operation: the ratio to upstream by method, and that of peak memory over all."""
    methods = [*dict.fromkeys(row["method"] for row in rows if row["method"] in METHODS)]
    found = [["reference to upstream", *methods, "peak memory"]]
    compared = [row for row in rows if "upstream" in row["ratios"]]
    for operation in dict.fromkeys(row["operation"] for row in compared):
        of_it = [row for row in rows if row["operation"] == operation]
        each = [[row for row in of_it if row["method"] in (method, "all methods")] for method in methods]
        found.append([operation, *(cells(some)[0] for some in each), cells(of_it)[-1]])
    return found


def by_contender(rows: list[Entry]) -> list[list[str]]:
    """A line for each use of one layer: ratios to upstream, to what one writes by hand, to the bare layer."""
    kinds = {
        "upstream": "upstream",
        "addmm": "`addmm` by hand",
        "addmm module": "the same in an `nn.Module`",
        "base": "bare layer",
    }
    found = [["LoRA on one Linear, reference to", *kinds.values()]]
    uses: dict[str, list[Entry]] = {}
    for row in rows:
        if "addmm" in row["ratios"]:
            count = {1: "one adapter", 3: "three adapters"}[row["point"]["active"]]
            uses.setdefault(f"{row['operation']}, {count}", []).append(row)
    for use, some in uses.items():
        found.append([use, *(span(row["ratios"][kind][0] for row in some) for kind in kinds)])
    return found


def markdown(lines: list[list[str]], *, words: tuple[int, ...] = (0,)) -> str:
    """A table, the first line its head, columns of words to the left."""
    rule = ["---" if i in words else "---:" for i in range(len(lines[0]))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def block(document: Document) -> str:
    """README's tables in Markdown."""
    machine, rows = document["machine"], [row for row in document["rows"] if not row.get("curve")]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    where = f"{machine['cpu']}, {machine['cores']} cores, {document['threads']} thread; {versions}."
    targets = [["target", "limit", "measured", ""], *map(list, judged(document))]
    tables = (markdown(by_method(rows)), markdown(by_contender(rows)), markdown(targets, words=(0, 3)))
    return "\n\n".join([*tables, where])


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
