"""Candidates for known failures: what a report shows red, put as narrowly as its failures allow.

Nothing is written: a person looks into each failure, says why, and puts the entry into the description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import permutations
from typing import Any

import yaml

from peft_conformance import plain
from peft_conformance.cases import Verdict, plain_text
from peft_conformance.expectations import (
    OUTCOMES,
    Entry,
    KnownFailures,
    Place,
    foretells,
    known_version,
    places,
)
from peft_conformance.reading import SCALARS
from peft_conformance.report import Results

TODO = "TODO"  # how a reason begins that nobody has given yet: lint refuses it
REVIEW_AFTER = timedelta(days=180)
LONGEST = 300  # characters of an observation that an entry quotes whole
ORDERS = 24  # in which the axes of a failure are tried to be joined
WIDTH = 116
RED = ("fail", "error", "changed")
Row = Mapping[str, Any]
Axes = dict[str, list[Any]]


@dataclass(frozen=True)
class Outdated:
    """A place of an entry that is not as the entry says, or not everywhere."""

    entry: Entry
    place: Place
    holds: int  # cases in which the check holds now
    otherwise: int  # cases that fail in another way
    still: list[Axes]  # where it is as the entry says

    def __str__(self) -> str:
        said = [f"holds now in {_cases(self.holds)}"] if self.holds else []
        said += [f"fails otherwise in {_cases(self.otherwise)}"] if self.otherwise else []
        line = f"line {self.entry.line}: " if hasattr(self.entry, "line") else ""
        left = ["remove it, or end its `versions` before"]
        if self.still:
            left = ["narrow it, or its `versions`; it is still so at"]
            left += [f"  axes: {_flow(axes)}" for axes in self.still]
        return "\n".join([f"{line}{self.place} {' and '.join(said)}: {left[0]}", *left[1:]])


@dataclass(frozen=True)
class Proposal:
    """What to put into a description, and what of it to look at again."""

    entries: list[dict[str, Any]]
    outdated: list[Outdated]
    unmatched: list[str]
    notes: list[str]

    def text(self) -> str:
        """Valid YAML for the list of expectations; all else stands in comments."""
        comments = [*self.notes]
        comments += [f"outdated: {what}" for what in self.outdated]
        comments += [f"unmatched: {name}: correct or remove it" for name in self.unmatched]
        head = "".join(f"# {line}\n" for comment in comments for line in comment.splitlines())
        return head + (as_yaml(self.entries) if self.entries else "# no candidates: nothing else is red\n")


def propose(results: Results, known: Iterable[Entry], versions: str | None, today: date) -> Proposal:
    """What a report says of the entries that are `known`, and entries for what they do not foretell."""
    measured = results.header["implementation"]
    version = known_version(measured["version"], measured["api_level"])
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.sorted_rows():
        groups.setdefault((row["clause"], row["check"]), []).append(row)
    found: dict[tuple[str, str], tuple[dict[str, Any], list[tuple[str, str, Axes]]]] = {}
    for (clause, check), rows in groups.items():
        red = [row for row in rows if row["verdict"] in RED]
        for says, alike in _alike(red):
            others = [row["axes"] for row in rows if row not in alike]
            # An error that stops several clauses with the same words has one reason; "not close" has many.
            topic = "" if says["outcome"] == "error" else clause
            key = (topic, json.dumps(says, sort_keys=True))
            for axes in cover([row["axes"] for row in alike], others):
                found.setdefault(key, (says, []))[1].append((clause, check, axes))
    rest = {
        "because": f"{TODO} say why",
        "link": None,
        "review_by": (today + REVIEW_AFTER).isoformat(),
    }
    entries = [
        {"match": _matches(where), "versions": versions or f"=={version}", **says, **rest}
        for says, where in found.values()
    ]
    failures = KnownFailures(known, version)
    unmatched = [end["name"] for end in results.loose_ends if end["name"].startswith("expectation-")]
    return Proposal(
        sorted(entries, key=_order), list(_outdated(failures, groups)), unmatched, list(_notes(results))
    )


def judged(row: Row) -> Verdict:
    """The verdict of a row before known failures were looked at."""
    word = row.get("judged", row["verdict"])
    if word not in OUTCOMES and row["verdict"] in ("changed", "expected-failure"):
        raise ValueError(f"{row['id']}: the report does not say what was judged; run the suite again")
    return Verdict(row["case"], row["check"], word, row["expected"], row["observed"], row["detail"])


# --- which failures are one


def _alike(rows: Sequence[Row]) -> Iterator[tuple[dict[str, Any], list[Row]]]:
    """Failures that read the same, but for names and numbers, with what an entry says of them."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        key = (OUTCOMES[judged(row).verdict], str(sorted({_template(t) for t in _lines(row)})))
        groups.setdefault(key, []).append(row)
    for (outcome, _), alike in groups.items():
        texts = {plain.text(row["observed"], 1000) for row in alike}
        if len(texts) == 1 and all(len(text) <= LONGEST for text in texts):
            yield {"outcome": outcome, "observed": alike[0]["observed"]}, alike
            continue
        like = _pattern([_lines(row) for row in alike])
        if like and all(re.search(like, text) for text in texts):
            yield {"outcome": outcome, "like": like}, alike
            continue
        for text in sorted(texts):
            same = [row for row in alike if plain.text(row["observed"], 1000) == text]
            yield {"outcome": outcome, "observed": same[0]["observed"]}, same


# What varies between cases that fail for one reason: quoted words, names with dots or underscores, numbers.
_VARIES = re.compile(r"'[^']*'|`[^`]*`|[\w\[\]]+(?:[./_-]+[\w\[\]]+)+|\w*\d\w*")


def _lines(row: Row) -> list[str]:
    """The phrases of an observation, as an entry's `like` sees them."""
    seen = row["observed"]
    if isinstance(seen, list) and seen and all(isinstance(item, str) for item in seen):
        return [json.dumps(item, ensure_ascii=False)[1:-1] for item in seen]
    return plain.text(seen, 1000).splitlines() or [""]


def _template(line: str) -> str:
    return _VARIES.sub("\0", line)


def _pattern(several: list[list[str]]) -> str | None:
    """A regular expression for the longest phrase that all have: what differs in it is left open."""
    shared = set.intersection(*({_template(line) for line in lines} for lines in several))
    if not shared:
        return None
    template = max(shared, key=lambda t: (len(t.replace("\0", "")), t))
    same = [line for lines in several for line in lines if _template(line) == template]
    varying = list(zip(*(_VARIES.findall(line) for line in same), strict=True))
    fixed = template.split("\0")
    parts = [_escaped(fixed[0])]
    for words, after in zip(varying, fixed[1:], strict=True):
        parts += [_escaped(words[0]) if len(set(words)) == 1 else ".+", _escaped(after)]
    pattern = "".join(parts).strip()
    return pattern if len(re.sub(r"\W|\.\+", "", pattern)) >= 4 else None


def _escaped(text: str) -> str:
    return re.sub(r"\\([ #&~-])", r"\1", re.escape(text))


# --- where they are


def cover(wanted: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[Axes]:
    """Products of axis values that together hold every point that is wanted and none of the others.

    Each is as large as can be, and names only the axes that tell it from the others.
    """
    values = {(axis, plain_text(value)): value for point in wanted for axis, value in point.items()}
    left, barred = _as_texts(wanted), _as_texts(others)
    every = list(left)
    names = sorted(left[0], key=lambda axis: (axis == "method", axis)) if left else []
    found: list[Axes] = []
    while left:
        orders = [order for order, _ in zip(permutations(names), range(ORDERS), strict=False)]
        grown = [_grow(left[0], left, every, barred, order) for order in orders]
        best = max(grown, key=lambda box: sum(_inside(point, box) for point in left))
        for axis in names:
            without = {other: texts for other, texts in best.items() if other != axis}
            if not any(_inside(point, without) for point in barred):
                best = without
        left = [point for point in left if not _inside(point, best)]
        found.append({axis: [values[axis, text] for text in sorted(texts)] for axis, texts in best.items()})
    return found


def _as_texts(points: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{axis: plain_text(value) for axis, value in point.items()} for point in points]


def _grow(
    seed: dict[str, str],
    left: list[dict[str, str]],
    wanted: list[dict[str, str]],
    barred: list[dict[str, str]],
    order: Sequence[str],
) -> dict[str, set[str]]:
    """The product around a point that takes in every value it can, axis by axis, without any barred point."""
    box = {axis: {text} for axis, text in seed.items()}
    for axis in order:
        along = {other: texts for other, texts in box.items() if other != axis}
        bad = {point[axis] for point in barred if _inside(point, along)}
        box[axis] = {point[axis] for point in wanted if _inside(point, along)} - bad
    # A value that no point of what is left needs says too much.
    here = [point for point in left if _inside(point, box)]
    return {axis: {point[axis] for point in here} for axis in box}


def _inside(point: dict[str, str], box: dict[str, set[str]]) -> bool:
    return all(point[axis] in texts for axis, texts in box.items())


def _matches(where: list[tuple[str, str, Axes]]) -> Any:
    """Places as an entry's `match` has them: those checks of a clause together whose axes are the same."""
    together: dict[str, tuple[str, Axes, list[str]]] = {}
    for clause, check, axes in where:
        together.setdefault(json.dumps([clause, axes], default=str), (clause, axes, []))[2].append(check)
    listed = [
        {
            "clause": clause,
            "check": _one(sorted(checks)),
            **({"axes": {axis: _one(values) for axis, values in sorted(axes.items())}} if axes else {}),
        }
        for clause, axes, checks in together.values()
    ]
    return _one(sorted(listed, key=lambda match: json.dumps(match, default=str)))


def _one(values: list[Any]) -> Any:
    """The only item of a list, unless that is one itself."""
    return values[0] if len(values) == 1 and not isinstance(values[0], list) else values


def _order(entry: Entry) -> str:
    return str(next(places(entry)))


# --- what is there already


def _outdated(known: KnownFailures, groups: Mapping[tuple[str, str], list[Row]]) -> Iterator[Outdated]:
    for entry in known.entries:
        for place in places(entry):
            rows = groups.get((place.clause, place.check), [])
            here = [row for row in rows if place.holds(row["case"])]
            still = [row for row in here if row["verdict"] == "expected-failure"]
            still = [row for row in still if foretells(entry, judged(row))]
            holds = [row for row in here if row["verdict"] == "stale"]
            otherwise = [row for row in here if row["verdict"] == "changed"]
            if holds or (otherwise and not still):
                axes = cover([r["axes"] for r in still], [r["axes"] for r in rows if r not in still])
                yield Outdated(entry, place, len(holds), len(otherwise), axes)


def _notes(results: Results) -> Iterator[str]:
    header = results.header
    if header["matrix"] != "full":
        yield f"From a {header['matrix']} run: at points that it left out, more may fail, or less."
    if not results.complete:
        yield "From a run that was cut short: what it did not come to may fail too."
    if ends := [end["name"] for end in results.loose_ends if not end["name"].startswith("expectation-")]:
        yield f"No entry can speak of: {', '.join(ends)}"


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"


# --- as YAML


class _Dumper(yaml.SafeDumper):
    """Block style with indented lists; places, and lists in them, on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


class _Flow(dict[str, Any]):
    """A mapping that is written in one line."""


_Dumper.add_representer(
    _Flow,
    lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True),
)
for _name, (_written, _first, _) in SCALARS.items():  # so that our reader does not take words for numbers
    if _written is not None:
        _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_written})$"), _first)


def as_yaml(entries: Iterable[Entry]) -> str:
    """Entries as the list of expectations has them, a place on a line."""
    shown = []
    for entry in entries:
        match = entry["match"]
        flow = [_Flow(m) for m in match] if isinstance(match, list) else _Flow(match)
        shown.append({**entry, "match": flow})
    text = yaml.dump(shown, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    return "".join(f"  {line}\n" if line else "\n" for line in text.splitlines())


def _flow(value: Any) -> str:
    written = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=True
    )
    return str(written).strip()
