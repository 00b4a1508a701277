"""What a case changes in the process is put back after it, whatever it was and however the case ends."""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.utils._device
from peft_conformance import isolation
from peft_conformance.isolation import global_state, isolated
from peft_conformance.models import quiet_transformers


def everything() -> dict[str, Any]:
    return {
        **global_state(Path.cwd()),
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "filters": list(warnings.filters),
        "device": torch.utils._device.CURRENT_DEVICE,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "warn": torch.is_warn_always_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
    }


DISTURBANCES: dict[str, Callable[[], Any]] = {
    "torch-rng": lambda: torch.rand(3),
    "random": random.random,
    "numpy": lambda: numpy.random.rand(),
    "filters": lambda: warnings.simplefilter("ignore"),
    "default-dtype": lambda: torch.set_default_dtype(torch.float64),
    "default-device": lambda: torch.set_default_device("meta"),
    "grad-mode": lambda: torch.set_grad_enabled(False),
    "cwd": lambda: os.chdir("/"),
    "environment": lambda: os.environ.update(PEFT_TEST_VARIABLE="1"),
    "environment-gone": lambda: os.environ.pop("PATH"),
    "path": lambda: sys.path.append("elsewhere"),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "threads": lambda: torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1),
}


def test_a_case_has_one_thread_and_the_process_as_many_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with isolated():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_process_is_as_before(name: str, error: type[BaseException] | None) -> None:
    before = everything()

    def disturb() -> None:
        with isolated():
            DISTURBANCES[name]()
            if error:
                raise error

    if error:
        with pytest.raises(error):
            disturb()
    else:
        disturb()
    assert everything() == before


@pytest.mark.parametrize(
    ("name", "key"),
    [("torch-rng", "rng"), ("random", "rng"), ("numpy", "rng"), ("filters", "warnings-filters"),
     ("default-dtype", "default-dtype"), ("grad-mode", "grad-mode"), ("cwd", "cwd")],
)  # fmt: skip
def test_the_global_state_tells_what_was_disturbed(name: str, key: str) -> None:
    with isolated() as (folder, _):
        before = global_state(folder)
        DISTURBANCES[name]()
        after = global_state(folder)
    assert {k for k in before if before[k] != after[k]} == {key}


def test_a_case_starts_in_an_empty_folder_that_is_gone_afterwards() -> None:
    with isolated() as (folder, _):
        assert Path.cwd().resolve() == folder.resolve()
        assert list(folder.iterdir()) == []
        Path("left-behind").write_text("x")
    assert not folder.exists()


def test_every_warning_is_recorded_however_often_it_comes() -> None:
    with isolated() as (_, caught):
        for _ in range(3):
            warnings.warn("again", UserWarning, stacklevel=1)
    assert len(caught) == 3


def test_a_case_always_starts_from_the_same_random_state() -> None:
    drawn = []
    for _ in range(2):
        with isolated():
            drawn.append((torch.rand(1).item(), random.random(), float(numpy.random.rand())))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("situation", ["roomy", "narrow", "missing", "named by the user"])
def test_the_folder_of_a_case_is_in_memory_where_there_is_room(
    situation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, usual = tmp_path / "memory", tmp_path / "usual"
    usual.mkdir()
    if situation != "missing":
        memory.mkdir()
    monkeypatch.setattr(isolation, "_spare", [])
    monkeypatch.setattr(isolation, "MEMORY", memory)
    monkeypatch.setattr(isolation, "ENOUGH", 1 << 60 if situation == "narrow" else 0)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(usual))
    if situation == "named by the user":
        monkeypatch.setenv("TMPDIR", str(usual))
    with isolated() as (folder, _):
        assert folder.parent == (memory if situation == "roomy" else usual)
    folder.rmdir()


def test_seeding_draws_as_torch_does_and_takes_no_stack_trace_for_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(7)
    expected, traces = torch.rand(3), []
    monkeypatch.setattr(traceback, "format_stack", lambda *args, **kwargs: traces.append(args) or [])
    isolation.seed_all(7)
    assert torch.equal(torch.rand(3), expected)
    assert not traces or torch.cuda.is_available()


def test_where_there_is_a_device_torch_seeds_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    isolation.seed_all(7)
    assert seeds == [7]


@pytest.mark.parametrize("frozen", [True, False])
def test_what_a_run_has_frozen_stays_out_of_later_collections(frozen: bool) -> None:
    pytest.importorskip("transformers")
    gc.unfreeze()
    try:
        if frozen:
            gc.freeze()
        with quiet_transformers():
            assert gc.get_freeze_count() > 0
        assert (gc.get_freeze_count() > 0) is frozen
    finally:
        gc.unfreeze()
