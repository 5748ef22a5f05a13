"""The matrix of the linear system, as what it does to a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from reweight._trees import Tree, dot, flatten, rounding, unflatten
from reweight.solvers._lanczos import lanczos

# Products spent on the residual: one sees a curvature that it is made of, three one that it has.
_LOOKS = 3


class Operator:
    """``v -> (H + shift + damping)v``, noting what the products reveal."""

    def __init__(
        self, hvp: Callable[[Tree], Tree], shift: Mapping[str, float], damping: float
    ) -> None:
        self._hvp = hvp
        self._shift = shift
        self._damping = damping
        self.count = 0
        self.largest: float | None = None
        self.smallest: float | None = None

    def flattest(self, v: Tree) -> float:
        """The smallest curvature in the span of ``v, Av, A²v``, by products that are not counted.

        From above, and of the part of the spectrum that ``v ≠ 0`` has a share in.
        """

        def times(flat: Tensor) -> Tensor:
            return flatten(self._times(unflatten(flat, v)))

        values = lanczos(times, flatten(v), _LOOKS, rounding(v)).ritz_values()
        return float(values[0])

    def __call__(self, v: Tree) -> Tree:
        product = self._times(v)
        self.count += 1
        squared = dot(v, v)
        if squared > 0.0:
            quotient = dot(v, product) / squared
            if not math.isfinite(quotient):
                raise FloatingPointError(
                    f"Hessian-vector product {self.count} is not finite (vᵀHv/vᵀv = {quotient}); "
                    "the inner loss has an infinite second derivative here, or the series "
                    "diverges: lower the solver's step size, or add damping"
                )
            self.largest = quotient if self.largest is None else max(quotient, self.largest)
            self.smallest = quotient if self.smallest is None else min(quotient, self.smallest)
        return product

    def _times(self, v: Tree) -> Tree:
        with serving():
            return self.shifted(self._hvp(v), v)

    def shifted(self, product: Tree, v: Tree) -> Tree:
        """Add what the graph of the inner loss does not hold."""
        return {
            name: torch.add(entry, v[name], alpha=self._shift.get(name, 0.0) + self._damping)
            for name, entry in product.items()
        }


class Unserved(Exception):
    """A way to multiply with the Hessian does not work for this model."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def serving() -> Iterator[None]:
    """Tell what the differentiation raises from what a solver raises."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # another mode would need more
    except (RuntimeError, NotImplementedError) as error:
        raise Unserved(error) from error


class Foreign(Exception):
    """An error of the user's own code, where it could be taken for one of a mode."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
