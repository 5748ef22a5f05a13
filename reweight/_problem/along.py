"""The derivatives of per-sample losses along a direction, without a gradient of any of them.

Two ways. ``"forward"`` is one pass with forward-mode differentiation. ``"differences"`` is two
passes at ``θ ± ε·u`` without any differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reweight._problem.direction import Direction, movable
from reweight._problem.functional import FunctionalModel
from reweight._problem.isolation import Isolation, twice_differentiable
from reweight._tensors import inner_products, moving, norms_of, read, velocity
from reweight.losses import Losses

Evaluate = Callable[[], Losses]


@dataclass(frozen=True)
class Along:
    """The losses of one batch near θ.

    Attributes:
        evaluate: the losses, by the values that the parameters have now.
        model: whose inner parameters can be substituted.
        isolation: in which the model is evaluated.
    """

    evaluate: Evaluate
    model: FunctionalModel
    isolation: Isolation

    def here(self) -> Losses:
        """The losses at θ, without a graph."""
        self.isolation.restore()
        with torch.no_grad():
            return self.evaluate()

    def forward(self, direction: Direction) -> tuple[Losses, Tensor]:
        """The losses, and their derivatives ``[B]`` along ``direction``, by one pass.

        Raises:
            RuntimeError: an operation has no forward-mode derivative.
        """
        self.isolation.restore()
        theta, tables = self.model.theta, direction.tables(self.model.theta)
        model = FunctionalModel(self.model.parts, {n: theta[n] for n in direction.values}, tables)
        # The fused attention kernels have no forward-mode derivative.
        with moving(direction.of(theta), direction.values) as values, twice_differentiable():
            with model.at(values):
                losses = self.evaluate()
            return losses, velocity(losses.weighted)

    def differences(
        self, direction: Direction, losses: Losses, shares: tuple[float, ...]
    ) -> list[Tensor]:
        """Central differences of the losses along ``direction``, one for each step.

        Args:
            direction: ``u``.
            losses: the losses at θ.
            shares: steps, in units of :meth:`step`.

        Raises:
            RuntimeError: the number of losses depends on θ.
        """
        step, found = self.step(direction, losses), []
        with self.isolation.aside(), movable(self.model.theta, direction) as write:
            for share in shares:
                write(share * step)
                ahead = self.here().weighted
                write(-share * step)
                behind = self.here().weighted
                if not ahead.shape == behind.shape == losses.weighted.shape:
                    raise RuntimeError("the number of losses changes where parameters move")
                # In float64: the difference of two losses is exact there.
                difference = (ahead.double() - behind.double()) / (2.0 * share * step)
                found.append(difference.to(losses.weighted.dtype))
        return found

    def step(self, direction: Direction, losses: Losses) -> float:
        """``ε``, which balances rounding against truncation.

        Rounding makes an error of ``eps·|ℓ|/ε`` and truncation one of ``ε²``, so the losses are to
        change by a share of about ``eps^⅓``. The slope of the outer loss along ``u`` tells how far
        that is. The step is at most the same share of the parameters.
        """
        u, weighted = direction.values, losses.weighted
        start = direction.of(self.model.theta)
        eps = max(torch.finfo(x.dtype).eps for x in (*start.values(), weighted))
        pairs = [(v.reshape(-1), u[name].reshape(-1)) for name, v in direction.gradient.items()]
        scalars = [weighted.abs().mean(), *([] if direction.loss is None else [direction.loss])]
        lengths, starts, slopes, sizes = read(
            norms_of(*u.values()),
            norms_of(*start.values()),
            inner_products(*pairs) if pairs else torch.zeros(0, device=weighted.device),
            torch.stack([size.to(weighted) for size in scalars]),
        )
        reach = (1.0 + math.hypot(*starts)) / (math.hypot(*lengths) or 1.0)
        if (slope := sum(slopes)) > 0.0:
            reach = min(reach, sum(map(abs, sizes)) / slope)
        return float(eps ** (1.0 / 3.0) * reach)
