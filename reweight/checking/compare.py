"""Hypergradient, exact solve and finite differences, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reweight._tensors import Tree, axpy, central_difference, dot, norm
from reweight.checking.descent import Descent
from reweight.checking.problem import Objective, Problem, ProximalTerm, copied, move, unit_direction
from reweight.hypergradient import Hypergradient
from reweight.losses import Losses
from reweight.solvers import ConjugateGradient, Solution, Status

# Central differences: truncation ~ step², solving error ~ 1e-10 / step.
_STEP = 1e-4
# The inner problem counts as solved when its gradient has this share of the outer gradient's norm.
SOLVED = 1e-6
# Derivatives below this share of the outer gradient count as zero ...
_NOTHING = 1e-9
# ... and derivatives that the rounding of the outer loss can produce, relative to that loss.
_OUTER_ROUNDING = 1e-14 / _STEP
# Relative errors that finite differences of solutions have by themselves.
RESOLVED = 1e-7
# Rounds in which weights that depend on the losses converge together with the parameters.
_ROUNDS = 50


class Unsolved(Exception):
    """No minimum was found; ``left`` is the gradient that remains, relative to the outer one."""

    def __init__(self, left: float) -> None:
        super().__init__(left)
        self.left = left


@dataclass(frozen=True)
class Comparison:
    """Derivatives of the outer loss along one direction per weighter parameter, in three ways.

    Attributes:
        directions: by the parameter's name.
        ours: what the wrapped object computes.
        exact: the same with the linear system solved to rounding.
        without: the same without the Hessian.
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
    without: Hypergradient
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

    @property
    def unresolved(self) -> bool:
        """Whether the exact solve agrees as far as finite differences can tell."""
        return max(self.errors(self.exact)) <= RESOLVED

    def agrees(self, hypergradient: Hypergradient, rtol: float) -> bool:
        """Whether ``hypergradient`` agrees with the slopes."""
        return max(self.errors(hypergradient)) <= rtol

    @property
    def tested(self) -> bool:
        """Whether a slope can be told from zero."""
        return self.largest > self.floor

    @property
    def hessian_share(self) -> float:
        """By how much the exact hypergradient differs from the one without the Hessian."""
        pairs = list(zip(self.along(self.exact), self.along(self.without), strict=True))
        largest = max(self.floor, *(abs(exact) for exact, _ in pairs))
        return max(abs(exact - without) for exact, without in pairs) / largest

    def decides(self, rtol: float) -> bool:
        """Whether the slopes can be compared with: the problem was solved, on all sides."""
        if self.agrees(self.ours, rtol) or self.side_channel:
            return True
        if not self.resolved or (self.unresolved and not self.agrees(self.exact, rtol)):
            return False
        info = self.exact.info
        # A caveat says that the hypergradient is wrong, and not that there is none.
        return self.agrees(self.exact, rtol) or info.trustworthy or bool(info.caveat)


def exact_solver(problem: Problem) -> Callable[[Any, Any], Solution]:
    """A solver that goes down to rounding, where that is possible."""
    solver = ConjugateGradient(max_steps=min(10 * problem.size, 5000), rtol=1e-13)

    def solve(matvec: Callable[[Tree], Tree], b: Tree) -> Solution:
        def product(v: Tree) -> Tree:
            problem.budget.spend()
            return matvec(v)

        return solver(product, b)

    return solve


def _without_hessian(shift: dict[str, float]) -> Callable[[Any, Any], Solution]:
    """A solver for damping and decay alone.

    Where there are neither, it takes the multiple of the identity that leaves the least residual.
    """

    def solve(matvec: Callable[[Tree], Tree], b: Tree) -> Solution:
        bare = {name: x * float(not shift[name]) for name, x in b.items()}
        product = matvec(bare)
        squared = dot(product, product)
        best = dot(product, bare) / squared if squared else 0.0
        u = {n: x / shift[n] if shift[n] else best * x for n, x in b.items()}
        return Solution(u, Status.APPROXIMATED)

    return solve


def directions_of(phi: Tree, seed: int) -> Tree:
    """A random direction of norm 1 for each parameter of the weighter."""
    generator = torch.Generator().manual_seed(seed)
    return {name: unit_direction({name: p}, generator)[name] for name, p in phi.items()}


def compare(problem: Problem, rtol: float, seed: int, damping: float = 0.0) -> Comparison:
    """Solve the inner problem on all sides, from the original parameters.

    Args:
        problem: is left at the solution.
        rtol: the relative error that counts as agreement; it decides what is too small to compare.
        seed: seed of the directions.
        damping: added to the inner problem as a proximal term, with its centre where it makes the
            original parameters the solution.

    Raises:
        Unsolved: no solution was found.
    """
    problem.budget.stage = "solving the inner problem" + f" with damping {damping:g}" * bool(
        damping
    )
    solver = _Resolver(problem, damping)
    held = solver.settled()
    start = copied(problem.theta)
    left = norm(problem.gradient(problem.objective(problem.weigh(held)))) / solver.outer_gradient
    if not left <= SOLVED:
        raise Unsolved(left)
    problem.budget.stage = "solving the linear system"
    ours = problem.hypergradient(damping)
    exact = problem.hypergradient(damping, exact_solver(problem))
    decay, total = problem.decay, damping + problem.strategy.damping
    shift = {name: decay.get(name, 0.0) + total for name in problem.theta}
    without = problem.hypergradient(damping, _without_hessian(shift))
    if problem.strategy.damping:
        # The strategy's damping is part of the linear system: a proximal term at the solution.
        problem.proximal.append(ProximalTerm(problem.strategy.damping, start))
    directions = directions_of(problem.phi, seed)

    def slopes(step: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, direction in directions.items():
            done = f"{len(found)} of {len(directions)}"
            problem.budget.stage = f"solving the inner problem again, {done} parameters"
            found[name] = solver.slope(held, name, direction, step)
            if not (solver.resolved or solver.side_channel):
                raise Unsolved(left)
        return found

    found = slopes(_STEP)
    # Differences of rounding size agree where all are zero relative to the outer gradient.
    rounding = _OUTER_ROUNDING * abs(float(problem.outer_loss().detach()))
    comparison = Comparison(
        directions=directions,
        ours=ours,
        exact=exact,
        without=without,
        slopes=found,
        damping=damping,
        left=left,
        resolved=solver.resolved,
        floor=max(_NOTHING * solver.outer_gradient, rounding / max(rtol, RESOLVED), 1e-300),
        side_channel=solver.side_channel,
    )
    if comparison.agrees(exact, rtol):
        return comparison
    smaller = replace(comparison, slopes=slopes(0.1 * _STEP))
    apart = max(abs(found[name] - slope) for name, slope in smaller.slopes.items())
    # The slopes must be better known than the difference that they are to show.
    known = apart <= min(rtol, 0.3 * max(smaller.errors(exact))) * smaller.largest
    return replace(smaller, resolved=solver.resolved and known)


class _Resolver:
    """Solves the inner problem again after each move of the weighter.

    Attributes:
        outer_gradient: norm of the outer loss's gradient by the inner parameters.
        enough: an inner gradient of this norm counts as zero.
        side_channel: whether the weights were seen to follow the inner parameters.
    """

    def __init__(self, problem: Problem, damping: float) -> None:
        self._problem = problem
        problem.proximal = []
        # At two points: where the model was trained on the dev batch, the gradient is near zero.
        self.outer_gradient = 1e-300
        for point in (problem.nearby(), problem.origin):
            problem.move_to(point)
            self.outer_gradient = max(self.outer_gradient, problem.outer_gradient())
        if damping:
            pull = problem.gradient(problem.objective())
            centre = axpy(1.0 / damping, pull, problem.origin)
            problem.proximal = [ProximalTerm(damping, centre)]
        self.enough = 1e-3 * SOLVED * self.outer_gradient
        self._descent = Descent(problem, self.enough, 1e-2 * self.outer_gradient)
        self.side_channel = False
        # The largest gradients before and after solving again.
        self._before = self._after = 0.0

    @property
    def resolved(self) -> bool:
        """Whether solving again removed most of the gradient."""
        return self._after <= max(1e-3 * self._before, self.enough)

    def settled(self) -> Losses:
        """Solve the inner problem, together with weights that depend on its losses.

        Returns:
            The losses and inputs at the solution. While they are held, the weights are functions of
            the weighter's parameters alone.

        Raises:
            Unsolved: there is no solution to be found.
        """
        problem, descent = self._problem, self._descent
        solve: Callable[[Objective], float] = descent.from_afar
        previous: Tensor | None = None
        for _ in range(_ROUNDS):
            weights = problem.weigh(problem.losses())
            if previous is not None and _same(weights, previous):
                break
            left = solve(partial(problem.objective, weights))
            if not left <= SOLVED * self.outer_gradient:
                raise Unsolved(left / self.outer_gradient)  # further rounds would not help
            if descent.newton(problem.objective, renew=False) <= max(self.enough, 2.0 * left):
                break
            solve, previous = descent.newton, weights
        return problem.losses()

    def slope(self, held: Losses, name: str, direction: Tensor, step: float) -> float:
        """The derivative of the outer loss along a direction of one weighter parameter."""
        problem, phi = self._problem, {name: self._problem.phi[name]}
        start, kept = copied(problem.theta), copied(phi)

        def outer_at(values: Tree) -> float:
            move(phi, values)
            self._solve_again(held)
            value = float(problem.outer_loss().detach())
            problem.move_to(start)
            return value

        found = central_difference(outer_at, kept, {name: direction}, step)
        move(phi, kept)
        return found

    def _solve_again(self, held: Losses) -> None:
        problem = self._problem
        weights = problem.weigh(held)
        before = norm(problem.gradient(problem.objective(weights)))
        self._before = max(self._before, before)
        for _ in range(_ROUNDS):
            left = self._descent.newton(partial(problem.objective, weights))
            self._after = max(self._after, left)
            again = problem.weigh(held)
            if _same(again, weights):
                return
            # Losses and inputs are held, so only the inner parameters can have moved the weights.
            self.side_channel = True
            weights = again


def _same(weights: Tensor, others: Tensor) -> bool:
    return torch.allclose(weights, others, rtol=0.0, atol=1e-13)
