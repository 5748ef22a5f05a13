"""The solve of one linear system: the one place that tries modes of Hessian-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from reweight._curvature.callables import CallableSolver, Solver
from reweight._curvature.direct import DirectSolver
from reweight._curvature.failure import ModeFailed, guarded, record
from reweight._curvature.judge import Answer, Residual, judged, nothing_to_solve
from reweight._curvature.linearise import Linearisation, Mode, Partial
from reweight._curvature.operator import Operator
from reweight._curvature.products import on_fresh_batches, product_by_product
from reweight._curvature.system import System
from reweight._curvature.united import united
from reweight._tables import pick
from reweight._tensors import (
    AttemptError,
    Pending,
    Tree,
    agree,
    all_samples,
    check_finite,
    dense,
    ends,
    flatten,
    largest_of,
    max_abs,
    rounding,
    shared,
    stored,
    unflatten,
    zeros_like,
)
from reweight.solvers import LinearSolver, Solution, Status
from reweight.verdict import SolveInfo

_RHS = "the gradient of the outer loss"


@dataclass(frozen=True)
class Solved:
    """What a solve gives.

    Attributes:
        indirect: ``−∂/∂φ ⟨∇θ inner, u⟩`` by the names of φ: the hypergradient through the
            minimiser; ``None`` where the inner gradient does not depend on φ.
        info: the verdict.
    """

    indirect: Partial
    info: SolveInfo


def solve(
    system: System,
    rhs: Tree,
    solver: Solver,
    linearisations: Iterable[tuple[Mode, Linearisation]],
    failures: dict[Mode, BaseException],
    pending: Pending,
    fresh: Iterable[System] | None = None,
    *,
    measure: bool = True,
    along: float | None = None,
) -> Solved:
    """Solve ``A u = v`` in the first mode that works, and judge the solution.

    Args:
        system: the matrix ``A = H + shift``, and the mixed derivative.
        rhs: ``v = ∂outer/∂θ``; sparse for tables of which the outer loss reads rows.
        solver: any callable ``(matvec, b) -> Solution``.
        linearisations: of the system in several modes, in the order to try; see
            :meth:`System.linearisations`.
        failures: modes that do not work, with the reason; those that fail here are added.
        pending: read before the solver begins; what can be looked at later is added to it.
        fresh: systems of other batches, one for each product of the solver; iterated over again
            where a mode fails.
        measure: whether to measure the residual of every solution, or only of one that the solver
            claims to be exact.
        along: the smallest curvature met in an earlier verdict, to be used in the place of three
            products that measure the curvature along a small residual; ``None`` to make these.

    Raises:
        FloatingPointError: a derivative that is not finite.
        Exception: no mode works: the reason, or a ``RuntimeError`` that lists several reasons.
    """
    zero: Partial = dict(zeros_like(system.hparams))
    if not _anywhere(any(h.numel() for h in system.hparams.values())):
        return Solved(zero, nothing_to_solve(""))
    if fresh is not None:
        solver = on_fresh_batches(solver)
    for mode, own in linearisations:
        linearisation = united(own, system.params)
        free = system.free(linearisation)
        like = _restricted(rhs, linearisation, free)
        # What is in v as well is looked at there.
        rest = {n: x for n, x in rhs.items() if n not in like or n in linearisation.rows}
        if rest:
            check_finite(_RHS, stored(rest), pending=pending)
        if not like:
            untouched: Partial = dict.fromkeys(system.hparams)
            return Solved(untouched, nothing_to_solve("the inner loss uses no parameter"))
        v = all_samples(flatten(like))
        hvp = None if fresh is None else product_by_product(fresh, mode, rhs)
        setup = _SetUp(system, linearisation, solver, like, v, hvp, free)
        sides = [v] if setup.b is v else [v, setup.b]
        largest = [largest_of(found) for found in pending.read(*map(ends, sides))]
        of_v, of_b = largest[0], largest[-1]
        if not math.isfinite(of_v):
            check_finite(_RHS, stored(rhs))
            agree()  # or the process where it is not finite says so
        if of_v == 0.0:
            if not _anywhere(max_abs(stored(rhs)) > 0.0):
                return without_solve(system.hparams)
            return Solved(zero, nothing_to_solve("", Status.DISJOINT))
        try:
            solution = setup.solver.solve_flat(setup.matvec, setup.b, rounding(like), of_b)
            look = measure or solution.status.final
            answer, mixed = setup.answer(mode, solution, of_v if look else None, pending)
            info = judged(replace(answer, along=along))
            agree()
        except (ModeFailed, AttemptError) as failure:
            record(failures, mode, failure)
        else:
            return Solved({n: None if m is None else m.neg() for n, m in mixed.items()}, info)
    raise _no_mode_works(failures)


def _anywhere(found: bool) -> bool:
    """Whether something holds on any of the processes that share the samples."""
    group = shared()
    return found if group is None else any(each[0] for each in group.numbers(float(found)))


def without_solve(hparams: Tree) -> Solved:
    """What is known without a solve where the gradient of the outer loss is zero."""
    info = nothing_to_solve("the gradient of the outer loss is zero")
    return Solved(dict(zeros_like(hparams)), info)


class _SetUp:
    """A linearised system, ready for its solver.

    Args:
        system: the system.
        linearisation: of its inner loss, in one mode.
        solver: the solver.
        like: the entries of θ that the system is over.
        v: the right-hand side, flat.
        hvp: products with the Hessians of fresh batches, if the solver is to use those.
        free: masks of entries that are constants.

    Attributes:
        solver: has ``solve_flat``.
        matvec: ``v -> A v``, flat; in the variables ``D^{-½}u`` where there is a preconditioner.
        b: the right-hand side in the same variables.
    """

    def __init__(
        self,
        system: System,
        linearisation: Linearisation,
        solver: Solver,
        like: Tree,
        v: Tensor,
        hvp: Callable[[Tree], Tree] | None,
        free: Tree,
    ) -> None:
        self._linearisation, self._like, self._v = linearisation, like, v
        self._fresh = hvp is not None
        reuse = self._checks = False
        self.solver: LinearSolver | CallableSolver
        if linearisation.inverse is not None:
            self.solver = DirectSolver(linearisation, system.shift, like, free)
        elif isinstance(solver, LinearSolver):
            self.solver = solver
            reuse, self._checks = not solver.keeps_products, solver.checks_products
        else:
            self.solver = CallableSolver(solver, like)
        products = hvp or guarded()(linearisation.hvp)
        diagonal = system.diagonal(linearisation)
        # With a preconditioner, the solver does not see the curvatures of the matrix itself.
        watch = not self._checks or diagonal is not None
        self._operator = Operator(products, like, system.shift, free, reuse, watch)
        self.matvec: Callable[[Tensor], Tensor] = self._operator
        self.b, self._root = v, None
        if diagonal is not None:
            self._root = flatten({name: diagonal[name] for name in like}).to(v.dtype).sqrt()
            self.b, self.matvec = self._root * v, _preconditioned(self._operator, self._root)

    def answer(
        self, mode: Mode, solution: Solution, largest: float | None, pending: Pending
    ) -> tuple[Answer, Partial]:
        """What is known of a solution, and the mixed derivative along it.

        Args:
            mode: mode of the products.
            solution: what the solver returned.
            largest: the largest entry of the right-hand side; ``None`` to measure no residual.
            pending: takes what is to be looked at.
        """
        linearisation, operator, like = self._linearisation, self._operator, self._like
        u = solution.value
        if not self._checks:
            why = f"{solution.status} {solution.detail}"
            check_finite(f"the direction of {self.solver!r}", unflatten(u, like), why)
        u = u if self._root is None else self._root * u
        residual = None
        with guarded():
            along = unflatten(u, like)
            if largest is None:
                mixed = linearisation.mixed(along)
            else:
                product, mixed = linearisation.cross(along)
                doubt = linearisation.doubt(along, product) if linearisation.doubt else 0.0
                left = self._v - operator.shifted(product, u)
                residual = Residual(self._v, largest, u, product, left, doubt)
        check_finite(
            "the derivative of the inner gradient",
            {name: entry for name, entry in mixed.items() if entry is not None},
            "the inner loss has no finite derivative here",
            pending,
        )
        answer = Answer(
            mode=mode,
            operator=operator,
            solution=solution,
            like=like,
            preconditioned=self._root is not None,
            fresh=self._fresh,
            residual=residual,
        )
        return answer, mixed


def _preconditioned(operator: Operator, root: Tensor) -> Callable[[Tensor], Tensor]:
    """``D^½ A D^½`` for ``root = D^½``."""

    def matvec(v: Tensor) -> Tensor:
        return operator(v.mul(root)).mul_(root)

    return matvec


def _restricted(rhs: Tree, linearisation: Linearisation, free: Tree) -> Tree:
    """``rhs`` on the entries of θ that the linearisation covers.

    The other entries have zero rows and columns in ``H`` and no mixed derivative, so leaving them
    out changes the conditioning of the system only.
    """
    rows = linearisation.rows
    found = {
        name: pick(rhs[name], rows[name]) if name in rows else dense(rhs[name])
        for name in linearisation.params
    }
    return found | {name: found[name] * mask for name, mask in free.items()}


def _no_mode_works(failures: Mapping[Mode, BaseException]) -> BaseException:
    first = next(iter(failures.values()))
    if len(failures) == 1:
        mode = next(iter(failures))
        text = f'hvp={mode!r} does not work for these losses, and hvp="auto" may: {first}'
    elif len({str(error) for error in failures.values()}) == 1:
        return first  # the losses' own
    else:
        reasons = "\n".join(f"  {mode}: {error}" for mode, error in failures.items())
        text = f"no way to multiply with the Hessian worked for this model:\n{reasons}"
    error = RuntimeError(text)
    error.__cause__ = first
    return error
