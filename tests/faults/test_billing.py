"""The ledger agrees with what providers bill, among their faults and `kill -9`. `benchmarks/billing.py` does it at length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_ledger_is_what_providers_bill() -> None:
    pytest.importorskip("kleinbild.providers.kinds", reason="there are no hosted providers yet")
    command = [
        sys.executable,
        BENCHMARKS / "billing.py",
        "--requests",
        "300",
        "--clients",
        "8",
        "--kills",
        "2",
        "--json",
    ]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["violations"] == []
    assert found["drift_nanos"] == 0
    assert (found["gateways"], found["kills"]) == (2, 2)
    assert found["attempts"] > 100
    assert found["ends"].keys() == {"done", "failed_unbilled", "failed_billed"}
    assert found["answers"]["200"] > 100
