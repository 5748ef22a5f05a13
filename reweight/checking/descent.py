"""A search for stationary points, down to rounding."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from reweight._curvature import from_graph
from reweight._tensors import (
    Tree,
    axpy,
    central_difference,
    filled,
    flatten,
    norm,
    scale,
    unflatten,
)
from reweight.checking.problem import copied, gradient, move, unit_direction
from reweight.solvers import ConjugateGradient

logger = logging.getLogger("reweight")

Objective = Callable[[], Tensor]
Map = Callable[[Tree], Tree]

# Up to this many parameters the Hessian is computed as a matrix: 8 MB, and a second or two.
_DENSE = 1000
# Curvatures below this share of the largest count as zero.
_FLAT = 1e-12


class Descent:
    """Finds stationary points of functions of the same parameters, which it moves in place.

    Newton's method needs few steps near a solution, also with the Hessian of a nearby point. A
    finite difference solves many problems that are almost the same, so the inverse Hessian is kept
    from one to the next, and computed again where it no longer serves.

    Args:
        params: the leaves to move.
        enough: a gradient of this norm counts as zero. Steps go on below it as far as rounding
            allows, but no new inverse is computed for them.
        near: the norm of the gradient at which Newton's method starts.
        twice: whether autograd has second derivatives.
    """

    def __init__(self, params: Tree, enough: float, near: float, twice: bool = True) -> None:
        self._params = params
        self._enough = enough
        self._near = near
        self._twice = twice
        self._size = sum(p.numel() for p in params.values())
        self._inverse: Map | None = None

    def from_afar(self, objective: Objective) -> float:
        """L-BFGS until Newton's method converges, or until it makes no progress.

        Returns:
            The norm of the remaining gradient.
        """
        parameters = list(self._params.values())
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=100,
            tolerance_grad=1e-9,
            tolerance_change=0.0,
            history_size=100 if self._size <= _DENSE else 10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            loss = objective()
            for name, grad in gradient(loss, self._params).items():
                self._params[name].grad = grad
            return float(loss.detach())

        here, left = copied(self._params), math.inf
        for _ in range(5):
            move(self._params, here)  # the point that L-BFGS's history ends at
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            for parameter in parameters:
                parameter.grad = None
            here, before = copied(self._params), left
            left = norm(gradient(objective(), self._params))
            if left <= self._near:
                self._inverse = None
                left = self._newton(objective)
            if left <= self._enough or left > 0.5 * before:
                break
        return left

    def from_nearby(self, objective: Objective) -> float:
        """The same from near a solution, where Newton's method suffices if it converges."""
        left = self._newton(objective)
        return left if left <= self._enough else self.from_afar(objective)

    def with_known_inverse(self, objective: Objective) -> float:
        """Newton steps with the last inverse only, for an objective whose weights follow θ.

        Its gradient is not that of one function, so a better inverse would not speed it up.
        """
        before = copied(self._params)
        left = self._newton(objective, renewals=None)
        distance = norm(axpy(-1.0, before, copied(self._params)))
        if left <= self._enough and distance > 1e-6 * norm(before):
            self._inverse = None  # the solution is elsewhere, so the next one may be too
        return left

    def _newton(self, objective: Objective, renewals: int | None = 6) -> float:
        """Newton's method; ``renewals`` limits how often the inverse is computed again."""
        grad = gradient(objective(), self._params)
        left = norm(grad)
        for _ in range(100):
            if left == 0.0:
                break
            new = self._inverse is None
            if self._inverse is None:
                self._inverse = self._inverted(objective)
            here = copied(self._params)
            move(self._params, axpy(-1.0, self._inverse(grad), here))
            after = gradient(objective(), self._params)
            size, before = norm(after), left
            if size < left:
                grad, left = after, size
            else:
                move(self._params, here)
                if new or left <= self._enough:
                    break
            if size > 0.5 * before and left > self._enough and renewals is not None:
                if not renewals:
                    break
                renewals -= 1
                self._inverse = None
            elif size >= before:
                break
            if self._size > _DENSE:
                self._inverse = None
        if self._size > _DENSE:
            self._inverse = None  # its graph belongs to a previous point
        return left

    def _inverted(self, objective: Objective) -> Map:
        """The inverse of the Hessian at this point, with the absolute values of its curvatures."""
        hvp = hessian(objective, self._params, self._twice)
        if self._size > _DENSE:
            solver = ConjugateGradient(max_steps=500, rtol=1e-6)
            return lambda v: solver(hvp, v).value
        identity = torch.eye(self._size).to(flatten(self._params))
        columns = [flatten(hvp(unflatten(column, self._params))) for column in identity]
        matrix = torch.stack(columns)
        values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        sizes = values.abs()
        inverse = torch.where(sizes > _FLAT * sizes.max(), 1.0 / sizes, 0.0)
        return lambda v: unflatten(vectors @ (inverse * (vectors.T @ flatten(v))), self._params)


def hessian(objective: Objective, params: Tree, twice: bool = True) -> Map:
    """Products with the Hessian at this point.

    Args:
        objective: the function.
        params: leaves; the point is where they are.
        twice: whether to try autograd before differences of gradients.
    """
    if twice:
        try:
            linearisation = from_graph(objective(), params, {})

            def hvp(v: Tree) -> Tree:
                product = linearisation.hvp({name: v[name] for name in linearisation.params})
                return filled((product.get(name) for name in params), params)

            hvp(params)
            return hvp
        except RuntimeError as error:
            logger.info("no second derivatives of the inner problem: %s", str(error))

    def gradient_at(values: Tree) -> Tree:
        move(params, values)
        return gradient(objective(), params)

    def differences(v: Tree) -> Tree:
        here = copied(params)
        step = 1e-5 * (1.0 + norm(here)) / max(norm(v), 1e-300)
        product = central_difference(gradient_at, here, v, step)
        move(params, here)
        return product

    return differences


def largest_curvature(objective: Objective, params: Tree, twice: bool = True) -> float:
    """The largest absolute curvature at this point, estimated by ten power iterations."""
    hvp = hessian(objective, params, twice)
    v = unit_direction(params, torch.Generator().manual_seed(0))
    size = 0.0
    for _ in range(10):
        v = hvp(v)
        size = norm(v)
        if not size > 0.0:
            break
        v = scale(1.0 / size, v)
    return size
