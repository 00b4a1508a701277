"""Ending a process with everything that it has started, also what has left its session; and its memory limit.

What a process starts inherits its environment, so that a word in it marks them all, wherever they went.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "PEFT_CONFORMANCE_PROCESS"  # variable whose value tells what one worker has started
PROC = Path("/proc")


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill the leader of a session, its process group, and where /proc tells of them the descendants and all
    that carry the mark. Waits for the leader.
    """
    descendants = list(_below(process.pid)) if process.poll() is None else []  # orphans have another parent
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    for other in descendants:
        _kill(other)
    process.wait()
    for _ in range(50):  # one that was about to fork has left another
        if not (left := list(_marked(mark))):
            return
        for other in left:
            _kill(other)
        time.sleep(0.01)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _others() -> Iterator[int]:
    if PROC.is_dir():
        yield from (int(place.name) for place in PROC.iterdir() if place.name.isdigit())


def _below(pid: int) -> Iterator[int]:
    parents: dict[int, list[int]] = {}
    for other in _others():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (PROC / str(other) / "stat").read_text()
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(other)
    ahead = [pid]
    while ahead:
        for child in parents.get(ahead.pop(), ()):
            yield child
            ahead.append(child)


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{MARK}={mark}".encode()
    for other in _others():
        with contextlib.suppress(OSError):
            place = PROC / str(other)
            if wanted in (place / "environ").read_bytes().split(b"\0"):  # empty for a zombie
                yield other


def limit_memory(mebibytes: int) -> None:
    """Let this process and its children have so much data each, where the platform can hold them to it."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        size = mebibytes << 20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
