"""The verdicts of a run: a table for the terminal, `results.jsonl` for programs, `summary.md` for people.

While a run goes on, `Stream` keeps what is known in `results.jsonl.part`; at its end that becomes
`results.jsonl`. A run that ends early leaves one or the other, and both can be gone on with.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from peft_conformance.plain import few

VERDICTS = (
    "pass",
    "fail",
    "warn",
    "info",
    "error",
    "expected-failure",
    "stale",
    "changed",
    "blocked",
    "unsupported",
    "not-applicable",
    "not-run",
)
RED = frozenset({"fail", "error", "stale", "changed"})
JUDGED = frozenset({"pass", "fail", "warn", "info", "error", "expected-failure", "stale", "changed"})
HEADINGS = {"expected-failure": "expected"}  # where the table says it shorter
FORMAT = "1.0"
FILE = "results.jsonl"
PART = "results.jsonl.part"
CONSUMER = "used by "  # what a table puts before the name of a consumer


@dataclass
class Results:
    """What a run found. Rows arrive in any order, from any worker; everything written is sorted by id."""

    header: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    loose_ends: list[dict[str, str]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)  # counts of checks that got no item
    overdue: list[str] = field(default_factory=list)  # known failures to be looked at again, a line each
    complete: bool = True  # whether every check that was selected has its row
    start_up: float | None = None  # seconds until the first case: loading, expanding, collecting
    seconds: float | None = None  # that the run took, the last part of it if it was resumed

    def sorted_rows(self) -> list[dict[str, Any]]:
        """The rows by check id."""
        return sorted(self.rows, key=lambda row: row["id"])

    def having(self, *verdicts: str) -> list[dict[str, Any]]:
        """The rows with one of these verdicts, by check id."""
        return [row for row in self.sorted_rows() if row["verdict"] in verdicts]

    def counts(self) -> dict[str, Counter[str]]:
        """How often each verdict was given, per profile: each check counts in one."""
        return self._counted(lambda entry: (entry["profile"],))

    def counts_for_consumers(self) -> dict[str, Counter[str]]:
        """How often each verdict was given, per consumer: a check counts for each one that relies on it."""
        return self._counted(lambda entry: entry.get("consumers", ()))

    def _counted(self, names: Callable[[dict[str, Any]], Iterable[str]]) -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = {}
        for entry in (*self.rows, *self.left_out):
            for name in names(entry):
                counts.setdefault(name, Counter())[entry["verdict"]] += entry.get("checks", 1)
        return dict(sorted(counts.items()))

    @property
    def red(self) -> int:
        """How much is wrong: red checks, and what no check answers to."""
        return sum(row["verdict"] in RED for row in self.rows) + len(self.loose_ends)

    @property
    def built(self) -> bool:
        """Whether there was an implementation to measure."""
        return bool(self.header.get("status", "built") == "built")

    @property
    def judged(self) -> int:
        """Checks on which the implementation had a say: not skipped, not blocked."""
        return sum(row["verdict"] in JUDGED for row in self.rows)

    def table(self) -> list[list[str]]:
        """Heading, a row for each profile, then one for each consumer, of whose checks some are in several.

        Only pass and fail have a column that may be empty.
        """
        counts = self.counts()
        shown = [v for v in VERDICTS if v in ("pass", "fail") or any(count[v] for count in counts.values())]
        table = [["profile", *(HEADINGS.get(verdict, verdict) for verdict in shown)]]
        users = {f"{CONSUMER}{name}": count for name, count in self.counts_for_consumers().items()}
        for profile, count in {**counts, **users}.items():
            table.append([profile, *(str(count[verdict]) for verdict in shown)])
        return table

    def times(self) -> dict[str, float]:
        """Seconds until the first case, and those of the cases of each profile, all workers together."""
        spent = Counter[str]()
        for row in {row["case"]: row for row in self.rows}.values():  # each row has those of its whole case
            spent[row["profile"]] += row["seconds"]
        before = [] if self.start_up is None else [("start-up", self.start_up)]
        return {name: round(seconds, 1) for name, seconds in (*before, *sorted(spent.items()))}

    def time_line(self) -> str:
        """The times for people to read."""
        return "seconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in self.times().items())

    def reasons(self) -> list[str]:
        """Why checks were left out, each reason with its number."""
        reasons = Counter[tuple[str, str]]()
        for entry in self.left_out:
            reasons[entry["verdict"], entry["reason"]] += entry["checks"]
        return [f"{number} {verdict}: {reason}" for (verdict, reason), number in sorted(reasons.items())]

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of `results.jsonl`: header, loose ends, checks, footer."""
        yield {"kind": "header", "format": FORMAT, **self.header}
        yield from ({"kind": "loose-end", **end} for end in self.loose_ends)
        yield from ({"kind": "check", **row} for row in self.sorted_rows())
        verdicts = Counter(row["verdict"] for row in self.rows)
        yield {
            "kind": "footer",
            "checks": len(self.rows),
            "verdicts": dict(sorted(verdicts.items())),
            "left_out": self.left_out,
            "overdue": self.overdue,
            "complete": self.complete,
            "times": self.times(),
            **({} if self.seconds is None else {"seconds": round(self.seconds, 1)}),
        }

    def summary(self) -> str:
        """`summary.md`: what ran, the table, and each check that is not a plain pass with its reason."""
        parts = [f"# {one_line(self.header)}\n", *self.caveats()]
        parts += [markdown_table(self.table())] if self.counts() else []
        parts += [f"{self.time_line()}\n"] if self.times() else []
        if self.loose_ends:
            parts.append(bullets("Loose ends", [f"`{e['name']}`: {e['complaint']}" for e in self.loose_ends]))
        parts.append(bullets("Known failures to review", self.overdue))
        for title, verdicts in (
            ("Red", tuple(RED)),
            ("Warnings", ("warn",)),
            ("Known failures", ("expected-failure",)),
            ("Blocked", ("blocked",)),
        ):
            parts.append(bullets(title, digest(self.having(*verdicts))))
        parts.append(bullets("Left out", self.reasons()))
        return "\n".join(part for part in parts if part)

    def caveats(self) -> list[str]:
        """What a reader has to know before the numbers: nothing was measured, or not all of it."""
        if not self.built:
            return [f"NOT RUN: {self.header['reason']}\n"]
        if not self.complete:
            return [f"INCOMPLETE: {len(self.rows)} of {self.header['total']} checks have a verdict\n"]
        return []

    def badges(self) -> dict[str, dict[str, Any]]:
        """For each profile the counts as shields.io takes them: its endpoint format, and no percentage."""
        implementation = self.header["implementation"]
        badges = {}
        for profile, count in {**self.counts(), **self.counts_for_consumers()}.items():
            shown = [v for v in VERDICTS if count[v] and v not in ("not-applicable", "unsupported")]
            words = [f"{count[verdict]} {HEADINGS.get(verdict, verdict)}" for verdict in shown]
            badges[profile] = {
                "schemaVersion": 1,
                "label": f"{implementation['name']} {implementation['version']} {profile}",
                "message": ("" if self.complete else "incomplete: ") + (", ".join(words) or "nothing"),
                "color": self._color(count),
            }
        return badges

    def _color(self, count: Counter[str]) -> str:
        if any(count[verdict] for verdict in RED):
            return "red"
        if not self.complete or not any(count[verdict] for verdict in JUDGED):
            return "lightgrey"
        known = count["expected-failure"] or count["warn"] or count["blocked"]
        return "yellow" if known else "brightgreen"

    def write(self, folder: Path) -> None:
        """Write `results.jsonl`, `summary.md` and the badges; each appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE, "".join(map(_line, self.lines())))
        write_whole(folder / "summary.md", self.summary())
        for profile, badge in self.badges().items():
            write_whole(folder / f"badge-{profile}.json", json.dumps(badge, indent=2) + "\n")


def read(path: Path) -> Results:
    """Results that `write` wrote; raises ValueError, naming the line, for a file that is cut off.

    A run that was interrupted in good order has a footer too; its results are not `complete`.
    """
    texts = path.read_text(encoding="utf-8").splitlines()
    lines = [_read_line(f"{path}:{number}", line) for number, line in enumerate(texts, 1)]
    _check_header(path, lines)
    if lines[-1].get("kind") != "footer":
        raise ValueError(f"{path}:{len(lines)}: the footer is missing: the file is cut off")
    header, rows, ends = _sorted_out(lines[:-1])
    footer = lines[-1]
    if len(rows) != footer["checks"]:
        raise ValueError(f"{path}: the footer counts {footer['checks']} checks, {len(rows)} are there")
    more: dict[str, Any] = {key: footer[key] for key in ("complete", "seconds") if key in footer}
    more["start_up"] = footer.get("times", {}).get("start-up")  # the rest is in the rows
    return Results(header, rows, ends, footer["left_out"], footer["overdue"], **more)


def files_at(path: Path, *, partial: bool = False) -> list[Path]:
    """The results files at a path: itself, or those of a folder and of the folders in it.

    With `partial` also what a run that goes on or was killed has left, where there is no whole file.
    """
    if path.is_file():
        return [path]
    folders = (path, *sorted(path.iterdir())) if path.is_dir() else ()
    names = (FILE, PART) if partial else (FILE,)
    there = ([folder / name for name in names if (folder / name).is_file()] for folder in folders)
    return [files[0] for files in there if files]


def read_partial(path: Path) -> Results:
    """What a `results.jsonl.part` holds of a run that goes on or was killed; its last line may be cut off.

    Raises ValueError for a file that has no header or is damaged elsewhere.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [_read_line(f"{path}:{number}", line) for number, line in enumerate(texts[:-1], 1)]
    _check_header(path, lines)
    header, rows, ends = _sorted_out(lines)
    return Results(header, rows, ends, complete=False)


def _check_header(path: Path, lines: list[dict[str, Any]]) -> None:
    if not lines or lines[0].get("kind") != "header":
        raise ValueError(f"{path}:1: expected the header line of a results file")
    if lines[0].get("format") != FORMAT:
        raise ValueError(f"{path}:1: format {lines[0].get('format')!r}; this version reads {FORMAT!r}")


def _sorted_out(lines: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]], list[Any]]:
    """The header, the checks and the loose ends among lines."""
    header, *body = ({k: v for k, v in line.items() if k not in ("kind", "format")} for line in lines)
    kinds = [line["kind"] for line in lines[1:]]
    rows = [row for row, kind in zip(body, kinds, strict=True) if kind == "check"]
    return header, rows, [row for row, kind in zip(body, kinds, strict=True) if kind == "loose-end"]


class Stream:
    """Results on their way into a folder: each row is in `results.jsonl.part` as soon as it is known."""

    def __init__(self, results: Results, folder: Path) -> None:
        self.results, self.folder = results, folder
        self._part: IO[str] | None = None

    def open(self) -> None:
        """Begin, with what the results hold already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        *lines, _footer = self.results.lines()
        write_whole(self.folder / PART, "".join(map(_line, lines)))
        (self.folder / FILE).unlink(missing_ok=True)  # so that nobody takes an earlier run for this one
        self._part = (self.folder / PART).open("a", encoding="utf-8")

    def add(self, kind: str, line: dict[str, Any]) -> None:
        """A check or a loose end more."""
        if self._part:
            self._part.write(_line({"kind": kind, **line}))
            self._part.flush()

    def close(self) -> None:
        """The results as they are now become the report."""
        if self._part:
            self._part.close()
        self.results.write(self.folder)
        (self.folder / PART).unlink(missing_ok=True)


def resumable(folder: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that an earlier run with this header has left in a folder; none if it was another run."""
    for name, reader in ((PART, read_partial), (FILE, read)):
        try:
            earlier = reader(folder / name)
        except (OSError, ValueError):
            continue
        if {**earlier.header, "total": None} == {**plain(header), "total": None}:
            return earlier.rows
    return []


def _line(line: dict[str, Any]) -> str:
    return json.dumps(plain(line), ensure_ascii=False, allow_nan=False) + "\n"


def _read_line(place: str, line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        raise ValueError(f"{place}: no JSON object: the file is cut off or damaged") from None


def closing(results: Results) -> Iterator[tuple[str, str | None]]:
    """What the terminal shows at the end, each line with its colour: warnings, counts, what is overdue."""
    yield from ((line, "yellow") for line in digest(results.having("warn")))
    if results.counts():
        lines = [*text_table(results.table()), *few(results.reasons(), limit=8)]
        yield from ((line, None) for line in (*lines, *([results.time_line()] if results.times() else [])))
    if results.overdue:
        yield f"known failures to be reviewed by now: {len(results.overdue)}", "yellow"
        yield from ((f"  {line}", "yellow") for line in few(results.overdue))
    if not results.judged:
        yield "NOTHING WAS JUDGED: no check was selected, or every one of them was left out.", "red"


def one_line(header: dict[str, Any]) -> str:
    """The header as the terminal shows it."""
    implementation = header["implementation"]
    words = [
        f"{implementation['name']} {implementation['version']}",
        f"API level {implementation['api_level']}",
        "own process" if implementation["isolated"] else "in process",
        f"torch {header['torch']} {header['device']}",
        f"transformers {header['transformers']}" if header["transformers"] else "no transformers",
        f"python {header['python']}",
    ]
    return " · ".join(words)


def digest(rows: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each check of a clause and verdict: its first case, how many more, and the reason."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["clause"], row["check"], row["verdict"]), []).append(row)
    return [
        f"{row['verdict']} `{row['id']}`{f' and {len(more)} more' if more else ''}: {brief(row)}"
        for row, *more in groups.values()
    ]


def brief(row: dict[str, Any]) -> str:
    """A verdict in one line: what was expected and observed, or why it was left out."""
    if row["verdict"] in JUDGED - {"expected-failure"}:
        return " ".join(f"expected {as_text(row['expected'])}, observed {as_text(row['observed'])}".split())
    return str(row["detail"]).splitlines()[0]


def bullets(title: str, entries: Iterable[str]) -> str:
    """A markdown section, or nothing when there is nothing to list."""
    listed = "".join(f"- {entry}\n" for entry in entries)
    return f"## {title}\n\n{listed}" if listed else ""


def markdown_table(table: list[list[str]]) -> str:
    """The same table in markdown, numbers to the right."""
    heading, *rows = table
    rule = ["---:" if number else "---" for number in _numbers(table)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heading, rule, *rows))


def comparison(named: Iterable[tuple[str, Mapping[str, Mapping[str, int]]]]) -> list[list[str]]:
    """Heading and a row for each implementation and profile: how often each verdict was given."""
    rows = [
        ("" if number else name, profile, count)
        for name, counts in named
        for number, (profile, count) in enumerate((counts or {"-": {}}).items())
    ]
    given = {verdict for *_, count in rows for verdict, number in count.items() if number}
    shown = [verdict for verdict in VERDICTS if verdict in ("pass", "fail") or verdict in given]
    table = [["implementation", "profile", *(HEADINGS.get(verdict, verdict) for verdict in shown)]]
    return table + [[name, profile, *(str(c.get(v, 0)) for v in shown)] for name, profile, c in rows]


def text_table(table: list[list[str]]) -> list[str]:
    """The table in columns: names to the left, numbers to the right."""
    columns = [
        [cell.rjust(width) if number else cell.ljust(width) for cell in column]
        for column, number in zip(zip(*table, strict=True), _numbers(table), strict=True)
        for width in [max(map(len, column))]
    ]
    return ["  ".join(cells) for cells in zip(*columns, strict=True)]


def _numbers(table: list[list[str]]) -> list[bool]:
    """Which columns hold numbers."""
    _, *rows = table
    return [bool(rows) and all(row[column].isdigit() for row in rows) for column in range(len(table[0]))]


def as_text(value: Any) -> str:
    """A value in JSON's spelling; strings as they are."""
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False, sort_keys=True)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: tuples and sets become lists, not-a-number and infinity their names."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside the file first, then put it in its place."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(draft, path)
