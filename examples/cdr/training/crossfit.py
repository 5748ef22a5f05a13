"""Weights learned by cross-fitting: every target row is held out, each in one of several models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdr.common import ALONE, Processes, map_tensors
from cdr.data import CrossDomainData, PairBatch
from cdr.training.agreement import Agreement
from cdr.training.begun import OnStep
from cdr.training.epochs import run_epochs
from cdr.training.loop import Training
from cdr.training.options import Options
from cdr.training.pairs import Fold
from cdr.training.saves import Saves, usable
from cdr.training.stack import Stack
from cdr.training.weighing import Weighing

# Validation AUC in an epoch; less than this is the end of the steep part.
_SETTLED = 0.01
# Times the epochs of a search, where outer steps have begun within those.
_AT_MOST = 2
# Outer steps within which the folds have to agree for the first time: ten windows of Agreement. On
# data of many rows an epoch has hundreds, and by chance they would in the end.
_WITHIN = 200


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
    saves: Saves | None = None,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> Found:
    """One weighter that learns from several models, each trained without its fold of target rows.

    The models start from the same values and train side by side on the weighted loss. Once they are
    near their best, each gives hypergradients of rows that it has not been trained on. Where those
    of different models agree, the weighter takes a step along their mean, shortened to the share of
    the signal in it; where they do not, there is nothing to be learned, and it stays as it is. The
    weight of a behaviour is the mean of what the weighter gives it beside each model.

    Args:
        data: On the device to train on.
        options: ``options.search`` says how many folds and how long.
        seed: Of initialization, folds, batches and source draws.
        processes: Those that train together.
        saves: Where the state is kept after epochs, to go on from.
        on_step: Called after every step, as that of :func:`cdr.training.train` is.
    """
    crossfit = CrossFit(data, options, seed, processes)
    with usable(saves) as held:
        run_epochs(crossfit, processes, held, on_step)
    return crossfit.found()


class CrossFit:
    """Models of all folds, and the weighter that learns from them; see :func:`cross_fitted`."""

    # Whenever a state is taken: between epochs, or when the folds are given up, which is the end.
    resting = True

    def __init__(
        self, data: CrossDomainData, options: Options, seed: int, processes: Processes = ALONE
    ) -> None:
        search = options.search
        options = options.changed(
            {
                "inner.lr": search.inner_lr,
                "inner.epochs": _AT_MOST * search.epochs,
                "inner.patience": _AT_MOST * search.epochs,
                "outer.batch_size": search.batch_size,
                "outer.solver": search.solver,
                "outer.dev": "split-users",
                "outer.lr": search.lr,
                "outer.calibrated": True,
                "outer.weights_ahead": options.outer.interval,
            }
        )
        self._epochs = search.epochs
        torch.manual_seed(seed)
        # A factor of all weights, which have a mean of 1 in the end, would be nine tenths of the
        # squared length of most hypergradients, and the folds' agreement be that on it.
        weighing = Weighing.begin(data, options, learn_scale=False)
        self._trainings = [
            Training(
                "ours",
                data,
                options,
                seed,
                None,
                processes,
                weighing=weighing,
                fold=Fold(number, search.folds),
            )
            for number in range(search.folds)
        ]
        self._stack = _stack(self._trainings, options, processes)
        self._steps = _OuterSteps(self._trainings, weighing)
        self._settled, self._reached, self._over = False, 0.0, False

    @property
    def done(self) -> bool:
        """Whether there is no further epoch."""
        most = (_AT_MOST if self._steps.records else 1) * self._epochs
        return self._over or self._trainings[0].epoch >= most

    def run_epoch(self, on_step: OnStep, after_step: Callable[[], None] | None = None) -> None:
        """Train all models for one epoch, or until the folds are given up.

        Args:
            on_step: Called after every step.
            after_step: Never called: states are taken between epochs only.
        """
        trainings, before = self._trainings, self._steps.taken
        epoch, steps = trainings[0].epoch, max(len(t.sampler) for t in trainings)
        best = float(np.mean([training.best for training in trainings]))
        total = torch.zeros(len(trainings))
        for done, batches in enumerate(zip_longest(*(t.epoch_batches() for t in trainings)), 1):
            if (losses := self._inner_steps(batches)) is not None:
                total = total.to(losses.device) + losses
            due = [training.count_step() for training in trainings]
            if all(due) and self._settled:
                self._steps.take()
                self._over = self._steps.in_vain
            on_step(epoch, done, steps, best)
            if self._over:
                return
        for training, loss in zip(trainings, total.tolist(), strict=True):
            training.end_epoch(loss / len(training.sampler))
        last = self._reached
        self._reached = float(np.mean([training.last for training in trainings]))
        self._settled |= self._reached - last < _SETTLED
        # Folds that have agreed, and do so no longer, have told all that is to be learned.
        self._over = 0 < self._steps.taken == before

    def _inner_steps(self, batches: Sequence[PairBatch | None]) -> Tensor | None:
        """A step of each model, equally large; the losses before it [K], or None without a step.

        Folds differ by a row at most. So a batch that some models lack is one of a single row, and
        what another is larger by is one row too. It takes no part in this epoch; the order of the
        next one is another.
        """
        equal = [batch for batch in batches if batch is not None]
        if len(equal) < len(batches):
            return None
        if len({len(batch) for batch in equal}) > 1:
            size = min(len(batch) for batch in equal)
            equal = [map_tensors(lambda tensor: tensor[:size], batch) for batch in equal]
        if self._stack is not None:
            return self._stack.step(equal)
        steps = zip(self._trainings, equal, strict=True)
        return torch.stack([training.step(batch) for training, batch in steps])

    def found(self) -> Found:
        """The weights as they are now."""
        steps, folds = self._steps, len(self._trainings)
        if not steps.records:
            note = f"the {folds} models are not near their best after {self._epochs} epochs"
            return Found(None, [], f"{note}: a larger --search.epochs gives them time")
        if not steps.taken:
            note = f"the hypergradients of {folds} folds agree in none of {len(steps.records)}"
            cosine = f"mean cosine {steps.records[-1]['cosine']:.3f}"
            return Found(None, steps.records, f"{note} outer steps ({cosine})")
        weights = np.mean(
            [t.learner.weights(t.batches) for t in self._trainings if t.learner], axis=0
        )
        note = f"{folds} folds agree in {steps.taken} of {len(steps.records)} outer steps"
        return Found((weights / weights.mean()).astype(np.float32), steps.records, note)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            "trainings": [training.state_dict() for training in self._trainings],
            "stack": self._stack and self._stack.state_dict(),
            "steps": self._steps.state_dict(),
            "settled": self._settled,
            "reached": self._reached,
            "over": self._over,
        }

    def check_state(self, state: dict[str, Any], place: str) -> None:
        """ValueError if a state is of another cross-fitting."""
        trainings = state.get("trainings", [])
        if len(trainings) != len(self._trainings):
            raise ValueError(
                f"{place} holds a state of {len(trainings)} models, not of "
                f"{len(self._trainings)} (--search.folds); give another folder"
            )
        for training, own in zip(self._trainings, trainings, strict=True):
            training.check_state(own, place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for training, own in zip(self._trainings, state["trainings"], strict=True):
            training.load_state_dict(own)
        if self._stack is not None:
            self._stack.load_state_dict(state["stack"])
        self._steps.load_state_dict(state["steps"])
        self._settled, self._reached = state["settled"], state["reached"]
        self._over = state["over"]


def _stack(trainings: list[Training], options: Options, processes: Processes) -> Stack | None:
    """The models' inner steps in one; None where each model has to take its own."""
    inner, model = options.inner, trainings[0].model
    apart = inner.lazy_tables or inner.cuda_graphs or processes.size > 1
    return None if apart or any(True for _ in model.buffers()) else Stack(trainings, inner)


class _OuterSteps:
    """Outer steps of one weighter over several trainings.

    Attributes:
        taken: How many have moved the weighter.
        records: One for each outer step.
    """

    def __init__(self, trainings: list[Training], weighing: Weighing) -> None:
        self._trainings, self._weighing = trainings, weighing
        self._agreement = Agreement()
        named = weighing.weighter.named_parameters()
        self._parameters = {name: p for name, p in named if p.requires_grad}
        self._lr = [group["lr"] for group in weighing.optimizer.param_groups]
        self.taken = 0
        self.records: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """What is seen so far; the weighter and its optimizer are parts of every training."""
        return {
            "agreement": self._agreement.state_dict(),
            "taken": self.taken,
            "records": self.records,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._agreement.load_state_dict(state["agreement"])
        self.taken, self.records = state["taken"], state["records"]

    @property
    def in_vain(self) -> bool:
        """Whether the folds have never agreed, and are not to be expected to in time."""
        return not self.taken and not self._agreement.in_reach(_WITHIN)

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
