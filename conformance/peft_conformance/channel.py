"""Our end of an implementation's own process: started when needed, and again after whatever befell it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

from peft_conformance import processes
from peft_conformance.worker import CLOSED, LONGEST, NO_MEMORY, how_it_ended, starved

STARTING = 180.0  # seconds that importing an implementation may take
TAIL = 4000  # characters of stderr that are kept to explain a death
PAUSE = 0.2  # seconds between two looks at whether the process still lives


class Died(Exception):
    """There is no observation; `kind` is that of the crash: died, channel, memory, raised, huge."""

    def __init__(self, message: str, kind: str = "died") -> None:
        super().__init__(message)
        self.kind = kind


class NotStarted(Died):
    """The implementation could not be imported; `versions` are those of what it met there."""

    def __init__(self, message: str, versions: dict[str, str | None] | None = None) -> None:
        super().__init__(message, "import")
        self.versions = versions or {}


class Worker:
    """A process that performs programs. Whatever a case does to it ends with that case."""

    def __init__(self, module: str, paths: list[str], memory_limit: int) -> None:
        self.module, self.paths, self.memory_limit = module, paths, memory_limit
        self.versions: dict[str, str | None] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="peft-conformance-worker-")
        self._process: subprocess.Popen[bytes] | None = None
        self._hello: dict[str, Any] = {}

    def start(self) -> dict[str, Any]:
        """Start the process unless it runs; returns what it says of its module. Raises `NotStarted`."""
        if self._process and self._process.poll() is None:
            return self._hello
        self.stop()
        import_path = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        command = [sys.executable, "-m", "peft_conformance.worker", "--module", self.module]
        command += ["--exchange", self._folder.name, "--memory", str(self.memory_limit)]
        command += [word for path in self.paths for word in ("--path", path)]
        self._mark = secrets.token_hex(8)
        # What can be imported here can be imported there; what it starts can be told by the mark.
        environment = os.environ | {"PYTHONPATH": import_path, processes.MARK: self._mark}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder.name,
            env=environment,
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
        cannot = f"module {self.module!r} cannot be imported: "
        try:
            message = self._hear(STARTING)
        except TimeoutError:
            message = {"failed": f"module {self.module!r} is not imported after {STARTING:.0f} seconds"}
        except Died as error:
            message = {"failed": f"{cannot}{error}"}
        self.versions = message.get("versions", {})
        if "hello" not in message:
            self.stop()
            raise NotStarted(message.get("failed", f"{cannot}it wrote into our channel"), self.versions)
        self._hello = message["hello"]
        return self._hello

    def perform(self, question: dict[str, Any], limit: float) -> dict[str, Any]:
        """The observation of one program. Raises `Died`, or `TimeoutError` when `limit` seconds are over."""
        if self._process and not self._lines.empty():
            self.stop()  # it has ended since, or says what nobody has asked: the next case is not to suffer
        self.start()
        assert self._process
        assert self._process.stdin
        number = secrets.token_hex(8)  # so that nobody can answer before the question is known
        try:
            self._process.stdin.write(json.dumps({"number": number, **question}).encode() + b"\n")
            self._process.stdin.flush()
            message = self._hear(limit)
        except BrokenPipeError:
            raise self._death() from None
        except TimeoutError:
            self.stop()
            raise
        if message.get("number") != number:
            self.stop()
            raise Died("the implementation has written an answer of its own into our channel", "channel")
        if crash := message.get("crash"):
            raise Died(crash["message"], crash["kind"])
        observation: dict[str, Any] = message["observation"]
        observation["tensors"] = self._tensors(message["tensors"])
        if said := starved(observation):
            self.stop()  # what it holds of its memory would be missing in the next case
            raise Died(f"more than the {self.memory_limit} MiB that it may have; {said}", "memory")
        return observation

    def _tensors(self, place: str | None) -> dict[str, Any]:
        if place is None:
            return {}
        from safetensors.torch import load

        file = Path(place)
        tensors = load(file.read_bytes())
        file.unlink()
        return tensors

    def stop(self) -> None:
        """End the process and everything that it has started."""
        if self._process is None:
            return
        processes.end(self._process, self._mark)
        for thread in self._threads:
            thread.join(timeout=5)  # somebody out of reach may hold the channel open
        if not any(thread.is_alive() for thread in self._threads):
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
        line = self._line(limit)
        if line is None or (not line.endswith(b"\n") and len(line) < LONGEST):  # in the middle of a line
            raise self._death()
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self.stop()
            raise Died(f"the process wrote into our channel: {line[:80]!r}", "channel")
        return message

    def _line(self, limit: float) -> bytes | None:
        """What the process says next; None once it is gone, even if what it has started lives on."""
        assert self._process
        end = time.monotonic() + limit
        while True:
            gone = self._process.poll() is not None  # asked first: its last line may have come before
            remaining = end - time.monotonic()
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=max(0, min(PAUSE, remaining)))
            if gone:
                return None
            if remaining <= 0:
                raise TimeoutError

    def _death(self) -> Died:
        assert self._process
        try:
            status: int | None = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # its channel is closed and it lives
            status = None
        self.stop()
        said = "".join(self._said).strip().splitlines()[-6:]
        words = "; its last words:\n" + "\n".join(said) if said else ""
        if status is None or status == CLOSED:
            return Died(f"the implementation has closed our channel{words}", "channel")
        if any(re.search(NO_MEMORY, line) for line in said):
            return Died(f"more than the {self.memory_limit} MiB that it may have{words}", "memory")
        return Died(f"{how_it_ended(status)}{words}")


def _listen(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    while line := stream.readline(LONGEST):
        lines.put(line)
        if not line.endswith(b"\n"):  # no answer is so long; who is not heard any more is stopped
            break
    lines.put(None)


def _drain(stream: IO[bytes], said: deque[str]) -> None:
    while chunk := os.read(stream.fileno(), 1 << 16):
        said.extend(chunk.decode("utf-8", "replace"))
