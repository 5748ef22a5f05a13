"""The outer problem of a training, which learns the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import reweight
from cdr.common import ALONE, Processes
from cdr.data import Batches, CrossDomainData, PairBatch, source_facts
from cdr.models import CrossDomainModel
from cdr.training.ahead import scores, weighted_ahead
from cdr.training.calibration import calibrated_outer_loss
from cdr.training.gradients import average
from cdr.training.options import HOLDS_OUT, Options
from cdr.training.pairs import Fold, PairSampler, pair_sampler
from cdr.training.same_users import SameUsers
from cdr.training.weighing import Weighing
from reweight import BehavioralPerceptron, Hypergradient, Losses

# Source behaviours weighed at once where all are.
_CHUNK = 4096


class Learner:
    """A weighter, its optimizer and its batches.

    Attributes:
        rw: the model wrapped with the weighter.
        records: A record of the solver for each outer step.
    """

    def __init__(
        self,
        model: CrossDomainModel,
        optimizer: torch.optim.Optimizer,
        data: CrossDomainData,
        options: Options,
        seed: int,
        processes: Processes = ALONE,
        *,
        weighing: Weighing | None = None,
        fold: Fold | None = None,
    ) -> None:
        self._model, self._data, self._options = model, data, options.outer
        self._processes = processes
        self.weighing = weighing or Weighing.begin(data, options)
        self.rw = reweight.wrap(
            model,
            self.weighing.weighter,
            self.losses,
            calibrated_outer_loss if self._options.calibrated else None,
            optimizer=optimizer,
            hypergradient=self._options.hypergradient(),
            inner_params=self._is_inner,
        )
        self._dev_optimizer = (
            torch.optim.Adam(model.dev_head.parameters(), lr=options.inner.lr)
            if options.model.dev_head
            else None
        )
        num, device = len(data.train), data.train.user.device
        # The rows held out have to be those that the inner problem does not see.
        order = seed if fold or self._options.dev in HOLDS_OUT else seed + 1
        self._sampler = pair_sampler(num, self._options.batch_size, order, self._options, fold)
        self._outer_rows = _endless(self._sampler)
        drawn = torch.arange(num, device=device)
        if self._options.dev == "split-users":
            # A batch of all that are left.
            ((left, _),) = pair_sampler(num, num, order, self._options, fold)
            drawn = left.sort().values.to(device)
        self._same_users = SameUsers(data.train.user, data.num_users, drawn, seed + 2)
        self._position = 0
        self.records: list[dict[str, float]] = []

    def losses(self, model: nn.Module, batch: PairBatch) -> Losses:
        """The model's losses with the inputs of the weighter."""
        losses: Losses = model.losses(batch)  # type: ignore[operator]
        if self._options.weighter == "perceptron":
            return losses
        by_category = self._options.weighter == "group"
        return replace(losses, inputs=batch.source.category if by_category else None)

    def loss(self, batch: PairBatch) -> Tensor:
        """The weighted inner loss."""
        if batch.weight is None:
            return self.rw.loss(batch)
        losses = self.losses(self._model, batch)
        return torch.as_tensor(losses.fixed) + (batch.weight * losses.weighted).mean()

    def train_batches(
        self, batches: Batches, rows: Iterator[Tensor], steps_left: Callable[[], int]
    ) -> Iterator[PairBatch]:
        """Batches for inner steps, with their weights where these are made ahead.

        Args:
            batches: Makes the batches.
            rows: The training rows of each.
            steps_left: Inner steps that come before the next outer step, at least 1.
        """
        weighter, most = self.rw.weighter, self._options.weights_ahead
        if isinstance(weighter, BehavioralPerceptron) and most > 1:
            return weighted_ahead(self._model, self.weighing, batches, rows, most, steps_left)
        return map(batches.train_pairs, rows)

    def outer_step(self, batches: Batches) -> None:
        """Take one step of the weighter's optimizer."""
        pair = self._next_pair(batches)
        self.weighing.optimizer.zero_grad()
        self._record(self.rw.outer_backward(*pair))
        self.weighing.step()

    def hypergradient(self, batches: Batches) -> dict[str, Tensor]:
        """That of the next train batch and dev batch, by the names of the weighter's parameters."""
        result = self.rw.hypergradient(*self._next_pair(batches))
        self._record(result)
        return result.grads

    def _next_pair(self, batches: Batches) -> tuple[PairBatch, PairBatch]:
        rows, dev = self._rows(*next(self._outer_rows))
        if self._dev_optimizer is not None:
            self._train_dev_head(batches, self._dev_optimizer)
        # The outer loss weighs nothing.
        return batches.train_pairs(rows), batches.unseen().train_pairs(dev)

    def _record(self, result: Hypergradient) -> None:
        info = result.info
        self.records.append(
            {
                "relative_residual": _number(info.relative_residual),
                "num_hvps": info.num_hvps,
                "curvature": _number(info.curvature),
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the next outer step depends on, but for the model."""
        dev = self._dev_optimizer
        return {
            "weighter": self.rw.state_dict(),
            "optimizer": self.weighing.optimizer.state_dict(),
            "moved": self.weighing.moved,
            "dev_optimizer": None if dev is None else dev.state_dict(),
            "sampler": self._sampler.state_dict(),
            "same_users": self._same_users.state_dict(),
            "position": self._position,
            "records": self.records,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state of :meth:`state_dict` was taken."""
        self.rw.load_state_dict(state["weighter"])
        self.weighing.optimizer.load_state_dict(state["optimizer"])
        self.weighing.moved = state["moved"]
        if self._dev_optimizer is not None:
            self._dev_optimizer.load_state_dict(state["dev_optimizer"])
        self._sampler.load_state_dict(state["sampler"])
        self._outer_rows = _endless(self._sampler)
        self._same_users.load_state_dict(state["same_users"])
        self._position, self.records = state["position"], state["records"]

    def weights(self, batches: Batches) -> NDArray[np.float32]:
        """The learned weight of every source behaviour, in the order of ``data.source``."""
        num, device = len(self._data.source), self._data.source.user.device
        # σ of Eq. 8 depends on the batch. Batches of one size, shuffled as in training, make the
        # weights of all behaviours comparable.
        rows = torch.randperm(num, generator=torch.Generator().manual_seed(0)).to(device)
        chunks, weighter = torch.tensor_split(rows, -(-num // _CHUNK)), self.rw.weighter
        if isinstance(weighter, BehavioralPerceptron):
            every = self._scores(weighter, batches)
            with torch.no_grad():
                weights = torch.cat([weighter.normalize(every[chunk]) for chunk in chunks])
        else:
            weights = torch.cat([self.rw.weights(batches.source_rows(chunk)) for chunk in chunks])
        return torch.empty_like(weights).index_copy_(0, rows, weights).cpu().numpy()

    def _scores(self, perceptron: BehavioralPerceptron, batches: Batches) -> Tensor:
        """The scores of all source behaviours, which depend on no batch, in their order."""
        rows = torch.arange(len(self._data.source), device=self._data.source.user.device)
        flat = perceptron.mask_keys
        return torch.cat(
            [
                scores(self._model, perceptron, batches.source_rows(part, flat=flat))
                for part in torch.split(rows, _CHUNK)
            ]
        )

    def _is_inner(self, name: str) -> bool:
        return self._options.heads or not name.split(".")[0].endswith("head")

    def _rows(self, rows: Tensor, dev: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the train batch and of the dev batch, from the sampler's."""
        kind, device = self._options.dev, self._data.train.user.device
        rows, dev = rows.to(device), dev.to(device)
        if kind == "in-order":
            return rows, self._in_order(self._options.batch_size, len(self._data.train))
        pair = rows, dev
        if kind == "same-users":
            pair = self._same_users.partners(rows)
        elif kind == "split-users":
            dev_rows, beside = self._same_users.partners(dev)
            pair = beside, dev_rows
        # It is empty if no user of the batch has two rows.
        return pair if len(pair[0]) else (rows, dev)

    def _in_order(self, size: int, limit: int) -> Tensor:
        rows = (self._position + torch.arange(size)) % limit
        self._position = int(rows[-1]) + 1
        return rows

    def _train_dev_head(self, batches: Batches, optimizer: torch.optim.Optimizer) -> None:
        size, steps = self._options.dev_head_batch_size, self._options.dev_head_steps
        limit = min(size * steps, len(self._data.train))
        # These passes must not change the running statistics of a normalization.
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        for step in range(steps):
            rows = (step * size + torch.arange(size)) % limit
            batch = batches.train_pairs(rows)
            loss = self._model.outer_loss(batch)
            head = list(self._model.dev_head.parameters())
            for p, g in zip(head, torch.autograd.grad(loss, head), strict=True):
                p.grad = g
            average(self._processes, self._model.dev_head, loss.detach(), len(batch))
            optimizer.step()
        for buffer, before in buffers:
            buffer.copy_(before)


def perceptron_facts(data: CrossDomainData, options: Options) -> Tensor | None:
    """What the perceptron sees of each source behaviour beside its item; None: nothing."""
    how = options.perceptron
    if not how.behavior_inputs:
        return None
    return source_facts(data, how.behavior_inputs, how.fact_columns)


def _endless(sampler: PairSampler) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from sampler


def _number(value: float | None) -> float:
    return math.nan if value is None else value
