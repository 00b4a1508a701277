"""The loaded suite that is kept between processes: as good as a new one, and never an old one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft_conformance import suite_cache
from peft_conformance.language import Suite, _load

BASE = Path(__file__).parent / "base"
Load = Callable[[], Suite]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A specs folder and the code that reads it."""
    shutil.copytree(BASE, tmp_path / "specs")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "loader.py").write_text("one = 1\n")
    return tmp_path / "specs", tmp_path / "code"


@pytest.fixture
def loads(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Load, list[int]]:
    """What loads the suite through the cache, and a list as long as how often that was from the files."""
    monkeypatch.setenv("PEFT_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PEFT_CONFORMANCE_FRESH", raising=False)
    times: list[int] = []

    def from_files(specs: Path) -> Suite:
        times.append(1)
        return _load(specs)

    return (lambda: suite_cache.kept(files[0], from_files, files[1])), times


def test_the_second_process_takes_what_the_first_has_loaded(loads: tuple[Load, list[int]]) -> None:
    load, times = loads
    first, second = load(), load()
    assert len(times) == 1
    assert second == first
    clause, again = first.clauses[0], second.clauses[0]
    assert (again.lines, again.line, again.given) == (clause.lines, clause.line, clause.given)
    for (file, data), (other, kept) in zip(first.files.items(), second.files.items(), strict=True):
        assert (other, kept.lines, second.file_of(kept)) == (file, data.lines, file)


@pytest.mark.parametrize("change", ["byte", "comment", "code", "new", "gone"])
def test_any_change_of_a_spec_or_of_the_code_loads_again(
    change: str, files: tuple[Path, Path], loads: tuple[Load, list[int]]
) -> None:
    (load, times), (specs, code) = loads, files
    load()
    file = sorted((specs / "api").glob("*.yaml"))[0]
    text = file.read_text("utf-8")
    if change == "byte":
        assert "text: " in text
        file.write_text(text.replace("text: ", "text:  ", 1), "utf-8")
    elif change == "comment":
        file.write_text(text + "# and so on\n", "utf-8")
    elif change == "code":
        (code / "loader.py").write_text("one = 2\n")
    elif change == "new":
        (code / "more.py").write_text("")
    else:
        (code / "loader.py").unlink()
    load()
    assert len(times) == 2


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_what_is_damaged_is_loaded_and_kept_anew(
    damage: bytes | None, tmp_path: Path, loads: tuple[Load, list[int]]
) -> None:
    load, times = loads
    first = load()
    [kept] = (tmp_path / "cache" / "suites").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20] if damage is None else damage)
    assert load() == first
    assert load() == first
    assert len(times) == 2


def test_it_can_be_gone_without(loads: tuple[Load, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    load, times = loads
    monkeypatch.setenv("PEFT_CONFORMANCE_FRESH", "1")
    load(), load()
    assert len(times) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    loads: tuple[Load, list[int]], tmp_path: Path
) -> None:
    load, times = loads
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert load() == load()
    assert len(times) == 2
