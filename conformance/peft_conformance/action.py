"""What `action.yml` runs: the suite, its summary for the workflow's page, counts as outputs, an exit status.

Its options are the action's inputs, as variables of the environment: a value never becomes a piece of script.
It ends with 0 only if a whole report says that something was judged and nothing is red.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from peft_conformance import report

OPTIONS = {"MATRIX": "--matrix", "DEVICE": "--device"}  # input -> option of the suite
WRITTEN = (report.FILE, report.PART, "summary.md", "junit.xml")


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run the suite as the inputs say; the exit status of the step."""
    folder = Path(environment.get("REPORT") or "conformance-report").absolute()
    for name in WRITTEN:  # of an earlier run: it must not be taken for this one's
        (folder / name).unlink(missing_ok=True)
    try:
        status = subprocess.call([sys.executable, "-m", "pytest", *arguments(environment, folder)])
        found = report.read(folder / report.FILE)
    except (OSError, ValueError) as error:
        results, status, reason = None, status_of(error), str(error)
    else:
        results, reason = found, complaint(found, status)
    summary = "" if results is None else (folder / "summary.md").read_text("utf-8")
    if reason:
        print(f"::error title=peft-conformance::{' '.join(reason.split())}")
        summary = f"> **Not passed:** {' '.join(reason.split())}\n\n{summary}"
    _append(environment.get("GITHUB_STEP_SUMMARY"), summary)
    _append(environment.get("GITHUB_OUTPUT"), outputs(results, folder, passed=not reason))
    return 0 if not reason else status or 1


def arguments(environment: Mapping[str, str], folder: Path) -> list[str]:
    """The arguments of pytest. Raises ValueError without an implementation, or for quotes left open."""
    implementation = environment.get("IMPL", "").strip()
    if not implementation:
        raise ValueError("the input `impl` is empty: say which implementation is measured")
    found = ["--pyargs", "peft_conformance.test_conformance", f"--impl={implementation}"]
    found += [f"{option}={environment[name]}" for name, option in OPTIONS.items() if environment.get(name)]
    found += [f"--profile={name}" for name in environment.get("PROFILE", "").replace(",", " ").split()]
    found += [f"--report={folder}", f"--junitxml={folder / 'junit.xml'}"]
    return found + shlex.split(environment.get("EXTRA_ARGS", ""))


def complaint(results: report.Results, status: int) -> str:
    """Why the step fails, or nothing."""
    if not results.built:
        return str(results.header.get("reason") or "the implementation cannot be measured")
    if not results.complete:
        return "the run was broken off: the report is not complete"
    if results.red:
        return f"{results.red} red: each is listed below and in the log, with a script that shows it"
    if not results.judged:
        return "nothing was judged: no check was selected, or every one of them was left out"
    return f"pytest ended with status {status}" if status else ""


def outputs(results: report.Results | None, folder: Path, *, passed: bool) -> str:
    """The outputs of the step, a line each."""
    verdicts = Counter(row["verdict"] for row in results.rows) if results else Counter[str]()
    counts = {
        "red": results.red if results else "",
        "judged": results.judged if results else 0,
        **{name: verdicts[name] for name in ("pass", "warn", "expected-failure", "blocked")},
    }
    lines = {"passed": str(passed).lower(), "report": folder, **counts}
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def status_of(error: Exception) -> int:
    """The exit status where there is no report that can be read: that of a usage error, as pytest has it."""
    return 4 if isinstance(error, ValueError) else 3


def _append(file: str | None, text: str) -> None:
    if file:
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(text)


if __name__ == "__main__":
    sys.exit(main())
