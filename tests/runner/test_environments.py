"""Environments: what cannot be built and why, descriptions that extend others, and forks that misbehave."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_conformance import environments
from peft_conformance.cli import app
from peft_conformance.descriptions import described
from peft_conformance.environments import ImplementationError, fetch
from peft_conformance.implementations import Implementation, describe, find, resolve
from suite_runs import SPECS, Outcome, run_suite
from typer.testing import CliRunner

# --- releases that cannot be had, from a folder of wheels instead of the network


def wheel(
    folder: Path, package: str, version: str, *, module: str = "", metadata: str = "", code: str = ""
) -> None:
    """A wheel of `package` with one module, whatever that says."""
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{module or package}/__init__.py", code or f"__version__ = {version!r}\n")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{metadata}"
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
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PEFT_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    return wheels


def refused(name: str) -> ImplementationError:
    with pytest.raises(ImplementationError) as caught:
        resolve(name)
    assert "\n" not in caught.value.reason
    return caught.value


def test_a_release_that_is_not_there_is_told_with_those_that_are(index: Path) -> None:
    wheel(index, "peft", "0.20.7")
    error = refused("peft==0.20.8")
    assert (error.kind, error.not_built) == ("no-release", True)
    assert error.reason == "there is no peft 0.20.8; the newest releases are 0.20.7"


def test_a_broken_wheel_is_told_as_such_and_leaves_nothing(index: Path) -> None:
    (index / "peft-0.20.7-py3-none-any.whl").write_bytes(b"this is no archive")
    assert refused("peft==0.20.7").kind == "broken-wheel"
    assert [place for place in environments.cache_dir().iterdir() if place.is_dir()] == []


def test_a_wheel_without_the_package_is_not_mistaken_for_the_installed_one(index: Path) -> None:
    wheel(index, "peft", "0.20.7", module="something_else")
    error = refused("peft==0.20.7")
    assert error.kind in ("broken-wheel", "import")  # whether a peft is installed or not
    assert "peft" in error.reason


def test_a_release_for_another_python_names_the_one_it_needs(index: Path) -> None:
    wheel(index, "peft", "0.20.7", metadata="Requires-Python: >=3.99\n")
    error = refused("peft==0.20.7")
    assert error.kind == "python"
    assert "peft 0.20.7 needs Python >=3.99" in error.reason


def test_a_dependency_that_is_not_to_be_had_is_named(index: Path) -> None:
    wheel(index, "transformers", "4.99.0", metadata="Requires-Dist: nobody-has-this>=2\n")
    with pytest.raises(ImplementationError, match="it depends on nobody-has-this>=2") as caught:
        fetch("transformers", "4.99.0", dependencies=True)
    assert caught.value.kind == "dependencies"


def test_an_import_error_tells_what_the_release_needs_and_does_not_find(index: Path) -> None:
    metadata = "Requires-Dist: torch>=99\nRequires-Dist: nobody-has-this\nRequires-Dist: safetensors\n"
    wheel(index, "peft", "0.20.7", code="import nobody_has_this\n", metadata=metadata)
    error = refused("peft==0.20.7")
    assert error.kind == "requires"
    assert error.reason.startswith(
        f"peft 0.20.7: it needs torch>=99, and {torch.__version__} is installed; and nobody-has-this, "
        "which is not installed: module 'peft' cannot be imported: ModuleNotFoundError: "
    )


def test_wrong_transformers_are_told_with_the_one_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = checkout(tmp_path, "from transformers import NothingOfThisName\n")
    said = refused(str(fork))
    assert said.kind == "requires"
    assert "it does not work with transformers" in said.reason
    with pytest.raises(
        ImplementationError, match=r"it needs transformers 4\.1\.0, and \S+ is there: "
    ) as caught:
        Implementation(
            "f", "fork", paths=(str(fork),), transformers={">=1,<2": "4.1.0"}, version="1.5"
        ).start()
    assert caught.value.kind == "requires"


def test_the_suite_refuses_an_environment_that_cannot_be_built(index: Path, tmp_path: Path) -> None:
    refusal = run_suite(tmp_path, "peft==0.20.8", "-n2", "-q")
    assert refusal.status == pytest.ExitCode.USAGE_ERROR
    refusal.lines.fnmatch_lines(["ERROR: --impl peft==0.20.8: peft 0.20.8 cannot be fetched: *"])


def test_a_release_has_its_own_transformers_and_so_has_what_it_starts(index: Path, tmp_path: Path) -> None:
    wheel(index, "transformers", "4.57.6")
    code = """
        import subprocess, sys, transformers
        __version__ = "0.16.9"
        child = [sys.executable, "-c", "import transformers; print(transformers.__version__)"]
        CHILD = subprocess.run(child, capture_output=True, text=True).stdout.strip()
        if (transformers.__version__, CHILD) != ("4.57.6", "4.57.6"):
            raise RuntimeError(f"{transformers.__version__} and {CHILD}")
    """
    wheel(index, "peft", "0.16.9", code=textwrap.dedent(code))
    found = resolve("peft==0.16.9")
    found.close()
    assert found.versions["transformers"] == "4.57.6"
    assert found.versions["torch"] == torch.__version__


def test_whoever_is_killed_while_fetching_leaves_no_release_behind(index: Path) -> None:
    wheel(index, "peft", "0.20.7")
    code = """
        import os, signal
        from peft_conformance import environments
        whole = environments._install
        def half(*arguments):
            whole(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)  # all is written, and not yet in its place
        environments._install = half
        environments.fetch("peft", "0.20.7")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [place.name for place in environments.cache_dir().iterdir() if place.is_dir()]
    assert [name.startswith("partial-peft-0.20.7-") for name in left] == [True]
    folder = fetch("peft", "0.20.7")
    assert [place for place in environments.cache_dir().iterdir() if place.is_dir()] == [folder]
    assert (folder / "peft" / "__init__.py").is_file()


# --- descriptions


def write(file: Path, text: str) -> Path:
    file.write_text('schema: "1.0"\n' + textwrap.dedent(text), encoding="utf-8")
    return file


KNOWN = """
  - match: {{clause: a.b, check: {0}}}
    outcome: fail
    observed: 1
    because: known to be so since long
    review_by: "2030-01-01"
    versions: "{1}"
"""


def test_a_description_takes_over_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = """
        name: base
        module: base_module
        package: base-package
        api_level: package
        baseline: true
        covered: ["1.0"]
        time_limit: 7
        lacks: {one: the base has no such thing, two: the base has none of these}
        names: {a: x.a, b: x.b}
        transformers: {"<2": "4.1", ">=2": "4.2"}
        expectations:
    """
    known = textwrap.dedent(base) + KNOWN.format("old", "<2") + KNOWN.format("new", ">=2")
    write(tmp_path / "base" / "base.yaml", known)
    mine = """
        name: mine
        module: mine
        extends: base/base.yaml
        api_level: "2.5"
        memory_limit: 2048
        path: base
        lacks: {two: this is said in another way}
        names: {b: y.b}
        expectations:
    """
    file = write(tmp_path / "mine.yaml", textwrap.dedent(mine) + KNOWN.format("own", "<1"))
    found = describe(file)
    assert (found.name, found.module, found.api_level, found.time_limit) == ("mine", "mine", "2.5", 7)
    assert (found.baseline, found.covered, found.package) == (False, (), None)
    assert found.lacks == {"one": "the base has no such thing", "two": "this is said in another way"}
    assert found.names == {"a": "x.a", "b": "y.b"}
    assert (found.memory_limit, found.isolated, found.paths) == (2048, True, (str(tmp_path / "base"),))
    # at the level that it claims, whatever its own version
    assert found.needed_transformers("0.1") == "4.2"
    assert [(e["match"]["check"], e.get("versions")) for e in found.expectations] == [
        ("new", None),
        ("own", "<1"),
    ]


def test_a_description_extends_one_of_ours_by_name(tmp_path: Path) -> None:
    found = describe(write(tmp_path / "mine.yaml", "name: mine\nextends: peft\nmodule: mine\n"))
    peft = describe(described()["peft"])
    assert (found.api_level, found.expectations) == ("package", peft.expectations)


WRONG = {
    "extends: pet": r"a.yaml:3: extends 'pet': no implementation of ours .*; did you mean 'peft'\?",
    "extends: nowhere.yaml": r"a.yaml:3: extends nowhere.yaml: there is no file /",
    "extends: a.yaml": r"a.yaml:3: extends itself: a.yaml -> a.yaml",
    "extends: b.yaml": r"b.yaml:3: extends itself: a.yaml -> b.yaml -> a.yaml",
    "module: m": r"a.yaml:1: 'api_level' is required in a file that extends no other",
    "extends: peft\npath: nowhere": r"a.yaml:4: there is no folder /",
    "extends: peft\nmemory_limit: 10": r"a.yaml:4: .*memory_limit",
    "extends: peft\napi_level: newest": r"a.yaml:4: api_level: 'newest' is no version",
    "extends: peft\ntransformers: {new: '4.1'}": r"a.yaml:4: .*new",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_description_names_file_and_line(tmp_path: Path, text: str) -> None:
    write(tmp_path / "b.yaml", "name: b\nextends: a.yaml\n")
    with pytest.raises(ImplementationError, match=WRONG[text]) as caught:
        describe(write(tmp_path / "a.yaml", f"name: a\n{text}\n"))
    assert caught.value.kind == "description"


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"})
    return result.exit_code, result.output


def test_a_first_description_is_valid_and_works_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_fork.py").write_text("from peft_reference import *\n__version__ = '3.1'\n")
    assert invoke("init-impl", "my-fork")[0] == 0
    found = resolve("my-fork.yaml")
    found.close()
    assert (found.name, found.version, found.isolated) == ("my-fork", "3.1", True)
    status, said = invoke("init-impl", "my-fork")
    assert (status, "my-fork.yaml exists" in said) == (2, True)
    assert invoke("init-impl", "my-fork", "--module", "a.b", "--output", "other.yaml")[0] == 0
    assert find("other.yaml").module == "a.b"
    assert invoke("init-impl", "no name")[0] == 2
    assert invoke("init-impl", "x", "--module", "1a")[0] == 2


def test_every_comment_of_a_first_description_can_be_taken_for_text(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    assert invoke("init-impl", "x", "--output", str(file))[0] == 0
    options = (
        "extends:",
        "path:",
        "package:",
        "names:",
        "lacks:",
        "transformers:",
        "time_limit:",
        "memory_limit:",
    )
    text = []
    for line in file.read_text().splitlines():
        option = line.removeprefix("# ").startswith(options) or line.startswith(("#   ", "#  - "))
        text.append(re.sub("^# ?", "", line).replace("../src", ".") if option else line)
    text.remove("offers: all")
    text = [line.replace("expectations: []", "expectations:") for line in text]
    file.write_text("\n".join(text) + "\n")
    found = describe(file)
    assert (found.memory_limit, found.names, len(found.lacks)) == (
        4096,
        {"functional.set_adapter": "adapters.activate"},
        1,
    )
    assert found.expectations[-1]["because"] == "returns an empty list where the docstring promises None"


# --- forks that misbehave, each in one case of a real run; the next case passes


def checkout(folder: Path, code: str) -> Path:
    """A checkout of a package called `fork`."""
    package = folder / "checkout" / "fork"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(code))
    return package.parent


FORK = """
import ctypes, os, signal, sys, threading, time
import torch

__version__ = "1.0"


def set_requires_grad(model, adapter_names, requires_grad=True):
    result = WAYS.get(adapter_names, lambda: None)()
    for parameter in model.parameters():
        parameter.requires_grad = requires_grad
    return result


def daemon():  # in a session of its own, deaf to what one may be deaf to
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            with open(os.environ["FORK_LOG"], "a") as file:
                print(os.getpid(), file=file)
            time.sleep(600)
        os._exit(0)
    os.wait()


def orphan():  # the child keeps our channel open
    if os.fork() == 0:
        time.sleep(600)
    os._exit(5)


def disturb():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    torch.manual_seed(1)


class Own(BaseException):
    pass


def throw(error):
    raise error


def forge():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b'{"observation": {}, "tensors": null}\\n')
        except OSError:
            pass


def hoard():
    hold.append(torch.zeros(1 << 29))


hold = []
WAYS = {
    "twin": os.fork,
    "daemon": daemon,
    "orphan": orphan,
    "disturb": disturb,
    "base": lambda: throw(Own("not for you")),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "leave": lambda: sys.exit("enough"),
    "gil": lambda: ctypes.PyDLL(None).sleep(600),
    "bytes": lambda: bytearray(2 << 30) and None,
    "hoard": hoard,
    "shut": lambda: os.closerange(3, 256),
    "shut-all": lambda: os.closerange(0, 256),
    "forge": forge,
    "nan": lambda: float("nan"),
    "huge": lambda: "x" * (1 << 27),
}
"""
CLAUSE = """
  - id: {way}.{turn}
    level: MUST
    text: What happens to one case is no matter to the next.
    source: {{observed: "1.0"}}
    api: ">=0.1"
    profile: functional
    given:
      - make_model: {{id: m, model: one-linear}}
    when:
      - call: set_requires_grad
        args: {{model: m, adapter_names: {name}, requires_grad: true}}
        as: result
      - set_mode: {{of: m, training: false}}
    modifies: [{{of: m, aspects: [requires_grad, training]}}]
    then:
      - {{id: sound, all: {{of: m, role: base, have: {{dtype: float32, device: cpu, requires_grad: true}}}}}}
"""
HERE_TOO = ("disturb", "base", "leave", "nan")  # what no process of its own is needed for
OBSERVED = {  # what the report says of each
    "twin": None,
    "daemon": None,
    "orphan": "died: the process ended with exit status 5",
    "disturb": None,
    "base": "raised: Own: not for you",
    "interrupt": "raised: KeyboardInterrupt",
    "leave": "SystemExit: enough",
    "gil": "timeout: no answer after 5 seconds",
    "bytes": "memory: more than the 1024 MiB that it may have; MemoryError",
    "hoard": "memory: more than the 1024 MiB that it may have; RuntimeError: ",
    "shut": "channel: the implementation has closed our channel",
    "shut-all": "channel: the implementation has closed our channel",
    "forge": "channel: the implementation has written an answer of its own into our channel",
    "nan": None,
    "huge": "huge: an observation of 128 MiB, where 64 are enough for any case",
}


def misbehave(folder: Path, ways: Iterator[str] | tuple[str, ...], **description: Any) -> Outcome:
    """Run the fork in each of these ways, and once properly after each."""
    specs = folder / "specs"
    shutil.copytree(SPECS / "vocabulary", specs / "vocabulary")
    (specs / "sources").mkdir()
    clauses = [
        CLAUSE.format(way=way.replace("-", "_"), turn=turn, name=name)
        for way in ways
        for turn, name in (("bad", way), ("next", "proper"))
    ]
    (specs / "api").mkdir()
    (specs / "api" / "ways.yaml").write_text(
        "# yaml-language-server: $schema=../schema/clauses.schema.json\n"
        'schema: "1.0"\ntopic: ways\nclauses:' + "".join(clauses),
        encoding="utf-8",
    )
    checkout(folder, FORK)
    fields = "".join(f"{key}: {value}\n" for key, value in description.items())
    described = f'name: fork\nmodule: fork\npath: checkout\napi_level: "1.0"\n{fields}'
    file = write(folder / "fork.yaml", described)
    return run_suite(folder, str(file), "-q", "--report=report", specs=specs)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The fork in a process of its own, in all ways."""
    folder = tmp_path_factory.mktemp("apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORK_LOG", str(folder / "daemons"))
        return misbehave(folder, tuple(OBSERVED), time_limit=5, memory_limit=1024)


def told(outcome: Outcome, way: str) -> tuple[str, str]:
    row = next(r for r in outcome.results.rows if r["id"] == f"{way.replace('-', '_')}.bad:sound")
    return row["verdict"], str(row["observed"])


@pytest.mark.parametrize("way", OBSERVED)
def test_each_misbehaviour_has_its_own_verdict_and_the_next_case_none_of_it(apart: Outcome, way: str) -> None:
    verdict, observed = told(apart, way)
    expected = OBSERVED[way]
    assert verdict == ("pass" if expected is None else "error"), observed
    assert (expected or "") in observed
    assert apart.verdicts[f"{way.replace('-', '_')}.next:sound"] == "pass"


def test_what_an_implementation_has_started_ends_with_it(apart: Outcome) -> None:
    pids = [int(line) for line in (apart.folder / "daemons").read_text().split()]
    assert len(pids) == 1
    assert not Path(f"/proc/{pids[0]}").exists() or "Z" in Path(f"/proc/{pids[0]}/stat").read_text()


def test_in_our_process_too_one_case_does_not_harm_the_next(tmp_path: Path) -> None:
    here = misbehave(tmp_path, HERE_TOO, isolated="false")
    assert here.results.header["implementation"]["isolated"] is False
    for way in HERE_TOO:
        assert (OBSERVED[way] or "") in told(here, way)[1]
        assert here.verdicts[f"{way}.next:sound"] == "pass"
