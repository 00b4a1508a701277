"""What demands what: sentences and rows with the clauses that answer them, clauses with what they answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from peft_conformance.cases import Clause
from peft_conformance.language import Suite


@dataclass(frozen=True)
class Demand:
    """A sentence of a document or a row of the behaviour inventory, and what became of it."""

    id: str  # `document#sentence`, or the row's id
    group: str  # the document or the area
    kind: str  # "sentence" or "row"
    says: str  # in our words; a row has only its id
    clauses: tuple[str, ...]  # the ids of the clauses that cite it
    excluded: str | None  # the reason why no clause does
    same_as: str | None  # the id of the sentence that says it already, and answers for it
    file: Path
    line: int

    @property
    def name(self) -> str:
        """How a message calls it."""
        return f"row {self.id}" if self.kind == "row" else f"sentence {self.id.rpartition('#')[2]!r}"


def sentence_id(reference: dict[str, str]) -> str:
    """How a demand calls the sentence that `{document: ..., sentence: ...}` refers to."""
    return f"{reference['document']}#{reference['sentence']}"


def demands(suite: Suite) -> list[Demand]:
    """All sentences, then all rows, in the order of their files."""
    return [*_sentences(suite), *_rows(suite)]


def _sentences(suite: Suite) -> Iterator[Demand]:
    citing = defaultdict(list)
    for clause in suite.clauses:
        for source in clause.sources:
            if "document" in source:
                citing[sentence_id(source)].append(clause.id)
    for document, inventory in suite.sources.items():
        file = suite.file_of(inventory)
        for entry, line in zip(inventory["sentences"], inventory["sentences"].lines, strict=True):
            here = sentence_id({"document": document, "sentence": entry["id"]})
            same = sentence_id(entry["same_as"]) if "same_as" in entry else None
            yield Demand(
                id=here,
                group=document,
                kind="sentence",
                says=entry["says"],
                clauses=tuple(citing[here]),
                excluded=entry.get("excluded"),
                same_as=same,
                file=file,
                line=line,
            )


def _rows(suite: Suite) -> Iterator[Demand]:
    citing = defaultdict(list)
    for clause in suite.clauses:
        for row in rows_of(suite, clause):
            citing[row].append(clause.id)
    if not suite.rows:  # a suite of its own need not have the inventory
        return
    areas, excluded = suite.rows["areas"], suite.rows["excluded"]
    patterns = [row for row in excluded if "*" in row]
    file = next(file for file, data in suite.files.items() if data.get("areas") is areas)
    for area, listed in areas.items():
        for row, line in zip(listed, listed.lines, strict=True):
            entry = next((p for p in [row, *patterns] if p in excluded and fnmatchcase(row, p)), None)
            yield Demand(
                id=row,
                group=area,
                kind="row",
                says="",
                clauses=tuple(citing[row]),
                excluded=excluded[entry] if entry else None,
                same_as=None,
                file=file,
                line=excluded.lines[entry] if entry else line,
            )


def rows_of(suite: Suite, clause: Clause) -> Iterator[str]:
    """The rows that a clause answers; `K.{method}.merge` of a law is one for each method that it runs on."""
    for row in clause.rows:
        if "{method}" not in row:
            yield row
            continue
        methods = [suite.method(value) for value in clause.matrix.get("method", ())]
        for name in sorted({made.card["method"] for made in methods if made is not None}):
            yield row.replace("{method}", name.lower().replace("_", "-"))


def gaps(found: list[Demand]) -> list[Demand]:
    """The demands that neither a clause answers nor a reason excludes."""
    return [d for d in found if not (d.clauses or d.excluded or d.same_as)]
