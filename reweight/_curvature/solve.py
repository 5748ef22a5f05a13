"""The solve of one linear system: the one place that tries modes of Hessian-vector products."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from reweight._curvature.judge import Answer, judged, nothing_to_solve
from reweight._curvature.linearise import Linearisation, Mode, Partial
from reweight._curvature.operator import ModeFailed, Operator, guarded
from reweight._curvature.system import System
from reweight._tables import pick
from reweight._tensors import (
    Tree,
    check_finite,
    dense,
    flatten,
    max_abs,
    rounding,
    stored,
    unflatten,
    zeros_like,
)
from reweight.solvers import LinearSolver, Solution, Status
from reweight.verdict import SolveInfo

logger = logging.getLogger("reweight")

Solver = Callable[[Callable[[Any], Any], Any], Solution]


@dataclass(frozen=True)
class Solved:
    """What a solve gives.

    Attributes:
        mixed: ``∂/∂φ ⟨∇θ inner, u⟩`` by the names of φ.
        info: the verdict.
        params: names of the entries of θ that the solve was over.
        mode: mode of the products; ``None`` if nothing had to be solved.
        failures: the modes that do not work, with the reason.
    """

    mixed: Partial
    info: SolveInfo
    params: tuple[str, ...] = ()
    mode: Mode | None = None
    failures: Mapping[Mode, BaseException] = field(default_factory=dict)


def solve(
    system: System,
    rhs: Tree,
    solver: Solver,
    modes: Sequence[Mode],
    ruled_out: Mapping[Mode, BaseException] | None = None,
    fresh: Iterable[System] | None = None,
) -> Solved:
    """Solve ``A u = v`` in the first mode that works, and judge the solution.

    Args:
        system: the matrix ``A = H + shift``, and the mixed derivative.
        rhs: ``v = ∂outer/∂θ``; sparse for tables of which the outer loss reads rows.
        solver: any callable ``(matvec, b) -> Solution``.
        modes: of Hessian-vector products, in the order to try.
        ruled_out: modes that are known not to work, with the reason.
        fresh: systems of other batches, one for each product of the solver; iterated over again
            where a mode fails.

    Raises:
        FloatingPointError: a derivative that is not finite.
        RuntimeError: no mode works.
    """
    zero: Partial = dict(zeros_like(system.hparams))
    if not any(h.numel() for h in system.hparams.values()):
        return Solved(zero, nothing_to_solve("nothing depends on φ, which has no entries"))
    if (largest := max_abs(stored(rhs))) == 0.0:
        return Solved(zero, nothing_to_solve("the gradient of the outer loss is zero"))
    if not math.isfinite(largest):
        check_finite("the gradient of the outer loss", stored(rhs))
    failures: dict[Mode, BaseException] = dict(ruled_out or {})
    for mode in modes:
        if mode in failures:
            continue
        try:
            with guarded():
                linearisation = system.linearise(mode)
            b = _restricted(rhs, linearisation)
            if (nothing := _nothing(system, b)) is not None:
                return replace(nothing, failures=failures)
            attempt = _Attempt(system, linearisation, mode, rhs, b, solver, fresh)
            solution = attempt.solver.solve_flat(attempt.matvec, attempt.b, rounding(b))
            answer, mixed = attempt.measured(solution)
            info = judged(answer)
        except ModeFailed as failure:
            logger.info("hvp mode %r does not serve this model: %s", mode, str(failure))
            failures[mode] = failure.cause
        else:
            attempt.check(info)
            return Solved(mixed, info, linearisation.params, mode, failures)
    raise _no_mode_works(failures)


class _Attempt:
    """One system, linearised in one mode, ready for its solver.

    Attributes:
        solver: has ``solve_flat``.
        matvec: ``v -> A v``, flat; in the variables ``D^{-½}u`` where there is a preconditioner.
        b: the right-hand side in the same variables.
    """

    def __init__(
        self,
        system: System,
        linearisation: Linearisation,
        mode: Mode,
        everything: Tree,
        rhs: Tree,
        solver: Solver,
        fresh: Iterable[System] | None,
    ) -> None:
        self._linearisation, self._mode, self._rhs = linearisation, mode, rhs
        self._fresh = fresh is not None
        hvp = guarded()(linearisation.hvp)
        if fresh is not None:
            solver, hvp = _on_fresh_batches(solver), _product_by_product(fresh, mode, everything)
        linear = isinstance(solver, LinearSolver)
        self.solver = solver if isinstance(solver, LinearSolver) else _Callable(solver, rhs)
        reuse = linear and not solver.keeps_products  # type: ignore[attr-defined]
        self._operator = Operator(hvp, rhs, system.shift, reuse)
        self._v = flatten(rhs)
        diagonal = system.diagonal(linearisation)
        self._root = None if diagonal is None else _root(diagonal, rhs, self._v)
        self.b = self._v if self._root is None else self._root * self._v
        self.matvec = self._operator if self._root is None else self._preconditioned

    def _preconditioned(self, v: Tensor) -> Tensor:
        assert self._root is not None
        return self._operator(v.mul(self._root)).mul_(self._root)

    def measured(self, solution: Solution) -> tuple[Answer, Partial]:
        """The residual of a solution, and the mixed derivative along it."""
        linearisation, operator, rhs = self._linearisation, self._operator, self._rhs
        u = solution.value
        if not math.isfinite(max_abs(u)):
            why = f"{solution.status} {solution.detail}"
            check_finite(f"the direction of {self.solver!r}", unflatten(u, rhs), why)
        u = u if self._root is None else self._root * u
        with guarded():
            product, mixed = linearisation.cross(unflatten(u, rhs))
            doubt = linearisation.doubt(unflatten(u, rhs), product) if linearisation.doubt else 0.0
        self._product = product
        check_finite(
            "the derivative of the inner gradient",
            {name: entry for name, entry in mixed.items() if entry is not None},
            "the inner loss has no finite derivative here",
        )
        answer = Answer(
            self._mode,
            operator,
            solution,
            self._v,
            u,
            self._v - operator.shifted(product, u),
            doubt,
            rhs,
            max_abs(self._v),
            preconditioned=self._root is not None,
            fresh=self._fresh,
        )
        return answer, mixed

    def check(self, info: SolveInfo) -> None:
        """Raise where the residual is not finite."""
        if not math.isfinite(info.relative_residual):
            check_finite(
                "the product of the Hessian with the solution",
                self._product,
                "the inner loss has no finite second derivative here",
            )


class _Callable:
    """A solver of the user's, which takes and returns dicts."""

    def __init__(self, solver: Solver, like: Tree) -> None:
        self._solver, self._like = solver, like

    def __repr__(self) -> str:
        return repr(self._solver)

    def solve_flat(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
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


def _restricted(rhs: Tree, linearisation: Linearisation) -> Tree:
    """``rhs`` on the entries of θ that the linearisation covers.

    The other entries have zero rows and columns in ``H`` and no mixed derivative, so leaving them
    out changes the conditioning of the system only.
    """
    rows = linearisation.rows
    return {
        name: pick(rhs[name], rows[name]) if name in rows else dense(rhs[name])
        for name in linearisation.params
    }


def _nothing(system: System, b: Tree) -> Solved | None:
    """The answer where the restricted right-hand side is empty or zero."""
    if not b:
        untouched: Partial = dict.fromkeys(system.hparams)
        return Solved(untouched, nothing_to_solve("the inner loss uses no parameter"))
    if max_abs(b) == 0.0:
        zero: Partial = dict(zeros_like(system.hparams))
        return Solved(zero, nothing_to_solve("", Status.DISJOINT), tuple(b))
    return None


def _root(diagonal: Tree, rhs: Tree, like: Tensor) -> Tensor:
    return flatten({name: diagonal[name] for name in rhs}).to(like.dtype).sqrt()


def _on_fresh_batches(solver: Solver) -> Solver:
    adapt = getattr(solver, "on_fresh_batches", None)
    if adapt is None:
        raise ValueError(
            f"batches= gives every product another batch, and {solver!r} needs products with one "
            "and the same matrix; use Neumann, or leave batches out"
        )
    adapted: Solver = adapt()
    return adapted


def _product_by_product(fresh: Iterable[System], mode: Mode, like: Tree) -> Callable[[Tree], Tree]:
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


def _no_mode_works(failures: Mapping[Mode, BaseException]) -> BaseException:
    first = next(iter(failures.values()))
    if len({str(error) for error in failures.values()}) == 1:
        return first
    reasons = "\n".join(f"  {mode}: {error}" for mode, error in failures.items())
    error = RuntimeError(f"no way to multiply with the Hessian worked for this model:\n{reasons}")
    error.__cause__ = first
    return error
