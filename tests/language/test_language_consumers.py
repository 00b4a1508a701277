"""Consumers: which cases each relies on, and whether its sources say what its profile says."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path
from typing import Any

import corpus
import pytest
from packaging.version import Version
from peft_conformance.consumers import Consumers, names, selected
from peft_conformance.expand import points
from peft_conformance.language import Suite, find_specs_dir, load_suite
from peft_conformance.reading import Map


@pytest.fixture(scope="module")
def ours() -> Suite:
    return load_suite(find_specs_dir())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    specs = corpus.base_specs(tmp_path_factory.mktemp("consumers"))
    corpus.add(specs, corpus.ACCEPTED / "profile.yaml")
    return load_suite(specs)


def test_axes_restrict_the_cases_that_have_them(small: Suite) -> None:
    consumers = Consumers(small)
    clause = small.clause("base.points")
    assert {point["dtype"]: consumers.of(clause, point) for point in points(clause)} == {
        "float32": [],
        "bfloat16": ["some"],
    }
    assert consumers.of(small.clause("base.good"), {}) == ["diffusers", "some"]


def test_methods_restrict_by_the_configs_that_a_case_makes(ours: Suite) -> None:
    takes = selected(ours, ["diffusers"])
    law = ours.clause("law.merge")
    methods = {point["method"] for point in points(law) if takes(law, point)}
    assert {method.partition("-")[0] for method in methods} == {"lora", "lokr"}
    assert takes(ours.clause("inject.in-place"), points(ours.clause("inject.in-place"))[0])


def test_what_a_consumer_relies_on_is_beside_the_profile_that_a_clause_has(small: Suite) -> None:
    assert names(small) == ["functional", "diffusers", "some"]
    clause = small.clause("base.points")
    both = selected(small, ["functional", "some"])
    assert all(both(clause, point) for point in points(clause))
    with pytest.raises(KeyError, match="unknown profile 'diffuser'; did you mean 'diffusers'"):
        selected(small, ["diffuser"])


def uses() -> list[Any]:
    """What each profile says that a package uses, where its release that was read is installed."""
    found = []
    for name, profile in load_suite(find_specs_dir()).profiles.items():
        read = {entry["package"]: entry["version"] for entry in profile["read"] if "package" in entry}
        for entry in [*profile["relies_on"], *profile.get("unchecked", ())]:
            for use in entry["uses"]:
                package = use["file"].partition("/")[0]
                if read.get(package) and _installed(package) == read[package]:
                    found.append(pytest.param(use, id=f"{name}-{use['file']}-{use['name'][:40]}"))
    return found


def _installed(package: str) -> str | None:
    try:
        return str(Version(metadata.version(package)))
    except metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize("use", uses())
def test_the_sources_have_what_a_profile_says_that_they_use(use: Map) -> None:
    package, _, rest = use["file"].partition("/")
    spec = util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert use["name"] in (Path(spec.origin).parent / rest).read_text("utf-8")
