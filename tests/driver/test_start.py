"""What a process imports before its first case, and what it does not."""

from __future__ import annotations

import subprocess
import sys

STARTS = """
import sys
import peft_conformance.run
print("sympy" in sys.modules)
from peft_conformance.isolation import isolated
with isolated():
    print("sympy" in sys.modules)
"""


def test_only_a_process_that_runs_cases_imports_sympy() -> None:
    """It has to be there before a case begins, and whoever only hands cases out need not wait for it."""
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
