"""The matrix of the linear system, as what it does to a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from reweight._trees import Tree, flatten, rounding, unflatten
from reweight.solvers._lanczos import lanczos

# Products spent on the residual: one sees a curvature that it is made of, three one that it has.
_LOOKS = 3


class Operator:
    """``v -> (H + shift + damping)v``, noting what the products reveal.

    Vectors are all of the parameters joined to one.

    Args:
        hvp: ``v -> H v``.
        like: the parameters that ``v`` is joined from.
        shift: curvature by name that ``hvp`` does not hold.
        damping: the same for all.
        reuse: whether every product may come in the memory of the one before.
    """

    def __init__(
        self,
        hvp: Callable[[Tree], Tree],
        like: Tree,
        shift: Mapping[str, float],
        damping: float,
        reuse: bool = False,
    ) -> None:
        self._hvp = hvp
        self._like = like
        self._shift = {name: shift.get(name, 0.0) + damping for name in like}
        self._reuse = reuse
        self._memory: Tensor | None = None
        self.count = 0
        self.largest: float | None = None
        self.smallest: float | None = None

    def flattest(self, v: Tensor) -> float:
        """The smallest curvature in the span of ``v, Av, A²v``, by products that are not counted.

        From above, and of the part of the spectrum that ``v ≠ 0`` has a share in.
        """
        values = lanczos(self._times, v, _LOOKS, rounding(self._like)).ritz_values()
        return float(values[0])

    def __call__(self, v: Tensor) -> Tensor:
        product = self._times(v)
        self.count += 1
        squared, along = torch.stack([torch.dot(v, v), torch.dot(v, product)]).tolist()
        if squared > 0.0:
            quotient = along / squared
            if not math.isfinite(quotient):
                raise FloatingPointError(
                    f"Hessian-vector product {self.count} is not finite (vᵀHv/vᵀv = {quotient}); "
                    "the inner loss has an infinite second derivative here, or the series "
                    "diverges: lower the solver's step size, or add damping"
                )
            self.largest = quotient if self.largest is None else max(quotient, self.largest)
            self.smallest = quotient if self.smallest is None else min(quotient, self.smallest)
        return product

    def _times(self, v: Tensor) -> Tensor:
        with serving():
            return self.shifted(self._hvp(unflatten(v, self._like)), v)

    def shifted(self, product: Tree, v: Tensor) -> Tensor:
        """Add what the graph of the inner loss does not hold to a product with ``v``."""
        total = flatten(product, self._memory)
        if self._reuse:
            self._memory = total
        shifts = set(self._shift.values())
        if shifts == {0.0}:
            return total
        if len(shifts) == 1:
            return total.add_(v, alpha=shifts.pop())
        parts = [torch.split(x, [leaf.numel() for leaf in self._like.values()]) for x in (total, v)]
        for entry, along, shift in zip(*parts, self._shift.values(), strict=True):
            entry.add_(along, alpha=shift)
        return total


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
