"""Functions that several processes run together, for tests of what they exchange.

A test file states its checks as functions of no arguments. All of them run in one set of processes,
since a process takes seconds to start, and each is reported on its own.
"""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing

# Of one exchange, and of all checks of a file.
TIMEOUT, ALL = 30, 180
Check = Callable[[], None]


def failures(folder: Path, checks: Sequence[Check], size: int = 2) -> dict[str, str]:
    """What went wrong in each check, by its name; empty where nothing did.

    Args:
        folder: an empty folder, in which the processes meet.
        checks: functions of a module, run by each process in this order.
        size: the number of processes.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(rank, size, folder, checks)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + ALL
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    found = {check.__name__: "" for check in checks}
    for rank in range(size):
        for name in found:
            report = folder / f"{rank}.{name}"
            said = report.read_text(encoding="utf-8") if report.exists() else "it did not end\n"
            found[name] += said and f"rank {rank}: {said}"
    return found


def _run(rank: int, size: int, folder: Path, checks: Sequence[Check]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # Of FSDP2 about views, and of DTensor about its own calls.
    warnings.simplefilter("ignore")
    store = distributed.FileStore(str(folder / "store"), size)
    wait = timedelta(seconds=TIMEOUT)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
    try:
        for check in checks:
            said = ""
            try:
                check()
            except Exception:
                said = traceback.format_exc()
            (folder / f"{rank}.{check.__name__}").write_text(said, encoding="utf-8")
            distributed.barrier()
    finally:
        distributed.destroy_process_group()
