"""Processes that run functions together, as those of a data-parallel training do."""

from __future__ import annotations

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

# Of every exchange; a test that waits longer than this has failed.
TIMEOUT = timedelta(seconds=30)


class Processes:
    """A process group of gloo whose members wait for functions to run.

    Args:
        size: the number of processes.
        folder: where they find each other.
    """

    def __init__(self, size: int, folder: Path, timeout: timedelta = TIMEOUT) -> None:
        context = multiprocessing.get_context("spawn")
        self.size, self._timeout = size, timeout
        self._tasks = [context.Queue() for _ in range(size)]
        self._answers = context.Queue()
        self.processes = [
            context.Process(
                target=_serve,
                args=(rank, size, str(folder / "store"), timeout, tasks, self._answers),
                daemon=True,
            )
            for rank, tasks in enumerate(self._tasks)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(rank, size, *args)`` in every process.

        Returns:
            What it returned, or the exception that it raised, by rank.

        Raises:
            AssertionError: a process has ended, or does not answer.
        """
        ended = [p.exitcode for p in self.processes if p.exitcode is not None]
        assert not ended, f"a process of an earlier test has ended, with exit code {ended[0]}"
        self.start(function, *args)
        answers = dict(self.answer() for _ in self.processes)
        return [answers[rank] for rank in range(self.size)]

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Have every process run a function; see :meth:`run`."""
        for tasks in self._tasks:
            tasks.put((function, args))

    def answer(self) -> tuple[int, Any]:
        """The next answer, with the rank that it came from."""
        try:
            # The first answer waits until the processes have imported torch.
            answer: tuple[int, Any] = self._answers.get(timeout=90.0 + self._timeout.seconds)
            return answer
        except queue.Empty:
            raise AssertionError("a process does not answer") from None

    def close(self) -> None:
        """End the processes."""
        for process, tasks in zip(self.processes, self._tasks, strict=True):
            tasks.put(None)
            process.join(timeout=10.0)
            if process.is_alive():
                process.kill()
                process.join()


class Raised(Exception):
    """What a process raised, with its type's name in front; not every exception can be sent."""


def values(answers: list[Any]) -> list[Any]:
    """The answers, of which none may be an exception."""
    for rank, answer in enumerate(answers):
        if isinstance(answer, Raised):
            raise AssertionError(f"rank {rank} raised {answer}")
    return answers


def _serve(rank: int, size: int, store: str, timeout: timedelta, tasks: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # not every machine finds its own name
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout
    )
    while (task := tasks.get()) is not None:
        function, args = task
        try:
            answer: Any = function(rank, size, *args)
        except Exception as error:
            traceback.print_exc()
            answer = Raised(f"{type(error).__name__}: {error}")
        answers.put((rank, answer))
    distributed.destroy_process_group()
