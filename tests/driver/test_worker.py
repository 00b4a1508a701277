"""An implementation in a process of its own: the same observations, and no way to harm the run."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft_conformance.implementations import Implementation, ImplementationError
from programs import BROKEN, inject, make, program, wrap


def own(module: str, **options: Any) -> Implementation:
    return Implementation(module, module, isolated=True, paths=(str(BROKEN),), **options)


@pytest.fixture(scope="module")
def mortal() -> Iterator[Implementation]:
    implementation = own("dies", time_limit=60).start()
    yield implementation
    implementation.close()


def naming(adapter: str) -> dict[str, Any]:
    return program([inject(adapter_name=adapter)], given=[make()])


def alive(implementation: Implementation) -> bool:
    seen = implementation.execute(naming("default"))
    return seen["crash"] is None and "result" in seen["entities"]


def test_the_observation_is_the_one_that_is_made_in_process(reference: Implementation) -> None:
    steps = [
        wrap(),
        {"perturb": {"of": "pm"}},
        {"forward": {"id": "y", "of": "pm"}},
        {"capture": {"id": "c", "of": "pm", "values": True}},
    ]
    there = Implementation("reference", "peft_reference", isolated=True, version=reference.version)
    here = reference.execute(program(steps, given=[make()]))
    try:
        other = there.start().execute(program(steps, given=[make()]))
    finally:
        there.close()
    tensors = here.pop("tensors"), other.pop("tensors")
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert here == other


@pytest.mark.parametrize(
    ("way", "message"),
    [("exit", r"ended with exit status 3.*\ngoodbye"), ("segfault", "was killed by SIGSEGV")],
)
def test_a_death_is_that_cases_crash_and_the_next_case_runs(
    mortal: Implementation, way: str, message: str
) -> None:
    seen = mortal.execute(naming(way))
    assert seen["crash"]["kind"] == "died"
    assert re.search(message, seen["crash"]["message"])
    assert seen["entities"] == {}
    assert seen["case"] == "tests.case"
    assert alive(mortal)


@pytest.mark.parametrize("way", ["deadlock", "stubborn"])
def test_a_hang_ends_at_the_time_limit_and_its_process_is_gone(mortal: Implementation, way: str) -> None:
    assert alive(mortal)
    assert mortal._worker
    assert mortal._worker._process
    pid = mortal._worker._process.pid
    mortal.time_limit = 0.5
    try:
        seen = mortal.execute(naming(way))
    finally:
        mortal.time_limit = 60
    assert seen["crash"] == {"kind": "timeout", "message": "no answer after 0.5 seconds"}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_is_printed_does_not_disturb_the_answers(mortal: Implementation) -> None:
    seen = mortal.execute(naming("noise"))
    assert seen["crash"] is None
    assert seen["steps"][1]["printed"] == "printed by Python\n"
    assert "result" in seen["entities"]


def test_a_flood_is_cut_short(mortal: Implementation) -> None:
    seen = mortal.execute(naming("flood"))
    assert seen["crash"] is None
    assert 1000 < len(seen["steps"][1]["printed"]) < 10_000


def test_the_implementation_reads_nothing_from_our_channel(mortal: Implementation) -> None:
    assert mortal.execute(naming("input"))["steps"][1]["printed"] == "''\n"


def test_writing_into_our_channel_is_a_crash(mortal: Implementation) -> None:
    crash = mortal.execute(naming("vandal"))["crash"]
    assert crash["kind"] == "channel"
    assert "this is no JSON" in crash["message"]


def test_sys_exit_is_an_error_like_any_other(mortal: Implementation) -> None:
    error = mortal.execute(naming("sysexit"))["steps"][1]["error"]
    assert (error["type"], error["message"], error["origin"]) == ("SystemExit", "enough", "implementation")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "fails_at_import",
            "module 'fails_at_import' cannot be imported: ModuleNotFoundError: No module named 'a_package_",
        ),
        (
            "exits_at_import",
            "module 'exits_at_import' cannot be imported: the process ended with exit status 4",
        ),
        ("not_there_at_all", "module 'not_there_at_all' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_failing_import_is_told_once_with_its_reason(module: str, message: str) -> None:
    with pytest.raises(ImplementationError) as caught:
        own(module).start()
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_an_import_that_fails_only_later_is_the_cases_crash(mortal: Implementation) -> None:
    assert alive(mortal)
    assert mortal._worker
    mortal._worker.stop()
    mortal._worker.module = "fails_at_import"
    try:
        seen = mortal.execute(naming("default"))
    finally:
        mortal._worker.module = "dies"
    assert seen["crash"]["kind"] == "import"


def test_an_implementation_that_lacks_a_function_says_so() -> None:
    implementation = own("lacks_much").start()
    try:
        error = implementation.execute(naming("default"))["steps"][1]["error"]
    finally:
        implementation.close()
    assert error["message"] == "lacks_much does not offer inject_adapter_in_model"
    assert (error["type"], error["origin"]) == ("MissingFunction", "implementation")


def test_in_process_a_hang_ends_too_and_the_process_is_put_back(
    reference: Implementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft_reference

    def sleep(*_: Any, **__: Any) -> None:
        with contextlib.suppress(Exception):
            time.sleep(60)

    monkeypatch.setattr(peft_reference, "inject_adapter_in_model", sleep)
    monkeypatch.setattr(reference, "time_limit", 0.3)
    cwd = os.getcwd()
    assert reference.execute(naming("default"))["crash"]["kind"] == "timeout"
    assert os.getcwd() == cwd
