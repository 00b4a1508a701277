"""The page as one file: template, styles, scripts and data put together; nothing else is ever loaded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peft_conformance.language import Suite
from peft_conformance.page.data import LETTERS, Column, collect, columns
from peft_conformance.report import CONSUMER, JUDGED, RED, VERDICTS, Results

HERE = Path(__file__).parent
SCRIPTS = ("model.js", "cells.js", "clauses.js", "methods.js", "detail.js", "main.js")
WORDS = {
    "expected-failure": "known",
    "not-applicable": "n/a",
    "not-run": "not run",
}  # else the verdict itself
SYMBOLS = dict(zip(VERDICTS, "✓✗△i‼◐↺≠⊘–·○", strict=True))
MEANING = {
    "pass": "the check holds",
    "fail": "a MUST that does not hold",
    "warn": "a SHOULD that does not hold",
    "info": "recorded, not judged: a MAY, or what no document settles",
    "error": "the case could not be carried out",
    "expected-failure": "a known failure of this release, with its reason",
    "stale": "a known failure that holds now",
    "changed": "a known failure that fails in another way",
    "blocked": "a clause that it needs is red",
    "unsupported": "the implementation does not offer what it needs",
    "not-applicable": "promised at other API levels",
    "not-run": "no such device, package or environment, or not asked for",
}


def render(suite: Suite, reports: Sequence[Results]) -> str:
    """The whole page, for these reports in this order."""
    made = columns(reports)
    data = collect(suite, made)
    script = _inline("\n".join((HERE / name).read_text("utf-8") for name in SCRIPTS))
    style = _inline((HERE / "page.css").read_text("utf-8"))
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = [
        {
            "name": verdict,
            "letter": LETTERS[verdict],
            "red": verdict in RED,
            "word": WORDS.get(verdict, verdict),
            "symbol": SYMBOLS[verdict],
            "meaning": MEANING[verdict],
        }
        for verdict in VERDICTS
    ]
    overview = [_overview(column, number) for number, column in enumerate(made)]
    given = sum((count for c in made for count in c.results.counts().values()), Counter[str]())
    return environment.get_template("page.html.j2").render(
        columns=overview,
        verdicts=verdicts,
        shown=[verdict for name, verdict in zip(VERDICTS, verdicts, strict=True) if given[name]],
        judged=[*JUDGED, "blocked"],  # the others are counted only, no clause of theirs can be shown
        clauses=len(data["clauses"]),
        checks=sum(len(column.results.rows) for column in made),
        data=_json({**data, "verdicts": verdicts}),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _overview(column: Column, number: int) -> dict[str, Any]:
    """A report as the first table shows it: counts for all checks, then for each profile."""
    counts = column.results.counts()
    users = column.results.counts_for_consumers()
    rows = [("all profiles", "all profiles", sum(counts.values(), Counter[str]()))]
    rows += [(name, name, count) for name, count in counts.items()]
    rows += [(name, f"{CONSUMER}{name}", count) for name, count in users.items()]
    return {**column.about(), "number": number, "rows": rows}


def _inline(text: str) -> Markup:
    """Our own styles and scripts, as they stand: they hold no data."""
    if "</s" in text.lower():
        raise ValueError("a style or script of the page must not hold a closing tag")
    return Markup(text)


def _json(data: Any) -> Markup:
    """Data inside a script element: no `<` is left that could end it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _hash(text: str) -> str:
    """How the content security policy names this very text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
