"""A small suite that is in order, to which a test adds one file."""

from __future__ import annotations

import shutil
from pathlib import Path

from peft_conformance.language import SpecError, SpecErrors, Suite, find_specs_dir, load_suite
from peft_conformance.lint import lint

HERE = Path(__file__).parent
REJECTED = HERE.parent / "rejected"
ACCEPTED = HERE / "accepted"
CARDS = ("lora", "vera", "prompt_tuning")


def base_specs(folder: Path) -> Path:
    """The real vocabulary, three real cards, and one clause with its sentence and row."""
    specs = folder / "specs"
    shutil.copytree(find_specs_dir() / "vocabulary", specs / "vocabulary")
    (specs / "methods").mkdir()
    for card in CARDS:
        shutil.copy(find_specs_dir() / "methods" / f"{card}.yaml", specs / "methods")
    shutil.copytree(HERE / "base", specs, dirs_exist_ok=True)
    return specs


def place_of(file: Path) -> str:
    """Where a corpus file goes in a specs folder: as its `# as:` comment says, or among the API clauses."""
    return next(iter(_comments(file, "as")), f"api/{file.name}")


def _comments(file: Path, key: str) -> list[str]:
    lines = file.read_bytes().decode("utf-8", "replace").split("\n")
    return [line.removeprefix(f"# {key}: ").rstrip() for line in lines if line.startswith(f"# {key}: ")]


def expected(file: Path) -> str:
    """What a rejected file says about itself: `line: message`, where a final … stands for any ending."""
    (text,) = _comments(file, "expect")
    return text


def add(specs: Path, file: Path) -> Path:
    """Copy a corpus file to its place in a specs folder."""
    target = specs / place_of(file)
    target.parent.mkdir(exist_ok=True)
    shutil.copy(file, target)
    return target


def faults(specs: Path) -> tuple[str, list[SpecError], Suite | None]:
    """Which stage refuses a specs folder (`load`, `lint` or none), and with what."""
    try:
        suite = load_suite(specs)
    except SpecErrors as errors:
        return "load", errors.errors, None
    found = lint(suite)
    return "lint" if found else "none", found, suite
