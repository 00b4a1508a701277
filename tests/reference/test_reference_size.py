"""The reference stays small: what every method runs on, and each method's own file."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import peft_reference
import pytest

REFERENCE = Path(peft_reference.__file__).parent
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def lines_of_code(text: str) -> int:
    """How many lines are neither blank nor only a comment or a docstring."""
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            code.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(code)


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports when it is imported itself."""
    names: set[str] = set()
    for node in ast.parse((REFERENCE / f"{module}.py").read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names


def core() -> set[str]:
    """What every method runs on: putting adapters into a model and their state dicts, with what those need.

    That is layers, operators, matching, merging and so on. What a user calls besides (`PeftModel` and the
    models for tasks, files, status, combining, preparing a model) is built upon it and is not counted.
    """
    found: set[str] = set()
    ahead = {"injection", "state_dict"}
    while ahead:
        module = ahead.pop()
        found.add(module)
        ahead |= imported(module) - found
    return found


def test_only_code_is_counted() -> None:
    head = '"""Module.\n\nMore.\n"""\n\n# why\n'
    text = head + 'def f(x):\n    """What."""\n    y = """a\n    b"""  # c\n\n    return x\n'
    assert lines_of_code(text) == 4


def test_the_core_needs_nothing_that_is_built_upon_it() -> None:
    assert core() >= {"config", "registry", "operators", "layer", "matching", "merging", "wrappers", "tying"}
    assert not core() & {
        "methods",
        "model",
        "tasks",
        "auto",
        "mixed",
        "saving",
        "status",
        "combining",
        "kbit",
    }


def test_the_core_is_small() -> None:
    sizes = {module: lines_of_code((REFERENCE / f"{module}.py").read_text("utf-8")) for module in core()}
    assert sum(sizes.values()) < 2500, sizes


@pytest.mark.parametrize("file", sorted((REFERENCE / "methods").glob("*.py")), ids=lambda file: file.stem)
def test_a_method_has_a_short_file_or_a_reason(file: Path) -> None:
    text = file.read_text("utf-8")
    reason = "longer than other files:" in (ast.get_docstring(ast.parse(text)) or "")
    assert reason == (len(text.splitlines()) > 200), (
        "the docstring has to say why it is `longer than other files:`"
    )
