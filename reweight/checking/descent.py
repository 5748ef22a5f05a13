"""Down to a stationary point, to rounding, and quickly down again from nearby."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from reweight._curvature import from_graph
from reweight._tensors import Tree, axpy, filled, flatten, norm, scale, unflatten
from reweight.checking.problem import copied, gradient, move, random
from reweight.solvers import ConjugateGradient

logger = logging.getLogger("reweight")

Objective = Callable[[], Tensor]
Map = Callable[[Tree], Tree]

# Up to so many parameters the Hessian is written out: 8 MB, and a second or two.
_DENSE = 1000
# Curvatures below this share of the largest are taken for flat.
_FLAT = 1e-12


class Descent:
    """Finds stationary points of functions of the same parameters, which it moves in place.

    Newton's method needs few steps near a solution, and they may be taken with the Hessian of a
    point nearby. A finite difference solves many problems that are almost the same one, so the
    inverse is kept from one to the next, and made anew where it no longer serves.

    Args:
        params: the leaves to move.
        enough: a gradient of this size counts as a solution. Steps go on below it as far as
            rounding lets them, but no new inverse is made for them.
        near: from a gradient of this size on Newton's method is worth trying.
        twice: whether there are second derivatives to be had from autograd.
    """

    def __init__(self, params: Tree, enough: float, near: float, twice: bool = True) -> None:
        self._params = params
        self._enough = enough
        self._near = near
        self._twice = twice
        self._size = sum(p.numel() for p in params.values())
        self._inverse: Map | None = None

    def from_afar(self, objective: Objective) -> float:
        """L-BFGS until Newton's method does the rest, or until it is no use.

        Returns:
            The size of the gradient that is left.
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
            move(self._params, here)  # where L-BFGS remembers to be
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
        """The same from near a solution, where Newton's method is enough if it can be had."""
        left = self._newton(objective)
        return left if left <= self._enough else self.from_afar(objective)

    def with_what_is_known(self, objective: Objective) -> float:
        """Steps with the last inverse only, for gradients that are not quite of one function.

        What they lack of it decides how fast this goes, and a better inverse would not help.
        """
        before = copied(self._params)
        left = self._newton(objective, renewals=None)
        way = norm(axpy(-1.0, before, copied(self._params)))
        if left <= self._enough and way > 1e-6 * norm(before):
            self._inverse = None  # it was good enough to get here, but there is more to come
        return left

    def _newton(self, objective: Objective, renewals: int | None = 6) -> float:
        grad = gradient(objective(), self._params)
        left = norm(grad)
        for _ in range(100):
            if left == 0.0:
                break
            fresh = self._inverse is None
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
                if fresh or left <= self._enough:
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
            self._inverse = None  # its graph is of a place that was left
        return left

    def _inverted(self, objective: Objective) -> Map:
        """The inverse Hessian at this point, with curvatures turned upwards."""
        hvp = hessian(objective, self._params, self._twice)
        if self._size > _DENSE:
            # Its graph serves this point alone, so these inverses are not kept.
            solver = ConjugateGradient(max_steps=500, rtol=1e-6)
            return lambda v: solver(hvp, v).value
        zero = torch.zeros_like(flatten(self._params))
        columns = []
        for index in range(self._size):
            unit = zero.clone()
            unit[index] = 1.0
            columns.append(flatten(hvp(unflatten(unit, self._params))))
        matrix = torch.stack(columns)
        values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        sizes = values.abs()
        inverse = torch.where(sizes > _FLAT * sizes.max(), 1.0 / sizes, 0.0)
        return lambda v: unflatten(vectors @ (inverse * (vectors.T @ flatten(v))), self._params)


def hessian(objective: Objective, params: Tree, twice: bool = True) -> Map:
    """Products with the Hessian at this point.

    Args:
        objective: what is differentiated.
        params: by what, and where.
        twice: by autograd if that works, rather than by differences of gradients.
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

    def differences(v: Tree) -> Tree:
        here = copied(params)
        step = 1e-5 * (1.0 + norm(here)) / max(norm(v), 1e-300)
        sides = []
        for sign in (step, -step):
            move(params, axpy(sign, v, here))
            sides.append(gradient(objective(), params))
        move(params, here)
        return scale(0.5 / step, axpy(-1.0, sides[1], sides[0]))

    return differences


def curvature(objective: Objective, params: Tree, twice: bool = True) -> float:
    """About the largest curvature at this point, in size, by ten steps of the power method."""
    hvp = hessian(objective, params, twice)
    generator = torch.Generator().manual_seed(0)
    v = {name: random(p, generator) for name, p in params.items()}
    size = 0.0
    for _ in range(10):
        v = hvp(scale(1.0 / norm(v), v))
        size = norm(v)
        if not size > 0.0:
            break
    return size
