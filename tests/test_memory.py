"""Resident memory of a process that makes thousands of outer steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's process table")
def test_two_thousand_outer_steps_stay_where_the_first_hundred_settled(tmp_path: Path) -> None:
    # A process of its own: here, other tests have left memory that may be used or given back.
    report = tmp_path / "memory.json"
    command = [sys.executable, str(BENCHMARK), "--steps", "2000", "--json", str(report)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    result = json.loads(report.read_text())
    assert result["steps"] == 2000
    assert result["growth"] < 0.02
