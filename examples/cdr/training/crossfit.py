"""Weights learned by cross-fitting: every target row is held out, each in one of several models."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cdr.common import ALONE, Processes
from cdr.data import CrossDomainData
from cdr.training.agreement import Agreement
from cdr.training.loop import Training
from cdr.training.options import Options
from cdr.training.pairs import Fold
from cdr.training.weighing import Weighing

# Validation AUC in an epoch; less than this is the end of the steep part.
_SETTLED = 0.01

OnStep = Callable[[int, int, int, float], None]


class Found(NamedTuple):
    """Weights that a new model is trained with.

    Attributes:
        weights: Of each source behaviour, [len(data.source)], with a mean of 1. None: there is no
            reason to prefer any behaviour to another.
        records: What was seen, a record for each outer step.
        note: The same in words.
    """

    weights: NDArray[np.float32] | None
    records: list[dict[str, float]]
    note: str


def cross_fitted(
    data: CrossDomainData,
    options: Options,
    seed: int,
    *,
    processes: Processes = ALONE,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> Found:
    """One weighter that learns from several models, each trained without its fold of target rows.

    The models start from the same values and train side by side on the weighted loss. Once they are
    near their best, each gives hypergradients of rows that it has not been trained on. Before, what
    would help most in the next steps is another thing than what a trained model needs, and the
    folds agree on it all the same. Where those of different models agree,
    the weighter takes a step along their mean, shortened to the share of the signal in it; where
    they do not, there is nothing to be learned, and it stays as it is. The weight of a behaviour is
    the mean of what the weighter gives it beside each model.

    Args:
        data: On the device to train on.
        options: ``options.search`` says how many folds and how long.
        seed: Of initialization, folds, batches and source draws.
        processes: Those that train together.
        on_step: Called after every step, as that of :func:`cdr.training.train` is.
    """
    search = options.search
    options = options.changed(
        {
            "inner.lr": search.inner_lr,
            "inner.epochs": search.epochs,
            "inner.patience": search.epochs,
            "outer.dev": "split-users",
            "outer.lr": search.lr,
            "outer.calibrated": True,
        }
    )
    torch.manual_seed(seed)
    weighing = Weighing.begin(data, options)
    trainings = [
        Training(
            "ours",
            data,
            options,
            seed,
            None,
            processes,
            weighing=weighing,
            fold=Fold(k, search.folds),
        )
        for k in range(search.folds)
    ]
    steps = _OuterSteps(trainings, weighing)
    settled, reached = False, 0.0
    for epoch in range(search.epochs):
        before = steps.taken
        total = np.zeros(len(trainings))
        sampler = trainings[0].sampler
        best = float(np.mean([training.best for training in trainings]))
        for done, batches in enumerate(
            zip(*(t.epoch_batches() for t in trainings), strict=True), 1
        ):
            total += [float(t.step(b)) for t, b in zip(trainings, batches, strict=True)]
            due = all([training.count_step() for training in trainings])
            if due and settled:
                steps.take()
            on_step(epoch, done, len(sampler), best)
        for training, loss in zip(trainings, total / len(sampler), strict=True):
            training.end_epoch(float(loss))
        last, reached = reached, float(np.mean([training.last for training in trainings]))
        settled |= reached - last < _SETTLED
        if steps.taken and steps.taken == before:
            break  # they have agreed, and do so no longer: all that is to be learned is learned
    if not steps.taken:
        return Found(None, steps.records, f"the hypergradients of {search.folds} folds never agree")
    weights = np.mean([t.learner.weights(t.batches) for t in trainings if t.learner], axis=0)
    note = (
        f"the folds agree in {steps.taken} of {len(steps.records)} outer steps, the first of them "
        f"the {steps.first}th"
    )
    return Found((weights / weights.mean()).astype(np.float32), steps.records, note)


class _OuterSteps:
    """Outer steps of one weighter over several trainings.

    Attributes:
        taken: How many have moved the weighter.
        first: The number of the first one of these, from 1; 0: none.
        records: One for each outer step.
    """

    def __init__(self, trainings: list[Training], weighing: Weighing) -> None:
        self._trainings, self._weighing = trainings, weighing
        self._agreement = Agreement()
        self._parameters = dict(weighing.weighter.named_parameters())
        self._lr = [group["lr"] for group in weighing.optimizer.param_groups]
        self.taken = self.first = 0
        self.records: list[dict[str, float]] = []

    def take(self) -> None:
        """Look at a hypergradient of each, and step along their mean where they agree."""
        rows = []
        for training in self._trainings:
            assert training.learner is not None
            with training.explained():
                grads = training.learner.hypergradient(training.batches)
            rows.append(torch.cat([grads[name].reshape(-1) for name in self._parameters]))
        together = torch.stack(rows)
        share = self._agreement.add(together)
        agrees = self._agreement.agrees
        self.records.append(
            {
                "cosine": self._agreement.cosine,
                "t": self._agreement.t,
                "signal_share": share,
                "taken": float(agrees),
            }
        )
        if not agrees:
            return
        self.taken += 1
        self.first = self.first or len(self.records)
        parameters = list(self._parameters.values())
        means = torch.split(together.mean(0), [parameter.numel() for parameter in parameters])
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean.view_as(parameter).clone()
        groups = self._weighing.optimizer.param_groups
        for group, lr in zip(groups, self._lr, strict=True):
            group["lr"] = lr * share
        self._weighing.step()
        for group, lr in zip(groups, self._lr, strict=True):
            group["lr"] = lr
