"""Hypergradient, exact solve and finite differences, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from reweight._tensors import Tree, central_difference, dot, norm
from reweight.checking.descent import Descent
from reweight.checking.problem import Problem, ProximalTerm, copied, move, unit_direction
from reweight.hypergradient import Hypergradient
from reweight.losses import Losses
from reweight.solvers import ConjugateGradient

# Central differences: truncation ~ step², solving error ~ 1e-10 / step.
_STEP = 1e-4
# The inner problem counts as solved when its gradient has this share of the outer gradient's norm.
SOLVED = 1e-6
# Derivatives below this share of the outer gradient count as zero ...
_NOTHING = 1e-9
# ... and derivatives that the rounding of the outer loss can produce, relative to that loss.
_OUTER_ROUNDING = 1e-14 / _STEP
# Rounds in which weights that depend on the losses converge together with the parameters.
_ROUNDS = 50


@dataclass(frozen=True)
class Comparison:
    """Derivatives of the outer loss along one direction per weighter parameter, in three ways.

    Attributes:
        directions: by the parameter's name.
        ours: what the wrapped object computes.
        exact: the same with the linear system solved to rounding.
        slopes: finite differences, along each direction.
        damping: damping that was added to the inner problem.
        left: norm of the inner gradient at the solution, relative to the outer gradient's.
        resolved: whether solving again removed most of the gradient that moving the weighter had
            caused, and, where the exact solve disagrees, whether a smaller step gives the same
            slopes. That fails where the minimum is at infinity, or at a kink.
        floor: derivatives of this size count as zero.
        side_channel: whether the weights were seen to follow the inner parameters.
    """

    directions: Tree
    ours: Hypergradient
    exact: Hypergradient
    slopes: dict[str, float]
    damping: float
    left: float
    resolved: bool
    floor: float
    side_channel: bool

    def along(self, hypergradient: Hypergradient) -> list[float]:
        """Its derivatives along the directions."""
        return [dot(hypergradient.grads[name], d) for name, d in self.directions.items()]

    def errors(self, hypergradient: Hypergradient) -> list[float]:
        """Their differences from the slopes, relative to the largest slope."""
        pairs = zip(self.along(hypergradient), self.slopes.values(), strict=True)
        return [abs(value - slope) / self.largest for value, slope in pairs]

    @property
    def largest(self) -> float:
        """The largest absolute slope, and ``floor`` at least."""
        return max(self.floor, *(abs(slope) for slope in self.slopes.values()))

    def agrees(self, hypergradient: Hypergradient, rtol: float) -> bool:
        """Whether ``hypergradient`` agrees with the slopes."""
        return max(self.errors(hypergradient)) <= rtol

    def undecided(self) -> Comparison:
        """The same without the slopes."""
        return replace(self, slopes=dict.fromkeys(self.slopes, math.nan))

    def decides(self, rtol: float) -> bool:
        """Whether the slopes can be compared with: the problem was solved, on all sides."""
        if self.agrees(self.ours, rtol) or self.side_channel:
            return True
        if self.left > SOLVED or not self.resolved:
            return False
        info = self.exact.info
        # A caveat says that the hypergradient is wrong, and not that there is none.
        return self.agrees(self.exact, rtol) or info.trustworthy or bool(info.caveat)


def exact_solver(problem: Problem) -> ConjugateGradient:
    """A solver that goes down to rounding, where that is possible."""
    return ConjugateGradient(max_steps=min(10 * problem.size, 5000), rtol=1e-13)


def compare(problem: Problem, rtol: float, seed: int, damping: float = 0.0) -> Comparison:
    """Solve the inner problem on all sides, from the original parameters.

    Args:
        problem: is left at the solution.
        rtol: the relative error that counts as agreement; it decides what is too small to compare.
        seed: seed of the directions.
        damping: added to the inner problem as a proximal term at the original parameters. The
            stronger it is, the less they move and the better the problem can be solved.
    """
    solver = _Resolver(problem, damping)
    held = solver.settled()
    start = copied(problem.theta)
    left = norm(problem.gradient(problem.weigh(held))) / solver.outer_gradient
    solver.promising = left * solver.outer_gradient <= 2.0 * solver.enough
    ours = problem.hypergradient(damping)
    exact = problem.hypergradient(damping, exact_solver(problem))
    if problem.strategy.damping:
        # The strategy's damping is part of the linear system: a proximal term at the solution.
        problem.proximal.append(ProximalTerm(problem.strategy.damping, start))
    generator = torch.Generator().manual_seed(seed)
    directions = {n: unit_direction({n: p}, generator)[n] for n, p in problem.phi.items()}

    def slopes(step: float) -> dict[str, float]:
        return {name: solver.slope(held, name, d, step) for name, d in directions.items()}

    found = slopes(_STEP)
    # Differences of rounding size agree where all are zero relative to the outer gradient.
    rounding = _OUTER_ROUNDING * abs(float(problem.outer_loss().detach())) / rtol
    comparison = Comparison(
        directions=directions,
        ours=ours,
        exact=exact,
        slopes=found,
        damping=damping,
        left=left,
        resolved=solver.resolved,
        floor=max(_NOTHING * solver.outer_gradient, rounding, 1e-300),
        side_channel=solver.side_channel,
    )
    if comparison.agrees(exact, rtol):
        return comparison
    smaller = replace(comparison, slopes=slopes(0.1 * _STEP))
    apart = max(abs(found[name] - slope) for name, slope in smaller.slopes.items())
    return replace(smaller, resolved=solver.resolved and apart <= rtol * smaller.largest)


class _Resolver:
    """Solves the inner problem again after each move of the weighter.

    Attributes:
        outer_gradient: norm of the outer loss's gradient by the inner parameters.
        enough: an inner gradient of this norm counts as zero.
        promising: whether there was a solution to begin with.
        side_channel: whether the weights were seen to follow the inner parameters.
    """

    def __init__(self, problem: Problem, damping: float) -> None:
        self._problem = problem
        problem.proximal = [ProximalTerm(damping, problem.origin)] if damping else []
        # At two points: where the model was trained on the dev batch, the gradient is near zero.
        self.outer_gradient = 1e-300
        for point in (problem.nearby(), problem.origin):
            problem.move_to(point)
            self.outer_gradient = max(self.outer_gradient, problem.outer_gradient())
        self.enough = 1e-3 * SOLVED * self.outer_gradient
        self._descent = Descent(
            problem.theta, self.enough, 1e-2 * self.outer_gradient, problem.twice
        )
        self.promising = True
        self.side_channel = False
        # The largest gradients before and after solving again.
        self._before = self._after = 0.0

    @property
    def resolved(self) -> bool:
        """Whether solving again removed most of the gradient."""
        return self._after <= 1e-3 * self._before

    def settled(self) -> Losses:
        """Solve the inner problem, together with weights that depend on its losses.

        Returns:
            The losses and inputs at the solution. While they are held, the weights are functions of
            the weighter's parameters alone.
        """
        problem, descent = self._problem, self._descent
        solve = descent.from_afar
        previous: Tensor | None = None
        for _ in range(_ROUNDS):
            weights = problem.weigh(problem.losses())
            if previous is not None and _same(weights, previous):
                break
            left = solve(partial(problem.objective, weights))
            if left > SOLVED * self.outer_gradient:
                break  # further rounds would not help
            if descent.with_known_inverse(problem.objective) <= max(self.enough, 2.0 * left):
                break
            solve, previous = descent.from_nearby, weights
        return problem.losses()

    def slope(self, held: Losses, name: str, direction: Tensor, step: float) -> float:
        """The derivative of the outer loss along a direction of one weighter parameter."""
        problem, phi = self._problem, {name: self._problem.phi[name]}
        start, kept = copied(problem.theta), copied(phi)

        def outer_at(values: Tree) -> float:
            move(phi, values)
            self._solve_again(held)
            with torch.no_grad():
                value = float(problem.outer_loss())
            problem.move_to(start)
            return value

        found = central_difference(outer_at, kept, {name: direction}, step)
        move(phi, kept)
        return found

    def _solve_again(self, held: Losses) -> None:
        problem = self._problem
        weights = problem.weigh(held)
        # Where there was no solution there is none nearby, so a full search is not worth its time.
        full = self.promising and self.resolved
        solve = self._descent.from_nearby if full else self._descent.with_known_inverse
        self._before = max(self._before, norm(problem.gradient(weights)))
        for _ in range(_ROUNDS):
            self._after = max(self._after, solve(partial(problem.objective, weights)))
            again = problem.weigh(held)
            if _same(again, weights):
                return
            # Losses and inputs are held, so only the inner parameters can have moved the weights.
            self.side_channel = True
            weights = again


def _same(weights: Tensor, others: Tensor) -> bool:
    return torch.allclose(weights, others, rtol=0.0, atol=1e-13)
