"""Workers do jobs, report, and end: with their parent, too, if that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdr.runs.workers import Failure, Workers

SCRIPT = """
import os, sys, time
from pathlib import Path
from cdr.runs.workers import Workers

def start(given): pass

def serve(job, tell):
    Path(job[0]).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with Workers([1, 2], start, serve) as workers:
        for name in sys.argv[1:]:
            workers.submit(name)
        while True:
            list(workers.events(0.1))
"""


def start(given: Any) -> None:
    pass


def serve(job: Any, tell: Any) -> Any:
    kind, value = job
    if kind == "fail":
        raise ValueError(value)
    if kind == "odd":
        raise OddError(value, "more")
    if kind == "die":
        os.kill(os.getpid(), value)
    tell(f"doing {value}")
    return value, sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []


class OddError(Exception):
    """An error that pickle cannot make again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.slow
def test_jobs_are_done_and_told_without_shared_memory() -> None:
    before = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
    told, done = [], {}
    with Workers([None], start, serve) as workers:
        for kind, value in (("do", "x" * 3_000_000), ("fail", "no"), ("odd", "one")):
            workers.submit(kind, value)
            while workers.busy:
                for job, content in workers.events(1.0):
                    told.append(content) if job is None else done.update({job: content})
        assert told[0].startswith("doing x")
        value, shared = done["do"]
        assert len(value) == 3_000_000 and set(shared) <= set(before)
        failures = [done[kind].raised() for kind in ("fail", "odd")]
        assert isinstance(done["fail"], Failure)
        assert [type(e) for e in failures] == [ValueError, RuntimeError]
        assert [str(e) for e in failures] == ["no", "OddError: one and more"]
        assert "in serve" in str(failures[0].__cause__)
        workers.submit("die", int(signal.SIGTERM))
        with pytest.raises(ChildProcessError, match="SIGTERM"):
            while True:
                list(workers.events(1.0))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at processes in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    notes = [tmp_path / "one", tmp_path / "two"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script), *map(str, notes)], env=environment) as it:
        deadline = time.monotonic() + 300.0  # three processes import torch
        try:
            while not all(note.exists() and note.read_text() for note in notes):
                assert time.monotonic() < deadline and it.poll() is None
                time.sleep(0.05)
        finally:
            it.kill()
    workers = [Path("/proc") / note.read_text() for note in notes]
    while any(map(_lives, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(process: Path) -> bool:
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except OSError:
        return False
