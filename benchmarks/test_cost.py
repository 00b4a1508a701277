"""Each chunk of each row is a test; the table at the end is what they are for."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from benchmarks.measure import Elsewhere, Row


def test_cost(row: Row, turn: Any, contender: str, request: pytest.FixtureRequest) -> None:
    """The contender does its work in this row."""
    measured = request.config.measurements  # type: ignore[attr-defined]
    work, portions = measured.work(row, contender)
    if turn == "memory":
        measured.memory.setdefault(row.id, {})[contender] = work.peak()
        return
    if isinstance(work, Elsewhere):
        seconds = work.seconds()
    else:
        gc.collect()
        benchmark = request.getfixturevalue("benchmark")
        with work.context():
            benchmark.pedantic(work.call, setup=work.before, teardown=work.after, **portions)
        seconds = benchmark.stats.stats.min
    measured.seconds.setdefault(row.id, {}).setdefault(contender, []).append(seconds)
