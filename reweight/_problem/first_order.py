"""First-order steps: the influence of samples where the direction is known beforehand.

With ``Identity`` no linear system is solved, so nothing needs the Hessian: the influence of a
sample is the derivative of its loss along ``u``. It takes passes without a graph of the losses.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from reweight._problem.along import Along
from reweight._problem.bilevel import BilevelProblem
from reweight._problem.direction import Direction
from reweight._problem.processes import of_all, rejected_by_any
from reweight._problem.shares import Shares
from reweight._problem.ways import Ways
from reweight._tensors import AttemptError, Pending, RankError, ends, largest_of, norm, sharing
from reweight.losses import Losses
from reweight.solvers import Status
from reweight.verdict import SolveInfo, Way

logger = logging.getLogger("reweight")

# Steps of differences that are tried when they are first used, in units of the estimated one.
SHARES = (4.0, 1.0, 0.25, 0.0625)
# Differences whose best steps disagree by more than this are noise.
DROWNED = 0.05


@dataclass(frozen=True)
class FirstOrderStep:
    """What a first-order step along a direction gives.

    Attributes:
        weights: ``[B]``, with their graph.
        influence: ``[B]``, the derivative of the outer loss by each weight.
        info: the verdict.
    """

    weights: Tensor
    influence: Tensor
    info: SolveInfo


class FirstOrder:
    """Makes first-order steps on one train batch.

    Args:
        problem: the problem.
        along: the losses of the batch near θ.
        ways: which ways may be used.
        pending: what else is to be looked at.
        shares: of this process.

    Attributes:
        failures: the ways that do not work here, with the reason.
    """

    def __init__(
        self, problem: BilevelProblem, along: Along, ways: Ways, pending: Pending, shares: Shares
    ) -> None:
        self._problem, self._along, self._ways = problem, along, ways
        self._pending, self._shares = pending, shares
        self.failures: dict[Way, str] = {}

    def step(
        self, direction: Direction, choice: tuple[Way, ...], *, auto: bool
    ) -> FirstOrderStep | None:
        """The step, in the first way that works.

        Args:
            direction: ``u``.
            choice: the ways to try, in this order.
            auto: whether the caller goes on without a way.

        Returns:
            The step; ``None`` if no way works, or if the derivatives are zero or not finite. The
            path with a graph tells why.

        Raises:
            RuntimeError: no way works, and the caller can't go on.
        """
        for way in choice:
            # Each process compares what it has; a way that one of them rejects is used by none.
            with sharing(None):
                found = self._ways.rejection(way, direction, auto=auto)
            reason = rejected_by_any(found or None)
            if not reason:
                try:
                    return self._by(way, direction)
                except (torch.OutOfMemoryError, RankError):
                    raise  # another way would need more memory, or other processes
                except AttemptError as error:
                    reason = str(error)
                except self._ways.errors(way) as error:
                    reason = str(error).strip() or repr(error)
                    logger.info("first-order steps by %r do not work here: %s", way, reason)
                    rejected_by_any(reason)
            self.failures[way] = reason
        if not auto:
            raise RuntimeError(
                f'hvp={choice[0]!r} does not work for these losses, and hvp="auto" may: '
                f"{self.failures[choice[0]]}"
            )
        return None

    def _by(self, way: Way, direction: Direction) -> FirstOrderStep | None:
        along, detail, precision = self._along, "", 0.0
        if way == "forward":
            losses, derivatives = along.forward(direction)
            weights = self._weights(losses)
        else:
            losses = along.here()
            weights = self._weights(losses)
            derivatives = losses.weighted.detach()
            if len(weights):  # else the samples are on other processes
                derivatives, precision = self._differences(direction, losses)
        (found,) = self._pending.read(ends(derivatives))
        largest, precision = of_all(largest_of(found), precision)
        if not 0.0 < largest < math.inf:
            return None
        if way == "differences":
            detail = f"two steps of the differences agree to {precision:.1g}"
        info = SolveInfo(None, 0, Status.APPROXIMATED, None, way, detail=detail)
        shares = self._shares.with_losses(len(weights))
        influence = -derivatives / self._problem.divisor(losses.weighted, shares)
        # As precise as the weights, which may have more digits than the losses.
        influence = influence.to(torch.promote_types(influence.dtype, weights.dtype))
        return FirstOrderStep(weights, influence, info)

    def _weights(self, losses: Losses) -> Tensor:
        """The weights with their graph; both are looked at later."""
        losses.check_finite(self._pending)
        with self._along.isolation.watched():
            return self._problem.weights(losses, self._pending)

    def _differences(self, direction: Direction, losses: Losses) -> tuple[Tensor, float]:
        """Differences of the losses, and by how much those with another step differ.

        The step is the one that was the best when differences were first used.
        """
        along, findings = self._along, self._problem.audit.findings
        if findings.step_share:
            found = along.differences(direction, losses, (findings.step_share,))
            return found[0], findings.precision
        found = along.differences(direction, losses, SHARES)
        apart = [norm(a - b) / (norm(b) or math.inf) for a, b in itertools.pairwise(found)]
        best = min(range(len(apart)), key=apart.__getitem__)
        findings.step_share, findings.precision = SHARES[best + 1], apart[best]
        if not apart[best] <= DROWNED:
            findings.caveats["differences"] = drowned(apart[best])
        return found[best + 1], apart[best]


def drowned(apart: float) -> str:
    """What is wrong with differences of which those with two steps differ by a share."""
    return (
        "rounding drowns the differences of the losses: with two steps they differ by "
        f"{apart:.2g} of their size. Keep the parameters in float32, or use layers that forward "
        "mode can differentiate"
    )
