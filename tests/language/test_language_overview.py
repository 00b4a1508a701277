"""METHODS.md is what the cards say."""

from __future__ import annotations

from pathlib import Path

from peft_conformance.language import find_specs_dir, load_suite
from peft_conformance.overview import overview

PAGE = Path(__file__).parents[2] / "METHODS.md"


def test_the_page_is_up_to_date() -> None:
    suite = load_suite(find_specs_dir())
    assert PAGE.read_text("utf-8") == overview(suite), "run: peft-conformance methods > METHODS.md"


def test_the_formula_is_that_of_the_usual_options() -> None:
    text = overview(load_suite(find_specs_dir()))
    of_ia3 = text.partition("### IA3")[2].partition("###")[0]
    assert "W' = `l * W`" in of_ia3
