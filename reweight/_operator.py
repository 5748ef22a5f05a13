"""The matrix of the linear system, as what it does to a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from reweight._trees import Tree, dot


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

    def quotient(self, v: Tree) -> float:
        """``vᵀAv`` of a unit vector, by a product that is not counted."""
        with serving():
            return dot(v, self.shifted(self._hvp(v), v))

    def __call__(self, v: Tree) -> Tree:
        with serving():
            product = self.shifted(self._hvp(v), v)
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
