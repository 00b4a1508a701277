"""Which clauses have changed since a git revision: those that say, or use, something else than they did.

Clauses are compared as they are loaded, each with what it uses: cards of its methods, models, operations,
sets, who relies on it. A comment, a moved line or another file changes none. Where what reads specs, performs
or judges has changed, all have.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft_conformance.cases import Clause
from peft_conformance.consumers import Consumers
from peft_conformance.expand import methods_at, models_at, points
from peft_conformance.fingerprint import verdict_code
from peft_conformance.language import SpecErrors, Suite, load_suite

PLACES = {"file", "line", "lines", "variants"}  # of a clause, where it stands; its variants hold lines too


def changed_clauses(
    suite: Suite, since: str, snapshots: Path, code: Collection[Path] | None = None
) -> frozenset[str]:
    """The ids of the clauses that are not what they were at a revision; files not yet in git count too.

    `code` are the files on which every verdict depends. Raises ValueError where there is nothing to compare.
    """
    specs, every = suite.specs.resolve(), frozenset(clause.id for clause in suite.clauses)
    try:
        top = Path(_git(specs, "rev-parse", "--show-toplevel").decode().strip()).resolve()
    except (ValueError, OSError) as error:
        raise ValueError(f"--changed compares with git, and {specs} is in no git checkout: {error}") from None
    try:
        revision = _git(top, "rev-parse", "--verify", "--quiet", f"{since}^{{commit}}").decode().strip()
    except ValueError:
        raise ValueError(
            f"--changed: git knows no revision {since!r} in {top}; write --changed, or --changed=REF"
        ) from None
    where = specs.relative_to(top).as_posix()
    if not _git(top, "ls-tree", revision, "--", where):
        raise ValueError(f"--changed: {since} has no {where}: these specs are not in git")
    changed = _changed_files(top, revision)
    code = verdict_code() if code is None else code
    if any(specs / "schema" in file.parents for file in changed) or not changed.isdisjoint(code):
        return every
    shown = {file.name for file in changed if file.parent == snapshots.resolve()}
    found = {name for name in every if any(file.startswith((f"{name}--", f"{name}[")) for file in shown)}
    if any(specs in file.parents for file in changed):
        try:
            before = _contents(_suite_at(top, revision, where))
        except SpecErrors:  # as it stood, it cannot be read any more
            return every
        found |= {name for name, content in _contents(suite).items() if before.get(name) != content}
    return frozenset(found)


def _git(folder: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.decode("utf-8", "replace").strip() or f"git {arguments[0]} failed")
    return done.stdout


def _changed_files(top: Path, revision: str) -> set[Path]:
    """Files that differ from those at a revision, staged or not, and those that git does not know yet."""
    known = _git(top, "diff", "--name-only", "--no-renames", "-z", revision)
    new = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
    return {top / name.decode("utf-8", "surrogateescape") for name in (known + new).split(b"\0") if name}


def _suite_at(top: Path, revision: str, specs: str) -> Suite:
    """The specs of a revision, as they are read today."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(_git(top, "archive", "--format=tar", revision, specs))) as files:
            for member in files:
                if member.isfile() and (content := files.extractfile(member)):
                    target = Path(folder, member.name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
        return load_suite(Path(folder, specs))


def _contents(suite: Suite) -> dict[str, str]:
    """Clause -> all that it says and uses, as text to be compared."""
    consumers = Consumers(suite)
    shared = json.dumps([suite.tolerances, suite.errors, suite.capabilities], default=str)
    return {clause.id: shared + json.dumps(_uses(suite, consumers, clause)) for clause in suite.clauses}


def _uses(suite: Suite, consumers: Consumers, clause: Clause) -> list[Any]:
    own = {f.name: getattr(clause, f.name) for f in fields(clause) if f.name not in PLACES}
    checks = [
        [variant.api, *([c.id, c.word, c.body, c.level, c.because] for c in variant.checks)]
        for variant in clause.variants
    ]
    every = points(clause)
    methods = set[str]().union(*(methods_at(suite, clause, point) for point in every))
    models = set[str]().union(*(models_at(clause, point) for point in every))
    calls = {step["call"] for step in clause.steps if "call" in step}
    users = [[name, suite.profiles[name].get("methods"), entry] for name, entry in consumers.entries(clause)]
    return [
        own,
        checks,
        users,
        [suite.cards[name] for name in sorted(methods)],
        [suite.models.get(name) for name in sorted(models)],
        [suite.operations.get(name) for name in sorted(calls)],
        [suite.sets.get(name) for name in clause.axis_sets.values()],
    ]
