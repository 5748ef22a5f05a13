"""One model trained on one data set with one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdr.common import ALONE, Processes, map_tensors, refuse, to_json
from cdr.data import Batches, CrossDomainData, PairBatch
from cdr.models import CrossDomainModel
from cdr.training.begun import Begun, OnStep, epoch_seed
from cdr.training.evaluation import NUM_SOURCE, Scores, score
from cdr.training.gradients import average
from cdr.training.graphs import CapturedStep
from cdr.training.inner import fixed_weights, inner_optimizer, unlearned_loss
from cdr.training.learner import Learner, perceptron_facts
from cdr.training.metrics import auc
from cdr.training.options import Options
from cdr.training.pairs import Fold, pair_sampler
from cdr.training.result import Result
from cdr.training.variants import plan
from cdr.training.weighing import Weighing

# Of the states that are kept: change it with what is in them.
_FORMAT = "3"


class Training:
    """One seed's model with its optimizer, batches and early stopping.

    Its random streams (initialization, order of the rows, source draws) are its own, so that the
    result does not depend on trainings beside it.

    Attributes:
        model: the recommendation model.
        optimizer: of the model.
        loss: from a batch to the inner loss.
        learner: The weighter with its optimizer and batches, where weights are learned.
        batches: Makes the batches.
        sampler: one epoch of training rows per ``iter()``.
        best: best validation AUC so far, -inf before the first epoch.
    """

    def __init__(
        self,
        variant: str,
        data: CrossDomainData,
        options: Options,
        seed: int,
        learned: NDArray[np.float32] | None = None,
        processes: Processes = ALONE,
        *,
        restarted: bool = False,
        weighing: Weighing | None = None,
        fold: Fold | None = None,
    ) -> None:
        self._started = time.perf_counter()
        _check_classes(data)
        self._arguments = (variant, data, options, seed, learned, processes)
        self._weighing, self._fold = weighing, fold
        self._restarted, self._tells_apart = restarted, False
        torch.manual_seed(_restart_seed(seed) if restarted else seed)
        how = plan(variant)
        options = how.change(options)
        self._variant, self._data, self._options, self._seed = variant, data, options, seed
        self._keeps_last, self._processes = how.keeps_last, processes
        kind, single_domain = options.model_class, how.source == "none"
        self.model: CrossDomainModel = _model(data, options, single_domain, processes)
        self.optimizer = inner_optimizer(self.model.parameters(), options.inner)
        learns = how.source == "learned"
        self.learner = (
            Learner(
                self.model,
                self.optimizer,
                data,
                options,
                seed,
                processes,
                weighing=weighing,
                fold=fold,
            )
            if learns
            else None
        )
        windows = kind.windows(options.model, single_domain)
        reads_histories = learns and options.outer.weighter == "perceptron"
        self.batches = Batches(
            data,
            options.perceptron.history if reads_histories else 0,
            seed,
            windows,
            paired=options.inner.source_batch == "paired",
            processes=processes,
            facts=perceptron_facts(data, options) if reads_histories else None,
        )
        given = fixed_weights(variant, data, learned, seed)
        # The flags themselves need no weight AUC.
        self._judged = None if how.weights == "flags" else given
        self.loss: Callable[[PairBatch], Tensor] = (
            self.learner.loss
            if self.learner
            else unlearned_loss(self.model, how.source_weight(options.inner.gamma), given)
        )
        # Rows are held out only where weights are learned, or a fold is left out.
        outer = options.outer if learns or fold else None
        self.sampler = pair_sampler(len(data.train), options.inner.batch_size, seed, outer, fold)
        self.best = -math.inf
        self._captured: CapturedStep | None = None
        self._scorer = Batches(data, 0, 0, windows, processes=processes)
        self._num_source = NUM_SOURCE if kind.mixes_candidates and not single_domain else 1
        self._state, self._since, self._steps = self._snapshot(), 0, 0
        # Of the stored checkpoint; None where it comes from a state that was kept.
        self._valid: Scores | None = None
        self._history: list[dict[str, float]] = []
        self._begun: Begun | None = None

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return len(self._history)

    @property
    def shares_weighter(self) -> bool:
        """Whether its weighter belongs to other trainings too."""
        return self._weighing is not None

    @property
    def last(self) -> float:
        """Validation AUC after the last epoch."""
        return self._history[-1]["auc"]

    @property
    def done(self) -> bool:
        """Whether there is no further epoch."""
        inner = self._options.inner
        return self.epoch >= inner.epochs or self._since >= inner.patience

    @property
    def collapsed(self) -> bool:
        """Whether all validation rows had the same score after every epoch so far."""
        return self.epoch > 0 and not self._tells_apart

    def again(self) -> Training:
        """The same training from the start, with another initialization.

        Of CoNet's initial towers one in 500 has no unit in its last layer that is above zero for
        any row. No gradient passes ReLUs at zero, so such a model stays as it is. Batches and
        draws are those of the first training.
        """
        again = Training(*self._arguments, restarted=True, weighing=self._weighing, fold=self._fold)
        again._started = self._started
        return again

    @property
    def resting(self) -> bool:
        """Whether the state is all that the next step depends on: no batch is made ahead."""
        begun = self._begun
        return begun is None or self.sampler.state_dict()["position"] == begun.steps

    def run_epoch(
        self,
        on_step: OnStep,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Train for one epoch, or for what is left of it, and look at the validation rows.

        Args:
            on_step: See :func:`cdr.training.epochs.train`.
            after_step: Called when a step is done.
        """
        if self._begun is None:
            # Dropout, the one thing that draws from torch's common stream, is not the same on every
            # share, and does not depend on what ran before the epoch.
            torch.manual_seed(epoch_seed(self._seed, self.epoch, self._processes.rank))
            self._begun = Begun(torch.zeros((), device=self._data.source_offsets.device))
        begun = self._begun
        for batch in self.epoch_batches():
            with self.explained():
                begun.total += self.step(batch)
            self.after_step()
            begun.steps += 1
            on_step(self.epoch, begun.steps, len(self.sampler), self.best)
            if after_step is not None:
                after_step()
        self._begun = None
        self.end_epoch(float(begun.total) / len(self.sampler))

    def epoch_batches(self) -> Iterator[PairBatch]:
        """The batches of one epoch; a step has to be taken on each before the next is asked for."""
        rows = (rows for rows, _ in self.sampler)
        if self.learner is None:
            return map(self.batches.train_pairs, rows)
        interval = self._options.outer.interval
        return self.learner.train_batches(
            self.batches, rows, lambda: interval - self._steps % interval
        )

    def step(self, batch: PairBatch) -> Tensor:
        """One inner step; the loss before it, detached, which the next call may overwrite."""
        if not self._options.inner.cuda_graphs:
            return self._inner_step(batch)
        if self._captured is None:
            self._captured = CapturedStep(self._inner_step, batch)
        return self._captured(batch)

    def _inner_step(self, batch: PairBatch) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        loss = average(self._processes, self.model, loss.detach(), len(batch))
        self.optimizer.step()
        return loss

    def after_step(self) -> None:
        """Count an inner step, and take an outer one where it is due."""
        due = self.count_step()
        if self.learner and due:
            with self.explained():
                self.learner.outer_step(self.batches)

    def count_step(self) -> bool:
        """Count an inner step; whether an outer one is due."""
        self._steps += 1
        return self._steps % self._options.outer.interval == 0

    def end_epoch(self, loss: float) -> None:
        """Validate the model, and store a checkpoint if the epoch is the best so far.

        Args:
            loss: Mean training loss of the epoch.
        """
        scores = score(self.model, self._scorer, self._data.valid, self._num_source)
        self._tells_apart |= not scores.equal
        valid = scores.metrics()
        if not (math.isfinite(loss) and math.isfinite(valid["log_loss"])):
            raise self._broken(f"the mean loss is {loss}")
        self._history.append({"epoch": self.epoch + 1, "loss": loss, **valid})
        better = valid["auc"] > self.best
        if better or self._keeps_last:
            self._state, self._valid = self._snapshot(), scores
        self.best, self._since = max(valid["auc"], self.best), 0 if better else self._since + 1

    def load_best(self) -> None:
        """Load the stored checkpoint into the model."""
        self.model.load_state_dict(self._state["model"])

    def result(self) -> Result:
        """Load the stored checkpoint into the model and score it."""
        data = self._data
        self.load_best()
        result = Result(
            score(self.model, self._scorer, data.test, self._num_source),
            score(self.model, self._scorer, data.extra_test, self._num_source)
            if data.extra_test
            else None,
            self._history,
            self._state,
        )
        if self.learner:
            self.learner.rw.load_state_dict(self._state["weighter"])
            result.weights = self.learner.weights(self.batches)
            result.outer = self.learner.records
        judged = result.weights if self._judged is None else self._judged.cpu().numpy()
        if judged is not None and data.relevant is not None:
            result.weight_auc = auc(judged, data.relevant.cpu().numpy())
        result.seconds = time.perf_counter() - self._started
        result.restarted = self._restarted
        result.valid = self._valid or score(self.model, self._scorer, data.valid, self._num_source)
        return result

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, equal in all processes; taken while resting."""
        return {
            "training": self._description(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": None if self.learner is None else self.learner.state_dict(),
            "sampler": self.sampler.state_dict(),
            "batches": self.batches.state_dict(),
            "kept": self._state,
            "history": self._history,
            "best": self.best,
            "since": self._since,
            "steps": self._steps,
            "tells_apart": self._tells_apart,
            "begun": self._begun and self._begun.state_dict(self._processes),
            "seconds": self._seconds_of_first(),
        }

    def check_state(self, state: dict[str, Any], place: str) -> None:
        """Check that a state is of a training of the same variant, seed, options and data.

        Args:
            state: From :meth:`state_dict`.
            place: Where it comes from, for an error.

        Raises:
            ValueError: It is of another training.
        """
        found, own = state.get("training", {}), self._description()
        differing = [name for name, value in own.items() if found.get(name) != value]
        if differing:
            raise ValueError(
                f"{place} is a checkpoint of a training with other {', '.join(differing)} "
                f"(there: {found.get(differing[0])}; here: {own[differing[0]]}); give another "
                "folder, or the arguments that it was made with"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state of :meth:`state_dict` was taken; see :meth:`check_state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.learner is not None:
            self.learner.load_state_dict(state["learner"])
        self.sampler.load_state_dict(state["sampler"])
        self.batches.load_state_dict(state["batches"])
        device = self._data.source_offsets.device
        self._state = map_tensors(lambda x: x.to(device), state["kept"])
        self._valid = None
        self._history, self.best = state["history"], state["best"]
        self._since, self._steps = state["since"], state["steps"]
        self._tells_apart = state["tells_apart"]
        if (begun := state["begun"]) is not None:
            seed = epoch_seed(self._seed, self.epoch, self._processes.rank)
            self._begun = Begun.restored(begun, self._processes, device, seed)
        self._started = time.perf_counter() - state["seconds"]

    def _seconds_of_first(self) -> float:
        """Seconds since the start by the clock of the first process, for a state equal in all."""
        own = time.perf_counter() - self._started if self._processes.first else 0.0
        return float(self._processes.total(torch.tensor(own, dtype=torch.float64)))

    def _description(self) -> dict[str, str]:
        """What a training goes on from a checkpoint with."""
        return {
            "format": _FORMAT,
            "variant": self._variant,
            "seed": str(self._seed),
            "initialization": "second" if self._restarted else "first",
            "model": self._options.model_name,
            "options": to_json(self._options),
            "data": f"{self._data.name} {to_json(self._data.statistics)}{self._data.protocol}",
        }

    def _snapshot(self) -> dict[str, Any]:
        state: dict[str, Any] = {"model": self.model.state_dict()}
        if self.learner:
            state["weighter"] = self.learner.rw.state_dict()
        # Not by deepcopy, which copies the whole storage where a tensor is a view of a larger one.
        copied: dict[str, Any] = map_tensors(torch.clone, state)
        return copied

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add advice to the library's error about values that are not finite."""
        try:
            yield
        except (ValueError, FloatingPointError) as error:
            raise self._broken(str(error)) from error

    def _broken(self, what: str) -> ValueError:
        inner, outer = "--inner.lr", "--outer.lr"
        if self._variant == "search":
            inner, outer = "--search.inner-lr", "--search.lr"
        advice = f"Lower {inner} (now {self._options.inner.lr:g})"
        if self.learner:
            advice += f" or {outer} (now {self._options.outer.lr:g})"
        return ValueError(
            f"training {self._variant} (seed {self._seed}) diverged in epoch {self.epoch + 1}: "
            f"{what}. {advice}."
        )


def _model(
    data: CrossDomainData, options: Options, single_domain: bool, processes: Processes
) -> CrossDomainModel:
    """The recommendation model, on the device of the data."""
    device = data.source_offsets.device
    model = options.model_class(data, options.model, single_domain).to(device)
    if options.inner.cuda_graphs and device.type != "cuda":
        refuse("inner", "cuda_graphs", True, f"the device is {device}; add --device cuda")
    if options.inner.cuda_graphs and processes.size > 1:
        refuse(
            "inner",
            "cuda_graphs",
            True,
            f"{processes.size} processes exchange gradients in every step, which can't be recorded",
        )
    if options.inner.lazy_tables:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = True
    return model


def _restart_seed(seed: int) -> int:
    """Of the initialization of a training that is begun once more."""
    (number,) = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)
    return int(number)


def _check_classes(data: CrossDomainData) -> None:
    """The AUC, which selects the best epoch, needs positives and negatives."""
    for name, rows in (("validation", data.valid), ("test", data.test)):
        positive, num = int(rows.label.sum()), len(rows)
        if positive in (0, num):
            raise ValueError(
                f"{data.name}: all {num:,} {name} behaviours are "
                f"{'positive' if positive else 'negative'} (positive is a rating above 3), so that "
                "there is no AUC: take more users, or check the ratings' scale"
            )
