"""Whether committed results are up to date: by comparison with reports, or with suite and description alone.

A report of some clauses brings the lines of just these up to date.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peft_conformance import committed, report
from peft_conformance.cases import case_id, plain_text
from peft_conformance.committed import Document, Unfit, boxes, numbers, points_of, read, verdict_of
from peft_conformance.expectations import KnownFailures, places
from peft_conformance.implementations import describe, described
from peft_conformance.language import Suite
from peft_conformance.report import Results


def update(results: Results, suite: Suite) -> Document:
    """The file as a report would have it: all of it, or the clauses that the report is of.

    Raises `Unfit` for a report that cannot be committed, or is of a part of a clause.
    """
    document = committed.compact(results, suite)
    if not results.header.get("selection"):
        return document
    name, version = (document["implementation"][key] for key in ("name", "version"))
    file = committed.committed().get((name, version))
    if file is None:
        raise Unfit(f"nothing of {name} {version} is committed yet: run the whole suite first")
    old, fresh = read(file)["clauses"], document["clauses"]
    new = {row["clause"] for row in results.rows}
    for clause in sorted(new):
        before = old.get(clause, {}).get("checks", {})
        told = fresh[clause]["checks"]
        if cut := [check for check in told if _cut(told[check], before.get(check))]:
            raise Unfit(f"a part of {clause} is not in the report ({', '.join(cut)}): select all of it")
    # What is neither selected now nor committed stays missing, unless nothing of it can be run.
    lines = {c: line if c in new else old.get(c, line) for c, line in fresh.items()}
    document["clauses"] = {c: v for c, v in lines.items() if c in new or c in old or not v["checks"]}
    counts = {profile: Counter(c) for profile, c in _sums(document, suite).items()}
    for entry in results.left_out:
        counts.setdefault(entry["profile"], Counter())[entry["verdict"]] += entry["checks"]
    document["counts"] = {profile: dict(sorted(c.items())) for profile, c in sorted(counts.items())}
    return document


def _cut(told: Any, before: Any) -> bool:
    """Whether points of a check are missing that could have been run: those of no device, and not before."""
    if isinstance(told, dict) and isinstance(told.get("not-run"), int):
        return bool(told != before)
    known = [*_points(before, "not-run")]
    return any("cuda" not in p.values() and p not in known for p in _points(told, "not-run"))


def _sums(document: Document, suite: Suite) -> dict[str, Counter[str]]:
    """The verdicts of all lines, by the profile of their clause, but for what was not run."""
    profiles = {clause.id: clause.profile for clause in suite.clauses}
    sums: dict[str, Counter[str]] = {}
    for clause, line in document["clauses"].items():
        for told in line["checks"].values():
            count = numbers(told)
            del count["not-run"]
            sums.setdefault(profiles.get(clause, "-"), Counter()).update(count)
    return sums


def differences(document: Document, results: Results) -> list[str]:
    """Where a report says something else than the file, one line for each check and pair of verdicts."""
    if (now := results.header["matrix"]) != (then := document["matrix"]):
        return [
            f"committed at the {then} matrix, and this report is of the {now} one: they have other points"
        ]
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
    part = header["profiles"] or header.get("selection")
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
    speak = committed.at_level(suite, implementation["api_level"])
    for clause in sorted(speak ^ document["clauses"].keys()):
        said = "is not in the file" if clause in speak else "is in the file, but not at this API level"
        found.append(f"{clause} {said}")
    found += [*_miscounted(document, suite), *_expectations(document)]
    return [*found, *(_off(document, suite) if count else ())]


def _miscounted(document: Document, suite: Suite) -> Iterator[str]:
    """The counts that do not agree with the lines."""
    sums, counts = _sums(document, suite), document["counts"]
    for profile in sorted({*sums, *counts}):
        told, lines = counts.get(profile, {}), sums.get(profile, Counter())
        for verdict in sorted({*told, *lines} - {"not-run", "not-applicable", "unsupported"}):
            if lines[verdict] != told.get(verdict, 0):
                said = f"{lines[verdict]} checks by the lines, {told.get(verdict, 0)} by the counts"
                yield f"{profile}, {verdict}: {said}"


def _expectations(document: Document) -> Iterator[str]:
    """Known failures that the file does not show, and those of the file that are not known."""
    implementation = document["implementation"]
    description = describe(described()[implementation["name"]])
    known = KnownFailures(description.expectations, implementation["version"])
    for entry in known.entries if document["matrix"] == "full" else ():  # others leave out points
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
    for clause, verdict, checks in committed.expanded(suite, document):
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
        for file in committed.committed().values():
            found += [f"{file.parent.name}/{file.name}: {fault}" for fault in faults(read(file), suite)]
        return found
    files = committed.committed()
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
        files = report.files_at(path)
        if not files:
            raise Unfit(f"{path}: no {report.FILE} there")
        found += [report.read(file) for file in files]
    return found
