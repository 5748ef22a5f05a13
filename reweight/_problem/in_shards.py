"""First-order steps that move the parameters where they lie, in shards.

With ``Identity`` nothing needs the Hessian, and differences of losses need no derivative of the
model beyond one backward pass. So FSDP2's own passes serve: the backward pass leaves the gradient
of the outer loss in the shards, ``θ ± ε·u`` is written into the shards, and passes without a graph
gather the parameters layer by layer. No process holds the whole model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reweight._curvature import Partial
from reweight._problem.along import Along
from reweight._problem.bilevel import BilevelProblem
from reweight._problem.direction import Direction
from reweight._problem.first_derivatives import differing, limits_of
from reweight._problem.first_order import DROWNED, SHARES, FirstOrderStep, drowned
from reweight._problem.functional import FunctionalModel
from reweight._problem.inner import padding_rows
from reweight._problem.isolation import Isolation
from reweight._problem.processes import of_all
from reweight._problem.second_derivatives import random_direction
from reweight._problem.shares import Shares
from reweight._problem.ways import misleading
from reweight._sharded import Shards, local_row
from reweight._tensors import Pending, Tree, agree, dot, ends, largest_of, norm, reducing, shared
from reweight.hypergradient import ImplicitHypergradient
from reweight.losses import Losses
from reweight.preconditioning import SecondMoments, diagonal_of
from reweight.solvers import Identity, Status
from reweight.verdict import SolveInfo, Way

_WAY: Way = "differences"
_ELSEWHERE = (
    '; hvp="auto" gathers the parameters for the outer step, and tells more or does without'
)


@dataclass(frozen=True)
class InShards:
    """What a step in shards works with.

    Attributes:
        shards: the sharded parameters.
        originals: the inner ones among them, by name.
        parts: every module that an evaluation may use.
    """

    shards: Shards
    originals: Tree
    parts: list[nn.Module]

    def gradients(self, loss: Tensor, phi: Tree) -> tuple[Tree, Partial]:
        """``∂loss/∂θ`` summed over the processes, in shards, and this process's ``∂loss/∂φ``.

        The ``.grad`` of all parameters have to be ``None``, and are so afterwards.
        """
        agree()  # before a pass that would wait for a process that can't go on
        loss.backward()  # type: ignore[no-untyped-call]
        group = shared()
        size = 1 if group is None else group.size
        found: Tree = {}
        for name, p in self.originals.items():
            grad: Any = p.grad
            part = self.shards.stand_ins.of(p)
            # FSDP2 leaves the mean over the processes.
            found[name] = torch.zeros_like(part) if grad is None else size * grad.to_local()
            p.grad = None
        direct: Partial = {name: p.grad for name, p in phi.items()}
        for p in phi.values():
            p.grad = None
        return found, direct

    def step(
        self,
        problem: BilevelProblem,
        strategy: ImplicitHypergradient,
        batch: Any,
        isolation: Isolation,
        gradient: Tree,
        loss: Tensor,
        shares: Shares,
        pending: Pending,
    ) -> FirstOrderStep:
        """The influence of samples along ``u = D·v``.

        Raises:
            RuntimeError: the derivatives are zero or not finite.
        """
        assert isinstance(strategy.solver, Identity)
        theta: Tree = {name: self.shards.stand_ins.of(p) for name, p in self.originals.items()}
        with _all_entries():
            diagonal = diagonal_of(strategy.preconditioner, problem.optimizers, theta)
        u = gradient if diagonal is None else {n: v * diagonal[n] for n, v in gradient.items()}
        values = {name: v.to(theta[name].dtype) for name, v in u.items()}
        direction = Direction(values, {}, loss, gradient)

        sizes = (float(values[n][row].abs().max()) for n, row in self._padding().items())
        (moved,) = of_all(max(sizes, default=0.0))
        if moved:
            raise RuntimeError(
                "the direction of the step moves the padding row of a table, which look-ups take "
                f"for a constant and other uses of the table do not{_ELSEWHERE}"
            )

        def evaluate() -> Losses:
            agree()
            self.shards.reshard()  # or a module that is gathered already keeps the old values
            return problem.evaluated(batch)

        along = _Along(evaluate, FunctionalModel(self.parts, theta, {}), isolation)
        if _WAY not in problem.audit.findings.compared:
            self._compare(problem, along)
        losses = along.here()
        losses.check_finite(pending)
        weights = problem.weights(losses, pending)
        derivatives, precision = _differences(problem, along, direction, losses)
        (found,) = pending.read(ends(derivatives))
        (largest,) = of_all(largest_of(found))
        if not 0.0 < largest < math.inf:
            raise RuntimeError(
                "the derivatives of the losses along the gradient of the outer loss are zero or "
                f"not finite in all processes{_ELSEWHERE}"
            )
        detail = f"two steps of the differences agree to {precision:.1g}"
        info = SolveInfo(None, 0, Status.APPROXIMATED, None, _WAY, detail=detail)
        influence = -derivatives / problem.divisor(
            losses.weighted, shares.with_losses(len(weights))
        )
        influence = influence.to(torch.promote_types(influence.dtype, weights.dtype))
        return FirstOrderStep(weights, strategy.solver.step_size * influence, info)

    def _padding(self) -> dict[str, int]:
        """The padding rows of tables that this process has, by name."""
        rows = padding_rows(self.parts, self.originals)
        found = {name: local_row(self.originals[name], row) for name, row in rows.items()}
        return {name: at for name, at in found.items() if at is not None}

    def _compare(self, problem: BilevelProblem, along: _Along) -> None:
        """Compare differences of a random mixture of the losses with its gradient."""
        now, theta = problem.audit.findings, along.model.theta
        along.isolation.restore()
        losses = along.evaluate().weighted
        generator = torch.Generator().manual_seed(3)
        factors = (0.5 + torch.rand(len(losses), generator=generator)).to(losses)
        gradient, _ = self.gradients((factors * losses).sum(), {})
        direction = random_direction(theta, self._padding(), 0)
        wide, narrow = along.differences(
            Direction(direction, {}, losses.detach().sum(), gradient), along.here(), (1.0, 0.25)
        )
        each = [dot(gradient[name], v) for name, v in direction.items()]
        own = [
            sum(each),
            sum(map(abs, each)),
            *(float((factors * x).sum()) for x in (wide, narrow)),
        ]
        expected, total, first, second = _sums(own)
        doubt = abs(first - second)
        now.compared[_WAY] = problem.audit.step
        try:
            first_limit = limits_of({**theta, "losses": losses}).first
        except TypeError as error:
            now.not_compared[_WAY] = str(error)
            return
        if doubt > 0.5 * total:
            now.not_compared[_WAY] = "differences of the losses are too inexact"
            return
        by = differing(second, expected, total, doubt, first_limit)
        if by is not None:
            now.caveats[_WAY] = misleading(_WAY, by)


@dataclass(frozen=True)
class _Along(Along):
    """The losses near θ, where all processes have to move by one step."""

    def step(self, direction: Direction, losses: Losses) -> float:
        """See :meth:`Along.step`."""
        weighted, start = losses.weighted, self.model.theta
        with _all_entries():
            length, size = norm(direction.values), norm(start)
            slope = dot(direction.gradient, direction.values)
        eps = max(torch.finfo(x.dtype).eps for x in (*start.values(), weighted))
        reach = (1.0 + size) / (length or 1.0)
        mean = float(weighted.abs().mean()) if len(weighted) else 0.0
        value = 0.0 if direction.loss is None else abs(float(direction.loss))
        (change,) = of_all(mean + value)
        if slope > 0.0:
            reach = min(reach, change / slope)
        return float(eps ** (1.0 / 3.0) * reach)


def _differences(
    problem: BilevelProblem, along: _Along, direction: Direction, losses: Losses
) -> tuple[Tensor, float]:
    """Differences of the losses, and by how much those with another step differ.

    The step is the one that was the best, over all processes, when differences were first used.
    """
    findings = problem.audit.findings
    if findings.step_share:
        return along.differences(direction, losses, (findings.step_share,))[0], findings.precision
    found = along.differences(direction, losses, SHARES)
    own = [norm(a - b) / (norm(b) or math.inf) for a, b in itertools.pairwise(found)]
    apart = of_all(*own)
    best = min(range(len(apart)), key=apart.__getitem__)
    findings.step_share, findings.precision = SHARES[best + 1], apart[best]
    if not apart[best] <= DROWNED:
        findings.caveats[_WAY] = drowned(apart[best])
    return found[best + 1], apart[best]


def _sums(own: list[float]) -> list[float]:
    """The sum of each number over the processes."""
    group = shared()
    return own if group is None else [sum(each) for each in zip(*group.numbers(*own), strict=True)]


@contextmanager
def _all_entries() -> Iterator[None]:
    """Take inner products and norms over the shards of all processes."""
    group = shared()
    with reducing(entries=None if group is None else group.total):
        yield


def serves(
    problem: BilevelProblem, parts: list[nn.Module], strategy: ImplicitHypergradient
) -> InShards | None:
    """What a step in shards works with, where it is asked for and can be made.

    It is asked for by ``Identity`` with ``hvp="differences"``.
    """
    shards = problem.shards(parts)
    known = strategy.preconditioner is None or isinstance(strategy.preconditioner, SecondMoments)
    if shards is None or strategy.ways != (_WAY,) or not known:
        return None
    originals, group = problem.theta(), shared()
    if not shards.reduces(originals.values(), 1 if group is None else group.size):
        return None
    return InShards(shards, originals, parts)
