"""API ranges: what lies outside what, and what tiles."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from peft_conformance.ranges import contains, outside, probes, untiled

versions = st.builds(
    lambda major, minor: f"{major}.{minor}", st.integers(0, 1), st.integers(0, 25)
) | st.builds(lambda minor, patch: f"0.{minor}.{patch}", st.integers(0, 25), st.integers(0, 3))
bounds = st.builds(
    lambda op, version: op + version, st.sampled_from([">=", ">", "<", "<=", "==", "!=", "~="]), versions
)
ranges = st.lists(bounds, min_size=1, max_size=3).map(",".join)


@given(inner=ranges, outer=ranges, version=versions)
def test_a_range_that_lies_inside_holds_no_version_that_the_other_lacks(
    inner: str, outer: str, version: str
) -> None:
    found = outside(inner, outer)
    if found is None:
        assert not contains(inner, version) or contains(outer, version)
    else:
        assert contains(inner, found)
        assert not contains(outer, found)


@given(api=ranges)
def test_a_range_tiles_itself(api: str) -> None:
    assert untiled([api], api) is None
    assert outside(api, api) is None


@given(
    cuts=st.lists(
        versions.filter(lambda v: Version(v) > Version("0")), min_size=1, max_size=4, unique_by=Version
    )
)
def test_half_open_ranges_tile_everything(cuts: list[str]) -> None:
    cuts = sorted(cuts, key=Version)
    parts = [f"<{cuts[0]}", *(f">={a},<{b}" for a, b in itertools.pairwise(cuts)), f">={cuts[-1]}"]
    assert untiled(parts, ">=0") is None
    assert "gap" in (untiled(parts[1:], ">=0") or "")
    assert "overlap" in (untiled([*parts, f">={cuts[-1]}.1"], ">=0") or "")


@given(parts=st.lists(ranges, min_size=1, max_size=3, unique=True), whole=ranges, version=versions)
def test_a_version_held_too_often_or_too_rarely_is_noticed(
    parts: list[str], whole: str, version: str
) -> None:
    if sum(contains(part, version) for part in parts) != contains(whole, version):
        assert untiled(parts, whole) is not None


@pytest.mark.parametrize(
    ("inner", "outer", "holds"),
    [
        (">=0.18", ">=0.13", True),
        (">=0.13", ">=0.18", False),
        (">=0.18,<0.21", ">=0.18", True),
        (">0.20", ">=0.21", False),  # 0.20.1 lies between
        (">=0.21", ">0.20", True),
        ("~=0.18.1", ">=0.18,<0.19", True),
        ("==0.18.*", ">=0.18,<0.19", True),
        ("<=0.20", "<0.21", True),
        ("<0.21", "<=0.20", False),
    ],
)
def test_bounds_mean_what_pep_440_says(inner: str, outer: str, holds: bool) -> None:
    assert (outside(inner, outer) is None) is holds


def test_probes_are_few_and_sorted() -> None:
    found = probes(">=0.18,<0.21", "~=0.20.1")
    assert found == sorted(found)
    assert len(found) < 40
