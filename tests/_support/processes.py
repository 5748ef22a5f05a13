"""Tests in several processes: gloo, a file as the meeting point, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 30  # no collective of these tests takes longer, unless a rank is lost
_number = count()


def in_processes(function: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list:
    """What a function returns on each rank, called in so many new processes at once.

    The function is found by its name in the new process, so it is defined in a module.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    store = folder / f"store-{next(_number)}"
    processes = [
        context.Process(target=_run, args=(results, store, size, rank, function, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=2 * SECONDS) for _ in processes)
    except Empty:
        raise TimeoutError(f"{function.__name__}: a process did not end") from None
    finally:
        for process in processes:
            process.join(SECONDS)
            process.kill()
            process.join()
    failures = [r.text for r in found.values() if isinstance(r, _Failure)]
    if failures:
        raise AssertionError("\n".join(failures))
    return [found[rank] for rank in range(size)]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _run(
    results: Any,
    store: Path,
    size: int,
    rank: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            world_size=size,
            rank=rank,
            timeout=timedelta(seconds=SECONDS),
        )
        results.put((rank, function(*arguments)))
    except BaseException:
        results.put((rank, _Failure(f"rank {rank}: {traceback.format_exc()}")))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
