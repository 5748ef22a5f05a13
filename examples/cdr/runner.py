"""Several trainings, one after another or side by side in processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from queue import Empty
from typing import Any

import torch

from cdr import data as datasets
from cdr.data.schema import CrossDomainData
from cdr.options import Options, Variant
from cdr.training import Result, train

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """What to load, and how; hashable, so that a process loads it once."""

    spec: str
    options: tuple[tuple[str, Any], ...] = ()
    seeded: bool = False
    """Whether every seed has data of its own (a generator)."""

    def load(self, seed: int) -> CrossDomainData:
        """The data for one seed."""
        extra = {"seed": seed} if self.seeded else {}
        return datasets.load(self.spec, **dict(self.options), **extra)


@dataclass(frozen=True)
class Task:
    """One training."""

    variant: Variant
    seed: int
    source: Source
    options: Options
    model: str
    device: str


def run(tasks: list[Task], jobs: int, progress: Progress) -> Iterator[tuple[Task, Result]]:
    """Train every task and yield it when it is done.

    Args:
        tasks: in the order to start them.
        jobs: how many at a time; 1 stays in this process.
        progress: called with a short text about where a running training stands.
    """
    if jobs == 1:
        for task in tasks:
            yield task, _train(task, progress)
        return
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with ProcessPoolExecutor(jobs, context, _start_process, (messages,)) as pool:
        futures = {pool.submit(_train_in_process, task): task for task in tasks}
        try:
            waiting = set(futures)
            while waiting:
                try:
                    progress(messages.get(timeout=0.2))
                except Empty:
                    pass
                for future in [f for f in waiting if f.done()]:
                    waiting.remove(future)
                    yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _train(task: Task, progress: Progress) -> Result:
    data = _load(task.source, task.seed, task.device)

    def on_step(epoch: int, step: int, steps: int, best: float) -> None:
        if step % 20 == 0 or step == steps:
            standing = "" if best < 0 else f", best valid AUC {best:.4f}"
            progress(
                f"{task.variant} seed {task.seed}: epoch {epoch + 1}, step {step}/{steps}{standing}"
            )

    return train(
        task.variant, data, task.options, task.seed, model_name=task.model, on_step=on_step
    )


@lru_cache(maxsize=1)
def _load(source: Source, seed: int, device: str) -> CrossDomainData:
    return _load_any(source, seed if source.seeded else 0).to(device)


@lru_cache(maxsize=1)
def _load_any(source: Source, seed: int) -> CrossDomainData:
    return source.load(seed)


_messages: Any = None


def _start_process(messages: Any) -> None:
    global _messages
    _messages = messages
    torch.set_num_threads(1)


def _train_in_process(task: Task) -> Result:
    return _train(task, _messages.put)
