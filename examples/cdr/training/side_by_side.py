"""Several seeds of one variant trained at once, for a device that one small model does not fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdr.common import ALONE, refuse
from cdr.data import CrossDomainData
from cdr.training.begun import OnStep
from cdr.training.epochs import run_epochs
from cdr.training.loop import Training
from cdr.training.options import Options
from cdr.training.result import Result
from cdr.training.saves import Saves, usable
from cdr.training.stack import Stack


def train_side_by_side(
    variant: str,
    data: CrossDomainData,
    options: Options,
    seeds: Sequence[int],
    *,
    saves: Saves | None = None,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> list[Result]:
    """Train every seed as :func:`cdr.training.epochs.train` does, in steps that they take together.

    The results are those of the seeds one by one, up to rounding: each has its own random streams,
    and a seed that has stopped takes no part in later epochs. An outer step belongs to one seed,
    and is taken for one after another. What is not finite is noticed at the end of the epoch, or
    by an outer step. A seed that has told no rows apart is trained once more, by itself.

    Args:
        variant: one for all, so that gradients reach the same parameters of every seed.
        data: one for all, which makes batches and embedding tables equally large.
        options: as for :func:`cdr.training.epochs.train`.
        seeds: at least one.
        saves: As there, of one state for all seeds.
        on_step: As there; the best validation AUC is the mean over the seeds.

    Returns:
        The results in the order of ``seeds``.

    Raises:
        ValueError: as :func:`cdr.training.epochs.train`, naming the seed; a model with buffers.
    """
    trainings = [Training(variant, data, options, seed) for seed in seeds]
    with usable(saves) as held:
        run_epochs(_Seeds(trainings, options), ALONE, held, on_step)
    for place, training in enumerate(trainings):
        if training.collapsed:
            trainings[place] = training.again()
            run_epochs(trainings[place], ALONE, None, on_step)
    return [training.result() for training in trainings]


class _Seeds:
    """Trainings that run epoch by epoch in common steps, until each is done."""

    def __init__(self, trainings: list[Training], options: Options) -> None:
        for option in ("lazy_tables", "cuda_graphs"):
            if getattr(options.inner, option):
                refuse("inner", option, True, "it does not go with --stack-seeds; leave one out")
        self._all, self._stack = list(trainings), Stack(trainings, options.inner)
        self._device = next(trainings[0].model.parameters()).device
        # Sum of the losses [S] of the epoch under way, and steps in it.
        self._total: Tensor | None = None
        self._done = 0

    @property
    def done(self) -> bool:
        """Whether there is no further epoch."""
        return not self._stack.trainings

    @property
    def resting(self) -> bool:
        """Whether the state is all that the next step depends on: no batch is made ahead."""
        return self._total is None or all(
            training.sampler.state_dict()["position"] == self._done
            for training in self._stack.trainings
        )

    def run_epoch(self, on_step: OnStep, after_step: Callable[[], None] | None = None) -> None:
        """Train all for one epoch, or for what is left of it, and let go of those that are done."""
        running = self._stack.trainings
        epoch, steps = running[0].epoch, len(running[0].sampler)
        best = sum(training.best for training in self._all) / len(self._all)
        if self._total is None:
            self._total, self._done = torch.zeros(len(running), device=self._device), 0
        # strict=True, so that every sampler reaches the end of its epoch.
        for batches in zip(*(t.epoch_batches() for t in running), strict=True):
            self._total += self._stack.step(batches)
            for training in running:
                training.after_step()
            self._done += 1
            on_step(epoch, self._done, steps, best)
            if after_step is not None:
                after_step()
        losses, self._total = (self._total / steps).tolist(), None
        for training, loss in zip(running, losses, strict=True):
            training.end_epoch(loss)
        self._stack.keep_running()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; taken while resting."""
        return {
            "trainings": [training.state_dict() for training in self._all],
            "optimizer": self._stack.state_dict(),
            "total": None if self._total is None else self._total.clone(),
            "done": self._done,
        }

    def check_state(self, state: dict[str, Any], place: str) -> None:
        """ValueError if a state is not of the same trainings."""
        found = state.get("trainings", [])
        if len(found) != len(self._all):
            raise ValueError(f"{place} is of {len(found)} seeds and not of {len(self._all)}")
        for training, own in zip(self._all, found, strict=True):
            training.check_state(own, place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for training, own in zip(self._all, state["trainings"], strict=True):
            training.load_state_dict(own)
        self._stack.keep_running()
        self._stack.load_state_dict(state["optimizer"])
        total: Tensor | None = state["total"]
        self._total = None if total is None else total.to(self._device)
        self._done = state["done"]
