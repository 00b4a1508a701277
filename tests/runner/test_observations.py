"""Recordings: written, read back, merged, and judged again by other specs and with other known failures."""

from __future__ import annotations

import dataclasses
import enum
import gzip
import json
import shutil
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_conformance import observations
from peft_conformance.cases import Case, Clause
from peft_conformance.cli import app
from peft_conformance.driver import Subject, run_case
from peft_conformance.expand import expand
from peft_conformance.language import load_suite, validator
from peft_conformance.observations import CutOff, Recording, Writer, read
from peft_conformance.recorded import recorded
from peft_conformance.report import read as read_results
from peft_conformance.surface import found, program
from suite_runs import IMPLEMENTATIONS, SPECS, Outcome
from typer.testing import CliRunner, Result

FILE = "report/observations.jsonl.gz"
HEADER: dict[str, Any] = {
    "implementation": {
        "name": "some",
        "version": "1.0",
        "module": "some",
        "api_level": "1.0",
        "isolated": False,
        "digest": "abc",
    },
    "torch": "2",
    "transformers": None,
    "python": "3",
    "device": "cpu",
    "matrix": "smoke",
    "profiles": ["model"],
    "selection": "",
    "suite": "abc",
    "status": "built",
    "claims": {
        "baseline": False,
        "offers": "all",
        "lacks": {},
        "names": {},
        "package": None,
        "expectations": [],
    },
    "packages": {"accelerate": False},
}


def judge(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["judge", *map(str, words)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a report by check id, without how long they took."""
    found = read_results(folder / "results.jsonl").rows
    return {row["id"]: {key: row[key] for key in row if key != "seconds"} for row in found}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def write(path: Path, content: Iterable[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in content).encode()))
    return path


def case(name: str, **more: Any) -> Case:
    empty: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(Clause)), "")
    return Case(Clause(**{**empty, "id": name}), {}, {"case": name, **more}, ())


def observation(text: str = "", **tensors: torch.Tensor) -> dict[str, Any]:
    return {"case": "c", "steps": [], "entities": {"x": text}, "tensors": tensors}


def record(path: Path, names: Iterable[str], text: str = "", **header: Any) -> Path:
    """A recording of cases that left `text` behind."""
    writer = Writer(path, {**HEADER, **header})
    for name in names:
        writer.add(case(name), observation(text))
    writer.close()
    return path


# Judged again


def test_recording_follows_its_schema(whole: Outcome, apart: Outcome) -> None:
    check = validator("observations.schema.json")
    content = [*lines(whole.folder / FILE), *lines(apart.folder / FILE)]
    assert {line["kind"] for line in content} == {"header", "surface", "observation", "footer"}
    assert [error.message for line in content for error in check.iter_errors(line)] == []


@pytest.mark.parametrize("name", ["whole", "known", "apart"])
def test_verdicts_are_those_of_the_run(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    outcome: Outcome = request.getfixturevalue(name)
    result = judge(outcome.folder / "report", "--specs", SPECS, "--report", tmp_path)
    assert result.exit_code == 1, result.output
    then, now = rows(outcome.folder / "report"), rows(tmp_path)
    assert {check: now.get(check) for check in then} == then
    # What a selection has left out was not recorded; but what needs something red is blocked all the same.
    assert {now[check]["verdict"] for check in now.keys() - then.keys()} <= {"blocked"}
    assert name != "whole" or now == then
    assert {f"FAILED {check}" for check in outcome.red} <= set(result.output.splitlines())
    assert "tiny" not in sys.modules


def test_counts_of_a_whole_run_are_those_of_the_run(whole: Outcome, tmp_path: Path) -> None:
    judge(whole.folder / "report", "--specs", SPECS, "--report", tmp_path)
    now = read_results(tmp_path / "results.jsonl")
    assert (now.table(), now.left_out) == (whole.results.table(), whole.results.left_out)
    assert now.header == whole.results.header


def test_other_known_failures_are_taken_from_a_description(whole: Outcome, tmp_path: Path) -> None:
    described = IMPLEMENTATIONS / "known.yaml"
    result = judge(whole.folder / FILE, "--specs", SPECS, "--impl-file", described, "--report", tmp_path)
    now = {check: row["verdict"] for check, row in rows(tmp_path).items()}
    assert now["bad.value[dtype=float32]:returns-something"] == "expected-failure"
    assert now["good.freezes[dtype=float32]:frozen"] == "stale"
    assert now["bad.frame:frame"] == "changed"
    assert "because   the clause has been renamed since" in result.output  # a loose end


def test_description_of_another_module_is_refused(whole: Outcome) -> None:
    result = judge(whole.folder / FILE, "--specs", SPECS, "--impl-file", IMPLEMENTATIONS / "broken.yaml")
    assert result.exit_code == 2
    assert "the module 'broken'" in result.output


def test_package_and_names_are_those_of_the_claims(tmp_path: Path) -> None:
    """A release's header tells them twice: as what it is, and as what its description claimed."""
    twice = {"package": "peft", "names": {"a": "b.a"}}
    claims = {**HEADER["claims"], **twice}
    whose = {**HEADER["implementation"], **twice}
    path = record(tmp_path / "1.gz", ["a.b"], implementation=whose, claims=claims)
    found = recorded(read([path]))
    assert (found.package, found.names) == ("peft", {"a": "b.a"})


def test_other_specs_judge_what_was_observed(whole: Outcome, tmp_path: Path) -> None:
    specs = shutil.copytree(SPECS, tmp_path / "specs")
    failing = specs / "api" / "must_fail.yaml"
    passing = specs / "api" / "must_pass.yaml"
    failing.write_text(failing.read_text("utf-8").replace("to: [a, b]", "to: null"), "utf-8")
    changed = passing.read_text("utf-8").replace("adapter_names: unknown", "adapter_names: nobody")
    passing.write_text(changed.replace("id: good.prints", "id: good.renamed"), "utf-8")
    judge(whole.folder / FILE, "--specs", specs, "--report", tmp_path / "report")
    now = rows(tmp_path / "report")
    assert now["bad.value[dtype=float32]:returns-something"]["verdict"] == "pass"
    assert now["good.freezes[dtype=float32]:frozen"]["verdict"] == "pass"
    assert not [check for check in now if check.startswith(("good.refuses", "good.renamed", "good.prints"))]
    left_out = read_results(tmp_path / "report" / "results.jsonl").left_out
    assert {e["reason"]: e["checks"] for e in left_out if e["verdict"] == "not-run"} == {
        "no cuda": 2,
        "not recorded": 2,
        "recorded before its steps were changed": 3,
    }


def test_nothing_judged_is_not_green(tmp_path: Path) -> None:
    header = {"implementation": HEADER["implementation"] | {"module": "nobody"}, "profiles": []}
    result = judge(record(tmp_path / "x.gz", ["a.b"], **header), "--specs", SPECS)
    assert result.exit_code == 5
    assert "NOTHING WAS JUDGED" in result.output


def test_recording_of_a_cuda_machine_is_judged_without_one(whole: Outcome, tmp_path: Path) -> None:
    there = {c.id: c for c in expand(load_suite(SPECS), api_level="1.0").cases}
    recording = read([whole.folder / FILE])
    seen = json.dumps(recording.line("good.on-devices[device=cpu]")["observation"])
    writer = Writer(tmp_path / "x.gz", {**recording.header, "device": "cuda"})
    moved = json.loads(seen.replace('"cpu"', '"cuda"'))
    writer.add(there["good.on-devices[device=cuda]"], moved | {"tensors": {}})
    writer.close()
    result = judge(tmp_path / "x.gz", "--specs", SPECS, "--report", tmp_path)
    assert result.exit_code == 0, result.output
    now = {check: row["verdict"] for check, row in rows(tmp_path).items()}
    assert now == {f"good.on-devices[device=cuda]:{check}": "pass" for check in ("there", "frame")}


# Files


def test_observations_come_back_as_they_were(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "x.gz", HEADER)
    tensors = {"x": torch.arange(3), "y/z": torch.tensor([float("nan")], dtype=torch.bfloat16)}
    writer.add(case("a.b"), observation("ü", **tensors))
    writer.close()
    recording = read([tmp_path / "x.gz"])
    back = recording.observation("a.b")
    assert back["entities"] == {"x": "ü"}
    assert all(torch.equal(back["tensors"][k].nan_to_num(), t.nan_to_num()) for k, t in tensors.items())
    assert back["tensors"]["y/z"].dtype == torch.bfloat16
    assert recording.has("a.b")
    assert recording.has("a.b", observations.digest({"case": "a.b"}))
    assert not recording.has("a.b", observations.digest({"case": "a.b", "given": []}))


def test_any_observation_is_found_in_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations, "MEMBER", 1000)  # a new gzip member every few lines
    names = [f"a.b{n}" for n in range(200)]
    record(tmp_path / "x.gz", names, "some text")
    assert (tmp_path / "x.gz").read_bytes().count(b"\x1f\x8b\x08") > 20
    recording = read([tmp_path / "x.gz"])
    assert recording.cases == names
    assert [recording.line(name)["case"] for name in reversed(names)] == names[::-1]
    assert len(recording._members) <= observations.MEMBERS_KEPT


def test_what_is_cut_off_is_told_with_the_last_whole_observation(tmp_path: Path) -> None:
    content = record(tmp_path / "x.gz", ["a.b", "a.c", "a.d"], "text" * 50).read_bytes()
    kept = []
    for size in range(0, len(content), 7):
        (tmp_path / "cut.gz").write_bytes(content[:size])
        with pytest.raises(CutOff, match=r"cut\.gz:\d+: .*cut off") as error:
            read([tmp_path / "cut.gz"])
        try:
            recording: Recording = read([tmp_path / "cut.gz"], partial=True)
        except CutOff:
            kept.append(0)
            continue
        kept.append(len(recording.cases))
        assert recording.notes == [str(error.value)]
        last = f"is that of {recording.cases[-1]}" if recording.cases else "no observation is whole"
        assert last in str(error.value)
    assert set(kept) == {0, 1, 2, 3}
    assert kept == sorted(kept)


def test_a_killed_writer_leaves_what_it_has_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "x.gz", HEADER)
    writer.add(case("a.b"), observation())
    assert read([tmp_path / "x.gz"], partial=True).cases == ["a.b"]  # it has not been closed
    writer.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[1:], "x.gz:1: expected the header line of a recording, not 'observation'"),
        (
            lambda content: [content[0] | {"format": "0.1"}, *content[1:]],
            "x.gz:1: format '0.1'; this version",
        ),
        (
            lambda content: [*content[:2], content[-1]],
            "x.gz:3: the footer counts 2 observations, 1 are there",
        ),
        (lambda content: [*content[:-1], {"kind": "other"}], "x.gz:4: a line of kind 'other'"),
        (lambda content: [*content[:-1], *content], "x.gz:4: a header, but the part before it has no footer"),
        (lambda content: [*content[:-1], content[-1] | {"complete": False}], "x.gz:4: *died after 2 obs"),
    ],
)
def test_damaged_recording_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    content = lines(record(tmp_path / "whole.gz", ["a.b", "a.c"]))
    with pytest.raises(ValueError, match=message.replace("*", ".*")):
        read([write(tmp_path / "x.gz", damage(content))])


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_text("{}\n", "utf-8")
    result = judge(tmp_path / "x.gz")
    assert result.exit_code == 2
    assert "x.gz:1: cut off or damaged" in result.output
    assert judge(tmp_path / "nowhere.gz").exit_code == 2


def test_folder_without_a_recording_is_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was it run with --record"):
        read([tmp_path])
    record(observations.part(tmp_path, "gw0"), ["a.b"])
    with pytest.raises(ValueError, match=r"has left observations\.gw0\.part"):
        read([tmp_path])


# Merging


def test_concatenated_files_are_one_recording(tmp_path: Path) -> None:
    one = record(tmp_path / "1.gz", ["a.b", "a.c"], matrix="full", profiles=["model"])
    two = record(tmp_path / "2.gz", ["a.c", "a.d"], device="cuda", profiles=["checkpoint"])
    (tmp_path / "both.gz").write_bytes(one.read_bytes() + two.read_bytes())
    for recording in (read([tmp_path / "both.gz"]), read([one, two])):
        assert recording.cases == ["a.b", "a.c", "a.d"]
        header = recording.header
        assert (header["device"], header["matrix"], header["profiles"]) == (
            "cuda",
            "full",
            ["checkpoint", "model"],
        )
        assert recording.notes == []


def test_the_last_of_differing_observations_counts_and_is_told(tmp_path: Path) -> None:
    one, two = (
        record(tmp_path / "1.gz", ["a.b"], "then"),
        record(tmp_path / "2.gz", ["a.b"], "now", torch="3"),
    )
    recording = read([one, two])
    assert recording.observation("a.b")["entities"]["x"] == "now"
    assert recording.notes == [
        "1 cases were performed more than once and left different observations; the last one counts: a.b",
        "recorded with torch 2 and 3",
    ]
    assert read([two, one]).observation("a.b")["entities"]["x"] == "then"


def test_observations_of_two_programs_are_kept_apart(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "x.gz", HEADER)
    old, new = case("a.b", given=[1]), case("a.b", given=[2])
    writer.add(old, observation("old"))
    writer.add(new, observation("new"))
    writer.close()
    recording = read([tmp_path / "x.gz"])
    found = recording.observation("a.b", observations.digest(old.program))
    assert (found["entities"]["x"], recording.notes) == ("old", [])
    assert recording.observation("a.b")["entities"]["x"] == "new"
    again = tmp_path / "again.gz"
    writer = Writer(again, HEADER)
    writer.add(old, observation("old"))
    writer.close()
    assert read([tmp_path / "x.gz", again]).observation("a.b")["entities"]["x"] == "old"


def test_two_implementations_are_no_recording(tmp_path: Path) -> None:
    other = HEADER["implementation"] | {"version": "2.0"}
    one, two = record(tmp_path / "1.gz", ["a.b"]), record(tmp_path / "2.gz", ["a.b"], implementation=other)
    with pytest.raises(ValueError, match=r"2\.gz:1: .*version '2.0', but '1.0' in .*1\.gz:1"):
        read([one, two])


# Parts of a run


def test_part_of_a_process_that_died_makes_the_recording_incomplete(fragile: Outcome) -> None:
    result = judge(fragile.folder / FILE, "--specs", SPECS)
    assert result.exit_code == 2
    assert "the process that recorded this part died" in " ".join(result.output.split())
    result = judge(fragile.folder / FILE, "--specs", SPECS, "--partial")
    assert result.exit_code == 0, result.output
    assert "died after" in result.output


def test_no_part_is_left_beside_the_recording(whole: Outcome) -> None:
    assert [f.name for f in (whole.folder / "report").iterdir() if "observations" in f.name] == [
        "observations.jsonl.gz"
    ]


def test_resumed_recording_keeps_what_was_recorded_before(tmp_path: Path) -> None:
    record(tmp_path / "observations.jsonl.gz", ["a.a"])
    content = record(observations.part(tmp_path, "main"), ["a.b", "a.c"]).read_bytes()
    observations.part(tmp_path, "main").write_bytes(content[: len(content) - 60])  # it was killed
    observations.make_ready(tmp_path, resumed=True)
    record(observations.part(tmp_path, "main"), ["a.d"])
    assert {"a.a", "a.b", "a.d"} <= set(read([observations.join(tmp_path)]).cases)


def test_run_that_begins_anew_forgets_what_was_recorded_before(tmp_path: Path) -> None:
    record(tmp_path / "observations.jsonl.gz", ["a.a"])
    record(observations.part(tmp_path, "gw1"), ["a.b"])
    observations.make_ready(tmp_path, resumed=False)
    assert list(tmp_path.iterdir()) == []


# The surface


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An implementation with one of everything."""

    class Kind(str, enum.Enum):
        ONE = "one"

    @dataclasses.dataclass
    class Config:
        needed: int
        r: int = 8
        layers: list[int] = dataclasses.field(default_factory=lambda: [1])

        def to_dict(self, deep: bool = True) -> dict[str, Any]:
            return {}

    class Model(torch.nn.Module):
        prefix = "x_"

        @classmethod
        def make(cls, *, kind: str = "a") -> None:
            """Made."""

        @property
        def size(self) -> int:
            return 0

    def act(model: Any, sentinel: Any = object(), **rest: Any) -> None:  # noqa: B008
        """Acts."""

    root = types.ModuleType("offering")
    below = types.ModuleType("offering.functional")
    for thing in (Kind, Config, Model, act):
        thing.__module__ = "offering"
        setattr(root, thing.__name__, thing)
    root.functional = below  # type: ignore[attr-defined]
    root.torch, root.join, root.TABLE, root._hidden = torch, shutil.move, {"a": Model}, 1  # type: ignore[attr-defined]
    below.act, below.__all__ = act, ["act", "gone"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "offering", root)
    monkeypatch.setitem(sys.modules, "offering.functional", below)
    return root


def test_surface_is_all_that_is_offered_and_nothing_else(module: types.ModuleType) -> None:
    asked = program({"act": {"path": "functional.act"}, "elsewhere": {"path": "tuners.nowhere.act"}})
    surface = found(run_case(asked, Subject(module)))
    assert surface["error"] is None
    assert surface["modules"] == {"": None, "functional": ["act", "gone"]}
    assert list(surface["names"]) == [
        "Config",
        "Kind",
        "Model",
        "TABLE",
        "act",
        "functional.act",
        "functional.gone",
    ]
    names = surface["names"]
    assert names["Kind"] == {
        "kind": "enum",
        "mro": ["Kind", "str", "Enum", "object"],
        "value": {"ONE": "one"},
    }
    assert names["Config"]["fields"] == {
        "needed": {"required": True},
        "r": {"required": False, "default": 8},
        "layers": {"required": False, "default": [1]},
    }
    assert list(names["Config"]["members"]) == ["to_dict"]
    assert {name: member["kind"] for name, member in names["Model"]["members"].items()} == {
        "make": "classmethod",
        "prefix": "value",
        "size": "property",
    }
    assert names["act"]["parameters"][1]["default"] == {"class": "object"}
    assert names["TABLE"] == {"kind": "value", "value": {"a": {"class": "Model"}}}
    assert names["functional.act"] == {"kind": "alias", "of": "act"}
    assert names["functional.gone"] == {"kind": "unavailable", "error": "AttributeError"}
    check = validator("observations.schema.json")
    assert [error.message for error in check.iter_errors({"kind": "surface", **surface})] == []
    assert found(run_case(asked, Subject(module))) == surface


def test_surface_is_in_the_recording_once(whole: Outcome, apart: Outcome) -> None:
    for outcome in (whole, apart):
        assert [line["kind"] for line in lines(outcome.folder / FILE)].count("surface") == 1
        surface = read([outcome.folder / FILE]).surface
        assert surface is not None
        assert list(surface["names"]) == ["set_requires_grad"]


def test_surface_that_cannot_be_taken_is_no_surface(module: types.ModuleType) -> None:
    module.Config.__dataclass_fields__["layers"].default_factory = lambda: 1 / 0
    surface = found(run_case(program({}), Subject(module)))
    assert surface == {"error": "ZeroDivisionError: division by zero", "modules": {}, "names": {}}
