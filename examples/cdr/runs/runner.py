"""Several trainings, one after another or side by side in processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdr import data as datasets
from cdr.common import ALONE, Processes, map_tensors
from cdr.data import CrossDomainData
from cdr.runs.devices import spread
from cdr.runs.workers import Failure, Workers
from cdr.training import Options, Result, Saves, plan, train, train_side_by_side

Progress = Callable[[str], None]
Weights = NDArray[np.float32]
Finished = Callable[["Task"], Result | None]


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

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the data of seed 0, which are loaded if this process has not yet done so."""
        return self._told.notes

    @property
    def repaired(self) -> Mapping[str, int]:
        """Of which rows of the same data were not taken as they stand in the log."""
        return self._told.repaired

    @property
    def _told(self) -> _Told:
        if self not in _told:
            self.load(0)
        return _told[self]


@dataclass(frozen=True)
class Task:
    """One training."""

    variant: str
    seed: int
    source: Source
    options: Options
    device: str

    @property
    def teacher(self) -> Task | None:
        """The training whose learned weights this one takes, if it does."""
        teacher = plan(self.variant).teacher
        return None if teacher is None else replace(self, variant=teacher)


def run(
    tasks: Sequence[Task],
    jobs: int,
    progress: Progress,
    *,
    stack_seeds: bool = False,
    learned: Mapping[Task, Weights] | None = None,
    keep_going: bool = False,
    processes: Processes = ALONE,
    saves: Callable[[Task], Saves | None] = lambda task: None,
    finished: Finished | None = None,
) -> Iterator[tuple[Task, Result | Exception]]:
    """Train every task and yield it when it is done.

    Args:
        tasks: in the order to start them; one that takes learned weights waits for its teacher.
        jobs: how many at a time; 1 stays in this process. More are processes of their own, which
            take the GPUs in turn if the device of the tasks is "cuda".
        progress: Called with a short text on the progress of a training.
        stack_seeds: train tasks that differ by nothing but the seed in common steps, see
            :mod:`cdr.training.side_by_side`. To ``jobs`` they count as one.
        learned: weights of teachers that are not among the tasks.
        processes: those that train each task together. All of them call this with the same tasks.
        keep_going: yield the error of a training in the place of its result, and train the others.
        saves: where the state of each training is kept, to go on from; None: nowhere. That of
            trainings in common steps is kept where the first of them has it.
        finished: the result of a training that is there already, which one of these would repeat;
            see :func:`cdr.training.train`. With more ``jobs`` it is called in their processes.

    Raises:
        ValueError: from :func:`cdr.training.epochs.train`, unless ``keep_going``; the other
            trainings are stopped. Or ``stack_seeds`` where every seed has data of its own; or a
            task whose teacher is neither among the tasks nor in ``learned``.
        ChildProcessError: a process was killed, or has ended by itself.
    """
    if processes.size > 1 and (jobs > 1 or stack_seeds):
        option = "--stack-seeds" if stack_seeds else f"--jobs {jobs}"
        raise ValueError(
            f"{option}: torchrun started {processes.size} processes that train one model together; "
            f"leave {option.split()[0]} out, or start without torchrun"
        )
    queue = _Queue(_stacked(tasks) if stack_seeds else [(task,) for task in tasks], learned or {})
    if jobs == 1:
        for group, weights in iter(queue.next, None):
            try:
                results: list[Result] | Exception = _train(
                    group, weights, progress, processes, saves, finished
                )
            except ValueError as error:
                if not keep_going:
                    raise
                results = error
            yield from queue.done(group, results)
        return
    devices = spread(tasks[0].device if tasks else "cpu", jobs)
    with Workers(devices, _start_process, _train_in_process) as workers:
        while True:
            while workers.free and (ready := queue.next()) is not None:
                group, weights = ready
                workers.submit(group, weights, [saves(task) for task in group], finished)
            if not workers.busy:
                return
            for group, content in workers.events(0.2):
                if group is None:
                    progress(content)
                    continue
                if isinstance(content, Failure):
                    failure = content.raised()
                    if not (isinstance(failure, ValueError) and keep_going):
                        raise failure
                    content = failure
                yield from queue.done(group, content)


class _Queue:
    """Groups of tasks; each starts when the weights that it is trained on are there."""

    def __init__(self, groups: Sequence[tuple[Task, ...]], learned: Mapping[Task, Weights]) -> None:
        self._waiting = list(groups)
        self._learned = dict(learned)
        tasks = {task for group in groups for task in group}
        self._teachers = {task.teacher for task in tasks} - {None}
        for teacher in self._teachers - self._learned.keys() - tasks:
            assert teacher is not None
            raise ValueError(
                f"seed {teacher.seed}: a variant takes the weights that {teacher.variant} has "
                f"learned, but {teacher.variant} is not among the trainings; add it"
            )

    def next(self) -> tuple[tuple[Task, ...], Weights | None] | None:
        """The next group that can start, with its weights; None if none can."""
        for group in self._waiting:
            teacher = group[0].teacher
            if teacher is None or teacher in self._learned:
                self._waiting.remove(group)
                return group, None if teacher is None else self._learned[teacher]
        return None

    def done(
        self, group: tuple[Task, ...], results: Sequence[Result] | Exception
    ) -> Iterator[tuple[Task, Result | Exception]]:
        """The results of a group, and errors for groups that can no longer start."""
        for place, task in enumerate(group):
            result = results if isinstance(results, Exception) else results[place]
            yield task, result
            if task not in self._teachers:
                continue
            if not isinstance(result, Exception) and result.weights is not None:
                self._learned[task] = result.weights
                continue
            for orphan in [g for g in self._waiting if g[0].teacher == task]:
                self._waiting.remove(orphan)
                missing = ValueError(f"the training that it takes the weights of failed: {result}")
                yield from ((task, missing) for task in orphan)


def _stacked(tasks: Sequence[Task]) -> list[tuple[Task, ...]]:
    """Tasks that differ by nothing but the seed, together."""
    groups: dict[Task, tuple[Task, ...]] = {}
    for task in tasks:
        if task.source.seeded:
            raise ValueError(
                f"--stack-seeds goes with one data set for all seeds, but {task.source.spec} is "
                "drawn anew for each, with numbers of behaviours of its own: leave it out; --jobs "
                "trains several at a time"
            )
        # Fixed weights are of one seed, given or found.
        alike = task if task.teacher or plan(task.variant).finds else replace(task, seed=0)
        groups[alike] = (*groups.get(alike, ()), task)
    return list(groups.values())


def _train(
    group: tuple[Task, ...],
    weights: Weights | None,
    progress: Progress,
    processes: Processes,
    saves: Callable[[Task], Saves | None],
    finished: Finished | None,
) -> list[Result]:
    """Train tasks that differ by nothing but the seed."""
    task = group[0]
    data = _on_device(task.source, task.seed if task.source.seeded else 0, task.device)
    who = f"seed {task.seed}" if len(group) == 1 else f"{len(group)} seeds"

    def on_step(epoch: int, step: int, steps: int, best: float) -> None:
        if step % 20 == 0 or step == steps:
            standing = "" if best < 0 else f", valid AUC {best:.4f}"
            progress(f"{task.variant} {who}: epoch {epoch + step / steps:.1f}{standing}")

    if len(group) == 1:
        return [
            train(
                task.variant,
                data,
                task.options,
                task.seed,
                learned=weights,
                processes=processes,
                saves=saves(task),
                finished=lambda name: finished and finished(replace(task, variant=name)),
                on_step=on_step,
            )
        ]
    kept = saves(task)
    return train_side_by_side(
        task.variant,
        data,
        task.options,
        [each.seed for each in group],
        saves=kept and kept.part("seeds"),
        on_step=on_step,
    )


class _Told(NamedTuple):
    """What data tell of themselves; small, so that it is kept when the data are let go."""

    notes: tuple[str, ...]
    repaired: Mapping[str, int]


_told: dict[Source, _Told] = {}


@lru_cache(maxsize=1)
def _load(source: Source, seed: int) -> CrossDomainData:
    options = dict(source.options)
    if source.seeded:
        options["seed"] = seed
    data = datasets.load(source.spec, **options)
    if seed == 0:
        _told[source] = _Told(data.notes, data.repaired)
    return data


@lru_cache(maxsize=1)
def _on_device(source: Source, seed: int, device: str) -> CrossDomainData:
    return source.load(seed).to(device)


def clear_loaded() -> None:
    """Let go of the data that this process keeps."""
    _load.cache_clear()
    _on_device.cache_clear()
    _told.clear()


_device = ""


def _start_process(device: str) -> None:
    global _device
    _device = device
    torch.set_num_threads(1)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)


def _train_in_process(job: Any, tell: Progress) -> list[Result]:
    group, weights, (saves, *_), finished = job
    group = tuple(replace(task, device=_device) for task in group)
    results = _train(group, weights, tell, ALONE, lambda task: saves, finished)
    for result in results:
        # The parent need not open every GPU.
        result.state = map_tensors(Tensor.cpu, result.state)
    return results
