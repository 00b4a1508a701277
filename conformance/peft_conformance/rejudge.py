"""Recordings judged again, by other specs or with other known failures: nothing is imported or performed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from peft_conformance.observations import read
from peft_conformance.opening import Options
from peft_conformance.recorded import recorded
from peft_conformance.report import RED, Results, closing, one_line
from peft_conformance.run import Run


def open_recordings(
    paths: Sequence[Path],
    *,
    specs: Path | None = None,
    description: Path | None = None,
    api_level: str | None = None,
    partial: bool = False,
) -> tuple[Run, list[str]]:
    """A run that answers from recordings, selected as they were made, and what to know of them.

    Raises ValueError or OSError for what cannot be read, ImplementationError for a description that does not
    fit, and Refusal for wrong specs or a wrong API level.
    """
    recording = read(paths, partial=partial)
    options = Options(
        implementation=None,
        api_level=api_level,
        profiles=tuple(recording.header["profiles"]),
        matrix=recording.header["matrix"],
        specs=specs,
        selection=recording.header["selection"],
    )
    return Run(options, recorded(recording, description)), recording.notes


def judge_again(run: Run, notes: Sequence[str], console: Console) -> Results:
    """Judge everything and print what a run of pytest prints: each red check in full, warnings, counts."""
    results = run.judge_all()
    console.print(f"implementation: {one_line(results.header)} · recorded", markup=False)
    for note in notes:
        console.print(note, style="yellow", markup=False)
    for end in results.loose_ends:
        console.print(f"\nFAILED {end['name']}", style="red", markup=False)
        console.print(end["complaint"], markup=False)
    for case, check in run.checks():
        verdict = run.verdict(case, check)
        if verdict.verdict in RED:
            console.print(f"\nFAILED {case.id}:{check.id}", style="red", markup=False)
            console.print(run.explain(case, check, verdict), markup=False)
    console.print()
    for line, colour in closing(results):
        console.print(line, style=colour, markup=False)
    return results


def status(results: Results) -> int:
    """The exit status, as pytest's: 1 when something is red, 5 when nothing was judged."""
    if results.loose_ends or results.having(*RED):
        return 1
    return 0 if results.judged else 5
