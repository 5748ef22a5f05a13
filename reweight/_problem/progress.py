"""What the outer steps did to the weights so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reweight._problem.notices import Notices
from reweight._tensors import Tree

Bounds = tuple[float, float]

# The weights are read at every fourth outer step only: that takes 20 µs.
_EVERY = 4
# All weights lie at a bound if they are this close to it, as a share of the range. The slope of a
# sigmoid is then a fifth of that at the start at most, and mostly much less. While every sample
# still helps, the weights of good runs rise too, and some turn back from there.
_AT_BOUND = 0.05
# The mean weight is compared between blocks of this many readings: one batch is too noisy.
_BLOCK = 2
# It drifts if this many blocks in a row moved it in one direction ...
_MOVES = 4
# ... by at least this factor together, which a mean that has settled does not reach ...
_MOVED = 1.25
# ... and if it is further than this factor from the mean weight of the first outer step.
_FACTOR = 4.0
# Few samples of a batch carry all the weight if its effective sample size is below this share of
# it, or below two samples. Batches of fewer samples than _MANY say nothing.
_FEW, _MANY = 0.05, 8
# Calls after which a weighter is called unmoved: where .grad was cleared in between, and at all.
# Between two steps of an optimizer, gradients may be accumulated over many calls.
_UNMOVED, _UNMOVED_UNCLEARED = 20, 100


@dataclass(frozen=True)
class Level:
    """The weights of a batch in a few numbers."""

    mean: float
    smallest: float
    largest: float
    size: float
    effective_size: float  # (Σ weights)² / Σ weights²

    @property
    def is_concentrated(self) -> bool:
        """Whether few samples carry all the weight."""
        if self.size < _MANY or self.smallest < 0.0:
            return False
        return self.effective_size < max(2.0, _FEW * self.size)

    def bound(self, bounds: Bounds) -> str:
        """The bound that all weights are at, with its value; ``""`` if they are at none."""
        low, high = bounds
        if not 0.0 < high - low < math.inf:
            return ""
        furthest = _AT_BOUND * (high - low)
        if high - self.smallest <= furthest:
            return f"at most {high:.3g}"
        return f"at least {low:.3g}" if self.largest - low <= furthest else ""


def levels(weights: Tensor) -> list[Tensor]:
    """The fields of :class:`Level` of the weights ``[B]`` of a batch, on their device."""
    # Half precision rounds the sums, and overflows.
    w = weights if weights.dtype == torch.float64 else weights.float()
    size = torch.full_like(w[0], w.numel())
    return [w.mean(), w.min(), w.max(), size, w.sum().square() / w.square().sum()]


class Progress:
    """Watches the weights over the outer steps, and warns once where these lead nowhere.

    Its state is a few numbers, and a copy of the weighter's parameters until they first move.

    Attributes:
        steps: the number of outer steps so far, which are calls of ``outer_backward``.
        skipped: how many more were skipped, because something was not finite.
    """

    def __init__(self, notices: Notices) -> None:
        self.steps = self.skipped = 0
        self._notices = notices
        self._level: Level | None = None
        self._bounds: Bounds | None = None
        self._drift = _Drift()
        self._movement = _Movement()

    @property
    def is_reading(self) -> bool:
        """Whether the weights of this outer step are read."""
        return self.steps % _EVERY == 0

    def level_of(self, weights: Tensor) -> Tensor:
        """What :meth:`meet` is to know of the weights ``[B]`` of a batch: numbers on their device.

        There are none in most steps.
        """
        if not (self.is_reading and weights.numel()):
            return weights.new_empty(0)
        return torch.stack(levels(weights.detach()))

    def meet(self, name: str, level: Sequence[float], bounds: Bounds | None) -> bool:
        """Note the weights of a batch, and warn if all are at a bound.

        Args:
            name: of the weighter.
            level: the values of :meth:`level_of`.
            bounds: of all weights, if the weighter states them.

        Returns:
            Whether all weights were found at a bound.
        """
        self._level, self._bounds = None, bounds
        if not level:
            return False
        self._level = met = Level(*level)
        if met.is_concentrated:
            self._notices.warn(
                "concentrated",
                f"the weights of {name} let few samples decide: of {met.size:.0f} samples in the "
                f"batch, the effective number is {met.effective_size:.1f} after {self.steps} outer "
                "steps. A model that is trained on so few samples fits them and little else. "
                "The usual cause is an outer learning rate that is too high: start again with a "
                "new weighter and a third of the rate. If it is right that so few samples are "
                "of use, take larger batches.",
            )
        bound = "" if bounds is None else met.bound(bounds)
        if bound:
            self._notices.warn(
                "saturated",
                f"all weights of {name} are within 5 % of their bound: the mean weight is "
                f"{met.mean:.3g} of {bound}, after {self.steps} outer steps. Their gradient "
                "vanishes there, so an outer step soon changes nothing, and they seldom come "
                "back. The usual cause is an outer learning rate that is too high: 1e-3 can gain "
                "what 1e-2 loses. Another one is that outer steps began before the model had "
                "learned anything, when every sample helps. Start again with a new weighter and a "
                "lower outer learning rate, or with later outer steps.",
            )
        return bool(bound)

    def skip(self, reason: str) -> None:
        """Note an outer step that is skipped; warn of the first one, the tenth, and so on."""
        self.skipped += 1
        total = self.steps + self.skipped
        if (digits := str(self.skipped)).strip("0") == "1":
            self._notices.warn(
                f"skipped {digits}",
                f"{digits} of {total} outer steps so far {'was' if total == 1 else 'were'} "
                f"skipped, this one because {reason}",
            )

    def step(self, name: str, phi: Tree, grads: Mapping[str, Tensor]) -> None:
        """Note an outer step with the weights that were met last.

        Args:
            name: of the weighter.
            phi: its parameters, before the hypergradient is added to their ``.grad``.
            grads: the hypergradient.
        """
        self.steps += 1
        if calls := self._movement.missing(phi, grads):
            self._notices.warn(
                "unmoved",
                f"the parameters of {name} have not changed in {calls} outer steps, although their "
                "hypergradient is not zero. Likely causes: outer_optimizer.step() is not called, "
                "zero_grad() comes between outer_backward(...) and step(), the outer learning rate "
                "is 0, or the outer optimizer has other parameters. The order is "
                "outer_optimizer.zero_grad(); rw.outer_backward(batch, dev_batch); "
                "outer_optimizer.step(), with an optimizer of rw.weighter.parameters().",
            )
        level, self._level = self._level, None
        if level is not None and self._drift.found(level, self._bounds):
            self._notices.warn(
                "drift",
                f"the mean weight of {name} went from {self._drift.start:.3g} to "
                f"{level.mean:.3g} in {self.steps} outer steps, and it moves in one "
                "direction only. The usual cause is an adaptive inner optimizer such as Adam: its "
                "steps do not depend on the scale of the loss, the hypergradient believes that "
                "they do, so the common scale of the weights drifts without an end. Divide the "
                "weights by their mean in the weighter's forward (weights / weights.mean()), or "
                "stop the outer steps and train on with the weights as they are. A weight that "
                "all samples share, as that of ConstantWeighter, has a meaning only beside a "
                "fixed part of the losses.",
            )


class _Drift:
    """Whether the mean weight moves in one direction, far from where it began.

    Where it falls, the largest weight of the batch must have fallen too: a mean that falls because
    many samples are dropped and others are kept is what weights are for.
    """

    def __init__(self) -> None:
        self.start = 0.0
        self._bounds: Bounds | None = None
        self._block: list[float] = []
        self._last = self._turn = 0.0  # mean weights: of the last block, and of the last turn
        self._moves = 0  # since the last turn; below zero: downwards

    def found(self, level: Level, bounds: Bounds | None) -> bool:
        """Add one reading."""
        if not self.start:
            self.start = self._last = level.mean
            self._bounds = bounds
        # Bounds that stay limit the drift; those of a learned scale drift with it.
        fixed = bounds is not None and bounds == self._bounds
        if fixed or min(self.start, level.mean) <= 0.0:
            return False
        self._block.append(level.mean)
        if len(self._block) < _BLOCK:
            return False
        mean = sum(self._block) / _BLOCK
        self._block.clear()
        direction = 1 if mean > self._last else -1
        if direction * self._moves <= 0:
            self._moves, self._turn = 0, self._last
        self._moves += direction
        self._last = mean
        run = max(mean / self._turn, self._turn / mean)
        if abs(self._moves) < _MOVES or run < _MOVED:
            return False
        fallen = mean * _FACTOR < self.start and level.largest < self.start
        return mean > _FACTOR * self.start or fallen


class _Movement:
    """Whether the weighter's parameters have moved since the first outer step."""

    def __init__(self) -> None:
        self._first: Tree | None = {}  # None: they have moved, or that they do not was said
        self._calls = 0

    def missing(self, phi: Tree, grads: Mapping[str, Tensor]) -> int:
        """The number of outer steps that moved nothing, once it is too large; else 0."""
        if self._first is None:
            return 0
        if not self._first:
            self._first = {name: p.detach().clone() for name, p in phi.items()}
        elif any(name not in phi or not _same(p, phi[name]) for name, p in self._first.items()):
            self._first = None
            return 0
        if any(bool(g.any()) for g in grads.values()):
            self._calls += 1
        if self._calls < _UNMOVED:
            return 0
        cleared = not any(p.grad is not None and bool(p.grad.any()) for p in phi.values())
        if not cleared and self._calls < _UNMOVED_UNCLEARED:
            return 0
        self._first = None
        return self._calls


def _same(one: Tensor, other: Tensor) -> bool:
    alike = (one.device, one.dtype, one.shape) == (other.device, other.dtype, other.shape)
    return alike and torch.equal(one, other)
