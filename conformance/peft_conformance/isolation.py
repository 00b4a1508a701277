"""What a case must not leave behind: random states, filters, flags, folders and the environment are put
back.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.utils._device


@cache
def _import_sympy() -> None:
    """torch does at the first random tensor on meta, and a warning filter comes with it: not in a case.

    A process that runs no case, as the one that hands them out, goes without: a fifth of its imports.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("sympy")


@contextmanager
def isolated() -> Iterator[tuple[Path, list[warnings.WarningMessage]]]:
    """Run a case in a fresh folder and one thread from seed 0, with every warning recorded, and put the
    process back afterwards.

    Yields the folder and the list that warnings are appended to. Restored, also when the case raises: the
    random states (torch, cuda where in use, random, numpy where loaded), warning filters, default dtype and
    device, grad mode, deterministic flags, precision of products, anomaly detection, thread count, working
    directory, environment and import path.
    """
    _import_sympy()
    cwd, environment, import_path = os.getcwd(), dict(os.environ), list(sys.path)
    states = _random_states()
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    device, deterministic = torch.utils._device.CURRENT_DEVICE, torch.are_deterministic_algorithms_enabled()
    warn_only, warn_always = (
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_warn_always_enabled(),
    )
    precision, anomaly = torch.get_float32_matmul_precision(), torch.is_anomaly_enabled()
    folder = _empty_folder()
    if threads != 1:  # for tensors as small as ours, threads cost several times what they compute
        torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.resetwarnings()
            warnings.simplefilter("always")
            torch.set_warn_always(
                True
            )  # torch's own once-only warnings would depend on the order of the cases
            seed_all(0)
            os.chdir(folder)
            yield folder, caught
    finally:
        os.chdir(cwd)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        sys.path[:] = import_path
        torch.set_default_dtype(dtype)
        if device != torch.utils._device.CURRENT_DEVICE:  # None: no call is intercepted
            torch.set_default_device(device)
        torch.set_grad_enabled(grad)
        now = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        if now != (deterministic, warn_only):  # the call imports torch's compiler: seconds
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_warn_always(warn_always)
        torch.set_float32_matmul_precision(precision)
        torch.autograd.set_detect_anomaly(anomaly)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        _restore_random(states)
        if any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _spare.append(folder)  # to make and remove a folder takes as long as many a case


MEMORY, ENOUGH = Path("/dev/shm"), 1 << 30  # Linux's file system in memory; bytes that no case comes near
_spare: list[Path] = []  # folders that cases have left empty, for the next ones
_owner = os.getpid()


def _empty_folder() -> Path:
    while _spare and os.getpid() == _owner:  # a forked process leaves its parent's alone
        folder = _spare.pop()
        if folder.is_dir() and not any(folder.iterdir()):
            return folder
    return Path(tempfile.mkdtemp(prefix="peft-conformance-", dir=_parent()))


def _parent() -> Path | None:
    """Where cases get their folders: in memory, where writing through to the disk costs nothing; None for
    the usual place, which a user may name, and which has to do where memory is narrow (as in a container).
    """
    with contextlib.suppress(OSError):
        if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK | os.X_OK):
            return MEMORY if shutil.disk_usage(MEMORY).free >= ENOUGH else None
    return None


@atexit.register
def _remove_spare() -> None:
    for folder in _spare if os.getpid() == _owner else ():
        shutil.rmtree(folder, ignore_errors=True)


def seed_all(seed: int) -> None:
    """Seed every global generator in use."""
    if any(device.is_available() for device in (torch.cuda, torch.xpu, torch.backends.mps)):
        torch.manual_seed(seed)
    else:  # the same for the CPU, without a stack trace for devices that never come: a fifth of the cost
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def global_state(folder: Path) -> dict[str, Any]:
    """The process-wide state that a call may touch, as plain data; `cwd` is told relative to the case's
    folder.
    """
    digest = blake2b(digest_size=8)
    for part in _random_states().values():
        digest.update(part.numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode())
    filters = [tuple(map(str, entry)) for entry in warnings.filters]
    return {
        "rng": digest.hexdigest(),
        "warnings-filters": blake2b(repr(filters).encode(), digest_size=8).hexdigest(),
        "default-dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "grad-mode": torch.is_grad_enabled(),
        "cwd": os.path.relpath(os.path.realpath(os.getcwd()), os.path.realpath(folder)),
    }


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "random": random.getstate()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = (name, keys.tobytes(), *rest)
    return states


def _restore_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["random"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states:
        numpy = sys.modules["numpy"]
        name, keys, *rest = states["numpy"]
        numpy.random.set_state((name, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))
