"""The matrix of the linear system as a function of a vector."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from reweight._tensors import (
    Blocks,
    Tree,
    all_samples,
    flatten,
    inner_products,
    let_through,
    read,
    rounding,
)
from reweight.solvers import check_product, lanczos

# Products for the curvature along the residual r: three give the smallest one in the span of
# r, Ar, A²r.
_LOOKS = 3


class Operator:
    """``v -> (H + shift) v`` on flat vectors; it records the curvatures that products show.

    Args:
        hvp: ``v -> H v``.
        like: the parameters that a flat vector is made of.
        shift: curvature by name that ``hvp`` does not have.
        free: masks by name, 0 where an entry is a constant: its row and column are zero.
        reuse: whether all products may share one buffer.
        watch: whether to look at each product, which reads from the device. A solver that looks at
            them itself needs no second look.

    Attributes:
        count: products so far.
        largest: the largest Rayleigh quotient seen.
        smallest: the smallest one.
    """

    def __init__(
        self,
        hvp: Callable[[Tree], Tree],
        like: Tree,
        shift: Mapping[str, float],
        free: Tree,
        reuse: bool = False,
        watch: bool = True,
    ) -> None:
        self._hvp = hvp
        self._like, self._blocks = like, Blocks(like)
        self._shift = {name: shift.get(name, 0.0) for name in like}
        self._shifts = set(self._shift.values())
        self._free: Tensor | None = None
        if free:
            masks = {name: free.get(name, torch.ones_like(x)) for name, x in like.items()}
            self._free = flatten(masks)
        self._reuse, self._watch = reuse, watch
        self._buffer: Tensor | None = None
        self.count = 0
        self.largest: float | None = None
        self.smallest: float | None = None

    def __call__(self, v: Tensor, *, counted: bool = True) -> Tensor:
        """The product with ``v``.

        Raises:
            FloatingPointError: a counted product is not finite, if they are watched.
        """
        let_through()
        if self._free is not None:
            v = v * self._free
        product = self.shifted(self._hvp(self._blocks.unflatten(v)), v)
        if not counted:
            return product
        self.count += 1
        if not self._watch:
            return product
        ((squared, along),) = read(inner_products((v, v), (v, product)))
        if squared > 0.0:
            quotient = along / squared
            check_product(self.count, quotient, "vᵀHv/vᵀv = ")
            self.largest = quotient if self.largest is None else max(quotient, self.largest)
            self.smallest = quotient if self.smallest is None else min(quotient, self.smallest)
        return product

    def shifted(self, product: Tree, v: Tensor) -> Tensor:
        """``H v``, given by name, plus ``shift · v``, as a flat vector."""
        total = all_samples(self._blocks.flatten(product, self._buffer))
        if self._reuse:
            self._buffer = total
        self._add_shift(total, v)
        return total if self._free is None else total.mul_(self._free)

    def _add_shift(self, total: Tensor, v: Tensor) -> None:
        if not any(self._shifts):
            return
        if len(self._shifts) == 1:
            total.add_(v, alpha=next(iter(self._shifts)))
            return
        sizes = [entry.numel() for entry in self._like.values()]
        parts = (torch.split(x, sizes) for x in (total, v))
        for entry, along, shift in zip(*parts, self._shift.values(), strict=True):
            entry.add_(along, alpha=shift)

    def smallest_along(self, v: Tensor) -> float:
        """The smallest curvature in the span of ``v, Av, A²v``; its products are not counted.

        It is an upper bound of the smallest eigenvalue in whose eigenvectors ``v ≠ 0`` has a
        component.
        """
        matvec = functools.partial(self, counted=False)
        return float(lanczos(matvec, v, _LOOKS, rounding(self._like)).ritz_values()[0])
