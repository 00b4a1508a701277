"""Committed results, `results/<name>/<version>.json`: a release's verdicts as a file that a review can read.

One line for each clause: for each of its checks how many points pass, and which points have another verdict,
those that differ in one axis put together. No times and no values, so that only a change of verdicts shows.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_conformance import report
from peft_conformance.cases import case_id, plain_text
from peft_conformance.expand import expand
from peft_conformance.expectations import KnownFailures, places
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
    if header["matrix"] != "full" or header["profiles"] or header.get("selection"):
        raise Unfit(f"{what} is of a part of the suite; run it with --matrix full and without a selection")
    if results.built and not results.complete:
        raise Unfit(f"{what} is incomplete, {len(results.rows)} of {header['total']} checks: --resume it")
    document: Document = {
        "schema": SCHEMA,
        "implementation": {key: implementation[key] for key in ("name", "version", "api_level")},
        **{key: header[key] for key in ("torch", "transformers", "device", "suite", "status")},
        **({"reason": header["reason"]} if "reason" in header else {}),
        "counts": {profile: dict(sorted(c.items())) for profile, c in results.counts().items()},
        "consumers": {name: dict(sorted(c.items())) for name, c in results.counts_for_consumers().items()},
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
    for clause, verdict, checks_of in _expanded(suite, document):
        for id, axes in checks_of:
            if verdict != "run":
                left[clause][verdict] += 1
            elif id not in present:
                check = found.setdefault(clause, {}).setdefault(id.rpartition(":")[2], {})
                check.setdefault("not-run", []).append(axes)
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


def _expanded(suite: Suite, document: Document) -> Iterator[tuple[str, str, list[tuple[str, Box]]]]:
    """Clause, standing, and id and axes of each check, for every case of the clauses at the file's level."""
    level = document["implementation"]["api_level"]
    known = describe(described()[document["implementation"]["name"]])
    clauses = _at(suite, level)
    everything = expand(suite, api_level=level, offers=known.offers, lacks=known.lacks, clauses=clauses)
    standing = [(case, "run") for case in everything.cases]
    standing += [(skipped.case, skipped.verdict) for skipped in everything.skipped]
    for case, verdict in standing:
        yield case.clause.id, verdict, [(f"{case.id}:{check.id}", case.axes) for check in case.checks]


def _at(suite: Suite, level: str) -> set[str]:
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


# --- whether a file is up to date


def differences(document: Document, results: Results) -> list[str]:
    """Where a report says something else than the file, one line for each check and pair of verdicts."""
    changed: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    seen: dict[tuple[str, str], int] = Counter()
    for row in results.sorted_rows():
        seen[row["clause"], row["check"]] += 1
        before = verdict_of(document, row["clause"], row["check"], row["axes"]) or "absent"
        if before != row["verdict"]:
            key = (row["clause"], row["check"], before, row["verdict"])
            changed.setdefault(key, []).append(row["axes"])
    lines = [
        f"{clause}:{check}{_where(points)}: committed {before}, now {now}"
        for (clause, check, before, now), points in sorted(changed.items())
    ]
    if (status := results.header.get("status", "built")) != document["status"]:
        lines.append(f"committed as {document['status']}, now {status}")
    if not _whole(results):
        return lines
    for clause, line in document["clauses"].items():
        for check, told in line["checks"].items():
            count = numbers(told)
            if (there := count.total() - count["not-run"]) > (now := seen[clause, check]):
                lines.append(f"{clause}:{check}: committed at {there} points, now at {now}")
    return lines


def _whole(results: Results) -> bool:
    header = results.header
    part = header["matrix"] != "full" or header["profiles"] or header.get("selection")
    return results.complete and not part


def _where(points: list[dict[str, Any]]) -> str:
    """Points in a line, as ids write them."""
    texts = [
        ",".join(
            f"{axis}={'|'.join(map(plain_text, values if isinstance(values, list) else [values]))}"
            for axis, values in box.items()
        )
        for box in boxes(points)
    ]
    return f"[{'; '.join(texts)}]" if any(texts) else ""


def faults(document: Document, suite: Suite, *, count: bool = True) -> list[str]:
    """What shows, without a run, that a file is not of this suite and description.

    `count` also expands the suite to see that each check has as many points as it has now, which takes time.
    """
    implementation = document["implementation"]
    if implementation["name"] not in described():
        return [f"no description is called {implementation['name']!r}"]
    if document["status"] != "built":
        return []
    found = []
    at_level = _at(suite, implementation["api_level"])
    for clause in sorted(at_level ^ document["clauses"].keys()):
        said = "is not in the file" if clause in at_level else "is in the file, but not at this API level"
        found.append(f"{clause} {said}")
    found += [*_miscounted(document), *_expectations(document)]
    return [*found, *(_off(document, suite) if count else ())]


def _miscounted(document: Document) -> Iterator[str]:
    """The sums that do not agree with the lines."""
    lines: Counter[str] = Counter()
    for line in document["clauses"].values():
        for told in line["checks"].values():
            lines.update(numbers(told))
    sums: Counter[str] = Counter()
    for counts in document["counts"].values():
        sums.update(counts)
    for verdict in sorted({*lines, *sums} - {"not-applicable", "unsupported"}):
        if lines[verdict] != sums[verdict]:
            yield f"{lines[verdict]} checks are {verdict} by the lines, {sums[verdict]} by the counts"


def _expectations(document: Document) -> Iterator[str]:
    """Known failures that the file does not show, and those of the file that are not known."""
    implementation = document["implementation"]
    description = describe(described()[implementation["name"]])
    known = KnownFailures(description.expectations, implementation["version"])
    for entry in known.entries:
        for place in places(entry):
            told = document["clauses"].get(place.clause, {}).get("checks", {}).get(place.check)
            if told is None:
                continue  # not offered or not at this level
            cases = {v: [case_id(place.clause, p) for p in _points(told, v)] for v in _named(told)}
            if not any(map(place.holds, itertools.chain(*cases.values()))) and _has_others(told):
                yield f"{place} is a known failure, and the file does not show it ({entry['because']})"
    spoken_of = {(place.clause, place.check) for entry in known.entries for place in places(entry)}
    for clause, line in document["clauses"].items():
        for check, told in line["checks"].items():
            if numbers(told)["expected-failure"] and (clause, check) not in spoken_of:
                yield f"{clause}:{check} is an expected failure in the file, and no known one"
                continue
            for point in _points(told, "expected-failure"):
                if not known.about(case := case_id(clause, point), check):
                    yield f"{case}:{check} is an expected failure in the file, and no known one"


def _points(told: Any, verdict: str) -> Iterator[dict[str, Any]]:
    """The points that have a verdict, as far as the file names them."""
    where = told.get(verdict, ()) if isinstance(told, dict) else ()
    return itertools.chain.from_iterable(map(points_of, where)) if isinstance(where, list) else iter(())


def _named(told: Any) -> set[str]:
    """The verdicts of a check with which a known failure may stand: it is one, or nothing was judged."""
    return {"expected-failure", "blocked", "not-run"} & set(told if isinstance(told, dict) else ())


def _has_others(told: Any) -> bool:
    """Whether a check has points that were judged and are no known failure."""
    if isinstance(told, int):
        return True
    alone = next((verdict for verdict, where in told.items() if isinstance(where, int)), "pass")
    return alone not in ("expected-failure", "blocked", "not-run")


def _off(document: Document, suite: Suite) -> Iterator[str]:
    """Checks that have another number of points than in this suite."""
    now: Counter[tuple[str, str]] = Counter()
    for clause, verdict, checks in _expanded(suite, document):
        if verdict == "run":
            now.update((clause, id.rpartition(":")[2]) for id, _ in checks)
    then = {
        (clause, check): numbers(told).total()
        for clause, line in document["clauses"].items()
        for check, told in line["checks"].items()
    }
    for clause, check in sorted({*now, *then}):
        there, here = then.get((clause, check), 0), now[clause, check]
        if there != here:
            yield f"{clause}:{check}: {there} points in the file, {here} in the suite"


def check(paths: Sequence[Path], suite: Suite | None) -> list[str]:
    """What is not up to date: by comparison with reports, or with the suite where there are none."""
    found = []
    if suite is not None:
        for file in committed().values():
            found += [f"{file.parent.name}/{file.name}: {fault}" for fault in faults(read(file), suite)]
        return found
    files = committed()
    for results in reports(paths):
        implementation = results.header["implementation"]
        name, version = implementation["name"], implementation["version"]
        if (name, version) not in files:
            found.append(
                f"{name} {version}: nothing is committed; `peft-conformance results update` writes it"
            )
            continue
        found += [f"{name} {version}: {line}" for line in differences(read(files[name, version]), results)]
    return found


def reports(paths: Sequence[Path]) -> list[Results]:
    """The reports in files and folders, of a matrix too. Raises `ValueError` where there are none."""
    found = []
    for path in paths:
        files = (
            [path] if path.is_file() else sorted({*path.glob(report.FILE), *path.glob(f"*/{report.FILE}")})
        )
        if not files:
            raise Unfit(f"{path}: no {report.FILE} there")
        found += [report.read(file) for file in files]
    return found


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
