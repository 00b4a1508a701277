"""A process that is killed while it saves leaves the old adapter or the new one, whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killed_saves(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "killed_saves.py"), *arguments]
    return subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=300)


def test_a_killed_process_leaves_the_old_adapter_or_the_new_one(tmp_path: Path) -> None:
    done = killed_saves(str(tmp_path))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert all(told["seen"].values()), told
    assert told["amid"] > 10, told


def test_writing_in_place_would_be_noticed(tmp_path: Path) -> None:
    assert killed_saves(str(tmp_path), "in place").returncode != 0
