"""The reference, in process, for the tests of the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peft_conformance.implementations import Implementation, resolve


@pytest.fixture(scope="session")
def reference() -> Iterator[Implementation]:
    implementation = resolve("reference")
    yield implementation
    implementation.close()


@pytest.fixture
def perform(reference: Implementation) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Perform a program of which every step must succeed."""

    def run(program: dict[str, Any]) -> dict[str, Any]:
        observation = reference.execute(program)
        assert observation["crash"] is None
        assert [step["error"] for step in observation["steps"] if step["error"]] == []
        return observation

    return run
