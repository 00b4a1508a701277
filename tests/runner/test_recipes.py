"""The pages in docs: every command is one that there is, and the fork maintainer's are run in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from peft_conformance.cli import app
from suite_runs import ALONE, IMPLEMENTATIONS, PLUGINS, SPECS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
OF_PYTEST = {"-n", "-k", "--matrix", "--profile", "--report", "--device", "--record"}


def commands(page: Path) -> list[list[str]]:
    """The lines of a page's shell blocks that call our command."""
    lines = [line for block in BLOCK.findall(page.read_text("utf-8")) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line))[0] == "peft-conformance"]


EVERY = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", [pytest.param(w, id=f"{page}: {' '.join(w[1:])}") for page, w in EVERY])
def test_a_command_of_a_page_is_one_that_there_is(words: list[str]) -> None:
    known = getattr(typer.main.get_command(app), "commands")  # noqa: B009 - of typer's own click
    command = known[words[1]]
    with command.make_context(words[1], words[2:]) as context:  # raises for a wrong option or argument
        unknown = [word for word in context.args if word.startswith("-")]
    assert set(unknown) <= OF_PYTEST


def test_a_page_links_to_what_there_is() -> None:
    assert len(PAGES) >= 3
    for page in PAGES:
        for link in re.findall(r"\]\(((?!http)[^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def test_the_action_in_the_recipe_has_only_inputs_that_there_are() -> None:
    page = (ROOT / "docs" / "before-a-release.md").read_text("utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    _, step = yaml.safe_load(block)
    known = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))["inputs"]
    assert set(step["with"]) <= set(known)


def test_the_recipe_of_a_fork_works_as_it_stands(tmp_path: Path) -> None:
    """Its first commands, on the runner's small specs; the others have tests of their own."""
    alias = "import sys\n\nimport tiny\n\nsys.modules[__name__] = tiny\n"
    (tmp_path / "my_fork.py").write_text(alias)
    paths = [str(tmp_path), str(IMPLEMENTATIONS), *filter(None, [os.environ.get("PYTHONPATH")])]
    options = f"--specs={SPECS} -k good.freezes {' '.join(PLUGINS)}"
    environment = {**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": options}
    for words in commands(ROOT / "docs" / "before-a-release.md")[:2]:
        command = [sys.executable, "-c", "from peft_conformance.cli import app; app()", *words[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stdout + done.stderr)
    assert (tmp_path / "my-fork.yaml").is_file()
    assert (tmp_path / "reports" / "my-fork" / "summary.md").is_file()
