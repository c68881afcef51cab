"""Killed at random moments under load, server and engine lose nothing and make nothing twice.

`benchmarks/crash.py` does it a hundred times; here it is done a few.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_job_ends_once_and_every_key_stands_for_one_picture() -> None:
    command = [sys.executable, BENCHMARKS / "crash.py", "--kills", "8", "--clients", "4", "--seed", "5", "--json"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["violations"] == []
    assert found["kills_server"] + found["kills_engine"] == 8
    assert min(found["kills_server"], found["kills_engine"]) >= 2
    assert found["requests"] >= 8
    assert found["jobs"].keys() == {"completed"}
    assert done.returncode == 0
