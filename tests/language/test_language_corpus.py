"""Spec files with one fault each are refused with the message, and at the line, that they state."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import corpus
import pytest
from peft_conformance import consumers, lint
from peft_conformance.language import find_specs_dir, load_suite
from peft_conformance.steps import flat, step_word

FILES = sorted(corpus.REJECTED.rglob("*.y*ml"))
GOOD = sorted(corpus.ACCEPTED.glob("*.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.base_specs(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def specs(base: Path) -> Iterator[Path]:
    """The base, put back as it was after the test."""
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    yield base
    for path in [p for p in base.rglob("*") if p.is_file() and p not in before]:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    for path, data in before.items():
        if path.read_bytes() != data:
            path.write_bytes(data)


def test_the_base_is_in_order(specs: Path) -> None:
    stage, errors, _ = corpus.faults(specs)
    assert (stage, errors) == ("none", [])


def test_the_corpus_is_large_enough_to_mean_something() -> None:
    counts = {kind: sum(f.parent.name == kind for f in FILES) for kind in ("yaml", "schema", "lint")}
    assert counts["yaml"] >= 15
    assert counts["schema"] >= 60
    assert counts["lint"] >= 60


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_rejected_file_fails_once_where_and_as_it_says(file: Path, specs: Path) -> None:
    target = corpus.add(specs, file)
    stage, errors, _ = corpus.faults(specs)
    assert stage == ("lint" if file.parent.name == "lint" else "load")
    assert [error.file for error in errors] == [target]
    (found,) = [f"{error.line}: {error.text}" for error in errors]
    expected = corpus.expected(file)
    if expected.endswith("…"):  # the wording is that of the YAML library
        found = found[: len(expected) - 1] + "…"
    assert found == expected


@pytest.mark.parametrize("file", GOOD, ids=lambda f: f.stem)
def test_an_accepted_file_loads_without_a_fault(file: Path, specs: Path) -> None:
    corpus.add(specs, file)
    stage, errors, _ = corpus.faults(specs)
    assert (stage, [str(e) for e in errors]) == ("none", [])


def test_an_oversize_file_is_not_even_read(specs: Path) -> None:
    (specs / "api" / "large.yaml").write_text("# " + "x" * (1 << 20) + "\n", encoding="utf-8")
    _, errors, _ = corpus.faults(specs)
    assert [e.text for e in errors] == ["1048579 bytes: a spec file has at most 1048576"]


def test_all_faults_of_all_files_are_reported_at_once(specs: Path) -> None:
    for name in ("schema/check-unknown", "schema/step-unknown", "yaml/duplicate-key"):
        corpus.add(specs, corpus.REJECTED / f"{name}.yaml")
    _, errors, _ = corpus.faults(specs)
    assert [e.file.stem for e in errors] == ["check-unknown", "duplicate-key", "step-unknown"]


def test_every_fault_that_the_linter_knows_has_a_rejected_file() -> None:
    trees = [ast.parse(Path(module.__file__).read_text("utf-8")) for module in (lint, consumers)]
    texts = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    pieces = [[v.value for v in text.values if isinstance(v, ast.Constant)] for text in texts]
    phrases = {max(piece, key=len).strip() for piece in pieces if piece}
    stated = " ".join(corpus.expected(f) for f in FILES if f.parent.name == "lint")
    unstated = {p for p in phrases if " " in p and p not in stated}
    assert unstated == {
        "is not in vocabulary/operations.yaml",  # an operation of the schema that vocabulary lacks
        "unknown profile",  # of --profile
    }


def test_every_step_and_check_of_the_schema_is_in_an_accepted_file(specs: Path) -> None:
    corpus.add(specs, corpus.ACCEPTED / "words.yaml")
    clause = load_suite(specs).clause("words.all")
    schema = json.loads((find_specs_dir() / "schema" / "clauses.schema.json").read_text("utf-8"))
    steps = {name for entry in schema["$defs"]["step"]["oneOf"] for name in entry["required"]}
    checks = {name for entry in schema["$defs"]["check"]["oneOf"] for name in entry["required"]}
    assert {step_word(step) for step in flat([*clause.given, *clause.when])} == steps
    assert {check.word for check in clause.variants[0].checks} == checks


def test_the_schema_and_the_vocabulary_know_the_same_operations() -> None:
    schema = json.loads((find_specs_dir() / "schema" / "clauses.schema.json").read_text("utf-8"))
    assert set(schema["$defs"]["step_call"]["properties"]["call"]["enum"]) == set(
        load_suite(find_specs_dir()).operations
    )


def test_our_own_specs_have_no_fault() -> None:
    assert [str(error) for error in lint.lint(load_suite(find_specs_dir()))] == []
