"""The driver in a process of its own: one line of JSON in for each case, one line of JSON out.

    python -m peft_conformance.worker --module peft --path OVERLAY --exchange FOLDER

First comes a line `{"hello": {...}}`, or `{"failed": reason}` when the module cannot be imported. Then each
`{"program": ..., "identity": ..., "names": ...}` is answered by `{"observation": ..., "tensors": file or
null}`. Whatever the implementation prints goes to stderr: the channels are moved out of its reach before it
is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO, Any

STARTING = 180.0  # seconds that importing an implementation may take
TAIL = 4000  # characters of stderr that are kept to explain a death


def main() -> None:
    """Import the implementation, say hello, and perform programs until there are no more."""
    parser = argparse.ArgumentParser(prog="peft_conformance.worker")
    parser.add_argument("--module", required=True)
    parser.add_argument("--path", action="append", default=[])
    parser.add_argument("--exchange", type=Path, required=True)
    options = parser.parse_args()
    questions = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message, allow_nan=False) + "\n")
        answers.flush()

    sys.path[:0] = options.path
    try:
        root = importlib.import_module(options.module)
    except (Exception, SystemExit) as error:
        answer({"failed": import_failure(options.module, error)})
        return
    from safetensors.torch import save_file

    from peft_conformance.driver import Subject, run_case

    answer({"hello": {"version": getattr(root, "__version__", None)}})
    for number, line in enumerate(questions):
        question = json.loads(line)
        observation = run_case(question["program"], Subject(root, question["identity"], question["names"]))
        tensors = observation.pop("tensors")
        file = str(options.exchange / f"{os.getpid()}-{number}.safetensors") if tensors else None
        if file:
            save_file(tensors, file)
        answer({"observation": observation, "tensors": file})


def import_failure(module: str, error: BaseException) -> str:
    """Why a module cannot be imported, in one line."""
    reason = " ".join(str(error).split()) or "no message"
    return f"module {module!r} cannot be imported: {type(error).__name__}: {reason}"


class Died(Exception):
    """The process is gone, or has said something that is no answer."""


class NotStarted(Died):
    """The implementation could not be imported."""


class Worker:
    """The other end: a process that performs programs, started when needed and again after a death."""

    def __init__(self, module: str, paths: list[str]) -> None:
        self.module, self.paths = module, paths
        self._folder = tempfile.TemporaryDirectory(prefix="peft-conformance-worker-")
        self._process: subprocess.Popen[bytes] | None = None
        self._hello: dict[str, Any] = {}

    def start(self) -> dict[str, Any]:
        """Start the process unless it runs; returns what it says of its module. Raises `NotStarted`."""
        if self._process and self._process.poll() is None:
            return self._hello
        import_path = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        command = [sys.executable, "-m", "peft_conformance.worker", "--module", self.module]
        command += [
            "--exchange",
            self._folder.name,
            *(word for path in self.paths for word in ("--path", path)),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder.name,
            env=os.environ | {"PYTHONPATH": import_path},  # what can be imported here can be imported there
            start_new_session=True,  # what the implementation has started ends with it
        )
        assert self._process.stdout
        assert self._process.stderr
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=TAIL)
        self._threads = [
            threading.Thread(target=_listen, args=(self._process.stdout, self._lines), daemon=True),
            threading.Thread(target=_drain, args=(self._process.stderr, self._said), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        try:
            message = self._hear(STARTING)
        except TimeoutError:
            self.stop()
            message = {"failed": f"module {self.module!r} is not imported after {STARTING:.0f} seconds"}
        except Died as error:
            message = {"failed": f"module {self.module!r} cannot be imported: {error}"}
        if "hello" not in message:
            self.stop()
            raise NotStarted(message["failed"])
        self._hello = message["hello"]
        return self._hello

    def perform(self, question: dict[str, Any], limit: float) -> dict[str, Any]:
        """The observation of one program. Raises `Died`, or `TimeoutError` when `limit` seconds are over."""
        self.start()
        assert self._process
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            message = self._hear(limit)
        except BrokenPipeError:
            raise self._death() from None
        except TimeoutError:
            self.stop()
            raise
        observation: dict[str, Any] = message["observation"]
        observation["tensors"] = {}
        if message["tensors"]:
            from safetensors.torch import load

            file = Path(message["tensors"])
            observation["tensors"] = load(file.read_bytes())
            file.unlink()
        return observation

    def stop(self) -> None:
        """End the process and everything that it has started."""
        if self._process is None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream
            with contextlib.suppress(BrokenPipeError):  # a question that was never read
                stream.close()
        self._process = None

    def close(self) -> None:
        """Stop, and remove the folder."""
        self.stop()
        self._folder.cleanup()

    def _hear(self, limit: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            raise self._death()
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            self.stop()
            raise Died(f"the process wrote into our channel: {line[:80]!r}") from None
        return message

    def _death(self) -> Died:
        assert self._process
        status = self._process.wait()
        how = f"ended with exit status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        self.stop()
        said = "".join(self._said).strip().splitlines()[-6:]
        return Died(f"the process {how}" + ("; its last words:\n" + "\n".join(said) if said else ""))


def _listen(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _drain(stream: IO[bytes], said: deque[str]) -> None:
    while chunk := os.read(stream.fileno(), 1 << 16):
        said.extend(chunk.decode("utf-8", "replace"))


if __name__ == "__main__":
    main()
