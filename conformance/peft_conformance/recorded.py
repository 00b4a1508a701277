"""An implementation that is known by a recording only: asked for a case, it answers with what it did then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft_conformance.driver import Observation
from peft_conformance.implementations import Implementation, ImplementationError, describe
from peft_conformance.observations import Recording
from peft_conformance.observations import digest as digest_of

CLAIMS = (
    "baseline",
    "offers",
    "lacks",
    "names",
    "package",
    "expectations",
)  # what a judge needs of a description


def claims(implementation: Implementation) -> dict[str, Any]:
    """What an implementation claims and is known to fail, for the header of its recording."""
    found = {name: getattr(implementation, name) for name in CLAIMS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass
class Recorded(Implementation):
    """The implementation of a recording, with the machine that it was recorded on."""

    recording: Recording = None  # type: ignore[assignment]  # fields of the base have defaults

    @property
    def digest(self) -> str:
        """Of its description and its code, as they were."""
        return str(self.recording.header["implementation"]["digest"])

    @property
    def machine(self) -> dict[str, Any]:
        """What it was measured with."""
        return {name: self.recording.header[name] for name in ("torch", "transformers", "python", "device")}

    @property
    def packages(self) -> dict[str, bool]:
        """Which of the packages that cases may need were there."""
        return dict(self.recording.header["packages"])

    def unavailable(self, program: dict[str, Any]) -> str | None:
        """Nothing is performed here: what was not recorded then cannot be judged now."""
        if not self.recording.has(program["case"]):
            return "not recorded"
        if not self.recording.has(program["case"], digest_of(program)):
            return "recorded before its steps were changed"
        return None

    def execute(self, program: dict[str, Any]) -> Observation:
        """What was observed when this program was performed."""
        return self.recording.observation(program["case"], digest_of(program))


def recorded(recording: Recording, description: Path | None = None) -> Recorded:
    """The implementation of a recording, with the claims and known failures that its description had then.

    With `description`, those of that file instead; ImplementationError when it describes another module.
    """
    header = recording.header
    known: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in header["claims"].items()
    }
    identity = {name: value for name, value in header["implementation"].items() if name != "digest"}
    found = Recorded(**{**identity, **known}, recording=recording)  # package and names are told in both
    if description is None:
        return found
    now = describe(description)
    if now.module != found.module:
        raise ImplementationError(
            f"{description} describes the module {now.module!r}, and the recording is of {found.module!r}"
        )
    return replace(found, **{name: getattr(now, name) for name in CLAIMS}, file=description)
