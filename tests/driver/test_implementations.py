"""What `--impl` may name, and what a wrong name or a missing release is told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from peft_conformance import environments, implementations
from peft_conformance.descriptions import described
from peft_conformance.environments import ImplementationError, fetch
from peft_conformance.implementations import describe, find, resolve
from programs import BROKEN, inject, make, program

PACKAGE = """
__version__ = "{version}"
from peft_reference import *
from peft_reference import functional
"""


def test_the_descriptions_that_are_shipped_are_valid() -> None:
    assert {"reference", "peft"} <= described().keys()
    for name, file in described().items():
        assert describe(file).name == name


def test_upstream_is_measured_at_each_minor_release_since_0_10() -> None:
    covered = describe(described()["peft"]).covered
    minors = [version.split(".")[1] for version in covered]
    assert minors == [str(minor) for minor in range(10, 10 + len(minors))]
    assert len(minors) >= 12


def test_the_reference_is_the_baseline_and_runs_in_process() -> None:
    found = resolve("reference")
    assert (found.module, found.api_level, found.baseline, found.isolated) == (
        "peft_reference",
        "0.21.2",
        True,
        False,
    )
    assert found.offers == "all"
    assert "method-lora" not in found.lacks
    assert found.version != "unknown"


def test_any_implementation_can_be_given_its_own_process() -> None:
    found = resolve("reference", isolate=True)
    try:
        assert found.isolated
        assert found.execute(program([inject()], given=[make()]))["crash"] is None
    finally:
        found.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refrence", "did you mean 'reference'?\nknown: peft, reference"),
        (
            "nothing-like-it",
            "unknown implementation 'nothing-like-it'\nknown: peft, reference; or NAME==VERSION",
        ),
        ("pft==0.18.1", "unknown implementation 'pft' in 'pft==0.18.1'; did you mean 'peft'?"),
        ("peft==latest", "'latest' is no version"),
        ("reference==1.0", "reference has no releases"),
        ("missing.yaml", "missing.yaml: No such file"),
        ("../x y", "unknown implementation"),
        ("", "unknown implementation ''"),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(ImplementationError) as caught:
        find(name)
    assert message in str(caught.value)


def test_a_module_on_the_path_runs_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    found = resolve("dies")
    try:
        assert (found.name, found.isolated, found.baseline, found.api_level) == (
            "dies",
            True,
            False,
            "0.21.2",
        )
        assert found.execute(program([inject()], given=[make()]))["crash"] is None
    finally:
        found.close()


def test_a_module_with_a_description_has_its_claims() -> None:
    found = find("peft_reference")
    assert found.offers == find("reference").offers
    assert (found.name, found.isolated, found.baseline) == ("peft_reference", True, False)


def test_a_description_of_ones_own_may_choose_to_run_in_process(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        textwrap.dedent("""
            schema: "1.0"
            name: mine
            module: peft_reference
            api_level: "0.18.1"
            offers: [functional]
            lacks: {checkpoint: it saves nothing to disk}
            names: {functional.set_adapter: tuners.tuners_utils.set_adapter}
            time_limit: 5
        """)
    )
    found = resolve(str(file))
    assert (found.name, found.api_level, found.offers, found.isolated) == (
        "mine",
        "0.18.1",
        ("functional",),
        False,
    )
    assert found.lacks == {"checkpoint": "it saves nothing to disk"}
    assert found.time_limit == 5
    seen = found.execute(program([{"look_up": {"id": "f", "name": "functional.set_adapter"}}]))
    assert seen["entities"]["f"]["kind"] == "callable"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("modul: peft", "mine.yaml:2"),
        ("isolated: yes please", "isolated"),
        ("api_level: 0.21", "api_level"),
        ("expectations: [{match: {clause: a.b, check: c}}]", "outcome"),
    ],
)
def test_a_wrong_description_names_file_and_fault(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    keys = {"schema": '"1.0"', "name": "mine", "module": "m", "api_level": '"1.0"'}
    key, _, value = line.partition(": ")
    file.write_text(
        "".join(
            f"{k}: {v}\n"
            for k, v in (
                {"schema": '"1.0"', key: value} | {k: v for k, v in keys.items() if k != key}
            ).items()
        )
    )
    with pytest.raises(ImplementationError) as caught:
        describe(file)
    assert "mine.yaml" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("layout", ["src", "."])
def test_a_checkout_is_found_with_or_without_src(tmp_path: Path, layout: str) -> None:
    package = tmp_path / "my-fork" / layout / "my_fork"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE.format(version="2.5"))
    (tmp_path / "my-fork" / "tests").mkdir()
    (tmp_path / "my-fork" / "tests" / "__init__.py").touch()
    found = resolve(str(tmp_path / "my-fork"))
    try:
        assert (found.name, found.module, found.version, found.isolated) == (
            "my-fork",
            "my_fork",
            "2.5",
            True,
        )
        assert found.execute(program([inject()], given=[make()]))["crash"] is None
    finally:
        found.close()


def test_a_checkout_of_upstream_claims_its_own_version(tmp_path: Path) -> None:
    package = tmp_path / "work" / "src" / "peft"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE.format(version="0.22.0.dev0"))
    found = resolve(str(tmp_path / "work"))
    found.close()
    assert (found.version, found.api_level, found.baseline) == ("0.22.0.dev0", "0.22.0.dev0", False)


def test_a_folder_without_a_package_or_with_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImplementationError, match="no package there"):
        find(str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    with pytest.raises(ImplementationError, match="which package is meant, one, two"):
        find(str(tmp_path))


# --- releases, from a folder of wheels instead of the network


def wheel(folder: Path, version: str) -> None:
    info = f"peft-{version}.dist-info"
    with zipfile.ZipFile(folder / f"peft-{version}-py3-none-any.whl", "w") as file:
        file.writestr("peft/__init__.py", PACKAGE.format(version=version))
        file.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: peft\nVersion: {version}\nRequires-Dist: nobody-has-this\n",
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for the package index, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "0.18.7")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PEFT_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    return wheels


def test_a_release_is_fetched_once_and_runs_in_its_own_process(index: Path) -> None:
    for _ in range(2):
        found = resolve("peft==0.18.7")
        try:
            assert (found.name, found.version, found.api_level) == ("peft", "0.18.7", "0.18.7")
            assert (found.isolated, found.baseline) == (True, False)
            seen = found.execute(program([inject()], given=[make()]))
            assert seen["crash"] is None
            assert seen["implementation"]["version"] == "0.18.7"
        finally:
            found.close()
        (index / "peft-0.18.7-py3-none-any.whl").unlink(missing_ok=True)


def test_a_release_that_does_not_exist_is_told_with_those_that_do(index: Path) -> None:
    with pytest.raises(ImplementationError, match=r"there is no peft 9\.9; the newest releases are 0\.18\.7"):
        resolve("peft==9.9")
    assert [path for path in environments.cache_dir().iterdir() if path.is_dir()] == []


def test_a_missing_network_is_told_as_such(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ImplementationError, match="is the package index within reach"):
        fetch("peft", "0.18.7")


def test_two_processes_may_fetch_the_same_release_at_once(index: Path) -> None:
    code = "from peft_conformance.environments import fetch; print(fetch('peft', '0.18.7'))"

    def run(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(run, range(2)))
    assert len(folders) == 1
    assert (Path(folders.pop().strip()) / "peft" / "__init__.py").is_file()
    assert [
        path.name for path in environments.cache_dir().iterdir() if path.name.startswith("partial-")
    ] == []


def test_a_release_brings_the_transformers_it_needs(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pretend(package: str, version: str, *, dependencies: bool = False) -> Path:
        asked.append((package, version, dependencies))
        return index

    monkeypatch.setattr(implementations, "fetch", pretend)
    for version in ("0.10.0", "0.14.0", "0.16.0", "0.18.1"):
        find(f"peft=={version}")
    assert [version for package, version, _ in asked if package == "peft"] == [
        "0.10.0",
        "0.14.0",
        "0.16.0",
        "0.18.1",
    ]
    overlays = [(version, whole) for package, version, whole in asked if package == "transformers"]
    assert overlays == [("4.40.2", True), ("4.46.3", True), ("4.57.6", True)]
