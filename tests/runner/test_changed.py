"""`--changed`: what git says has changed since a revision is run, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from peft_conformance.changes import changed_clauses
from peft_conformance.language import find_specs_dir, load_suite
from suite_runs import SPECS, run_suite

PASS, WORDS, APP = "api/must_pass.yaml", "vocabulary/words.yaml", "profiles/app.yaml"
Changed = Callable[..., set[str]]


def git(folder: Path, *arguments: str) -> None:
    own = ["-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *own, *arguments], check=True, capture_output=True)


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    """A specs folder in a repository, committed."""
    repository = tmp_path / "repository"
    shutil.copytree(SPECS, repository / "specs")
    (repository / "code.py").write_text("")
    git(tmp_path, "init", "-q", str(repository))
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "first")
    return repository / "specs"


@pytest.fixture
def changed(specs: Path) -> Changed:
    def found(since: str = "HEAD") -> set[str]:
        code = [specs.parent / "code.py"]
        return set(changed_clauses(load_suite(specs), since, specs / "__snapshots__", code))

    return found


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1), "utf-8")


def test_nothing_has_changed(changed: Changed) -> None:
    assert changed() == set()


def test_a_comment_or_a_moved_line_changes_no_clause(specs: Path, changed: Changed) -> None:
    edit(specs / PASS, "topic: must_pass\n", "topic: must_pass\n\n# what follows holds\n")
    (specs.parent / "readme.md").write_text("another file")
    assert changed() == set()


@pytest.mark.parametrize("staged", [False, True])
def test_a_clause_that_says_something_else_is_changed(staged: bool, specs: Path, changed: Changed) -> None:
    edit(specs / PASS, "mentions: [unknown]", "mentions: [nobody]")
    if staged:
        git(specs, "add", "-A")
    assert changed() == {"good.refuses"}


def test_a_file_that_git_does_not_know_yet_counts(specs: Path, changed: Changed) -> None:
    text = (specs / PASS).read_text("utf-8").partition("  - id: good.refuses")[0]
    (specs / "api" / "more.yaml").write_text(text.replace("good.freezes", "more.freezes"), "utf-8")
    assert changed() == {"more.freezes"}


def test_it_compares_with_any_revision(specs: Path, changed: Changed) -> None:
    edit(specs / PASS, "mentions: [unknown]", "mentions: [nobody]")
    git(specs, "commit", "-qam", "second")
    assert (changed(), changed("HEAD~1")) == (set(), {"good.refuses"})


def test_a_model_changes_the_clauses_that_make_it(specs: Path, changed: Changed) -> None:
    edit(specs / WORDS, "in_features: 3", "in_features: 4")
    made = {clause.id for clause in load_suite(specs).clauses if any("make_model" in s for s in clause.steps)}
    assert changed() == made
    assert "good.freezes" in made


def test_an_error_class_may_matter_to_any_clause(specs: Path, changed: Changed) -> None:
    edit(specs / WORDS, "that makes no sense", "that does not make sense")
    assert len(changed()) == len(load_suite(specs).clauses)


def test_a_profile_changes_the_clauses_that_it_names(specs: Path, changed: Changed) -> None:
    edit(specs / APP, "axes: {dtype: [bfloat16]}", "axes: {dtype: [float32]}")
    assert changed() == {"good.freezes", "good.prints", "good.on-devices", "good.not-offered"}


def test_a_snapshot_changes_the_clause_that_it_is_of(specs: Path, changed: Changed) -> None:
    (specs / "__snapshots__").mkdir(exist_ok=True)
    (specs / "__snapshots__" / "good.pictured--picture.txt").write_text("another picture")
    assert changed() == {"good.pictured"}


@pytest.mark.parametrize("file", ["code.py", "specs/schema/new.json"])
def test_code_and_schemas_change_everything(file: str, specs: Path, changed: Changed) -> None:
    (specs.parent / file).parent.mkdir(exist_ok=True)
    (specs.parent / file).write_text("{}")
    assert len(changed()) == len(load_suite(specs).clauses)


def test_what_could_not_be_read_then_is_new_now(specs: Path, changed: Changed) -> None:
    good = (specs / PASS).read_text("utf-8")
    (specs / PASS).write_text("nothing: here\n")
    git(specs, "commit", "-qam", "broken")
    (specs / PASS).write_text(good, "utf-8")
    assert len(changed()) == len(load_suite(specs).clauses)


def test_a_card_changes_the_clauses_of_its_method(tmp_path: Path) -> None:
    shutil.copytree(find_specs_dir(), tmp_path / "specs")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    edit(tmp_path / "specs" / "methods" / "vera.yaml", "\ntitle:", "\ntitle: New and")
    found = changed_clauses(load_suite(tmp_path / "specs"), "HEAD", tmp_path / "none")
    assert any(name.startswith("law.") for name in found)
    assert not any(name.startswith(("ia3.", "adalora.")) for name in found)


def test_outside_of_git_or_for_an_unknown_revision_it_says_what_is_wrong(
    tmp_path: Path, specs: Path, changed: Changed
) -> None:
    with pytest.raises(ValueError, match=r"no revision 'nowhere' in .*write --changed, or --changed=REF"):
        changed("nowhere")
    shutil.copytree(SPECS, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"plain is in no git checkout"):
        changed_clauses(load_suite(tmp_path / "plain"), "HEAD", tmp_path)
    shutil.copytree(SPECS, specs.parent / "other")
    with pytest.raises(ValueError, match=r"HEAD has no other: these specs are not in git"):
        changed_clauses(load_suite(specs.parent / "other"), "HEAD", tmp_path)


def test_a_run_of_what_has_not_changed_is_a_success_that_says_so(tmp_path: Path, specs: Path) -> None:
    outcome = run_suite(tmp_path, "tiny", "--changed", "--report=report", specs=specs)
    assert outcome.status == 0
    outcome.lines.fnmatch_lines(["no clause has changed since HEAD: there is nothing to run"])
    assert "NOTHING WAS JUDGED" not in outcome.text
    assert (outcome.results.rows, outcome.results.complete) == ([], True)


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_run_judges_what_has_changed(workers: str, tmp_path: Path, specs: Path) -> None:
    edit(specs / PASS, "mentions: [unknown]", "mentions: [unknown, name]")
    outcome = run_suite(tmp_path, "tiny", "--changed", workers, "--report=report", specs=specs)
    assert {row["clause"] for row in outcome.results.rows} == {"good.refuses"}
    outcome.lines.fnmatch_lines(["changed since HEAD: 1 clauses"])
    assert outcome.results.header["selection"] == "--changed=HEAD"


def test_a_run_outside_of_git_is_a_usage_error(tmp_path: Path) -> None:
    shutil.copytree(SPECS, tmp_path / "specs")
    outcome = run_suite(tmp_path, "tiny", "--changed", specs=tmp_path / "specs")
    assert outcome.status == 4
    outcome.lines.fnmatch_lines(["*--changed compares with git, and * is in no git checkout*"])
