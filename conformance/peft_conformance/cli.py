"""`peft-conformance`: check the specs, read them, count what they cover, run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from peft_conformance.cases import Clause, case_id
from peft_conformance.consumers import Consumers, selected
from peft_conformance.expand import points
from peft_conformance.implementations import ImplementationError
from peft_conformance.language import FOLDERS, SpecError, SpecErrors, Suite, find_specs_dir, load_suite
from peft_conformance.lint import lint as faults_of
from peft_conformance.overview import overview
from peft_conformance.reading import closest
from peft_conformance.report import markdown_table, text_table
from peft_conformance.run import sources, yaml_lines
from peft_conformance.trace import Demand, demands, gaps

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The conformance suite for PEFT-style adapters."
)
console = Console(highlight=False, soft_wrap=True)
warnings = Console(highlight=False, soft_wrap=True, stderr=True, style="yellow")


@app.command("lint")
def lint_specs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Spec folders or files, or descriptions of implementations; none: our own."),
    ] = None,
) -> None:
    """Check specs and known failures: every fault with its file and line; exit status 1 when there is one."""
    from peft_conformance.descriptions import described
    from peft_conformance.lint_expectations import is_description, lint_expectations

    faults: list[SpecError] = []
    clauses = 0
    descriptions = [path for path in paths or () if is_description(path)]
    rest = [path for path in paths or [find_specs_dir()] if path not in descriptions]
    suites: dict[Path, Suite] = {}
    for folder, chosen in _folders(rest):
        try:
            suite = suites[folder.resolve()] = load_suite(folder)
            found = faults_of(suite)
            clauses += sum(not chosen or clause.file in chosen for clause in suite.clauses)
        except SpecErrors as errors:
            found = errors.errors
        faults += [fault for fault in found if not chosen or fault.file in chosen]
    if not paths and not faults:
        faults += _faults_of_fixes(suite)
    files = descriptions if paths else [*described().values()]
    if files and (ours := suites.get(find_specs_dir().resolve()) or _suite()):
        for file in files:
            found, late = lint_expectations(file, ours, date.today())
            faults += found
            for entry in late:
                warnings.print(f"{_near(file)}:{entry.line}: to be reviewed by {entry.text}", markup=False)
    for fault in faults:
        console.print(f"{_near(fault.file)}:{fault.line}: {fault.text}", markup=False)
    if faults:
        raise typer.Exit(1)
    console.print(f"{clauses} clauses, no fault")


def _faults_of_fixes(suite: Suite) -> list[SpecError]:
    from peft_conformance import fixes

    try:
        return fixes.faults(fixes.load_fixes(fixes.find_fixes()), suite)
    except SpecErrors as errors:
        return errors.errors


@app.command("propose-expectations")
def propose_expectations(
    report: Annotated[Path, typer.Argument(help="results.jsonl of a run, or the folder that it lies in.")],
    versions: Annotated[
        str | None,
        typer.Option(help="PEP 440 range of the entries; without it, just the version of the run."),
    ] = None,
    impl: Annotated[
        str | None, typer.Option(help="Whose known failures count, where the report does not name ours.")
    ] = None,
) -> None:
    """Print entries for what a report shows red, and which known failures are outdated; writes nothing."""
    from peft_conformance.descriptions import described
    from peft_conformance.implementations import find
    from peft_conformance.propose import propose
    from peft_conformance.report import read

    file = report / "results.jsonl" if report.is_dir() else report
    try:
        SpecifierSet(versions or "")
        results = read(file)
        name = impl or results.header["implementation"]["name"]
        known = find(name).expectations if impl or name in described() else ()
        proposal = propose(results, known, versions, date.today())
    except InvalidSpecifier:
        raise typer.BadParameter(f"--versions {versions!r} is no PEP 440 range, such as '>=0.21'") from None
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    except (ValueError, ImplementationError) as error:
        raise typer.BadParameter(str(error)) from None
    console.file.write(proposal.text())


def _folders(paths: list[Path]) -> Iterator[tuple[Path, set[Path]]]:
    """Each specs folder that the paths lie in, with the files that were chosen of it (none means all)."""
    chosen: dict[Path, set[Path]] = {}
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(f"no such file or folder: {path}")
        inside = path.is_file() or path.resolve().name in FOLDERS
        folder = path.resolve().parents[1 if path.is_file() else 0] if inside else path.resolve()
        files = (
            {path.resolve()} if path.is_file() else set(path.resolve().glob("*.yaml")) if inside else set()
        )
        chosen.setdefault(folder, set()).update(files)
    yield from chosen.items()


@app.command()
def show(clause: Annotated[str, typer.Argument(help="Id of a clause, e.g. inject.in-place.")]) -> None:
    """Print a clause: its sentence, where that comes from, its cases, and its YAML."""
    suite = _suite()
    try:
        found = suite.clause(clause)
    except KeyError as error:
        raise typer.BadParameter(error.args[0]) from None
    console.print(f"[bold]{found.id}[/bold]  {found.level}\n{found.text}")
    for source in sources(suite, found):
        console.print(f"  source   {source}", markup=False)
    if found.decided:
        console.print(f"  decided  {found.decided}", markup=False)
    console.print(f"  profile  {found.profile}\n  API      {found.api}", markup=False)
    if found.needs:
        console.print(f"  needs    {', '.join(found.needs)}")
    for name, entry in Consumers(suite).entries(found):
        console.print(f"  used by  {name}: {entry['because']}", markup=False)
    ids = [case_id(found.id, point) for point in points(found)]
    console.print(f"\n{len(ids)} cases")
    for case in ids:
        console.print(f"  {case}", markup=False)
    console.print(f"\n{_near(found.file)}:{found.line}")
    console.print(Syntax(yaml_lines(found.file, found.line), "yaml", background_color="default"))


@app.command("list")
def list_clauses(
    profile: Annotated[
        list[str] | None, typer.Option(help="Only this profile or consumer (repeatable).")
    ] = None,
) -> None:
    """List all clauses by topic."""
    suite = _suite()
    try:
        takes = selected(suite, profile or ())
    except KeyError as error:
        raise typer.BadParameter(error.args[0]) from None
    topics: dict[str, list[Clause]] = {}
    for clause in suite.clauses:
        if any(takes(clause, point) for point in points(clause)):
            topics.setdefault(clause.topic, []).append(clause)
    for topic, clauses in sorted(topics.items()):
        console.print(f"\n[bold]{topic}[/bold]")
        table = Table.grid("clause", "level", "sentence", padding=(0, 2))
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for clause in clauses:
            table.add_row(f"  {clause.id}", clause.level, clause.text)
        console.print(table)


@app.command()
def methods() -> None:
    """Print METHODS.md, every method as its card states it."""
    console.file.write(overview(_suite()))


@app.command()
def trace(
    only: Annotated[
        list[str] | None, typer.Argument(help="Documents, areas or clauses; without any, all of them.")
    ] = None,
) -> None:
    """What each sentence and row led to, and what each clause answers; exit status 1 on a gap."""
    suite = _suite()
    found = demands(suite)
    groups = dict.fromkeys(demand.group for demand in found)
    clauses = {clause.id for clause in suite.clauses}
    for name in only or ():
        if name not in groups and name not in clauses:
            near = closest(name, [*groups, *clauses])
            raise typer.BadParameter(
                f"no document, area or clause {name!r}" + (f"; did you mean {near!r}?" if near else "")
            )
    chosen = [d for d in found if not only or d.group in only]
    for group in dict.fromkeys(d.group for d in chosen):
        console.print(f"\n{group}", style="bold", markup=False)
        for demand in (d for d in chosen if d.group == group):
            console.print(f"  {demand.id.rpartition('#')[2]}  {demand.says}".rstrip(), markup=False)
            console.print(f"    {_answer(demand)}", markup=False)
    console.print("\nclauses", style="bold")
    for clause in suite.clauses:
        named = clause.id in (only or ())
        answered = [d for d in (found if named else chosen) if clause.id in d.clauses]
        if only and not named and not answered:
            continue
        console.print(f"  {clause.id}  {clause.text}", markup=False)
        told = [d.id for d in answered] or [f"observed: {s['observed']}" for s in clause.sources]
        console.print(f"    answers {', '.join(told)}", markup=False)
    _print_counts(chosen)
    if open_ := gaps(chosen):
        console.print(f"{len(open_)} untriaged: {', '.join(d.id for d in open_)}", markup=False)
        raise typer.Exit(1)


def _answer(demand: Demand) -> str:
    """What became of a demand, in a line."""
    if demand.clauses:
        return ", ".join(demand.clauses)
    if demand.same_as:
        return f"the same as {demand.same_as}"
    return f"excluded: {demand.excluded}" if demand.excluded else "UNTRIAGED"


def _print_counts(found: Sequence[Demand]) -> None:
    """How many demands of each document and area a clause answers, or a reason excludes, or nothing does."""
    table = Table("document or area", "all", "covered", "same as", "excluded", "untriaged")
    for group in dict.fromkeys(d.group for d in found):
        these = [d for d in found if d.group == group]
        counts = (
            sum(bool(d.clauses) for d in these),
            sum(bool(d.same_as) for d in these),
            sum(bool(d.excluded) for d in these),
            len(gaps(these)),
        )
        table.add_row(group, str(len(these)), *map(str, counts))
    console.print(table)


@app.command("run", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def run_suite(
    context: typer.Context,
    impl: Annotated[
        str, typer.Option(help="reference, peft, peft==VERSION, a module, a .yaml file or a checkout.")
    ],
) -> None:
    """Run the suite against an implementation; further arguments are pytest's (-n 2, -k …, --report DIR).

    --changed runs what git says has changed since HEAD, --changed=main since main: clauses that say something
    else now, and those whose cards, models or profiles do.
    """
    suite = ["--pyargs", "peft_conformance.test_conformance", f"--impl={impl}"]
    raise typer.Exit(subprocess.call([sys.executable, "-m", "pytest", *suite, *context.args]))


@app.command("diff")
def compare_two(
    left: Annotated[str, typer.Argument(help="What one comes from: as for --impl, or a recording.")],
    right: Annotated[str, typer.Argument(help="What one moves to.")],
    matrix: Annotated[
        Literal["smoke", "pairwise", "full"],
        typer.Option(help="How many points of each clause are compared."),
    ] = "smoke",
    profile: Annotated[list[str] | None, typer.Option(help="Only this profile (repeatable).")] = None,
    clause: Annotated[
        list[str] | None, typer.Option(help="Only clauses that begin so, or fit the pattern (repeatable).")
    ] = None,
    form: Annotated[
        Literal["terminal", "markdown", "json"], typer.Option("--format", help="What is written.")
    ] = "terminal",
    everything: Annotated[bool, typer.Option("--all", help="Every line, not only the most telling.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write into this file.")] = None,
    specs: Annotated[Path | None, typer.Option(help="Use the specs in this folder, not our own.")] = None,
) -> None:
    """What changes from LEFT to RIGHT: verdicts, what they do, what they offer.

    LEFT and RIGHT are as for --impl, or what --record has kept: a report's folder, its observations.jsonl.gz.
    Exit status: 0 when no check turned red, 1 when one did, 2 for a mistake in the arguments, 3 when
    interrupted; what was performed of a known release is kept, so that the same command goes on.
    """
    from peft_conformance.diff.command import compare_and_tell

    try:
        red = compare_and_tell(
            left, right, matrix, profile or [], clause or [], form, everything, output, specs
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(red)


@app.command("judge")
def judge_recordings(
    recordings: Annotated[
        list[Path], typer.Argument(help="observations.jsonl.gz of one implementation, or report folders.")
    ],
    specs: Annotated[
        Path | None, typer.Option(help="Judge by the specs in this folder, not our own.")
    ] = None,
    impl_file: Annotated[
        Path | None, typer.Option(help="Take claims and known failures from this description (.yaml).")
    ] = None,
    api_level: Annotated[
        str | None, typer.Option(help="Judge by this API level, not the recorded one.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write results.jsonl and summary.md there.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Judge what there is of a recording cut off.")
    ] = False,
) -> None:
    """Judge what was recorded with --record; no implementation is imported, nothing is performed."""
    from peft_conformance.rejudge import judge_again, open_recordings, status
    from peft_conformance.run import Refusal

    try:
        run, notes = open_recordings(
            recordings, specs=specs, description=impl_file, api_level=api_level, partial=partial
        )
    except (ValueError, OSError, ImplementationError, Refusal) as error:
        raise typer.BadParameter(str(error)) from None
    results = judge_again(run, notes, console)
    if report is not None:
        results.write(report)
        console.print(f"report: {report / 'results.jsonl'}", markup=False)
    raise typer.Exit(status(results))


@app.command("matrix", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def run_matrix(
    context: typer.Context,
    implementations: Annotated[
        list[str] | None, typer.Argument(help="What --impl takes, any number of them.", metavar="[IMPL]...")
    ] = None,
    all_releases: Annotated[
        bool, typer.Option("--all-releases", help="The reference and every release that is covered.")
    ] = False,
    output: Annotated[
        Path, typer.Option(help="The folder for the reports; go on with what is there.")
    ] = Path("conformance-matrix"),
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at once; default: the cores.")] = None,
    matrix: Annotated[str, typer.Option(help="smoke, pairwise or full.")] = "full",
    profile: Annotated[list[str] | None, typer.Option(help="Only this profile (repeatable).")] = None,
) -> None:
    """Run the suite against several implementations in parallel; call it again to go on.

    After the implementations come options of pytest: -k inject, --device=cuda. Exit status: 0 nothing is
    red, 1 something is, 3 interrupted or incomplete, 4 nothing is red but something could not be run.
    """
    from peft_conformance.matrix import Matrix, plan
    from peft_conformance.matrix import all_releases as covered

    words = [*(implementations or ()), *context.args]
    first = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    names, options = words[:first], words[first:]
    try:
        runs = plan([*names, *(covered() if all_releases else ())], output)
    except ImplementationError as error:
        raise typer.BadParameter(str(error)) from None
    if not runs:
        raise typer.BadParameter("name implementations, or ask for --all-releases")
    arguments = [f"--matrix={matrix}", *(f"--profile={name}" for name in profile or ()), *options]
    whole = Matrix(runs, arguments, jobs or os.cpu_count() or 1, console)
    whole.run()
    whole.write(output)
    for line in text_table(whole.table()):
        console.print(line, markup=False)
    for run in runs:
        console.print(f"{run.name}: {run.outcome}", markup=False)
    console.print(f"\n{output / 'matrix.md'}, {output / 'matrix.json'}", markup=False)
    if whole.interrupted:
        console.print("interrupted; the same command goes on from here", style="yellow")
    raise typer.Exit(whole.status())


results_app = typer.Typer(no_args_is_help=True, help="The results of releases that are committed.")
app.add_typer(results_app, name="results")
Reports = Annotated[list[Path], typer.Argument(help="results.jsonl files, report folders, or a matrix's.")]


@results_app.command("update")
def update_results(reports: Reports) -> None:
    """Write committed results from reports of the whole suite; of a selection, the lines of its clauses."""
    from peft_conformance import committed, upkeep

    suite = _suite()
    try:
        documents = [upkeep.update(results, suite) for results in upkeep.reports(reports)]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for document in documents:
        console.print(str(_near(committed.write(document))), markup=False)


@results_app.command("check")
def check_results(
    reports: Annotated[
        list[Path] | None, typer.Argument(help="Reports to compare with; without any, no run is needed.")
    ] = None,
) -> None:
    """Whether the committed results are up to date; exit status 1, and where not, if they are not."""
    from peft_conformance import upkeep

    try:
        found = upkeep.check(reports or [], None if reports else _suite())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for line in found:
        console.print(line, markup=False)
    if found:
        raise typer.Exit(1)
    console.print("the committed results are up to date")


@results_app.command("table")
def print_results() -> None:
    """Print the table of committed results in Markdown, as README has it."""
    from peft_conformance import committed

    console.file.write(markdown_table(committed.table()))


@app.command("init-impl")
def init_implementation(
    name: Annotated[str, typer.Argument(help="What reports are to call it.")],
    module: Annotated[
        str | None, typer.Option(help="The module to import; without it, the name with _ for -.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write; without it, NAME.yaml.")] = None,
) -> None:
    """Write a commented description of an implementation, to start from; never over an existing file."""
    from peft_conformance.descriptions import write_start

    try:
        file = write_start(name, module, output)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    console.print(f"{_near(file)} is written; run: peft-conformance run --impl {_near(file)}", markup=False)


def _suite(specs: Path | None = None) -> Suite:
    try:
        return load_suite(specs or find_specs_dir())
    except SpecErrors as errors:
        console.print(str(errors), markup=False)
        raise typer.Exit(1) from None


def _near(file: Path) -> Path:
    """The file as seen from here."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


@app.command("page")
def write_page(
    reports: Annotated[
        list[Path], typer.Argument(help="Report folders, results.jsonl files, or a folder of such folders.")
    ],
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("page.html"),
    specs: Annotated[
        Path | None, typer.Option(help="The specs that the reports are of, if not ours.")
    ] = None,
) -> None:
    """Write one HTML page of several reports: verdicts side by side, reasons, and reproducing scripts."""
    from peft_conformance import page, report

    try:
        found = page.find_reports(reports)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    text = page.render(_suite(specs), found)
    report.write_whole(output, text)
    console.print(f"{output}: {len(found)} columns, {len(text.encode()) / 1e6:.1f} MB", markup=False)


@app.command("fixes")
def show_fixes(
    reports: Annotated[
        list[Path] | None, typer.Argument(help="Reports of releases (--report DIR); without any, the page.")
    ] = None,
    compare: Annotated[bool, typer.Option("--committed", help="Compare with the committed results.")] = False,
) -> None:
    """Print docs/fixes.md, or whether results show each fix; exit status 1 when some say otherwise."""
    from peft_conformance import fixes, report

    try:
        listed = fixes.load_fixes(fixes.find_fixes())
        verdicts = fixes.of_committed(listed, _suite()) if compare else {}
        for folder in reports or ():
            results = report.read(folder / "results.jsonl")
            found = verdicts.setdefault(results.header["implementation"]["version"], {})
            found |= {row["id"]: row["verdict"] for row in results.rows}
    except (SpecErrors, OSError, ValueError) as error:
        console.print(str(error), markup=False)
        raise typer.Exit(1) from None
    if not reports and not compare:
        console.file.write(fixes.page(listed))
        return
    wrong = False
    for fix, word, against in fixes.seen(listed, verdicts):
        console.print(f"{word:9}  {fix['release']} #{fix['pull']}  {fix['text']}", markup=False)
        for line in against:
            console.print(f"           {line}", markup=False)
        wrong |= bool(against)
    raise typer.Exit(int(wrong))
