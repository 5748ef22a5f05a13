"""Commands of the example in processes of their own, to be killed, and what they leave behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from cdr.common import tensors_in

BRIEF = (
    *("--inner.batch-size", "32", "--outer.interval", "2", "--outer.batch-size", "64"),
    *("--inner.epochs", "2", "--search.epochs", "1", "--model.dim", "4"),
)
DOMAINS = ("--source", "books", "--target", "toys")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("_support.commands", "cdr.run_biao", "cdr.reproduce", "reweight.checkpoint"),
        # What they import when they need it, which takes seconds.
        *("torch._dynamo", "scipy.stats", "jinja2", "matplotlib.backends.backend_svg"),
    ]
)


class Command:
    """A command under way, which is forked from a process that has imported everything.

    Args:
        program: "run_biao" or "reproduce".
        arguments: Of its command line.
        folder: To work in; what it prints goes into files there.
        stdout: Where that goes: "file", "closed" for a pipe that nobody reads, or "full" for a full
            disk.
    """

    def __init__(
        self,
        program: str,
        arguments: Sequence[Any],
        folder: Path,
        stdout: str = "file",
    ) -> None:
        self.folder = folder
        self._process: ForkServerProcess = _context.Process(
            target=_main,
            args=(program, [str(a) for a in arguments], str(folder), stdout),
        )
        with pytest.MonkeyPatch.context() as patch:
            # For the process that imports everything, which does not know where tests lie.
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            self._process.start()

    def kill(self, seconds: float) -> bool:
        """Kill it after a while; False if it had ended before."""
        self._process.join(seconds)
        ended = self._process.exitcode is not None
        self._process.kill()
        self._process.join()
        return not ended

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process.pid is not None
        return self._process.pid

    def wait_for(self, pattern: str, seconds: float = 60.0) -> None:
        """Wait until it has made a file."""
        deadline = time.monotonic() + seconds
        while not list(self.folder.glob(pattern)):
            assert self._process.is_alive() and time.monotonic() < deadline, self.stderr
            time.sleep(0.005)

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(self.stderr)
        return self._process.exitcode

    @property
    def stderr(self) -> str:
        """What it has told of its end."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    @property
    def stdout(self) -> str:
        """What it has printed."""
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")


def _main(program: str, arguments: list[str], folder: str, stdout: str) -> None:
    from cdr.runs import grid
    from cdr.training import saves

    os.chdir(folder)
    os.environ["FAULTS_FOLDER"] = folder  # by which living_in() knows what this starts
    # So many states that a training that is killed goes on in the middle of an epoch.
    grid._SECONDS, saves._LEAST_BETWEEN = 0.2, 0
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(_opened(name, stdout if descriptor == 1 else "file"), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    module = __import__(f"cdr.{program}", fromlist=["main"])
    code = module.main(arguments)
    sys.stdout.flush()
    sys.exit(code)


def _opened(name: str, kind: str) -> int:
    if kind == "closed":
        nobody, writer = os.pipe()
        os.close(nobody)
        return writer
    return os.open("/dev/full" if kind == "full" else name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def living_in(folder: Path, patience: float = 60.0) -> list[int]:
    """The processes that commands in a folder have started and that live on.

    A process that is about to start notices the end of the one that it belongs to when it has
    imported all it needs, which takes seconds, or more where the machine is busy.
    """
    deadline = time.monotonic() + patience
    while (found := _living(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _living(folder: Path) -> list[int]:
    mark, found = f"FAULTS_FOLDER={folder}".encode(), []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
        except OSError:  # it has ended
            continue
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders, states of trainings among them."""
    signs = (".partial", ".old-", ".previous", "states", "resume.json")
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if any(sign in path.name for sign in signs)
    ]


def results(run: Path) -> dict[str, Any]:
    """All numbers of a finished run, to be compared bit for bit."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    del metrics["seconds"]
    for several in metrics["runs"].values():
        for one in several:
            for step in one["outer_steps"]:
                del step["relative_residual"]  # which steps it is measured in depends on the start
    found: dict[str, Any] = {"metrics": metrics}
    weights = run / "weights.parquet"
    if weights.exists():
        found["weights"] = pyarrow.parquet.read_table(weights).to_pydict()
    for path in sorted(run.glob("model-*.pt")):
        state = torch.load(path, weights_only=False)
        found[path.name] = [tensor.numpy().tobytes() for tensor in tensors_in(state)]
    return found


def grid_results(grid: Path) -> dict[str, Any]:
    """All numbers of a grid, likewise."""
    found: dict[str, Any] = {}
    for path in sorted(grid.glob("??/*/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        arrays = (path.parent / "arrays.npz").read_bytes()
        found[path.parent.name] = {k: record[k] for k in ("history", "test", "weight_auc")}
        found[path.parent.name]["arrays"] = arrays
    return found
