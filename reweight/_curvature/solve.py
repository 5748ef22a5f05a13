"""The solve of one linear system: the one place that tries modes of Hessian-vector products."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from reweight._curvature.callables import CallableSolver, Solver
from reweight._curvature.judge import Answer, judged, nothing_to_solve
from reweight._curvature.linearise import Linearisation, Mode, Partial
from reweight._curvature.operator import ModeFailed, Operator, guarded
from reweight._curvature.products import on_fresh_batches, product_by_product
from reweight._curvature.system import System
from reweight._tables import pick
from reweight._tensors import (
    Tree,
    all_samples,
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
    if fresh is not None:
        solver = on_fresh_batches(solver)
    failures: dict[Mode, BaseException] = dict(ruled_out or {})
    for mode in modes:
        if mode in failures:
            continue
        try:
            with guarded():
                linearisation = system.linearise(mode)
            if not (like := _restricted(rhs, linearisation)):
                untouched: Partial = dict.fromkeys(system.hparams)
                return Solved(untouched, nothing_to_solve("the inner loss uses no parameter"))
            v = all_samples(flatten(like))
            if (largest := max_abs(v)) == 0.0:
                return Solved(zero, nothing_to_solve("", Status.DISJOINT), failures=failures)
            hvp = None if fresh is None else product_by_product(fresh, mode, rhs)
            attempt = _Attempt(system, linearisation, mode, solver, like, v, largest, hvp)
            solution = attempt.solver.solve_flat(attempt.matvec, attempt.b, rounding(like))
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

    Args:
        system: the system.
        linearisation: of its inner loss.
        mode: the mode of the linearisation.
        solver: the solver.
        like: the entries of θ that the system is over.
        v: the right-hand side, flat.
        largest: its largest absolute entry.
        hvp: products with the Hessians of fresh batches, if the solver is to use those.

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
        solver: Solver,
        like: Tree,
        v: Tensor,
        largest: float,
        hvp: Callable[[Tree], Tree] | None,
    ) -> None:
        self._linearisation, self._mode, self._like = linearisation, mode, like
        self._v, self._largest = v, largest
        self._fresh = hvp is not None
        reuse = False
        if isinstance(solver, LinearSolver):
            self.solver: LinearSolver | CallableSolver = solver
            reuse = not solver.keeps_products
        else:
            self.solver = CallableSolver(solver, like)
        self._operator = Operator(hvp or guarded()(linearisation.hvp), like, system.shift, reuse)
        diagonal = system.diagonal(linearisation)
        if diagonal is None:
            self._root, self.b = None, v
            self.matvec: Callable[[Tensor], Tensor] = self._operator
        else:
            self._root = flatten({name: diagonal[name] for name in like}).to(v.dtype).sqrt()
            self.b, self.matvec = self._root * v, self._preconditioned

    def _preconditioned(self, v: Tensor) -> Tensor:
        assert self._root is not None
        return self._operator(v.mul(self._root)).mul_(self._root)

    def measured(self, solution: Solution) -> tuple[Answer, Partial]:
        """The residual of a solution, and the mixed derivative along it."""
        linearisation, operator, like = self._linearisation, self._operator, self._like
        u = solution.value
        if not math.isfinite(max_abs(u)):
            why = f"{solution.status} {solution.detail}"
            check_finite(f"the direction of {self.solver!r}", unflatten(u, like), why)
        u = u if self._root is None else self._root * u
        with guarded():
            product, mixed = linearisation.cross(unflatten(u, like))
            doubt = linearisation.doubt(unflatten(u, like), product) if linearisation.doubt else 0.0
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
            like,
            self._largest,
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


def _no_mode_works(failures: Mapping[Mode, BaseException]) -> BaseException:
    first = next(iter(failures.values()))
    if len({str(error) for error in failures.values()}) == 1:
        return first
    reasons = "\n".join(f"  {mode}: {error}" for mode, error in failures.items())
    error = RuntimeError(f"no way to multiply with the Hessian worked for this model:\n{reasons}")
    error.__cause__ = first
    return error
