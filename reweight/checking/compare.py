"""Hypergradient, exact solve and finite differences, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from reweight._tensors import Tree, dot, norm, scale
from reweight.checking.descent import Descent
from reweight.checking.problem import Problem, Spring, move, random
from reweight.hypergradient import Hypergradient
from reweight.losses import Losses
from reweight.solvers import ConjugateGradient

# Central differences: truncation ~ step², solving error ~ 1e-10 / step.
_STEP = 1e-4
# The inner problem counts as solved when its gradient is this small beside the outer gradient.
SOLVED = 1e-6
# Derivatives below this share of the outer gradient are taken for zero ...
_NOTHING = 1e-9
# ... and those that the rounding of the outer loss hides.
_ROUNDING = 1e-14 / _STEP
# Weights that depend on the losses settle together with the parameters, in at most so many rounds.
_ROUNDS = 50


@dataclass(frozen=True)
class Comparison:
    """Derivatives of the outer loss along one direction per weighter parameter, three times over.

    Attributes:
        directions: by the parameter's name.
        ours: what the wrapped object computes.
        exact: the same with the linear system solved to rounding.
        slopes: finite differences, along each direction.
        damping: that was added to the inner problem.
        left: the size of the inner gradient at the solution, beside the outer one's.
        resolved: whether solving again took away most of the gradient that moving the weighter had
            brought, and a smaller move says the same where the exact solve does not: not so where
            the minimum is at infinity, or at a kink.
        floor: a derivative of this size is nothing.
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
        """How far they are from the finite differences, relative to the largest of these."""
        pairs = zip(self.along(hypergradient), self.slopes.values(), strict=True)
        return [abs(value - slope) / self.largest for value, slope in pairs]

    @property
    def largest(self) -> float:
        """The largest finite difference, or where all are nothing, what counts as nothing."""
        return max(self.floor, *(abs(slope) for slope in self.slopes.values()))

    def agrees(self, hypergradient: Hypergradient, rtol: float) -> bool:
        """Whether ``hypergradient`` is what the finite differences are."""
        return max(self.errors(hypergradient)) <= rtol

    def undecided(self) -> Comparison:
        """The same without the finite differences."""
        return replace(self, slopes=dict.fromkeys(self.slopes, math.nan))

    def decides(self, rtol: float) -> bool:
        """Whether there was something to compare with, at last or to begin with."""
        if self.agrees(self.ours, rtol) or self.side_channel:
            return True
        if self.left > SOLVED or not self.resolved:
            return False
        info = self.exact.info
        # A caveat says that the hypergradient is wrong, and not that there is none.
        return self.agrees(self.exact, rtol) or info.trustworthy or bool(info.caveat)


def compare(problem: Problem, rtol: float, seed: int, damping: float = 0.0) -> Comparison:
    """Solve the inner problem on all sides, from where the parameters were to begin with.

    Args:
        problem: is left at the solution.
        rtol: the relative error that counts as agreement, which decides what is too small to tell.
        seed: of the directions.
        damping: added to the inner problem, as a spring to where the parameters are to begin with:
            the stronger, the less they move and the better the problem can be solved.
    """
    return _Comparer(problem, rtol, seed, damping).run()


def exact_solver(problem: Problem) -> ConjugateGradient:
    """One that goes down to rounding, where that can be had at all."""
    return ConjugateGradient(max_steps=min(10 * problem.size, 5000), rtol=1e-13)


class _Comparer:
    def __init__(self, problem: Problem, rtol: float, seed: int, damping: float) -> None:
        self._problem = problem
        self._rtol = rtol
        self._seed = seed
        self._damping = damping
        problem.springs = [Spring(damping, problem.origin)] if damping else []
        # Of both places: where the model was trained on the dev batch its gradient is no measure.
        self._outer_gradient = 1e-300
        for place in (problem.beside(), problem.origin):
            problem.move_to(place)
            self._outer_gradient = max(self._outer_gradient, problem.outer_gradient())
        self._enough = 1e-3 * SOLVED * self._outer_gradient
        self._descent = Descent(
            problem.theta, self._enough, 1e-2 * self._outer_gradient, problem.twice
        )
        self._side_channel = False
        self._left = 0.0
        # The largest gradients before and after solving again.
        self._disturbed = self._calmed = 0.0

    @property
    def _resolved(self) -> bool:
        return self._calmed <= 1e-3 * self._disturbed

    def run(self) -> Comparison:
        problem = self._problem
        held = self._settled()
        start = problem.position()
        self._left = norm(problem.gradient(problem.weigh(held))) / self._outer_gradient
        ours = problem.hypergradient(self._damping)
        exact = problem.hypergradient(self._damping, exact_solver(problem))
        if problem.strategy.damping:
            # A part of the linear system, and so a spring to the solution that was found.
            problem.springs.append(Spring(problem.strategy.damping, start))
        generator = torch.Generator().manual_seed(self._seed)
        directions = {name: _unit(p, generator) for name, p in problem.phi.items()}
        slopes = self._slopes(held, directions, _STEP)
        # Where all are zero beside the outer gradient, differences of rounding size agree.
        rounding = _ROUNDING * abs(problem.outer()) / self._rtol
        comparison = Comparison(
            directions=directions,
            ours=ours,
            exact=exact,
            slopes=slopes,
            damping=self._damping,
            left=self._left,
            resolved=self._resolved,
            floor=max(_NOTHING * self._outer_gradient, rounding, 1e-300),
            side_channel=self._side_channel,
        )
        if comparison.agrees(exact, self._rtol):
            return comparison
        smaller = replace(comparison, slopes=self._slopes(held, directions, 0.1 * _STEP))
        apart = max(abs(slopes[name] - slope) for name, slope in smaller.slopes.items())
        smooth = apart <= self._rtol * smaller.largest
        return replace(smaller, resolved=self._resolved and smooth)

    def _settled(self) -> Losses:
        """Solve the inner problem, and bring weights that depend on its losses to rest too.

        Returns:
            The losses and inputs at the solution: from then on the weights are functions of the
            weighter's parameters alone.
        """
        problem, descent = self._problem, self._descent
        solve = descent.from_afar
        previous: Tensor | None = None
        for _ in range(_ROUNDS):
            weights = problem.weigh(problem.losses())
            if previous is not None and _same(weights, previous):
                break
            left = solve(partial(problem.objective, weights))
            if left > SOLVED * self._outer_gradient:
                break  # further rounds would not mend it
            if descent.with_what_is_known(problem.objective) <= max(self._enough, 2.0 * left):
                break
            solve, previous = descent.from_nearby, weights
        return problem.losses()

    def _slopes(self, held: Losses, directions: Tree, step: float) -> dict[str, float]:
        return {name: self._slope(held, name, d, step) for name, d in directions.items()}

    def _slope(self, held: Losses, name: str, direction: Tensor, step: float) -> float:
        problem, values = self._problem, []
        phi, start = {name: problem.phi[name]}, problem.position()
        kept = problem.phi[name].detach().clone()
        for sign in (step, -step):
            move(phi, {name: kept + sign * direction})
            self._solve_again(held)
            values.append(problem.outer())
            problem.move_to(start)
        move(phi, {name: kept})
        return (values[0] - values[1]) / (2.0 * step)

    def _solve_again(self, held: Losses) -> None:
        weights = self._problem.weigh(held)
        # Where there was no solution there is none nearby, and no point in looking hard.
        promising = self._left * self._outer_gradient <= 2.0 * self._enough and self._resolved
        solve = self._descent.from_nearby if promising else self._descent.with_what_is_known
        self._disturbed = max(self._disturbed, norm(self._problem.gradient(weights)))
        for _ in range(_ROUNDS):
            self._calmed = max(self._calmed, solve(partial(self._problem.objective, weights)))
            again = self._problem.weigh(held)
            if _same(again, weights):
                return
            # Losses and inputs are held, so only the inner parameters can have moved the weights.
            self._side_channel = True
            weights = again


def _same(weights: Tensor, others: Tensor) -> bool:
    return torch.allclose(weights, others, rtol=0.0, atol=1e-13)


def _unit(parameter: Tensor, generator: torch.Generator) -> Tensor:
    direction = random(parameter, generator)
    return scale(1.0 / norm(direction), direction)
