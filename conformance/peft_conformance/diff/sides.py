"""The two sides of a comparison: implementations that are performed here, or recordings of them.

What a known implementation has done is kept in the cache folder, program by program: a second comparison
performs only what the same code has not performed before, in the same environment, with the same driver. A
module or a checkout may depend on what its own code does not tell, so that it is always performed again.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from peft_conformance import observations
from peft_conformance.cases import Case
from peft_conformance.driver import Observation
from peft_conformance.environments import cache_dir
from peft_conformance.fingerprint import behaviour_digest
from peft_conformance.implementations import Implementation, described
from peft_conformance.language import Suite
from peft_conformance.observations import digest
from peft_conformance.opening import Options
from peft_conformance.recorded import recorded
from peft_conformance.run import Refusal, Run

Progress = Callable[[str, int, int], None]  # name of the side, programs done, programs in all


class Side:
    """One side: what is recorded of it, what performs the rest, and the run that judges it.

    Raises Refusal for what is neither an implementation nor a recording.
    """

    def __init__(self, text: str, profiles: tuple[str, ...] = (), specs: Path | None = None) -> None:
        self.text, self.profiles = text, profiles
        self.live: Implementation | None = None
        self.kept: Path | None = None
        self.stopped = False  # set by whoever cannot wait for the end
        path = Path(text).expanduser()
        if path.suffix == ".gz" or (path / observations.FILE).is_file():
            try:
                self.recording = observations.read([path])
            except (ValueError, OSError) as error:
                raise Refusal(f"{text}: {error}") from None
            self.run = Run(Options(None, profiles=profiles, specs=specs), recorded(self.recording))
            return
        if (path / "results.jsonl").is_file():
            raise Refusal(f"{text}: a report without a recording; make one with --report {text} --record")
        self.run = Run(Options(text, isolate=True, profiles=profiles, specs=specs))
        self.live = self.run.implementation
        self._scratch = tempfile.TemporaryDirectory(prefix="peft-conformance-diff-")
        if self.live.name in described():
            name = re.sub(
                r"[^\w.-]", "_", f"{self.live.name}-{self.live.version}-{behaviour_digest(self.live)}"
            )
            self.kept = cache_dir() / "observations" / f"{name}.jsonl.gz"
        self.files = [self.kept] if self.kept is not None and self.kept.is_file() else []
        self._record("offered", [], lambda side, done, total: None)

    def _record(self, name: str, cases: list[Case], progress: Progress) -> None:
        """Perform cases and read what is known then; what was performed before an interruption is kept."""
        assert self.live
        path = Path(self._scratch.name) / f"{name}.jsonl.gz"
        self.run.record(path, with_surface=name == "offered")
        assert self.run.recorder
        try:
            for number, case in enumerate(cases):
                if self.stopped:
                    break
                progress(self.text, number, len(cases))
                self.run.recorder.add(case, self.live.execute(case.program))
        finally:
            self.run.recorder.close()
            self.run.recorder = None
            if self.kept is not None and cases:
                _append(self.kept, path)
        progress(self.text, len(cases), len(cases))
        self.files.append(path)
        self.recording = observations.read(self.files)

    @property
    def name(self) -> str:
        """Name and version, as a title says them."""
        return f"{self.run.implementation.name} {self.run.implementation.version}"

    @property
    def header(self) -> dict[str, Any]:
        """What it was measured with."""
        return self.recording.header

    @property
    def suite(self) -> Suite:
        """The specs that it is judged by."""
        return self.run.suite

    @property
    def cases(self) -> list[Case]:
        """Every case of its own API level that it can be asked for, of the profiles that were chosen."""
        return self.run.cases

    def cannot(self, case: Case) -> str | None:
        """Why a case says nothing of this side: what it does not offer, no such device, or not recorded."""
        implementation = self.run.implementation
        for name in case.requires:
            if name in implementation.lacks or (
                implementation.offers != "all" and name not in implementation.offers
            ):
                return f"{name} is not offered"
        return self.run.cannot(case)

    def complete(self, cases: Iterable[Case], progress: Progress) -> None:
        """Perform the programs that are not recorded yet; a recording stays what it is."""
        if self.live is None:
            return
        todo = [c for c in cases if not self.recording.has(c.id, digest(c.program)) and not self.cannot(c)]
        self._record("performed", todo, progress)
        self.run.implementation = recorded(self.recording)  # nothing is performed twice

    def observation(self, case: Case) -> Observation:
        """What was observed when the program of this case was performed."""
        return self.recording.observation(case.id, digest(case.program))

    def close(self) -> None:
        """End its process, and forget what is not kept."""
        if self.live is not None:
            self.live.close()
            self._scratch.cleanup()


def _append(target: Path, part: Path) -> None:
    """Put a recording to the one that is kept, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    with draft.open("wb") as file:
        for path in (target, part):
            if path.is_file():
                with path.open("rb") as source:
                    shutil.copyfileobj(source, file)
    os.replace(draft, target)
