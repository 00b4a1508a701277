"""Recordings: what an implementation did in each case, kept to be judged and compared elsewhere.

`observations.jsonl.gz` is gzip of JSON lines in parts: a header, the surface, an observation for each case
that was performed, a footer that counts them. Each line is flushed when it is written, so that a run that is
killed leaves a readable beginning. Files may be put together with `cat`; `read` merges what it is given.
`specs/schema/observations.schema.json` describes the lines.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from peft_conformance.plain import few

if TYPE_CHECKING:
    from peft_conformance.cases import Case

FILE = "observations.jsonl.gz"  # beside results.jsonl
FORMAT = "1.0"
GZIP = 31  # zlib's number for gzip's wrapper
MEMBER = 1 << 20  # characters after which a new gzip member begins: what is read back to find one observation
MEMBERS_KEPT = 8  # of those that were read last


class CutOff(ValueError):
    """A recording that ends before its time: its process was killed, or the file was not copied whole."""


def digest(program: Mapping[str, Any]) -> str:
    """What tells one program (`Case.program`) from another: an observation is of one of them only."""
    text = json.dumps(program, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=8).hexdigest()


# --- writing


class Writer:
    """One part of a recording, on disk line by line."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.observations = path, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._lines = _Lines(self._file)
        self._write({"kind": "header", "format": FORMAT, **header})

    def surface(self, surface: Mapping[str, Any]) -> None:
        """What the implementation offers (`surface.found`)."""
        self._write({"kind": "surface", **surface})

    def add(self, case: Case, observation: Mapping[str, Any]) -> None:
        """What a case left behind."""
        tensors = observation["tensors"]
        line = {
            "kind": "observation",
            "case": case.id,
            "axes": case.axes,
            "program": digest(case.program),
            "observation": {key: value for key, value in observation.items() if key != "tensors"},
            "tensors": _packed(tensors) if tensors else None,
        }
        self._write(line)
        self.observations += 1

    def close(self) -> None:
        """Write the footer: the part is whole."""
        self._write({"kind": "footer", "observations": self.observations, "complete": True})
        self._lines.end()
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._lines.write(
            json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        )


class _Lines:
    """Lines as gzip: each one is on disk when `write` returns, and a new member begins now and then."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size, self.empty = file, 0, True
        self._member = zlib.compressobj(wbits=GZIP)

    def write(self, line: bytes) -> None:
        self._file.write(self._member.compress(line + b"\n"))
        self._size += len(line) + 1
        self.empty = False
        if self._size >= MEMBER:
            self._file.write(self._member.flush())
            self._member, self._size = zlib.compressobj(wbits=GZIP), 0
        else:
            self._file.write(self._member.flush(zlib.Z_SYNC_FLUSH))
        self._file.flush()

    def end(self) -> None:
        if self._size:
            self._file.write(self._member.flush())


def _packed(tensors: dict[str, Any]) -> str:
    from safetensors.torch import save

    return base64.b64encode(save(tensors)).decode()


def part(folder: Path, process: str) -> Path:
    """Where a process of a run that writes its report into `folder` keeps its part until the run is over."""
    return folder / f"observations.{process}.part"


def parts(folder: Path) -> list[Path]:
    """The parts in a report's folder: of the run that goes on, or of one that was killed."""
    return sorted(folder.glob("observations.*.part"))


def make_ready(folder: Path, *, resumed: bool) -> None:
    """Clear away what an earlier run has recorded into a folder, or make one part of it to go on from."""
    earlier = [path for path in (folder / FILE, *parts(folder)) if path.is_file()]
    if resumed and earlier:
        _join(earlier, part(folder, "earlier"), died=False)  # whatever is missing is performed again
    elif not resumed:
        for path in earlier:
            path.unlink()


def join(folder: Path) -> Path:
    """Make one file of the parts of a run; a part whose process has died stays marked as such."""
    return _join(parts(folder), folder / FILE, died=True)


def _join(paths: Sequence[Path], target: Path, *, died: bool) -> Path:
    """The recordings in one file, whole or not at all; those without an end get one."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    with draft.open("wb") as file:
        for path in paths:
            if _is_whole(path):
                file.write(path.read_bytes())
            else:
                _mend(path, file, complete=not died)
    os.replace(draft, target)
    for path in paths:
        if path != target:
            path.unlink()
    return target


def _is_whole(path: Path) -> bool:
    ends: list[str] = []
    deque(_checked(path, ends.append), maxlen=0)
    return not ends


def _mend(path: Path, file: IO[bytes], *, complete: bool) -> None:
    """Copy the readable beginning of a part, if any, and end it with a footer."""
    lines, observations = _Lines(file), 0
    for line in _checked(path, lambda _: None):
        lines.write(line.text)
        observations += line.data["kind"] == "observation"
    if not lines.empty:
        footer = {"kind": "footer", "observations": observations, "complete": complete}
        lines.write(json.dumps(footer, separators=(",", ":")).encode())
        lines.end()


# --- reading


@dataclass(frozen=True)
class _Place:
    """Where a line stands: in which member of which file, and where in that member's text."""

    file: Path
    member: int
    start: int
    end: int


@dataclass(frozen=True)
class _Line:
    """One line with its place; `number` counts from 1."""

    place: _Place
    number: int
    text: bytes
    data: dict[str, Any]


@dataclass
class Recording:
    """Recordings of one implementation, merged; observations stay on disk until they are asked for."""

    header: dict[str, Any]
    surface: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)  # what a reader should know of how they were merged
    _places: dict[str, dict[str, _Place]] = field(
        default_factory=dict
    )  # case -> program -> where, last one last
    _members: OrderedDict[tuple[Path, int], bytes] = field(default_factory=OrderedDict)

    @property
    def cases(self) -> list[str]:
        """The ids of the cases that were performed."""
        return list(self._places)

    def has(self, case: str, program: str | None = None) -> bool:
        """Whether there is an observation of this case, and of this program (`digest`) if one is given."""
        found = self._places.get(case, {})
        return bool(found) if program is None else program in found

    def line(self, case: str, program: str | None = None) -> dict[str, Any]:
        """The line of a case: `case, axes, program, observation, tensors`; without a program the last one."""
        found = self._places[case]
        place = found[program] if program else list(found.values())[-1]
        line: dict[str, Any] = json.loads(self._text(place))
        return line

    def observation(self, case: str, program: str | None = None) -> dict[str, Any]:
        """The observation of a case as the driver made it, its tensors included."""
        line = self.line(case, program)
        observation: dict[str, Any] = line["observation"]
        return observation | {"tensors": _unpacked(line["tensors"])}

    def observations(self) -> Iterator[dict[str, Any]]:
        """The observation of each case, in the order of the files."""
        yield from map(self.observation, self._places)

    def _text(self, place: _Place) -> bytes:
        key = place.file, place.member
        if key not in self._members:
            with place.file.open("rb") as file:
                file.seek(place.member)
                self._members[key] = _member(file)
            if len(self._members) > MEMBERS_KEPT:
                self._members.popitem(last=False)
        self._members.move_to_end(key)
        return self._members[key][place.start : place.end]


def find(path: Path) -> Path:
    """The file of a recording, which may be named by the report's folder that holds it."""
    if not path.is_dir() or (path / FILE).is_file():
        return path / FILE if path.is_dir() else path
    left = ", ".join(p.name for p in parts(path))
    why = f"its run has not come to its end and has left {left}" if left else "was it run with --record?"
    raise ValueError(f"{path}: there is no {FILE}; {why}")


def read(paths: Iterable[Path], *, partial: bool = False) -> Recording:
    """The recordings in these files or report folders, merged.

    Of a case that was performed several times by the same program, the last observation counts, and a note
    tells of those that differ. Raises ValueError, naming file and line, for what is no recording or is of
    another implementation than the rest, and CutOff for one that is not whole, unless `partial` is enough.
    """
    headers: list[tuple[str, dict[str, Any]]] = []
    recording = Recording({})
    content: dict[tuple[str, str], bytes] = {}
    differing: dict[str, None] = {}

    def cut_off(what: str) -> None:
        if not partial:
            raise CutOff(what)
        recording.notes.append(what)

    for path in map(find, paths):
        for line in _checked(path, cut_off):
            kind = line.data["kind"]
            if kind == "header":
                headers.append((f"{path}:{line.number}", line.data))
                _same_implementation(*headers[0], *headers[-1])
            elif kind == "surface":
                recording.surface = {k: v for k, v in line.data.items() if k != "kind"}
            elif kind == "observation":
                case, program = line.data["case"], line.data["program"]
                seen = blake2b(line.text, digest_size=16).digest()
                if content.setdefault((case, program), seen) != seen:
                    differing[case] = None
                at = recording._places.setdefault(case, {})
                at.pop(program, None)
                at[program] = line.place
            elif not line.data["complete"]:
                cut_off(f"{path}:{line.number}: {_ended_early(line.data['observations'])}")
    if not headers:
        raise CutOff("; ".join(recording.notes) or "no recording is given")
    if differing:
        recording.notes.append(
            f"{len(differing)} cases were performed more than once and left different observations; "
            f"the last one counts: {', '.join(few(differing))}"
        )
    _merge(recording, headers)
    return recording


def _same_implementation(first: str, one: Mapping[str, Any], place: str, other: Mapping[str, Any]) -> None:
    for aspect in ("name", "version", "module", "api_level"):
        a, b = one["implementation"][aspect], other["implementation"][aspect]
        if a != b:
            raise ValueError(
                f"{place}: a recording of another implementation: {aspect} {b!r}, but {a!r} in {first}; "
                "recordings of one implementation can be merged"
            )


def _merge(recording: Recording, headers: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """One header for all: the widest selection, every device and package; claims are those of the last."""
    first = headers[0][1]
    every = [header for _, header in headers]
    recording.header = {k: v for k, v in every[-1].items() if k not in ("kind", "format")}
    recording.header |= {
        "device": "cuda" if any(header["device"] == "cuda" for header in every) else "cpu",
        "matrix": first["matrix"] if len({header["matrix"] for header in every}) == 1 else "full",
        "selection": " or ".join(
            dict.fromkeys(header["selection"] for header in every if header["selection"])
        )
        if all(header["selection"] for header in every)
        else "",
        "profiles": sorted({name for header in every for name in header["profiles"]})
        if all(header["profiles"] for header in every)
        else [],
        "packages": {
            name: any(header["packages"].get(name) for header in every)
            for name in sorted({name for header in every for name in header["packages"]})
        },
    }
    for aspect in ("torch", "transformers", "python"):
        found = sorted({str(header[aspect]) for header in every})
        if len(found) > 1:
            recording.notes.append(f"recorded with {aspect} {' and '.join(found)}")
    if any(header["claims"] != every[-1]["claims"] for header in every):
        recording.notes.append(
            "claims and known failures have changed between recordings; the last ones count"
        )


def _unpacked(tensors: str | None) -> dict[str, Any]:
    if tensors is None:
        return {}
    from safetensors.torch import load

    return load(base64.b64decode(tensors))


def _checked(path: Path, cut_off: Callable[[str], None]) -> Iterator[_Line]:
    """The lines of a file, each where it may be; `cut_off` is told when a part has no end.

    Raises ValueError, naming the line, for what is no recording.
    """
    inside, observations, last, number = False, 0, "", 0
    try:
        for line in _read_lines(path):
            kind, number = line.data.get("kind"), line.number
            where = f"{path}:{number}"
            if kind == "header":
                if inside:
                    cut_off(f"{where}: a header, but the part before it has no footer: {_end(last)}")
                if line.data.get("format") != FORMAT:
                    raise ValueError(
                        f"{where}: format {line.data.get('format')!r}; this version reads {FORMAT!r}"
                    )
                inside, observations = True, 0
            elif not inside:
                raise ValueError(f"{where}: expected the header line of a recording, not {kind!r}")
            elif kind == "observation":
                observations, last = observations + 1, line.data["case"]
            elif kind == "footer":
                inside = False
                if line.data["observations"] != observations:
                    raise ValueError(
                        f"{where}: the footer counts {line.data['observations']} observations, "
                        f"{observations} are there"
                    )
            elif kind != "surface":
                raise ValueError(f"{where}: a line of kind {kind!r}; expected an observation or the footer")
            yield line
    except (zlib.error, EOFError) as error:
        cut_off(f"{path}:{number + 1}: cut off or damaged ({error}): {_end(last)}")
        return
    if inside or number == 0:
        cut_off(f"{path}:{number + 1}: the footer is missing, the file is cut off: {_end(last)}")


def _end(last: str) -> str:
    return f"the last whole observation is that of {last}" if last else "no observation is whole"


def _ended_early(observations: int) -> str:
    return f"the process that recorded this part died after {observations} observations"


def _read_lines(path: Path) -> Iterator[_Line]:
    """Every line of a file; raises EOFError or zlib.error where the file ends or is damaged inside of one."""
    number = 0
    with path.open("rb") as file:
        offset, size = 0, path.stat().st_size
        while offset < size:
            file.seek(offset)
            member, start, rest = offset, 0, b""
            decompress = zlib.decompressobj(GZIP)
            while not decompress.eof:
                chunk = file.read(1 << 16)
                offset += len(chunk)
                *lines, rest = (rest + decompress.decompress(chunk)).split(b"\n")
                for text in lines:
                    number += 1
                    place = _Place(path, member, start, start + len(text))
                    yield _Line(place, number, text, _json(path, number, text))
                    start += len(text) + 1
                if not chunk:
                    raise EOFError("it ends inside of a gzip member")
            offset -= len(decompress.unused_data)
            if rest:
                raise EOFError("a line goes on in another gzip member")


def _member(file: IO[bytes]) -> bytes:
    """The whole text of the gzip member that begins here, or what is there of it."""
    decompress, text = zlib.decompressobj(GZIP), bytearray()
    while not decompress.eof and (chunk := file.read(1 << 16)):
        text += decompress.decompress(chunk)
    return bytes(text)


def _json(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        raise ValueError(f"{path}:{number}: no JSON object: the file is damaged") from None
