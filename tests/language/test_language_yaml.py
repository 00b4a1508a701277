"""The YAML layer: core scalars of YAML 1.2, and a line for everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft_conformance.reading import Map, SpecErrors, closest, line_at, read_yaml
from peft_conformance.schemas import schema_errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml")


def read(folder: Path, text: str) -> Map:
    file = folder / "file.yaml"
    file.write_text(text, encoding="utf-8")
    return read_yaml(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("190:20:30", "190:20:30"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.2.3", "1.2.3"),
        ("2026-01-31", "2026-01-31"),
        ("'12'", "12"),
        ('">=0.18"', ">=0.18"),
        ("!!str 12", "12"),
        ("!!int '12'", 12),
        ("=", "="),
    ],
)
def test_plain_scalars_follow_the_core_schema(folder: Path, text: str, value: object) -> None:
    found = read(folder, f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


letters = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=6)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | letters
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3),
    max_leaves=10,
)


@given(value=st.dictionaries(letters, json_values, max_size=4))
def test_json_is_read_as_json(folder: Path, value: dict[str, object]) -> None:
    assert read(folder, json.dumps(value, ensure_ascii=False)) == value


def test_every_key_and_item_knows_its_line(folder: Path) -> None:
    data = read(folder, "a: 1\nb:\n  c: [1,\n    2]\n  d:\n    - {e: 1}\n    - f: 2\n      g: 3\n")
    assert data.lines == {"a": 1, "b": 2}
    assert data["b"].lines == {"c": 3, "d": 5}
    assert data["b"]["c"].lines == [3, 4]
    assert data["b"]["d"].lines == [6, 7]
    assert line_at(data, ["b", "d", 1, "g"]) == 8
    assert line_at(data, ["b", "d", 1, "missing"]) == 7
    assert line_at(data, []) == 1


def test_all_faults_of_one_file_are_found(folder: Path) -> None:
    with pytest.raises(SpecErrors) as caught:
        read(folder, "a: 1\na: 2\n1: !x y\n<<: 3\n")
    assert [(e.line, e.message.split()[0]) for e in caught.value.errors] == [
        (2, "duplicate"),
        (3, "key"),
        (3, "tag"),
        (4, "merge"),
    ]


def test_a_few_aliases_are_fine(folder: Path) -> None:
    assert read(folder, "a: &x [1]\nb: *x\n") == {"a": [1], "b": [1]}


def test_aliases_of_aliases_end_early(folder: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(SpecErrors, match="more than 16 aliases"):
        read(folder, "\n".join(lines))


@pytest.mark.parametrize("opening", ["[", "- ", "{a: "])
def test_depth_is_limited_before_anything_recurses(folder: Path, opening: str) -> None:
    with pytest.raises(SpecErrors, match=r"nested more than 40 deep|not YAML"):
        read(folder, "a:\n  " + opening * 30000)


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("modle", ["model", "matrix"], "model"),
        ("must", ["MUST", "MAY"], "MUST"),
        ("model", ["model"], None),
        ("zebra", ["model"], None),
        ("x", [], None),
    ],
)
def test_the_nearest_word_is_suggested(word: str, known: list[str], near: str | None) -> None:
    assert closest(word, known) == near


def test_errors_name_file_and_line(folder: Path) -> None:
    data = read(folder, 'schema: "1.0"\ntopic: x\nclauses:\n  - id: a.b\n    levle: MUST\n')
    errors = SpecErrors(schema_errors(folder / "file.yaml", data, "clauses.schema.json"))
    first, *_ = str(errors).split("\n")
    assert first.startswith(f"{folder / 'file.yaml'}:4: clauses[0] lacks ")
    assert f"{folder / 'file.yaml'}:5: unknown key 'levle' in clauses[0]; did you mean 'level'?" in str(
        errors
    )
