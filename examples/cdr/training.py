"""One model trained on one data set with one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import reweight
from cdr.batches import Batches, PairBatch
from cdr.checking import refuse
from cdr.data.schema import CrossDomainData
from cdr.evaluation import NUM_SOURCE, Scores, score
from cdr.graphs import CapturedStep
from cdr.metrics import auc
from cdr.models import MODELS
from cdr.optimizers import LazyAdam
from cdr.options import InnerOptions, Options, Variant
from reweight import BehavioralPerceptron, ReorderReuseSampler
from reweight._trees import map_tensors


@dataclass
class Result:
    """What came out of one training.

    Attributes:
        test: scores of the best checkpoint on the test rows.
        extra_test: the same on a generator's further test rows.
        history: one record per epoch.
        state: the best checkpoint.
        weights: learned weight per source behaviour, where weights are learned.
        weight_auc: AUC of weight against the true flag, where there is one.
        seconds: from the start of the training to here, of all that is trained in common steps.
    """

    test: Scores
    extra_test: Scores | None
    history: list[dict[str, float]]
    state: dict[str, Any]
    weights: NDArray[np.float32] | None = None
    weight_auc: float | None = None
    outer: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def train(
    variant: Variant,
    data: CrossDomainData,
    options: Options,
    seed: int,
    *,
    model_name: str = "conet",
    on_step: Callable[[int, int, int, float], None] = lambda epoch, step, steps, best: None,
) -> Result:
    """Train with early stopping on validation AUC, and score the best checkpoint.

    Args:
        variant: ``S`` (no source branch), ``0`` (source features, no source loss), ``base`` (γ
            times the mean source loss), ``ours`` (BIAO), ``oracle`` (weights = the true flags).
        data: on the device to train on.
        options: see :mod:`cdr.options`.
        seed: of initialisation, batches and source draws.
        on_step: called after every step with (epoch from 0, step in it, steps of an epoch, best
            validation AUC so far).

    Raises:
        ValueError: ``oracle`` without true flags; validation or test rows of one class; a loss
            that is not finite.
    """
    training = Training(variant, data, options, seed, model_name)
    while not training.done:
        training.run_epoch(on_step)
    return training.result()


class Training:
    """One seed's model with its optimizer, batches and early stopping.

    The random streams (initialisation, order of the rows, source draws) are its own, so that what
    comes out does not depend on what else is trained beside it.

    Attributes:
        model: the recommendation model.
        optimizer: of the model.
        loss: from a batch to the inner loss.
        learner: the perceptron with all its own, where weights are learned.
        batches: what batches are made by.
        sampler: one epoch of training rows per ``iter()``.
        best: best validation AUC so far, -inf before the first epoch.
    """

    def __init__(
        self,
        variant: Variant,
        data: CrossDomainData,
        options: Options,
        seed: int,
        model_name: str = "conet",
    ) -> None:
        self._started = time.perf_counter()
        _check_classes(data)
        torch.manual_seed(seed)
        self._variant, self._data, self._options, self._seed = variant, data, options, seed
        device = data.source_offsets.device
        model = MODELS[model_name](data, options.model, single_domain=variant == "S").to(device)
        self.model = model
        if options.inner.cuda_graphs and device.type != "cuda":
            refuse("inner", "cuda_graphs", True, f"the device is {device}; add --device cuda")
        if options.inner.lazy_tables:
            for module in model.modules():
                if isinstance(module, nn.Embedding):
                    module.sparse = True
        self.optimizer = inner_optimizer(model.parameters(), options.inner)
        self.learner = (
            _Learner(model, self.optimizer, data, options, seed) if variant == "ours" else None
        )
        self.batches = Batches(data, options.perceptron.history if self.learner else 0, seed)
        self.loss: Callable[[PairBatch], Tensor] = (
            self.learner.loss if self.learner else _plain_loss(variant, model, data, options)
        )
        self.sampler = ReorderReuseSampler(
            len(data.train), min(options.inner.batch_size, len(data.train) // 2), seed=seed
        )
        self.best = -math.inf
        self._captured: CapturedStep | None = None
        self._scorer = Batches(data, 0, 0)
        self._num_source = 1 if variant == "S" else NUM_SOURCE
        self._state, self._since, self._steps = self._snapshot(), 0, 0
        self._history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """The epoch that is under way, from 0."""
        return len(self._history)

    @property
    def done(self) -> bool:
        """Whether there is no further epoch."""
        inner = self._options.inner
        return self.epoch >= inner.epochs or self._since >= inner.patience

    def run_epoch(self, on_step: Callable[[int, int, int, float], None]) -> None:
        """Train for one epoch and look at the validation rows."""
        total = torch.zeros((), device=self._data.source_offsets.device)
        for done, (rows, _) in enumerate(self.sampler, 1):
            batch = self.batches.train_pairs(rows)
            with self._explained():
                total += self.step(batch)
            self.after_step()
            on_step(self.epoch, done, len(self.sampler), self.best)
        self.end_epoch(float(total) / len(self.sampler))

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
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def after_step(self) -> None:
        """Count an inner step, and take an outer one where it is due."""
        self._steps += 1
        if self.learner and self._steps % self._options.outer.interval == 0:
            with self._explained():
                self.learner.outer_step(self.batches)

    def end_epoch(self, loss: float) -> None:
        """Validate the model after an epoch of this mean loss, and keep it if it is the best."""
        valid = score(self.model, self._scorer, self._data.valid, self._num_source).metrics()
        if not (math.isfinite(loss) and math.isfinite(valid["log_loss"])):
            raise self._broken(f"the mean loss is {loss}")
        self._history.append({"epoch": self.epoch + 1, "loss": loss, **valid})
        if valid["auc"] > self.best:
            self.best, self._state, self._since = valid["auc"], self._snapshot(), 0
        else:
            self._since += 1

    def result(self) -> Result:
        """Score the best checkpoint, which the model is left at."""
        data = self._data
        self.model.load_state_dict(self._state["model"])
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
            if data.relevant is not None:
                result.weight_auc = auc(result.weights, data.relevant.cpu().numpy())
        result.seconds = time.perf_counter() - self._started
        return result

    def _snapshot(self) -> dict[str, Any]:
        state: dict[str, Any] = {"model": self.model.state_dict()}
        if self.learner:
            state["weighter"] = self.learner.rw.state_dict()
        # Not by deepcopy, which copies the whole storage where a tensor is a view of a larger one.
        copied: dict[str, Any] = map_tensors(torch.clone, state)
        return copied

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What is not finite is refused by the library; say what to do about it here."""
        try:
            yield
        except (ValueError, FloatingPointError) as error:
            raise self._broken(str(error)) from error

    def _broken(self, what: str) -> ValueError:
        advice = f"Lower --inner.lr (now {self._options.inner.lr:g})"
        if self._variant == "ours":
            advice += f" or --outer.lr (now {self._options.outer.lr:g})"
        return ValueError(
            f"training {self._variant} (seed {self._seed}) broke down in epoch {self.epoch + 1}: "
            f"{what}. {advice}."
        )


def inner_optimizer(parameters: Iterable[Tensor], options: InnerOptions) -> torch.optim.Optimizer:
    """The optimizer of a recommendation model."""
    if options.lazy_tables:
        return LazyAdam(parameters, lr=options.lr, weight_decay=options.weight_decay)
    # Most of a step is spent on embedding tables, where one fused pass is 4 to 5 times faster.
    return torch.optim.Adam(
        parameters,
        lr=options.lr,
        weight_decay=options.weight_decay,
        fused=True,
        capturable=options.cuda_graphs,
    )


def _check_classes(data: CrossDomainData) -> None:
    """AUC picks the best epoch and is what comes out: it needs positives and negatives."""
    for name, rows in (("validation", data.valid), ("test", data.test)):
        positive, num = int(rows.label.sum()), len(rows)
        if positive in (0, num):
            raise ValueError(
                f"{data.name}: all {num:,} {name} behaviours are "
                f"{'positive' if positive else 'negative'} (positive is a rating above 3), so that "
                "there is no AUC: take more users, or check the ratings' scale"
            )


def _plain_loss(
    variant: Variant, model: nn.Module, data: CrossDomainData, options: Options
) -> Callable[[PairBatch], Tensor]:
    """The inner loss of the variants that learn no weights."""
    gamma = {"S": 0.0, "0": 0.0, "base": options.inner.gamma, "oracle": 1.0}[variant]
    if variant == "oracle" and data.relevant is None:
        raise ValueError(f"{data.name} has no true relevance flags, so there is no oracle")

    def loss(batch: PairBatch) -> Tensor:
        losses = model.losses(batch)  # type: ignore[operator]
        if not gamma:
            return losses.fixed
        weighted = losses.weighted
        if variant == "oracle":
            weighted = weighted * batch.relevant
        return losses.fixed + gamma * weighted.mean()

    return loss


class _Learner:
    """The behavioral perceptron, its optimizer and its batches."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: CrossDomainData,
        options: Options,
        seed: int,
    ) -> None:
        self._model, self._data, self._options = model, data, options.outer
        perceptron = options.perceptron
        weighter = BehavioralPerceptron(
            2 * options.model.dim,
            num_heads=perceptron.heads,
            global_hidden=perceptron.global_hidden,
            local_hidden=perceptron.local_hidden,
            normalization=perceptron.normalization,
            global_bias=perceptron.global_bias,
            mask_keys=perceptron.mask_keys,
            gamma_map=perceptron.gamma_map,
        ).to(data.source_offsets.device)
        self.rw = reweight.wrap(
            model,
            weighter,
            optimizer=optimizer,
            hypergradient=self._options.hypergradient(),
            inner_params=self._is_inner,
        )
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[self._options.optimizer]
        self._optimizer = kind(
            weighter.parameters(), lr=self._options.lr, weight_decay=self._options.weight_decay
        )
        self._dev_optimizer = (
            torch.optim.Adam(model.dev_head.parameters(), lr=options.inner.lr)  # type: ignore[union-attr, arg-type]
            if options.model.dev_head
            else None
        )
        self._outer_rows = _endless(len(data.train), self._options.batch_size, seed + 1)
        self._rows_of_user = torch.searchsorted(
            data.train.user, torch.arange(data.num_users + 1, device=data.train.user.device)
        )
        self._generator = torch.Generator(data.train.user.device).manual_seed(seed + 2)
        self._position = 0
        self.records: list[dict[str, float]] = []

    def loss(self, batch: PairBatch) -> Tensor:
        """The weighted inner loss."""
        return self.rw.loss(batch)

    def outer_step(self, batches: Batches) -> None:
        """Move the perceptron once."""
        rows, reshuffled = next(self._outer_rows)
        rows = rows.to(self._rows_of_user.device)
        if self._options.dev == "same-users" and bool(self._has_other(rows).any()):
            rows, dev = self._other_rows(rows[self._has_other(rows)])
        elif self._options.dev == "in-order":
            dev = self._in_order(self._options.batch_size, len(self._data.train))
        else:
            dev = reshuffled
        if self._dev_optimizer is not None:
            self._train_dev_head(batches, self._dev_optimizer)
        self._optimizer.zero_grad()
        result = self.rw.outer_backward(batches.train_pairs(rows), batches.train_pairs(dev))
        if self._options.clip is not None:
            nn.utils.clip_grad_norm_(self.rw.weighter.parameters(), self._options.clip)
        self._optimizer.step()
        info = result.info
        self.records.append(
            {
                "relative_residual": info.relative_residual,
                "num_hvps": info.num_hvps,
                "curvature": info.curvature if info.curvature is not None else math.nan,
            }
        )

    def weights(self, batches: Batches) -> NDArray[np.float32]:
        """The learned weight of every source behaviour, in the order of ``data.source``."""
        num, device = len(self._data.source), self._rows_of_user.device
        # A weight may depend on the batch it is asked for in (σ of Eq. 8): batches of one size,
        # mixed like those of training, make the weights of all behaviours comparable.
        rows = torch.randperm(num, generator=torch.Generator().manual_seed(0)).to(device)
        chunks = torch.tensor_split(rows, -(-num // 4096))
        weights = torch.cat([self.rw.weights(batches.source_rows(chunk)) for chunk in chunks])
        return torch.empty_like(weights).index_copy_(0, rows, weights).cpu().numpy()

    def _is_inner(self, name: str) -> bool:
        return self._options.heads or not name.split(".")[0].endswith("head")

    def _has_other(self, rows: Tensor) -> Tensor:
        """Whether the user of a row has another one."""
        return self._rows_of_user.diff()[self._data.train.user[rows]] > 1

    def _other_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """These rows, and for each another row of the same user, who must have one."""
        user = self._data.train.user[rows]
        first, count = self._rows_of_user[user], self._rows_of_user.diff()[user]
        share = torch.rand(len(rows), generator=self._generator, device=rows.device)
        # float32 can round share·(count − 1) up to count − 1.
        hop = 1 + torch.minimum((share * (count - 1)).long(), count - 2)
        return rows, first + (rows - first + hop) % count

    def _in_order(self, size: int, limit: int) -> Tensor:
        rows = (self._position + torch.arange(size)) % limit
        self._position = int(rows[-1]) + 1
        return rows

    def _train_dev_head(self, batches: Batches, optimizer: torch.optim.Optimizer) -> None:
        size, steps = self._options.dev_head_batch_size, self._options.dev_head_steps
        limit = min(size * steps, len(self._data.train))
        for step in range(steps):
            rows = (step * size + torch.arange(size)) % limit
            loss = self._model.outer_loss(batches.train_pairs(rows))  # type: ignore[operator]
            grads = torch.autograd.grad(loss, list(self._model.dev_head.parameters()))  # type: ignore[union-attr, operator]
            for p, g in zip(self._model.dev_head.parameters(), grads, strict=True):  # type: ignore[union-attr, operator]
                p.grad = g
            optimizer.step()


def _endless(n: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    sampler = ReorderReuseSampler(n, min(batch_size, n // 2), seed=seed)
    while True:
        yield from sampler
