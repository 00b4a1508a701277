"""What `peft-conformance diff` finds between two forks of the reference, and what it takes for the same."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft_reference
import pytest
from peft_conformance.cli import app
from peft_conformance.diff import Difference, compare, render
from peft_conformance.diff.change import Change
from peft_conformance.diff.changes import changes
from peft_conformance.diff.findings import Seen, findings
from peft_conformance.diff.sides import Side
from peft_conformance.diff.surfaces import differences
from peft_conformance.diff.timeline import Story, masked, pattern
from peft_conformance.diff.verdicts import turns
from peft_conformance.driver import Subject, run_case
from peft_conformance.expand import expand
from peft_conformance.language import Suite, find_specs_dir, load_suite
from peft_conformance.schemas import validator
from suite_runs import IMPLEMENTATIONS
from typer.testing import CliRunner

TOPICS = ("cast_adapter_dtype", "delete_adapter", "inject_adapter_in_model")
CLAUSES = ("cast.in-place", "cast.raises-half", "delete.none-when-last", "inject.several", "inject.in-place")


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the real specs: enough to be compared by, few enough to be quick."""
    folder = tmp_path_factory.mktemp("diff") / "specs"
    for part in ("vocabulary", "methods", "sources"):
        shutil.copytree(find_specs_dir() / part, folder / part)
    (folder / "api").mkdir()
    for topic in TOPICS:
        shutil.copy(find_specs_dir() / "api" / f"{topic}.yaml", folder / "api")
    return folder


@pytest.fixture(scope="session")
def suite(specs: Path) -> Suite:
    return load_suite(specs)


@pytest.fixture(scope="session")
def forks(specs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Difference, list[Path]]]:
    """The two forks compared once, and what was recorded of them."""
    folder = tmp_path_factory.mktemp("recordings")
    here = Path.cwd()
    os.chdir(IMPLEMENTATIONS)
    sys.path.insert(0, str(IMPLEMENTATIONS))
    sides = [Side(name, specs=specs) for name in ("fork_before", "fork_after")]
    try:
        difference = compare(*sides, matrix="smoke", patterns=CLAUSES)
        files = [folder / f"{side.text}.jsonl.gz" for side in sides]
        for side, file in zip(sides, files, strict=True):
            file.write_bytes(b"".join(part.read_bytes() for part in side.files))
        yield difference, files
    finally:
        os.chdir(here)
        sys.path.remove(str(IMPLEMENTATIONS))
        for side in sides:
            side.close()


def facts(difference: Difference, kind: str) -> list[tuple[str, str, str]]:
    return [(f.subject, f.was, f.now) for f in difference.findings if f.kind == kind]


def test_a_promise_that_is_no_longer_kept_turned_red(forks: Any) -> None:
    """Grouped by clause and check, with what was observed on both sides; and the comparison is red."""
    difference, _ = forks
    red = [t for t in difference.turns if t.turn == "red"]
    assert ("delete.none-when-last", "returns-none") in {(t.clause, t.check) for t in red}
    found = next(t for t in red if t.check == "returns-none")
    assert (found.was, found.now) == (None, [])
    assert difference.red


def test_replaced_parameters_are_seen_and_blamed_on_the_call(forks: Any) -> None:
    """Tokens differ in any two runs; that an object is no longer the one it was is what is told."""
    difference, _ = forks
    found = next(
        f for f in difference.findings if f.kind == "identity" and f.now == "another object than before"
    )
    assert (found.subject, found.was) == ("adapter parameters", "the same object as before")
    assert [o["during"] for o in found.occasions] == [["cast_adapter_dtype"]]
    assert set(found.slots) == {"lora_A", "lora_B"}


def test_an_adapter_that_is_frozen_now_is_told_as_another_one(forks: Any) -> None:
    """Which of two adapters it is, as the last call sees them, and not by what they happen to be called."""
    difference, _ = forks
    wanted = ("`requires_grad` of adapter parameters of another adapter", "true", "false")
    assert wanted in facts(difference, "requires_grad")


def test_new_warnings_are_told(forks: Any) -> None:
    difference, _ = forks
    told = [line for f in difference.findings for line in (f"{f.subject}: {f.was} → {f.now}", *f.besides)]
    assert any(re.fullmatch("UserWarning: nothing → casting .* makes new parameters", line) for line in told)


def test_names_and_defaults_are_compared(forks: Any) -> None:
    difference, _ = forks
    told = {(f.section, f.what, f.was, f.now, *f.owners) for f in difference.surface}
    assert ("names", "new_in_this_release", "absent", "function") in told
    assert ("fields", "r", "= 8", "= 16", "LoraConfig") in told


def test_the_page_is_short_and_the_comment_fits(forks: Any) -> None:
    difference, _ = forks
    page = render.terminal(difference)
    assert len(page) <= render.LINES
    assert "fork_before 1.0" in page[0][0]
    assert len(render.markdown(difference)) < render.COMMENT
    assert len(render.markdown(difference, 3000)) < 3000
    assert render.markdown(difference).count("<details") == render.markdown(difference).count("</details>")


def test_recordings_are_compared_without_performing_anything(forks: Any, specs: Path, tmp_path: Path) -> None:
    """The command on files: JSON by its schema, 1 for something red; one file twice differs in nothing."""
    difference, files = forks
    out = tmp_path / "diff.json"
    options = ["--specs", str(specs), "--format", "json", "--output", str(out)]
    chosen = [word for clause in CLAUSES for word in ("--clause", clause)]
    done = CliRunner().invoke(app, ["diff", *map(str, files), *options, *chosen])
    assert done.exit_code == 1, done.output
    data = json.loads(out.read_text("utf-8"))
    validator("diff.schema.json").validate(data)
    assert [t["example"] for t in data["verdicts"]] == [t.example for t in difference.turns]
    assert len(data["observations"]) == len(difference.findings)
    done = CliRunner().invoke(app, ["diff", str(files[0]), str(files[0]), *options])
    assert done.exit_code == 0, done.output
    same = json.loads(out.read_text("utf-8"))
    assert not same["observations"]
    assert not same["surface"]
    assert same["compared"] == data["compared"]
    assert "ended" not in {t["turn"] for t in same["verdicts"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-thing", "reference"], "no-such-thing"),
        (["reference", "reference", "--matrix", "huge"], "huge"),
        (["reference", "reference", "--profile", "nonsense"], "nonsense"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str, specs: Path) -> None:
    """Exit status 2, and the word that is wrong."""
    done = CliRunner().invoke(app, ["diff", *arguments, "--specs", str(specs)])
    assert done.exit_code == 2
    assert said in re.sub(r"[\s│]", "", done.output)


# --- what two runs of the same thing may differ in


@pytest.fixture(scope="module")
def observed(suite: Suite) -> tuple[Story, dict[str, Any]]:
    """A real observation of the reference, and the story that it tells."""
    cases = expand(suite, api_level="0.21.2", clauses=["inject.several"], matrix="smoke").cases
    subject = Subject(peft_reference, {"name": "one", "version": "0.20.0"})
    return Story(cases[0].program, suite.cards), run_case(cases[0].program, subject)


def changed(observed: tuple[Story, dict[str, Any]], edit: Any) -> list[Change]:
    story, left = observed
    right = copy.deepcopy(left)
    edit(right)
    return changes(story, left, right)


def as_text(observation: dict[str, Any], edit: Any) -> None:
    tensors = observation.pop("tensors")
    edited = json.loads(edit(json.dumps(observation)))
    observation.clear()
    observation.update(edited, tensors=tensors)


def parameter(observation: dict[str, Any], name: str) -> dict[str, Any]:
    tensors = observation["entities"]["m"]["tensors"]
    return next(t for t in tensors if name in t["name"])


def test_other_tokens_are_no_change(observed: Any) -> None:
    """What is one object is still one object, whatever it is called."""
    renamed = lambda text: re.sub(r'"#(s?)(\d+)"', lambda m: f'"#{m[1]}{int(m[2]) + 70}"', text)  # noqa: E731
    assert changed(observed, lambda right: as_text(right, renamed)) == []


def test_another_object_is_a_change(observed: Any) -> None:
    def edit(right: dict[str, Any]) -> None:
        parameter(right, "lora_A")["object"] = "#999"

    found = changed(observed, edit)
    assert {c.kind for c in found} == {"identity"}


def test_folders_and_own_versions_are_no_change(observed: Any) -> None:
    story, observation = observed
    sides = []
    for version, place in (
        ("0.20.0", "/var/peft-conformance-a2345678"),
        ("0.21.2", "/peft-conformance-abcdefgh"),
    ):
        side = copy.deepcopy(observation) | {"implementation": {"name": "any", "version": version}}
        value = {
            "kind": "value",
            "object": "#500",
            "value": f"{version} in {place}/x",
            "class": "str",
            "mro": [],
        }
        side["entities"]["extra"] = value
        sides.append(side)
    assert changes(story, *sides) == []


def test_numbers_are_told_apart_from_facts(observed: Any) -> None:
    """Other values are one finding of low weight; whether something trains is one of its own."""

    def edit(right: dict[str, Any]) -> None:
        parameter(right, "lora_A")["digest"] = "0" * 16
        parameter(right, "lora_B")["requires_grad"] ^= True

    assert {c.kind for c in changed(observed, edit)} >= {"values", "requires_grad"}


def test_a_call_that_ends_otherwise_ends_the_comparison(observed: Any) -> None:
    """What follows from an error is not told beside it."""

    def edit(right: dict[str, Any]) -> None:
        right["steps"] = right["steps"][:2]
        right["steps"][-1]["error"] = {"type": "ValueError", "mro": [], "message": "no 'x'"}
        parameter(right, "lora_B")["requires_grad"] ^= True

    found = changed(observed, edit)
    assert [(c.kind, c.was, c.now) for c in found] == [("outcome", "returns", "raises ValueError: no …")]


def test_names_of_adapters_slots_and_layers_are_left_open(observed: Any) -> None:
    story, _ = observed
    assert pattern("base_model.model.lin0.lora_A.default.weight", story) == "….<slot>.<adapter>.weight"
    assert pattern("lin0.lora_A.weight", story) == "….<slot>.weight"
    assert masked("Target modules 'lin0' not found in LoraModel, 3 tried") == masked(
        "Target modules 'q' not found in VeraModel, 12 tried"
    )


def seen(case: str, during: tuple[str, ...], now: str = "true", **axes: Any) -> Seen:
    return Seen(case, "a.b", axes, ("LORA",), Change("requires_grad", "x", "false", now, during))


def test_a_fact_is_blamed_on_the_fewest_acts_that_show_it() -> None:
    """Stories in which the same act is one of several are told below it."""
    items = [seen("1", ("merge", "save")), seen("2", ("save",)), seen("3", ("load",))]
    (found,) = findings(items, {"a.b": [{}]})
    assert [(o["during"], o["cases"]) for o in found.occasions] == [(["load"], 1), (["save"], 2)]


def test_the_axis_that_sets_the_cases_apart_is_named() -> None:
    items = [seen("1", ("save",), dtype="bfloat16"), seen("2", ("save",), dtype="float16")]
    (found,) = findings(items, {"a.b": [{"dtype": d} for d in ("float32", "bfloat16", "float16")]})
    assert found.only == {"dtype": ["bfloat16", "float16"]}


def test_many_values_of_one_kind_are_one_finding() -> None:
    (found,) = findings([seen(str(i), ("save",), now=str(i)) for i in range(9)], {"a.b": [{}]})
    assert found.pairs == 9


def row(id: str, verdict: str, **more: Any) -> dict[str, Any]:
    clause = id.partition("[")[0].partition(":")[0]
    return {"id": id, "clause": clause, "check": "c", "level": "MUST", "verdict": verdict, "expected": 1,
            "observed": None, "detail": "", **more}  # fmt: skip


@pytest.mark.parametrize(
    ("was", "now", "turn"),
    [
        ("pass", "fail", "red"),
        ("pass", "expected-failure", "red"),
        ("expected-failure", "pass", "green"),
        ("stale", "fail", "red"),
        ("fail", "expected-failure", None),
        ("pass", "warn", "warning"),
        ("pass", "blocked", "blocked"),
        ("info", "info", None),
        ("unsupported", "pass", None),
    ],
)
def test_known_failures_count_as_what_they_are(was: str, now: str, turn: str | None) -> None:
    judged = {"expected-failure": "fail", "stale": "pass"}
    sides = [row("a.b:c", verdict) for verdict in (was, now)]
    for side in sides:
        side |= {"judged": judged[side["verdict"]]} if side["verdict"] in judged else {}
    found = turns(sides[:1], sides[1:], {}, {})
    assert [t.turn for t in found] == ([turn] if turn else [])


def test_promises_that_ended_are_told_by_whether_they_are_kept() -> None:
    left = [row("a.b[x=1]:c", "pass"), row("a.b[x=2]:c", "pass")]
    ended = {"a.b[x=1]:c": row("a.b[x=1]:c", "fail"), "a.b[x=2]:c": row("a.b[x=2]:c", "pass")}
    found = turns(left, [row("a.new:c", "pass")], ended, {})
    assert {(t.turn, t.example) for t in found} == {
        ("ended-broken", "a.b[x=1]:c"),
        ("ended-kept", "a.b[x=2]:c"),
        ("new-green", "a.new:c"),
    }


def test_the_same_field_in_many_configs_is_one_line() -> None:
    def surface(default: int) -> dict[str, Any]:
        fields = {"r": {"required": False, "default": default}}
        config = {"kind": "class", "mro": ["C"], "parameters": [], "members": {}, "fields": fields}
        return {"error": None, "modules": {"": ["A", "B"]}, "names": {"A": config, "B": config}}

    (found,) = differences(surface(8), surface(16))
    assert (found.section, found.what, found.owners) == ("fields", "r", ["A", "B"])
    assert (found.was, found.now) == ("= 8", "= 16")
