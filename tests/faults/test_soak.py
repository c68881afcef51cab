"""A minute of everything at once, bodies of 20 MB among it. `benchmarks/soak.py` does it for half an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_memory_comes_back_and_the_event_loop_keeps_up() -> None:
    command = [sys.executable, BENCHMARKS / "soak.py", "--minutes", "1", "--json"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    kinds = {answer.split()[0] for answer in found["answers"]}
    assert kinds >= {"generate", "edit", "large_form", "large_json", "fetch", "cancel"}
    assert not any(answer.split()[1].startswith("5") for answer in found["answers"]), found["answers"]
    assert found["growth"] <= 0.10, found
    assert found["worst_stall_ms"] <= 100 + found["machine_stall_ms"], found
