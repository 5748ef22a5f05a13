"""Solvers that users write: callables over dicts of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from reweight._tensors import Tree, flatten, unflatten
from reweight.solvers import Solution

Solver = Callable[[Callable[[Any], Any], Any], Solution]


class CallableSolver:
    """A user's solver, called with dicts and checked, with the interface of a ``LinearSolver``."""

    def __init__(self, solver: Solver, like: Tree) -> None:
        self._solver, self._like = solver, like

    def __repr__(self) -> str:
        return repr(self._solver)

    def solve_flat(
        self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float, largest: float
    ) -> Solution:
        """Solve for one tensor."""

        def by_name(v: Tree) -> Tree:
            for name, entry in self._like.items():
                if name not in v or v[name].shape != entry.shape:
                    found = tuple(v[name].shape) if name in v else "nothing"
                    raise ValueError(
                        f"the solver {self!r} asked for a product with {found} for {name!r}, "
                        f"where b has {tuple(entry.shape)}: of an embedding table b holds the rows "
                        "that the batch reads, so what a solver keeps from one call does not fit "
                        "the next"
                    )
            flat = flatten({name: v[name] for name in self._like})
            return unflatten(matvec(flat), self._like)

        # A copy: a solver may work in place, and the verdict needs the original.
        solution = self._solver(by_name, unflatten(b.clone(), self._like))
        return replace(solution, value=flatten(self._checked(solution)))

    def _checked(self, solution: object) -> Tree:
        """The solution's value, if it has the structure of ``b``."""
        if not isinstance(solution, Solution):
            raise TypeError(
                f"the solver {self!r} returned {type(solution).__name__}: a solver is a callable "
                "(matvec, b) -> Solution, so return reweight.Solution(u, Status.CONVERGED)"
            )
        u, b = solution.value, self._like
        if not isinstance(u, Mapping) or u.keys() != b.keys():
            found = ", ".join(map(repr, u)) if isinstance(u, Mapping) else type(u).__name__
            raise ValueError(
                f"the solver {self!r} returned a solution made of {found}; it needs the keys of b: "
                f"{', '.join(map(repr, b))}"
            )
        for name, entry in u.items():
            if not isinstance(entry, Tensor) or entry.shape != b[name].shape:
                shape = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
                raise ValueError(
                    f"the solver {self!r} returned {shape} for {name!r}, where b has "
                    f"{tuple(b[name].shape)}"
                )
        # In the order of b, whatever the solver's.
        value: Tree = {name: u[name] for name in b}
        return value
