"""Hessian-vector products, each with the Hessian of another batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch

from reweight._curvature.callables import Solver
from reweight._curvature.failure import guarded
from reweight._curvature.linearise import Mode
from reweight._curvature.system import System
from reweight._tensors import Tree


def on_fresh_batches(solver: Solver) -> Solver:
    """The solver for products with another matrix each.

    Raises:
        ValueError: the solver needs products with one matrix.
    """
    adapt = getattr(solver, "on_fresh_batches", None)
    if adapt is None:
        raise ValueError(
            f"batches= gives every product another batch, and {solver!r} needs products with one "
            "and the same matrix; use Neumann, or leave batches out"
        )
    adapted: Solver = adapt()
    return adapted


def product_by_product(fresh: Iterable[System], mode: Mode, like: Tree) -> Callable[[Tree], Tree]:
    """Each product with the Hessian of the next batch, over the parameters of the train batch."""
    remaining, count = iter(fresh), itertools.count()

    def hvp(v: Tree) -> Tree:
        made = next(count)
        system = next(remaining, None)
        if system is None:
            raise ValueError(
                f"batches ran out after {made} of them: the solver needs one for every "
                "Hessian-vector product; pass an iterator that goes on, such as a generator that "
                "runs through the loader again and again"
            )
        with guarded():
            linearisation = system.linearise(mode)
            # A batch may depend on other parameters; it has no curvature in those it does not use.
            given = {n: v[n] if n in v else torch.zeros_like(like[n]) for n in linearisation.params}
            product = linearisation.hvp(given)
        return {n: product[n] if n in product else torch.zeros_like(x) for n, x in v.items()}

    return hvp
