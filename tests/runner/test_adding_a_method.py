"""The page on adding a method is true: its card and its file, and nothing else, put it under every law."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from peft_conformance.language import find_specs_dir, load_suite
from suite_runs import Outcome, run_suite

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
OUTSIDE = """
import outer
import peft_reference
from peft_reference import *
from peft_reference import functional, tuners, utils
from outer import *
"""
IMPLEMENTATION = """
schema: "1.0"
name: outside
module: outside
api_level: "0.21.2"
offers: all
expectations: []
"""


def block(language: str) -> str:
    """The one code block of the page in this language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return text


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside the project with the method's file, its implementation, and the specs with its card."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(find_specs_dir(), folder / "specs")
    (folder / "specs" / "methods" / "outer.yaml").write_text(block("yaml"), "utf-8")
    (folder / "outer.py").write_text(block("python"), "utf-8")
    (folder / "outside.py").write_text(OUTSIDE.lstrip(), "utf-8")
    (folder / "outside.yaml").write_text(IMPLEMENTATION.lstrip(), "utf-8")
    return folder


def run(outside: Path, monkeypatch: pytest.MonkeyPatch, laws: str) -> Outcome:
    """Some laws on the method, but not the tables of keys that are stored for review."""
    monkeypatch.syspath_prepend(outside)
    monkeypatch.setenv("PYTHONPATH", str(outside), prepend=":")
    chosen = ("-k", f"{laws} and outer and not table", "--matrix=pairwise", "--report=report")
    return run_suite(outside, str(outside / "outside.yaml"), *chosen, specs=outside / "specs")


def test_every_law_runs_on_a_method_from_outside(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(outside, monkeypatch, "law.")
    assert outcome.status == 0, outcome.text
    passed = {name.partition("[")[0] for name, verdict in outcome.verdicts.items() if verdict == "pass"}
    suite = load_suite(outside / "specs")
    laws = {clause.id for clause in suite.clauses if clause.law and "outer" in clause.matrix["method"]}
    assert laws
    assert laws == passed


@pytest.mark.parametrize(
    ("right", "wrong", "law"),
    [
        ("torch.outer(", "-torch.outer(", "law.forward"),
        ("torch.zeros(rows)", "torch.randn(rows)", "law.identity-at-init"),
        (
            'adapter_layer_names = ("outer_row", "outer_column")',
            'adapter_layer_names = ("outer_row",)',
            "law.tensors",
        ),
    ],
)
def test_the_laws_notice_what_is_wrong_with_it(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, law: str
) -> None:
    folder = shutil.copytree(outside, tmp_path / "outside")
    text = (folder / "outer.py").read_text("utf-8")
    assert right in text
    (folder / "outer.py").write_text(text.replace(right, wrong), "utf-8")
    assert any(name.startswith(law) for name in run(folder, monkeypatch, law).red)
