"""`peft-conformance diff`: make both sides ready, compare them with a progress bar, and write the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from peft_conformance.diff import Difference, compare, render
from peft_conformance.diff.sides import Side
from peft_conformance.expand import Matrix
from peft_conformance.report import plain, write_whole
from peft_conformance.run import Refusal

INTERRUPTED = 3


def compare_and_tell(
    left: str,
    right: str,
    matrix: Matrix,
    profiles: Sequence[str],
    clauses: Sequence[str],
    form: Literal["terminal", "markdown", "json"],
    everything: bool,
    output: Path | None,
    specs: Path | None,
) -> int:
    """Compare two sides and write what was found; the exit status. Raises ValueError for wrong arguments."""
    sides: list[Side] = []
    try:
        sides.append(_side(left, tuple(profiles), specs))
        sides.append(_side(right, tuple(profiles), specs))
        difference = _compared(sides[0], sides[1], matrix, clauses)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "interrupted; what known releases have performed is kept for the next time"
        )
        return INTERRUPTED
    finally:
        for side in sides:
            side.close()
    _write(difference, form, everything, output)
    return int(difference.red)


def _side(text: str, profiles: tuple[str, ...], specs: Path | None) -> Side:
    try:
        return Side(text, profiles, specs)
    except Refusal as refusal:
        raise ValueError(str(refusal)) from None


def _compared(left: Side, right: Side, matrix: Matrix, clauses: Sequence[str]) -> Difference:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(side: str, done: int, total: int) -> None:
            if total:
                task = tasks.setdefault(side, bars.add_task(side)) if side not in tasks else tasks[side]
                bars.update(task, completed=done, total=total)

        return compare(left, right, matrix, clauses, tell)


def _write(difference: Difference, form: str, everything: bool, output: Path | None) -> None:
    if form == "terminal" and output is None:
        console = Console(highlight=False, soft_wrap=True)
        for line, style in render.terminal(difference, everything=everything):
            console.print(line, style=style, markup=False)
        return
    if form == "json":
        text = json.dumps(plain(difference.plain()), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    elif form == "markdown":
        text = render.markdown(difference)
    else:
        text = "".join(f"{line}\n" for line, _ in render.terminal(difference, everything=everything))
    if output is None:
        print(text, end="")
    else:
        write_whole(output, text)
