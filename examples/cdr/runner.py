"""Several trainings, one after another or side by side in processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from queue import Empty
from typing import Any

import torch

from cdr import data as datasets
from cdr.data.schema import CrossDomainData
from cdr.options import Options, Variant
from cdr.side_by_side import train_side_by_side
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
        """The data for one seed; the last ones loaded are kept."""
        return _load(self, seed if self.seeded else 0)


@dataclass(frozen=True)
class Task:
    """One training."""

    variant: Variant
    seed: int
    source: Source
    options: Options
    model: str
    device: str


def run(
    tasks: list[Task], jobs: int, progress: Progress, *, stack_seeds: bool = False
) -> Iterator[tuple[Task, Result]]:
    """Train every task and yield it when it is done.

    Args:
        tasks: in the order to start them.
        jobs: how many at a time; 1 stays in this process.
        progress: called with a short text about where a running training stands.
        stack_seeds: train tasks that differ by nothing but the seed in common steps, see
            :mod:`cdr.side_by_side`. To ``jobs`` they count as one.

    Raises:
        ValueError: from :func:`cdr.training.train`; the other trainings are stopped. Or
            ``stack_seeds`` where every seed has data of its own.
        ChildProcessError: a process was killed.
    """
    groups = _stacked(tasks) if stack_seeds else [(task,) for task in tasks]
    if jobs == 1:
        for group in groups:
            yield from zip(group, _train(group, progress), strict=True)
        return
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(jobs, context, _start_process, (messages, stop)) as pool:
        futures = {pool.submit(_train_in_process, group): group for group in groups}
        try:
            waiting = set(futures)
            while waiting:
                with suppress(Empty):
                    progress(messages.get(timeout=0.2))
                for future in [f for f in waiting if f.done()]:
                    waiting.remove(future)
                    yield from zip(futures[future], future.result(), strict=True)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a training process was killed, most likely for want of memory: lower --jobs"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _stacked(tasks: list[Task]) -> list[tuple[Task, ...]]:
    """Tasks that differ by nothing but the seed, together."""
    groups: dict[Task, tuple[Task, ...]] = {}
    for task in tasks:
        if task.source.seeded:
            raise ValueError(
                f"--stack-seeds goes with one data set for all seeds, but {task.source.spec} is "
                "drawn anew for each, with numbers of behaviours of its own: leave it out; --jobs "
                "trains several at a time"
            )
        alike = replace(task, seed=0)
        groups[alike] = (*groups.get(alike, ()), task)
    return list(groups.values())


def _train(group: tuple[Task, ...], progress: Progress) -> list[Result]:
    """Train tasks that differ by nothing but the seed."""
    task = group[0]
    data = _on_device(task.source, task.seed if task.source.seeded else 0, task.device)
    who = f"seed {task.seed}" if len(group) == 1 else f"{len(group)} seeds"

    def on_step(epoch: int, step: int, steps: int, best: float) -> None:
        if step % 20 == 0 or step == steps:
            standing = "" if best < 0 else f", valid AUC {best:.4f}"
            progress(f"{task.variant} {who}: epoch {epoch + step / steps:.1f}{standing}")

    told: dict[str, Any] = {"model_name": task.model, "on_step": on_step}
    if len(group) == 1:
        return [train(task.variant, data, task.options, task.seed, **told)]
    seeds = [each.seed for each in group]
    return train_side_by_side(task.variant, data, task.options, seeds, **told)


@lru_cache(maxsize=1)
def _load(source: Source, seed: int) -> CrossDomainData:
    extra = {"seed": seed} if source.seeded else {}
    return datasets.load(source.spec, **dict(source.options), **extra)


@lru_cache(maxsize=1)
def _on_device(source: Source, seed: int, device: str) -> CrossDomainData:
    return source.load(seed).to(device)


_messages: Any = None
_stop: Any = None


def _start_process(messages: Any, stop: Any) -> None:
    global _messages, _stop
    _messages, _stop = messages, stop
    messages.cancel_join_thread()  # unread messages must not keep the process from ending
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and stops us
    torch.set_num_threads(1)


def _train_in_process(group: tuple[Task, ...]) -> list[Result]:
    return _train(group, _report)


def _report(text: str) -> None:
    if _stop.is_set():
        raise InterruptedError("another training failed, or the run was interrupted")
    _messages.put(text)
