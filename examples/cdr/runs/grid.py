"""Finished trainings, stored by a hash of all that determines them, so that none is repeated."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdr.common import (
    ALONE,
    Processes,
    RenameError,
    encoded,
    new_folder,
    remove_empty,
    sweep_all,
    to_json,
)
from cdr.runs.fingerprints import Fingerprints
from cdr.runs.logs import log_history
from cdr.runs.machine import environment
from cdr.runs.progress import progress_bar
from cdr.runs.runner import Task, run
from cdr.runs.sealed import SEAL, read_sealed, write_sealed
from cdr.runs.signals import held_back
from cdr.training import (
    COLLAPSED,
    CROSSFIT_EDITION,
    HOLDS_OUT,
    RESTARTED,
    Result,
    Saves,
    Scores,
    plan,
    remark,
    warning,
)

logger = logging.getLogger("cdr")

# Part of every key: raise it when the same options come to give other results.
_FORMAT = 2

# Between two states of a training, at least.
_SECONDS = 60.0

_RECORD, _ARRAYS, _MODEL = "run.json", "arrays.npz", "model.pt"


@dataclass(frozen=True)
class Run:
    """A finished training as it is stored: its result without the checkpoint.

    Attributes:
        key: what it is kept under.
        test: scores on the test rows.
        extra_test: on a generator's further test rows.
        history: one record per epoch.
        weights: learned weight per source behaviour, where weights are learned.
        weight_auc: AUC of weight against the true flag, where there is one.
        seconds: what it took.
        restarted: whether it was begun once more, since it had told no rows apart.
        note: how its weights were found; "" for nothing to tell.
        kept: see :class:`cdr.training.Result`.
        valid: scores on the validation rows; None where an earlier version did not keep them.
        outer: a record for each outer step, where they are kept.
    """

    key: str
    test: Scores
    extra_test: Scores | None
    history: list[dict[str, float]]
    weights: NDArray[np.float32] | None
    weight_auc: float | None
    seconds: float
    restarted: bool = False
    note: str = ""
    kept: str | None = None
    valid: Scores | None = None
    outer: list[dict[str, float]] = field(default_factory=list)

    @property
    def scores(self) -> Scores:
        """What tables are made from: on the further test rows where there are some."""
        return self.test if self.extra_test is None else self.extra_test

    @property
    def valid_auc(self) -> float:
        """Of the best epoch."""
        return max(record["auc"] for record in self.history)


# What a run has of a result goes by the same names there.
_OF_RESULT = tuple(each.name for each in fields(Run) if each.name != "key")


class Grid:
    """A folder of finished trainings.

    Every training has a folder of its own, which is written under another name and renamed, so
    that what is found is complete.

    Args:
        folder: made when the first training is kept.
        command: kept with each training.
        whole: whether the model and the records of the outer steps are kept too.
    """

    def __init__(self, folder: Path, command: str, *, whole: bool = False) -> None:
        self._folder, self._command, self._whole = folder, command, whole
        self._fingerprints = Fingerprints(folder / "files")

    def data(self, task: Task) -> dict[str, Any]:
        """Name, options and content of the data of a training."""
        return self._fingerprints.of(task.source)

    def key(self, task: Task) -> str:
        """The name of a training: a hash of all that determines its result.

        The device and other trainings are left out: they change the result by rounding, or by
        random draws of the same distribution. So does whether what a cross-fitting compares with
        comes from here or is trained beside it.
        """
        decides = {
            "format": _FORMAT,
            "variant": task.variant,
            "seed": task.seed,
            "model": task.options.model_name,
            "options": options_read(task),
            "data": self.data(task),
        }
        return hashlib.sha256(_canonical(decides).encode()).hexdigest()[:24]

    def load(self, task: Task, tell: Callable[[str], None] = lambda text: None) -> Run | None:
        """The finished training, or None.

        Args:
            task: the training.
            tell: called with a sentence where it is there, and has to be trained again.

        Raises:
            OSError: it is there, and this user or this machine cannot read it.
        """
        key = self.key(task)
        folder = self._place(key)
        if not folder.is_dir():
            return None
        try:
            run, current = _read(key, folder)
        except Exception as error:  # whatever json, numpy and zip make of damaged files
            # A disk that cannot be read for now is no reason to delete the training.
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            told = f"{folder} is damaged ({error}); it is trained again"
        else:
            if current or remark(run.scores) != COLLAPSED:
                return run
            told = f"{folder} has told no rows apart; it is trained again"
        logger.warning(told)
        tell(told)
        shutil.rmtree(folder)
        return None

    def result(self, task: Task) -> Result | None:
        """The finished training as it came out, with its model in a grid of whole ones.

        None if there is none, it cannot be read, or an earlier version kept less of it: whoever
        asks can train it.
        """
        key = self.key(task)
        place = self._place(key)
        try:
            run, _ = _read(key, place)
            state = torch.load(place / _MODEL, "cpu", weights_only=True) if self._whole else {}
        except Exception:  # as in load, which tells of it and removes it
            return None
        if run.valid is None:
            return None
        return Result(state=state, **{name: getattr(run, name) for name in _OF_RESULT})

    def saves(self, task: Task) -> Saves:
        """Where the state of a training is kept until it is finished."""
        return Saves(self._folder / "states" / self.key(task) / "state", seconds=_SECONDS)

    def model(self, task: Task) -> Path:
        """The file of the model of a finished training, in a grid of whole ones."""
        return self._place(self.key(task)) / _MODEL

    def sweep(self) -> None:
        """Remove what killed commands have left half written, and folders without anything."""
        remove_empty([self._folder / "states"])
        for folder in self._folder.glob("??"):
            sweep_all(folder)
        sweep_all(self._folder / "files")

    def check_writable(self) -> None:
        """Refuse a folder in which no training can be kept, before one is done for nothing.

        Raises:
            OSError: nothing can be written there.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise OSError(
                f"--cache {self._folder}: no training can be kept there ({error.strerror}); give "
                "another place"
            ) from error

    def store(self, task: Task, result: Result) -> Run:
        """Keep a training that has just ended."""
        key = self.key(task)
        arrays = _arrays("test", result.test)
        for name, scores in (("extra_test", result.extra_test), ("valid", result.valid)):
            if scores is not None:
                arrays |= _arrays(name, scores)
        if result.weights is not None:
            arrays["weights"] = result.weights
        record = to_json(self._record(task, result), indent=2) + "\n"
        contents = {_RECORD: encoded(record), _ARRAYS: _bytes(np.savez_compressed, **arrays)}
        if self._whole:
            contents[_MODEL] = _bytes(lambda file: torch.save(result.state, file))
        place = self._place(key)
        try:
            # A training that has ended is not lost for want of a moment.
            with held_back(), new_folder(place) as partial:
                write_sealed(partial, contents)
        except RenameError as error:
            shutil.rmtree(error.partial)
            # Another command may have trained the same in the meantime.
            if not place.is_dir():
                raise
        run = Run(key=key, **{name: getattr(result, name) for name in _OF_RESULT})
        return run if self._whole else replace(run, outer=[])

    def _record(self, task: Task, result: Result) -> dict[str, Any]:
        """All that is kept of a training but its arrays."""
        return {
            "variant": task.variant,
            "seed": task.seed,
            "model": task.options.model_name,
            "options": options_read(task),
            "data": self.data(task),
            "test": result.test.metrics(),
            "extra_test": result.extra_test and result.extra_test.metrics(),
            "weight_auc": result.weight_auc,
            "history": result.history,
            "seconds": result.seconds,
            "restarted": result.restarted,
            "note": result.note,
            "kept": result.kept,
            "outer_steps": result.outer if self._whole else [],
            "sealed": True,
            "command": self._command,
            "environment": _environment(task.device),
        }

    def _place(self, key: str) -> Path:
        return self._folder / key[:2] / key


@dataclass(frozen=True)
class Completed:
    """The outcome of a list of trainings.

    Attributes:
        runs: the finished ones.
        failures: why each of the others failed.
        trained: how many of the finished ones are new.
    """

    runs: dict[Task, Run]
    failures: dict[Task, str]
    trained: int


def complete(
    grid: Grid,
    tasks: Sequence[Task],
    jobs: int,
    names: Mapping[Task, str],
    *,
    stack_seeds: bool,
    processes: Processes = ALONE,
    saves: Callable[[Task], Saves | None] | None = None,
) -> Completed:
    """Train what the grid does not hold yet, and keep each training as soon as it is done.

    A training that fails does not stop the others.

    Args:
        grid: where they are kept.
        tasks: in the order to train them, teachers of others included.
        jobs: how many at a time.
        names: what to call them where they are reported.
        stack_seeds: see :func:`cdr.runs.runner.run`.
        processes: those that train each task together. The first calls this, the others
            :func:`follow`, with the same tasks. Then a training that fails stops all.
        saves: where the states of trainings are kept meanwhile; if left out, in the grid.

    Raises:
        ValueError: as :func:`cdr.runs.runner.run`, of the tasks as a whole.
        OSError: the grid cannot be read or written.
        ChildProcessError: a process was killed.
    """
    tasks = list(dict.fromkeys(tasks))
    saves = saves or grid.saves
    grid.sweep()
    with progress_bar(len(tasks)) as bar:
        runs = {task: r for task in tasks if (r := grid.load(task, bar.write)) is not None}
        missing, learned = _agreed(tasks, runs, processes)
        for task, kept in runs.items():
            log_history(names[task], kept.history, kept.restarted)
            grid.saves(task).remove()  # of a command that was killed when it had kept the training
        if missing:
            grid.check_writable()
        bar.update(len(runs))
        failures: dict[Task, str] = {}
        for task, result in run(
            missing,
            jobs,
            bar.set_postfix_str,
            stack_seeds=stack_seeds,
            learned=learned,
            keep_going=processes.size == 1,
            processes=processes,
            saves=saves,
            # All processes have to do the same, and only the first has a grid.
            finished=grid.result if processes.size == 1 else None,
        ):
            if isinstance(result, Exception):
                failures[task] = str(result)
                logger.error("%s failed: %s", names[task], result)
                bar.write(f"{names[task]} failed: {result}")
            else:
                runs[task] = grid.store(task, result)
                _report_run(bar, names[task], runs[task])
            grid.saves(task).remove()
            bar.update()
        bar.set_postfix_str("")
    grid.sweep()
    return Completed(runs, failures, len(missing) - len(failures))


def follow(
    tasks: Sequence[Task], jobs: int, processes: Processes, saves: Callable[[Task], Saves | None]
) -> None:
    """Take part in the trainings that another process completes.

    Args:
        tasks: the same.
        jobs: the same.
        processes: those that train together.
        saves: the same.

    Raises:
        ValueError: as :func:`cdr.runs.runner.run`.
    """
    missing, learned = _agreed(list(dict.fromkeys(tasks)), {}, processes)
    for _ in run(missing, jobs, lambda _: None, learned=learned, processes=processes, saves=saves):
        pass


def _agreed(
    tasks: Sequence[Task], runs: Mapping[Task, Run], processes: Processes
) -> tuple[list[Task], dict[Task, NDArray[np.float32]]]:
    """The trainings that the first process lacks, and the weights that it has found for them."""
    found = processes.total(torch.tensor([int(task in runs) for task in tasks])).tolist()
    missing = [task for task, is_there in zip(tasks, found, strict=True) if not is_there]
    taught = {task.teacher for task in missing} - set(missing)
    learned = {}
    for teacher in (task for task in tasks if task in taught):
        weights = runs[teacher].weights if teacher in runs else None
        own = torch.zeros(0) if weights is None else torch.from_numpy(weights)
        length = int(processes.total(torch.tensor(len(own))))
        if length:
            learned[teacher] = processes.total(own if len(own) else torch.zeros(length)).numpy()
    return missing, learned


def options_read(task: Task) -> dict[str, Any]:
    """The options that decide the result of a task: not those that its variant does not read."""
    how = plan(task.variant)
    options = how.change(task.options)
    read: dict[str, Any] = json.loads(to_json(options))
    if not how.finds:
        # A search has put them into the other sections.
        del read["search"]
    if not how.finds and (how.source != "mean" or how.gamma is not None):
        del read["inner"]["gamma"]
    if how.finds:
        if how.weights == "crossfit":
            read["search"]["edition"] = CROSSFIT_EDITION
        else:
            del read["search"]["batch_size"], read["search"]["solver"]
        return read
    if how.source != "learned":
        del read["outer"], read["perceptron"]
        return read if task.teacher is None else read | {"teacher": options_read(task.teacher)}
    if options.outer.dev not in HOLDS_OUT:
        del read["outer"]["split"]
    if not options.outer.weight_decay:
        del read["outer"]["decay_gamma"]
    if options.outer.weighter != "perceptron":
        del read["perceptron"]
    elif not options.perceptron.behavior_inputs:
        # Trainings from before there were such inputs are the same.
        del read["perceptron"]["behavior_inputs"]
    return read


def _report_run(bar: Any, name: str, run: Run) -> None:
    log_history(name, run.history, run.restarted)
    weight = "" if run.weight_auc is None else f", weight AUC {run.weight_auc:.3f}"
    auc, epochs = run.scores.metrics()["auc"], len(run.history)
    bar.write(
        f"{name}: valid AUC {run.valid_auc:.4f}, test AUC {auc:.4f}{weight} "
        f"({epochs} epoch{'s' * (epochs > 1)}, {run.seconds:.0f} s)"
    )
    if run.note:
        bar.write(f"  {run.note}")
    if run.restarted:
        bar.write(f"  restarted: {RESTARTED}")
    if told := warning(run.scores):
        bar.write(told)


def _read(key: str, folder: Path) -> tuple[Run, bool]:
    """The training, and whether it was kept by a version that begins collapsed ones again."""
    contents = read_sealed(folder, (_RECORD, _ARRAYS))
    record = json.loads(contents[_RECORD])
    if record.get("sealed") and SEAL not in contents:
        raise ValueError(f"{SEAL} is missing")
    with np.load(io.BytesIO(contents[_ARRAYS])) as arrays:
        found = dict(arrays)
    run = Run(
        key,
        _scores(found, "test"),
        _scores_if_kept(found, "extra_test"),
        _numbers(record["history"]),
        found.get("weights"),
        record["weight_auc"],
        record["seconds"],
        record.get("restarted", False),
        record.get("note", ""),
        record.get("kept"),
        _scores_if_kept(found, "valid"),
        _numbers(record.get("outer_steps", [])),
    )
    return run, "restarted" in record


def _numbers(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Records as they were before they were json, in which NaN has no name."""
    return [{k: np.nan if v is None else v for k, v in record.items()} for record in records]


def _bytes(write: Callable[..., None], **told: Any) -> bytes:
    """What is written into a file; one in memory raises no other errors than the disk's own."""
    file = io.BytesIO()
    write(file, **told)
    return file.getvalue()


def _arrays(name: str, scores: Scores) -> dict[str, NDArray[Any]]:
    return {f"{name}_{field}": array for field, array in vars(scores).items()}


def _scores(arrays: dict[str, NDArray[Any]], name: str) -> Scores:
    return Scores(*(arrays[f"{name}_{field}"] for field in ("probability", "label", "user")))


def _scores_if_kept(arrays: dict[str, NDArray[Any]], name: str) -> Scores | None:
    return _scores(arrays, name) if f"{name}_label" in arrays else None


def _canonical(value: Any) -> str:
    return json.dumps(json.loads(to_json(value)), sort_keys=True)


@lru_cache
def _environment(device: str) -> dict[str, Any]:
    return environment(device)
