"""The list of fixes: what lint says of it, and whether results show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft_conformance import fixes
from peft_conformance.language import SpecErrors, Suite, find_specs_dir, load_suite

PAGE = Path(__file__).parents[2] / "docs" / "fixes.md"
ENTRY = """  - release: {release}
    pull: {pull}
    text: An adapter was saved without its biases.
    before: {before}
    after: 0.21.2
    checks: ["{check}"]
"""
KEYS = "get_state_dict.bias-lora-only:keys"


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(find_specs_dir())


@pytest.fixture(scope="module")
def ours() -> fixes.Fixes:
    return fixes.load_fixes(fixes.find_fixes())


def listed(folder: Path, *entries: dict[str, str]) -> fixes.Fixes:
    usual = {"release": "0.21.0", "pull": "1", "before": "0.20.0", "check": KEYS}
    text = 'schema: "1.0"\nimplementation: peft\npulls: pull/\nfixes:\n'
    file = folder / "fixes.yaml"
    file.write_text(text + "".join(ENTRY.format(**{**usual, **entry}) for entry in entries), "utf-8")
    return fixes.load_fixes(file)


def test_ours_have_no_fault_and_the_page_is_up_to_date(ours: fixes.Fixes, suite: Suite) -> None:
    assert fixes.faults(ours, suite) == []
    assert PAGE.read_text("utf-8") == fixes.page(ours), "run: peft-conformance fixes > docs/fixes.md"
    assert len(ours.entries) >= 25


def test_no_committed_result_speaks_against_a_fix(ours: fixes.Fixes, suite: Suite) -> None:
    """A fix is compared where the results of both of its releases are committed."""
    told = list(fixes.seen(ours, fixes.of_committed(ours, suite)))
    assert [line for _, _, against in told for line in against] == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"before": "0.21.1"}, "before < release <= after does not hold: 0.21.1 < 0.21.0 <= 0.21.2"),
        ({"check": "get_state_dict.bias-lora-only:key"}, "at API level 0.20.0"),
        ({"check": "get_state_dict.bias-lora-only[a=b]:keys"}, "no check"),
    ],
)
def test_an_entry_that_makes_no_sense_is_a_fault(
    entry: dict[str, str], said: str, suite: Suite, tmp_path: Path
) -> None:
    found = fixes.faults(listed(tmp_path, entry), suite)
    assert said in found[0].text
    assert found[0].line >= 5


def test_entries_are_sorted(suite: Suite, tmp_path: Path) -> None:
    found = fixes.faults(listed(tmp_path, {"pull": "2"}, {"pull": "1"}), suite)
    assert ["sorted by release" in fault.text for fault in found] == [True]


def test_what_is_no_release_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors, match=r"fixes\.yaml:5: .*a release such as"):
        listed(tmp_path, {"release": "next"})


@pytest.mark.parametrize(
    ("before", "after", "word", "against"),
    [
        ("fail", "pass", "shown", []),
        ("expected-failure", "pass", "shown", []),
        ("pass", "pass", "not shown", [f"0.20.0: {KEYS} is pass"]),
        ("stale", "pass", "not shown", [f"0.20.0: {KEYS} is stale"]),
        ("error", "warn", "not shown", [f"0.21.2: {KEYS} is warn"]),
        ("fail", None, "no run", []),
    ],
)
def test_a_fix_is_shown_by_red_before_and_green_after(
    before: str, after: str | None, word: str, against: list[str], tmp_path: Path
) -> None:
    verdicts = {"0.20.0": {KEYS: before}, "0.21.2": {KEYS: after} if after else {}}
    assert [told[1:] for told in fixes.seen(listed(tmp_path, {}), verdicts)] == [(word, against)]
