"""What compiles whole: counted, not timed."""

from __future__ import annotations

import pytest

from benchmarks import graphs
from benchmarks.measure import LIBRARIES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", graphs.methods())
def test_graph_breaks(method: str, request: pytest.FixtureRequest) -> None:
    """Count those of each library."""
    measured = request.config.measurements  # type: ignore[attr-defined]
    measured.breaks[method] = {name: graphs.breaks(library, method) for name, library in LIBRARIES.items()}
