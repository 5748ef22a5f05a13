"""A training from its first epoch, or from the state that is kept of it, to its end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cdr.common import ALONE, Processes
from cdr.data import CrossDomainData
from cdr.training.begun import OnStep
from cdr.training.loop import Training
from cdr.training.options import Options
from cdr.training.result import Result
from cdr.training.saves import Keeper, Resumable, Saves, usable


def train(
    variant: str,
    data: CrossDomainData,
    options: Options,
    seed: int,
    *,
    learned: NDArray[np.float32] | None = None,
    processes: Processes = ALONE,
    saves: Saves | None = None,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> Result:
    """Train with early stopping on validation AUC, and score the best checkpoint.

    A training that gives all validation rows the same score after every epoch is begun once more,
    with another initialization; see :meth:`Training.again`.

    Args:
        variant: see :mod:`cdr.training.variants`.
        data: on the device to train on.
        options: see :mod:`cdr.training.options`; ``options.model`` determines the model.
        seed: of initialization, batches and source draws.
        learned: the weights to train with, one per source behaviour, for the variants that take
            them: those that its teacher has learned, or that are found on folds.
        processes: those that train this model together, each on its share of every batch. The
            result is that of one process up to rounding, and the same in all of them.
        saves: where to keep the state, see :class:`cdr.training.saves.Saves`. If there is one of an
            earlier call, the training goes on from it: with as many processes as before, bit for
            bit as if it had not been interrupted.
        on_step: called after every step with (epoch from 0, step in it, steps of an epoch, best
            validation AUC so far).

    Raises:
        ValueError: ``oracle`` without true flags, a variant that takes learned weights without
            them; validation or test rows of one class; a loss that is not finite; a state that
            the user has asked for, of another training or damaged.
        OSError: such a state cannot be kept.
    """
    training = Training(variant, data, options, seed, learned, processes)
    return run_to_end(training, processes, saves, on_step).result()


def run_to_end(
    training: Training,
    processes: Processes,
    saves: Saves | None,
    on_step: OnStep,
) -> Training:
    """Run all epochs of a training; the training, or the one that was begun in its place."""
    with usable(saves) as held:
        run_epochs(training, processes, held, on_step)
        if training.collapsed:
            training = training.again()
            run_epochs(training, processes, held and held.restarted(), on_step)
    return training


class Epochs(Resumable, Protocol):
    """What trains epoch by epoch: a training, or several in common steps."""

    @property
    def done(self) -> bool:
        """Whether there is no further epoch."""

    def run_epoch(
        self,
        on_step: OnStep,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Train for one epoch, or for what is left of it; see :meth:`Training.run_epoch`."""


def run_epochs(
    training: Epochs,
    processes: Processes,
    saves: Saves | None,
    on_step: OnStep,
) -> None:
    """All epochs, from the state that is kept on if there is one."""
    keeper = None if saves is None else Keeper(saves, processes)
    if keeper is not None:
        keeper.restore(training)
    after_step = None if keeper is None else partial(keeper.after_step, training)
    while not training.done:
        training.run_epoch(on_step, after_step)
        if keeper is not None:
            keeper.after_epoch(training)
