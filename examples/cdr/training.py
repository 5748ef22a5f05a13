"""One model trained on one data set with one seed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import reweight
from cdr.batches import Batches, PairBatch
from cdr.data.schema import CrossDomainData
from cdr.evaluation import NUM_SOURCE, Scores, score
from cdr.metrics import auc
from cdr.models import MODELS
from cdr.options import Options, Variant
from reweight import BehavioralPerceptron, ReorderReuseSampler


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
    """

    test: Scores
    extra_test: Scores | None
    history: list[dict[str, float]]
    state: dict[str, Any]
    weights: NDArray[np.float32] | None = None
    weight_auc: float | None = None
    outer: list[dict[str, float]] = field(default_factory=list)


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
    _check_classes(data)
    torch.manual_seed(seed)
    device = data.source_offsets.device
    model = MODELS[model_name](data, options.model, single_domain=variant == "S").to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=options.inner.lr, weight_decay=options.inner.weight_decay
    )
    learner = _Learner(model, optimizer, data, options, seed) if variant == "ours" else None
    batches = Batches(data, options.perceptron.history if learner else 0, seed)
    loss_of = learner.loss if learner else _plain_loss(variant, model, data, options)
    scorer = Batches(data, 0, 0)
    num_source = 1 if variant == "S" else NUM_SOURCE
    sampler = ReorderReuseSampler(
        len(data.train), min(options.inner.batch_size, len(data.train) // 2), seed=seed
    )
    best, state, since, step = -math.inf, _snapshot(model, learner), 0, 0
    history: list[dict[str, float]] = []
    for epoch in range(options.inner.epochs):
        total = torch.zeros((), device=device)
        for done, (rows, _) in enumerate(sampler, 1):
            step += 1
            try:
                loss = loss_of(batches.train_pairs(rows))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if learner and step % options.outer.interval == 0:
                    learner.outer_step(batches)
            except (ValueError, FloatingPointError) as error:  # what is not finite is refused
                raise _broken(variant, seed, epoch, options, str(error)) from error
            total += loss.detach()
            on_step(epoch, done, len(sampler), best)
        mean = float(total) / len(sampler)
        valid = score(model, scorer, data.valid, num_source).metrics()
        if not (math.isfinite(mean) and math.isfinite(valid["log_loss"])):
            raise _broken(variant, seed, epoch, options, f"the mean loss is {mean}")
        history.append({"epoch": epoch + 1, "loss": mean, **valid})
        if valid["auc"] > best:
            best, state, since = valid["auc"], _snapshot(model, learner), 0
        else:
            since += 1
        if since >= options.inner.patience:
            break
    model.load_state_dict(state["model"])
    result = Result(
        score(model, scorer, data.test, num_source),
        score(model, scorer, data.extra_test, num_source) if data.extra_test else None,
        history,
        state,
    )
    if learner:
        learner.rw.load_state_dict(state["weighter"])
        result.weights = learner.weights(batches)
        result.outer = learner.records
        if data.relevant is not None:
            result.weight_auc = auc(result.weights, data.relevant.cpu().numpy())
    return result


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


def _broken(variant: Variant, seed: int, epoch: int, options: Options, what: str) -> ValueError:
    advice = f"Lower --inner.lr (now {options.inner.lr:g})"
    if variant == "ours":
        advice += f" or --outer.lr (now {options.outer.lr:g})"
    return ValueError(
        f"training {variant} (seed {seed}) broke down in epoch {epoch + 1}: {what}. {advice}."
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


def _snapshot(model: nn.Module, learner: _Learner | None) -> dict[str, Any]:
    state = {"model": copy.deepcopy(model.state_dict())}
    if learner:
        state["weighter"] = copy.deepcopy(learner.rw.state_dict())
    return state
