"""The driver in a process of its own: one line of JSON in for each case, one line of JSON out.

    python -m peft_conformance.worker --module peft --path OVERLAY --exchange FOLDER

First comes a line `{"hello": {...}}`, or `{"failed": reason}` when the module cannot be imported. Then each
`{"number": ..., "program": ..., "identity": ..., "names": ...}` is answered by `{"number": ...}` and either
`"observation": ..., "tensors": file or null` or `"crash": {kind, message}`. Whatever the implementation
prints goes to stderr: the channels are moved out of its reach before it is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from peft_conformance.processes import limit_memory

LOADED = ("torch", "transformers")  # packages whose versions a report states
LONGEST = 1 << 26  # bytes of an answer
CLOSED = 97  # exit status where the implementation has closed our channel
# What Python, torch's allocator and C++ say when there is no memory left.
NO_MEMORY = r"MemoryError|[Cc]an(no|')t allocate memory|bad_alloc|CUDA out of memory"


def main() -> None:
    """Import the implementation, say hello, and perform programs until there are no more."""
    parser = argparse.ArgumentParser(prog="peft_conformance.worker")
    parser.add_argument("--module", required=True)
    parser.add_argument("--path", action="append", default=[])
    parser.add_argument("--exchange", type=Path, required=True)
    parser.add_argument("--memory", type=int, required=True)
    options = parser.parse_args()
    questions = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    me = os.getpid()

    def answer(message: dict[str, Any]) -> None:
        if os.getpid() != me:  # a fork that has come back from the implementation: it has nothing to say
            os._exit(0)
        text = json.dumps(message, allow_nan=False)
        if len(text) >= LONGEST:
            said = f"an observation of {len(text) >> 20} MiB, where {LONGEST >> 20} are enough for any case"
            text = json.dumps({"number": message["number"], "crash": {"kind": "huge", "message": said}})
        try:
            answers.write(text + "\n")
            answers.flush()
        except OSError:
            os._exit(CLOSED)

    limit_memory(options.memory)
    sys.path[:0] = options.path
    # What the implementation starts finds the same packages.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*options.path, *([inherited] if inherited else [])])
    try:
        root = importlib.import_module(options.module)
    except BaseException as error:
        answer({"failed": import_failure(options.module, error), "versions": versions()})
        return
    from safetensors.torch import save_file

    from peft_conformance.driver import Subject, run_case

    hello = {"version": getattr(root, "__version__", None), "file": getattr(root, "__file__", None)}
    answer({"hello": hello, "versions": versions()})
    for line in _asked(questions):
        question = json.loads(line)
        number = question["number"]
        try:
            observation = run_case(
                question["program"], Subject(root, question["identity"], question["names"])
            )
        except BaseException as error:
            if isinstance(error, Exception):  # a mistake of ours
                raise
            answer({"number": number, "crash": raised(error)})
            continue
        tensors = observation.pop("tensors")
        file = str(options.exchange / f"{number}.safetensors") if tensors and os.getpid() == me else None
        if file:
            save_file(tensors, file)
        answer({"number": number, "observation": observation, "tensors": file})


def _asked(questions: TextIO) -> Iterator[str]:
    try:
        yield from questions
    except OSError:
        os._exit(CLOSED)


def raised(error: BaseException) -> dict[str, str]:
    """The crash that an exception outside of `Exception` amounts to: no caller is prepared for that."""
    message = " ".join(str(error).split())
    return {"kind": "raised", "message": type(error).__name__ + (f": {message[:500]}" if message else "")}


def starved(observation: dict[str, Any]) -> str | None:
    """What was said where a step ended for want of memory."""
    for step in observation["steps"]:
        said = f"{step['error']['type']}: {step['error']['message']}" if step["error"] else ""
        if re.search(NO_MEMORY, said):
            return said
    return None


def versions() -> dict[str, str | None]:
    """The Python and the packages that an implementation has in this process."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in LOADED:
        version = getattr(sys.modules.get(package), "__version__", None)
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = version or metadata.version(package)
        found[package] = version and str(version)  # torch's own is a class of torch's
    return found


def import_failure(module: str, error: BaseException) -> str:
    """Why a module cannot be imported, in one line."""
    reason = " ".join(str(error).split()) or "no message"
    return f"module {module!r} cannot be imported: {type(error).__name__}: {reason}"


def how_it_ended(status: int) -> str:
    """What became of a process, from its exit status."""
    if status >= 0:
        return f"the process ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"the process was killed by {signal.Signals(-status).name}"
    return f"the process was killed by signal {-status}"


if __name__ == "__main__":
    main()
