"""Rows of the import: in a fresh process each time, which tells what it took."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import Elsewhere, Row, of_libraries

TIME = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
PEAK = """
import memray, pathlib, tempfile
with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "allocations"
    form = memray.FileFormat.AGGREGATED_ALLOCATIONS
    with memray.Tracker(file, trace_python_allocators=True, file_format=form):
        import {module}
    print(memray.FileReader(file).metadata.peak_memory)
"""


@dataclass(frozen=True)
class Import(Elsewhere):
    """The import of a module after others."""

    module: str
    after: str

    def seconds(self) -> float:
        """What it takes."""
        return self._in_a_process(TIME)

    def peak(self) -> int:
        """Bytes it holds at its highest."""
        return int(self._in_a_process(PEAK))

    def _in_a_process(self, code: str) -> float:
        lines = f"import {self.after}\n{code.format(module=self.module)}"
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"import {self.module} after {self.after}: {done.stderr}")
        return float(done.stdout.split()[-1])


def rows() -> Iterator[Row]:
    """All of them."""
    for after in ("torch", "torch, transformers"):
        yield Row("import", "all methods", {"after": after}, partial(imports, after), repetitions=3)


def imports(after: str) -> dict[str, Elsewhere]:
    """The import of each library."""
    return of_libraries(lambda library: Import(library.__name__, after))
