"""A search for stationary points, down to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reweight._tensors import Tree, axpy, dot, flatten, norm, scale, unflatten, zeros_like
from reweight.checking.problem import Map, Objective, Problem, copied, unit_direction
from reweight.solvers import ConjugateGradient

# Up to this many parameters the Hessian is computed as a matrix: 8 MB, and a second or two.
_DENSE = 1000
# Curvatures below this share of the largest count as zero.
_FLAT = 1e-12
# Steps in which the gradient has to become half as large, or a search from afar ends.
_STEPS = 20
# The products with the Hessian in each of them.
_PRODUCTS = 100
# A search that has gone as far as this, relative to the parameters, has no minimum before it.
_FAR = 1e8


class Descent:
    """Finds stationary points of functions of the inner parameters, which it moves in place.

    Newton's method needs few steps near a solution, also with the Hessian of a nearby point. A
    finite difference solves many problems that are almost the same, so the inverse Hessian is kept
    from one to the next, and computed again where it no longer serves.

    Args:
        problem: whose parameters to move.
        enough: a gradient of this norm counts as zero. Steps go on below it as far as rounding
            allows, but no new inverse is computed for them.
        near: the norm of the gradient at which Newton's method starts.
    """

    def __init__(self, problem: Problem, enough: float, near: float) -> None:
        self._problem, self._enough, self._near = problem, enough, near
        self._inverse: Map | None = None

    @property
    def _dense(self) -> bool:
        return self._problem.size <= _DENSE

    def from_afar(self, objective: Objective) -> float:
        """A trust-region method until Newton's method converges, or until it makes no progress.

        A step that leads to values that are not finite is refused, and made shorter.

        Returns:
            The norm of the remaining gradient.
        """
        problem = self._problem
        start = norm(copied(problem.theta))
        value, grad, left = self._at(objective)
        radius, near, count, earlier = 0.1 * (1.0 + start), self._near, 0, math.inf
        while True:
            if count % _STEPS == 0:
                if left > 0.5 * earlier:
                    break
                earlier = left
            count += 1
            if left <= near:
                self._inverse = None
                if self.newton(objective) <= self._enough:
                    break
                value, grad, left = self._at(objective)
                near = 0.01 * left
            here = copied(problem.theta)
            step, gain = _in_region(problem.hessian(objective), grad, radius)
            length = norm(step)
            problem.move_by(step)
            found = self._at(objective)
            ratio = (value - found[0]) / gain if gain > 0.0 else -1.0
            if ratio > 0.1:
                value, grad, left = found
            else:
                problem.move_to(here)
            if ratio < 0.25:
                radius = 0.25 * length
            elif ratio > 0.75 and length > 0.99 * radius:
                radius *= 4.0
            size = norm(copied(problem.theta))
            if radius <= 1e-12 * (1.0 + size) or size > _FAR * (1.0 + start):
                break  # at a kink, or on the way to infinity
        return self._at(objective)[2]

    def _at(self, objective: Objective) -> tuple[float, Tree, float]:
        """Value, gradient and its norm here; infinite where one of them is not finite."""
        try:
            loss = objective()
        except ValueError:  # losses or weights that are not finite, or arguments out of a domain
            return math.inf, {}, math.inf
        grad = self._problem.gradient(loss)
        value, size = float(loss.detach()), norm(grad)
        return (value, grad, size) if math.isfinite(value + size) else (math.inf, {}, math.inf)

    def newton(self, objective: Objective, *, renew: bool = True) -> float:
        """Newton's method from near a solution.

        Args:
            objective: what to solve.
            renew: whether the inverse may be computed again, up to six times. If not, steps go
                on while they gain a little: then the weights follow θ, so that the gradient is
                not that of one function, and a better inverse would not speed it up. The inverse is
                computed again for the next solution.

        Returns:
            The norm of the remaining gradient.
        """
        problem, renewals = self._problem, 6 * renew
        _, grad, left = self._at(objective)
        for _ in range(100):
            if left == 0.0 or math.isinf(left):
                break
            new = self._inverse is None
            if self._inverse is None:
                self._inverse = self._inverted(objective)
            here = copied(problem.theta)
            problem.move_by(scale(-1.0, self._inverse(grad)))
            _, after, size = self._at(objective)
            before = left
            if size < left:
                grad, left = after, size
            else:
                problem.move_to(here)
                if new or left <= self._enough:
                    break
            if size > 0.9 * before and (left <= self._enough or not renewals):
                break
            if size > 0.5 * before and left > self._enough and renewals:
                renewals -= 1
                self._inverse = None
            if not self._dense:
                self._inverse = None
        if not (self._dense and renew):
            self._inverse = None  # it belongs to a previous point
        return left

    def _inverted(self, objective: Objective) -> Map:
        """The inverse of the Hessian at this point, with the absolute values of its curvatures."""
        params = self._problem.theta
        hvp = self._problem.hessian(objective)
        if not self._dense:
            solver = ConjugateGradient(max_steps=500, rtol=1e-6)
            return lambda v: solver(hvp, v).value
        identity = torch.eye(self._problem.size).to(flatten(params))
        columns = [flatten(hvp(unflatten(column, params))) for column in identity]
        matrix = torch.stack(columns)
        values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        sizes = values.abs()
        inverse = torch.where(sizes > _FLAT * sizes.max(), 1.0 / sizes, 0.0)
        return lambda v: unflatten(vectors @ (inverse * (vectors.T @ flatten(v))), params)


def _in_region(hvp: Map, grad: Tree, radius: float) -> tuple[Tree, float]:
    """The step of length ``radius`` at most that conjugate gradients reach, and what it gains.

    Steihaug's method: at negative curvature, or where the next step would leave the region, it goes
    straight to the boundary. The gain is that of the quadratic model.
    """
    step, residual = zeros_like(grad), scale(-1.0, grad)
    product, direction = zeros_like(grad), residual
    squared = dot(residual, residual)
    goal = 0.01 * squared
    for _ in range(_PRODUCTS):
        if not squared > goal:
            break
        along = hvp(direction)
        curvature = dot(direction, along)
        length = squared / curvature if curvature > 0.0 else math.inf
        s, d = dot(step, direction), dot(direction, direction)
        room = math.sqrt(s * s + d * max(radius * radius - dot(step, step), 0.0))
        longest = (room - s) / d
        taken = min(length, longest)
        step, product = axpy(taken, direction, step), axpy(taken, along, product)
        if length >= longest:
            break
        residual = axpy(-length, along, residual)
        before, squared = squared, dot(residual, residual)
        direction = axpy(squared / before, direction, residual)
    return step, -dot(grad, step) - 0.5 * dot(step, product)


def extreme_curvatures(problem: Problem, objective: Callable[[], Tensor]) -> tuple[float, float]:
    """The lowest and the highest curvature at this point, estimated by Lanczos' method."""
    hvp, like = problem.hessian(objective), problem.theta
    start = flatten(problem.free(unit_direction(like, torch.Generator().manual_seed(0))))
    basis = [start / start.norm()]
    diagonal, beside = [], []
    for _ in range(min(problem.size, 30)):
        v = flatten(hvp(unflatten(basis[-1], like)))
        diagonal.append(float(v @ basis[-1]))
        for _ in range(2):  # twice, against rounding
            for other in basis:
                v = v - (v @ other) * other
        size = float(v.norm())
        if not size > 1e-10 * max(map(abs, diagonal)):
            break
        beside.append(size)
        basis.append(v / size)
    inner = beside[: len(diagonal) - 1]
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if inner:
        off = torch.tensor(inner, dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    values = torch.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[-1])
