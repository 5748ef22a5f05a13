"""Finished trainings, stored by a hash of all that determines them, so that none is repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdr.common import RenameError, new_folder, to_json, write_json
from cdr.runs.fingerprints import Fingerprints
from cdr.runs.logs import log_history
from cdr.runs.machine import environment
from cdr.runs.progress import progress_bar
from cdr.runs.runner import Task, run
from cdr.training import COLLAPSED, HOLDS_OUT, RESTARTED, Result, Scores, plan, remark, warning

logger = logging.getLogger("cdr")

# Part of every key: raise it when the same options come to give other results.
_FORMAT = 2


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

    @property
    def scores(self) -> Scores:
        """What tables are made from: on the further test rows where there are some."""
        return self.test if self.extra_test is None else self.extra_test

    @property
    def valid_auc(self) -> float:
        """Of the best epoch."""
        return max(record["auc"] for record in self.history)


class Grid:
    """A folder of finished trainings.

    Every training has a folder of its own, which is written under another name and renamed, so
    that what is found is complete.

    Args:
        folder: made when the first training is kept.
        command: kept with each training.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command
        self._fingerprints = Fingerprints(folder / "files")

    def key(self, task: Task) -> str:
        """The name of a training: a hash of all that determines its result.

        The device and other trainings are left out: they change the result by rounding, or by
        random draws of the same distribution.
        """
        decides = {
            "format": _FORMAT,
            "variant": task.variant,
            "seed": task.seed,
            "model": task.options.model_name,
            "options": options_read(task),
            "data": self._fingerprints.of(task.source),
        }
        return hashlib.sha256(_canonical(decides).encode()).hexdigest()[:24]

    def load(self, task: Task) -> Run | None:
        """The finished training, or None.

        Raises:
            OSError: it is there, and this user or this machine cannot read it.
        """
        key = self.key(task)
        folder = self._place(key)
        if not folder.is_dir():
            return None
        try:
            run = _read(key, folder)
        except Exception as error:  # whatever json, numpy and zip make of damaged files
            # A disk that cannot be read for now is no reason to delete the training.
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            logger.warning("%s is damaged (%r); it is trained again", folder, error)
            shutil.rmtree(folder)
            return None
        if not _would_restart(run, folder):
            return run
        logger.warning("%s has told no rows apart; it is trained again", folder)
        shutil.rmtree(folder)
        return None

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
        if result.extra_test is not None:
            arrays |= _arrays("extra_test", result.extra_test)
        if result.weights is not None:
            arrays["weights"] = result.weights
        place = self._place(key)
        try:
            with new_folder(place) as partial:
                np.savez_compressed(partial / "arrays.npz", **arrays)  # type: ignore[arg-type]
                write_json(partial / "run.json", self._record(task, result))
        except RenameError as error:
            shutil.rmtree(error.partial)
            # Another command may have trained the same in the meantime.
            if not place.is_dir():
                raise
        return Run(
            key,
            result.test,
            result.extra_test,
            result.history,
            result.weights,
            result.weight_auc,
            result.seconds,
            result.restarted,
            result.note,
        )

    def _record(self, task: Task, result: Result) -> dict[str, Any]:
        """All that is kept of a training but its arrays."""
        return {
            "variant": task.variant,
            "seed": task.seed,
            "model": task.options.model_name,
            "options": options_read(task),
            "data": self._fingerprints.of(task.source),
            "test": result.test.metrics(),
            "extra_test": result.extra_test and result.extra_test.metrics(),
            "weight_auc": result.weight_auc,
            "history": result.history,
            "seconds": result.seconds,
            "restarted": result.restarted,
            "note": result.note,
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
    grid: Grid, tasks: Sequence[Task], jobs: int, names: Mapping[Task, str], *, stack_seeds: bool
) -> Completed:
    """Train what the grid does not hold yet, and keep each training as soon as it is done.

    Args:
        grid: where they are kept.
        tasks: in the order to train them, teachers of others included.
        jobs: how many at a time.
        names: what to call them where they are reported.
        stack_seeds: see :func:`cdr.runs.runner.run`.

    Raises:
        ValueError: as :func:`cdr.runs.runner.run`, of the tasks as a whole.
        OSError: the grid cannot be read or written; nothing has been trained then.
        ChildProcessError: a process was killed.
    """
    tasks = list(dict.fromkeys(tasks))
    runs = {task: found for task in tasks if (found := grid.load(task)) is not None}
    missing = [task for task in tasks if task not in runs]
    for task, kept in runs.items():
        log_history(names[task], kept.history, kept.restarted)
    if missing:
        grid.check_writable()
    failures: dict[Task, str] = {}
    with progress_bar(len(tasks), len(runs)) as bar:
        learned = {task: done.weights for task, done in runs.items() if done.weights is not None}
        for task, result in run(
            missing,
            jobs,
            bar.set_postfix_str,
            stack_seeds=stack_seeds,
            learned=learned,
            keep_going=True,
        ):
            if isinstance(result, Exception):
                failures[task] = str(result)
                logger.error("%s failed: %s", names[task], result)
                bar.write(f"{names[task]} failed: {result}")
            else:
                runs[task] = grid.store(task, result)
                _report_run(bar, names[task], runs[task])
            bar.update()
        bar.set_postfix_str("")
    return Completed(runs, failures, len(missing) - len(failures))


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


def _read(key: str, folder: Path) -> Run:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    with np.load(folder / "arrays.npz") as arrays:
        found = dict(arrays)
    # NaN has no name in json.
    history = [{k: np.nan if v is None else v for k, v in e.items()} for e in record["history"]]
    return Run(
        key,
        _scores(found, "test"),
        _scores(found, "extra_test") if "extra_test_label" in found else None,
        history,
        found.get("weights"),
        record["weight_auc"],
        record["seconds"],
        record.get("restarted", False),
        record.get("note", ""),
    )


def _would_restart(run: Run, folder: Path) -> bool:
    """Whether it collapsed, and was kept by a version that did not begin such trainings again."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return "restarted" not in record and remark(run.scores) == COLLAPSED


def _arrays(name: str, scores: Scores) -> dict[str, NDArray[Any]]:
    return {f"{name}_{field}": array for field, array in vars(scores).items()}


def _scores(arrays: dict[str, NDArray[Any]], name: str) -> Scores:
    return Scores(*(arrays[f"{name}_{field}"] for field in ("probability", "label", "user")))


def _canonical(value: Any) -> str:
    return json.dumps(json.loads(to_json(value)), sort_keys=True)


@lru_cache
def _environment(device: str) -> dict[str, Any]:
    return environment(device)
