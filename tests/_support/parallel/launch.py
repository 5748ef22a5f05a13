"""Programs that ``torchrun`` starts twice, as users start theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent.parent.parent
# Of every exchange, and of a whole program: the imports of two of them take most of it.
TIMEOUT, PATIENCE = timedelta(seconds=60), 180.0

Program = Callable[[Path, int, int], dict[str, Any]]


def two_processes(program: str, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found, by rank.

    Args:
        program: the name of a module beside this one, which calls :func:`main`.
        folder: for its files.

    Raises:
        AssertionError: it failed, with its output, or it did not end.
    """
    module = f"{__package__}.{program}"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module"]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    # Not every machine finds its own name.
    settings = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | os.environ
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process = subprocess.Popen(
        [sys.executable, *command, module, str(folder)],
        cwd=folder,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what it started can be ended too
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{program} did not end:\n{output}") from None
    assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def main(program: Program) -> None:
    """Run a program as one of the processes, and save what it returns for the test."""
    torch.set_num_threads(1)
    folder, rank, size = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.save(program(folder, rank, size), folder / f"rank{rank}.pt")


def parameters(*modules: nn.Module) -> Tensor:
    """All parameters of some modules in one vector."""
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])
