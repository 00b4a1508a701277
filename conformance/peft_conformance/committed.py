"""Committed results, `results/<name>/<version>.json`: a release's verdicts as a file that a review can read.

One line for each clause: for each of its checks how many points pass, and which points have another verdict,
those that differ in one axis put together. No times and no values, so that only a change of verdicts shows.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peft_conformance import report
from peft_conformance.expand import expand
from peft_conformance.implementations import describe, described
from peft_conformance.language import Suite, validator
from peft_conformance.ranges import contains
from peft_conformance.report import Results

SCHEMA = "1.0"
Box = dict[str, Any]  # axis -> value, or the list of values: every combination of them
Document = dict[str, Any]


class Unfit(ValueError):
    """A report or a committed file that cannot be used, and why."""


def folder() -> Path:
    """Where committed results are: in the checkout, or in the wheel."""
    here = Path(__file__).resolve().parent
    inside = here / "results"
    return inside if inside.is_dir() else here.parent / "results"


def committed() -> dict[tuple[str, str], Path]:
    """The files, by name and version of the implementation."""
    return {(file.parent.name, file.stem): file for file in sorted(folder().glob("*/*.json"))}


# --- from a report to a file


def compact(results: Results, suite: Suite) -> Document:
    """What is committed of a report. Raises `Unfit` for one that is not of the whole suite."""
    header, implementation = results.header, results.header["implementation"]
    what = f"the report of {implementation['name']} {implementation['version']}"
    if implementation["name"] not in described():
        raise Unfit(f"{what}: there is no description of that name, so that nothing of it is committed")
    if header["profiles"]:
        raise Unfit(f"{what} is not of all profiles")
    if results.built and not results.complete:
        raise Unfit(f"{what} is incomplete, {len(results.rows)} of {header['total']} checks: --resume it")
    document: Document = {
        "schema": SCHEMA,
        "implementation": {key: implementation[key] for key in ("name", "version", "api_level")},
        **{key: header[key] for key in ("torch", "transformers", "device", "matrix", "suite", "status")},
        **({"reason": header["reason"]} if "reason" in header else {}),
        "counts": {profile: dict(sorted(c.items())) for profile, c in results.counts().items()},
        "left_out": _reasons(results),
        "loose_ends": sorted(end["name"] for end in results.loose_ends),
        "clauses": {},
    }
    if not results.built:
        return document
    found: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for row in results.sorted_rows():
        checks = found.setdefault(row["clause"], {})
        checks.setdefault(row["check"], {}).setdefault(row["verdict"], []).append(row["axes"])
    present = {row["id"] for row in results.rows}
    left: dict[str, Counter[str]] = defaultdict(Counter)
    missing = 0
    for clause, verdict, checks_of in expanded(suite, document):
        for id, axes in checks_of:
            if verdict != "run":
                left[clause][verdict] += 1
            elif id in present:
                present.remove(id)
            else:
                missing += 1
                check = found.setdefault(clause, {}).setdefault(id.rpartition(":")[2], {})
                check.setdefault("not-run", []).append(axes)
    not_run = sum(entry["checks"] for entry in results.left_out if entry["verdict"] == "not-run")
    if present or (missing != not_run and not header.get("selection")):
        raise Unfit(
            f"{what} is of another suite: {len(present)} of its checks are none of ours, "
            f"and {missing} of ours have no verdict where it counts {not_run} as not run"
        )
    for clause in sorted({*found, *left}):
        line: dict[str, Any] = {"checks": {c: _told(v) for c, v in sorted(found.get(clause, {}).items())}}
        if left[clause]:
            line["left_out"] = dict(sorted(left[clause].items()))
        document["clauses"][clause] = line
    return document


def _reasons(results: Results) -> list[dict[str, Any]]:
    reasons: Counter[tuple[str, str]] = Counter()
    for entry in results.left_out:
        reasons[entry["verdict"], entry["reason"]] += entry["checks"]
    return [{"verdict": v, "reason": r, "checks": n} for (v, r), n in sorted(reasons.items())]


def expanded(suite: Suite, document: Document) -> Iterator[tuple[str, str, list[tuple[str, Box]]]]:
    """Clause, standing, and id and axes of each check, for every case of the clauses at the file's level."""
    level = document["implementation"]["api_level"]
    known = describe(described()[document["implementation"]["name"]])
    clauses = at_level(suite, level)
    everything = expand(
        suite,
        api_level=level,
        matrix=document["matrix"],
        offers=known.offers,
        lacks=known.lacks,
        clauses=clauses,
    )
    standing = [(case, "run") for case in everything.cases]
    standing += [(skipped.case, skipped.verdict) for skipped in everything.skipped]
    for case, verdict in standing:
        yield case.clause.id, verdict, [(f"{case.id}:{check.id}", case.axes) for check in case.checks]


def at_level(suite: Suite, level: str) -> set[str]:
    """The clauses that speak of an API level."""
    return {clause.id for clause in suite.clauses if contains(clause.api, level)}


def _told(verdicts: Mapping[str, list[dict[str, Any]]]) -> Any:
    """A check's verdicts: a number where all points have one, else the points of all but `pass`."""
    if len(verdicts) == 1:
        ((verdict, points),) = verdicts.items()
        return len(points) if verdict == "pass" else {verdict: len(points)}
    return {v: len(points) if v == "pass" else boxes(points) for v, points in sorted(verdicts.items())}


def boxes(points: Iterable[Mapping[str, Any]]) -> list[Box]:
    """The same points as few boxes: those that differ in one axis alone become one, axis after axis."""
    found: list[dict[str, tuple[str, ...]]]
    found = [{axis: (json.dumps(value),) for axis, value in point.items()} for point in points]
    distinct = {axis: len({point[axis] for point in found}) for axis in (found[0] if found else ())}
    for axis in sorted(distinct, key=lambda name: (-distinct[name], name)):
        merged: dict[tuple[Any, ...], set[str]] = {}
        for box in found:
            rest = tuple((name, values) for name, values in sorted(box.items()) if name != axis)
            merged.setdefault(rest, set()).update(box[axis])
        found = [{**dict(rest), axis: tuple(sorted(values))} for rest, values in merged.items()]
    plain = [{a: [json.loads(v) for v in values] for a, values in sorted(box.items())} for box in found]
    told = [{a: values if len(values) > 1 else values[0] for a, values in box.items()} for box in plain]
    return sorted(told, key=lambda box: json.dumps(box))


def render(document: Document) -> str:
    """The file's text: a line for each clause, and for each entry of the header."""
    *head, clauses = document.items()
    lines = [f" {json.dumps(key)}: {_json(value)}" for key, value in head]
    body = ",\n".join(f"  {json.dumps(clause)}: {_json(line)}" for clause, line in clauses[1].items())
    lines.append(f' "clauses": {{\n{body}\n }}' if body else ' "clauses": {}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(report.plain(value), ensure_ascii=False)


def write(document: Document) -> Path:
    """Put a file in its place."""
    implementation = document["implementation"]
    file = folder() / implementation["name"] / f"{implementation['version']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    report.write_whole(file, render(document))
    return file


def read(file: Path) -> Document:
    """A committed file. Raises `Unfit` for one that is damaged, has another schema or stands elsewhere."""
    try:
        document: Document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unfit(f"{file}: {error}") from None
    for fault in validator("committed.schema.json").iter_errors(document):
        place = "/".join(map(str, fault.absolute_path)) or "the top"
        raise Unfit(f"{file}: at {place}: {fault.message[:300]}")
    implementation = document["implementation"]
    if (file.parent.name, file.stem) != (implementation["name"], implementation["version"]):
        raise Unfit(f"{file}: it is of {implementation['name']} {implementation['version']}: the wrong place")
    return document


# --- what a file says


def verdict_of(document: Document, clause: str, check: str, axes: Mapping[str, Any]) -> str | None:
    """The verdict that is committed of one check; None where the file knows no such check."""
    told = document["clauses"].get(clause, {}).get("checks", {}).get(check)
    if told is None or isinstance(told, int):
        return None if told is None else "pass"
    for verdict, where in told.items():
        if isinstance(where, list) and any(_holds(box, axes) for box in where):
            return str(verdict)
    return next((str(verdict) for verdict, where in told.items() if isinstance(where, int)), None)


def _holds(box: Box, axes: Mapping[str, Any]) -> bool:
    return all(axes[a] in (w if isinstance(w, list) else [w]) for a, w in box.items())


def points_of(box: Box) -> Iterator[dict[str, Any]]:
    """Every point of a box."""
    choices = [values if isinstance(values, list) else [values] for values in box.values()]
    return (dict(zip(box, point, strict=True)) for point in itertools.product(*choices))


def numbers(told: Any) -> Counter[str]:
    """How many points of a check have which verdict."""
    if isinstance(told, int):
        return Counter({"pass": told})
    listed = {v: w for v, w in told.items() if isinstance(w, list)}
    return Counter({**told, **{v: sum(1 for box in w for _ in points_of(box)) for v, w in listed.items()}})


# --- the table


def table() -> list[list[str]]:
    """Release by profile by verdict, of all that is committed."""
    documents = [read(file) for file in committed().values()]
    baselines = {name for name, file in described().items() if describe(file).baseline}
    documents.sort(key=lambda d: (d["implementation"]["name"] not in baselines, *_order(d)))
    return report.comparison((_label(d), d["counts"]) for d in documents)


def _order(document: Document) -> tuple[str, list[int]]:
    """By name, and of one name the newest first."""
    implementation = document["implementation"]
    numbers = [-int(part) for part in implementation["version"].split(".") if part.isdigit()]
    return implementation["name"], numbers


def _label(document: Document) -> str:
    implementation = document["implementation"]
    name = f"{implementation['name']} {implementation['version']}"
    return name if document["status"] == "built" else f"{name} (not run: {document['reason']})"
