"""The derivative of an outer loss through the minimiser of an inner one.

With ``θ*(φ) = argmin_θ inner(θ, φ)`` the implicit function theorem gives (BIAO, Eq. 10–13)

    d outer/dφ = ∂outer/∂φ − ∂/∂φ ⟨∇θ inner(θ*, φ), u⟩,   H u = ∂outer/∂θ,   H = ∂²inner/∂θ².
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from reweight._linearise import LINEARISERS, Linearisation, Mode, Objective, Partial
from reweight._operator import Foreign, Operator, Unserved, serving
from reweight._rows import pick
from reweight._trees import (
    Tree,
    axpy,
    dense,
    filled,
    flatten,
    max_abs,
    norm,
    power_of_two,
    rounding,
    stored,
    unflatten,
    zeros_like,
)
from reweight._validate import check_finite, check_loss, check_tree, some
from reweight.preconditioning import Preconditioner, SecondMoments, diagonal_of
from reweight.solvers import LinearSolver, Neumann, PowerIteration, Solution, Status
from reweight.verdict import TRUSTED_RESIDUAL, SolveInfo

logger = logging.getLogger("reweight")

Linearise = Callable[[Mode], Linearisation]
Diagonal = Callable[[Linearisation], "Tree | None"]

# Entries of a right-hand side whose squares any type can hold.
_PLAIN = (1e-6, 1e6)
# What the residual of a solved system comes to, in units of rounding.
_ROUNDING = 64.0


@dataclass(frozen=True)
class Hypergradient:
    """What one outer step knows.

    Attributes:
        grads: gradient of the outer loss per weighter parameter, by name.
        info: the verdict on the linear solve.
        influence: ``[B]``, the derivative of the outer loss with respect to each weight of the
            train batch, the reduction's factor included. Below zero: more of this sample helps.
    """

    grads: dict[str, Tensor]
    info: SolveInfo
    influence: Tensor = field(repr=False)


@dataclass(frozen=True)
class ImplicitHypergradient:
    """Hypergradients by implicit differentiation, as a function over dicts of tensors.

    Args:
        solver: how to solve ``(H + damping·I)u = v``: any callable ``(matvec, b) -> Solution``.
            ``b`` has an entry for each parameter; under :func:`reweight.wrap`, those of embedding
            tables hold the rows that the train batch reads, ``[r, D]``, others at every call.
        damping: added once to the operator, ≥ 0. It makes singular systems solvable, and is the
            curvature of a proximal term ``½·damping·‖θ − θ*‖²`` in the inner loss.
        hvp: ``"auto"`` tries ``"autograd"`` (a gradient graph that is reused), then ``"func"``
            (``torch.func``), then ``"finite_difference"``, and takes the first that works.
        preconditioner: a positive diagonal ``D``: the solver then works on
            ``D^½ (H + damping·I) D^½``, and ``u`` is turned back. :class:`SecondMoments` reads it
            from an adaptive optimizer; a dict of tensors, by the names of the parameters, is taken
            as it is. The solution stays the same, a truncated one does not, nor does a step size
            mean the same.

    Example:
        Ridge regression, differentiated by its penalty:

        >>> import torch
        >>> from reweight import ConjugateGradient
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 3.0])
        >>> def inner(params, hparams):
        ...     error = x @ params["w"] - y
        ...     return error.square().sum() + hparams["penalty"] * params["w"].square().sum()
        >>> def outer(params, hparams):
        ...     return (params["w"].sum() - 1.0).square()
        >>> params = {"w": torch.tensor([7.0 / 6.0])}      # the minimiser at penalty 1
        >>> hparams = {"penalty": torch.tensor(1.0)}
        >>> grads, info = ImplicitHypergradient(ConjugateGradient())(inner, outer, params, hparams)
        >>> round(float(grads["penalty"]), 5), info.trustworthy
        (-0.06481, True)
    """

    solver: Callable[[Callable[[Any], Any], Any], Solution] = Neumann()
    damping: float = 0.0
    hvp: Literal["auto"] | Mode = "auto"
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        if not callable(self.solver) or isinstance(self.solver, (type, PowerIteration)):
            raise TypeError(
                f"ImplicitHypergradient(solver={self.solver!r}): a solver is a value such as "
                "Neumann(num_terms=3), or any callable (matvec, b) -> Solution"
            )
        number = isinstance(self.damping, Real) and not isinstance(self.damping, bool)
        if not number or not math.isfinite(self.damping) or self.damping < 0:
            raise ValueError(
                f"ImplicitHypergradient(damping={self.damping!r}): damping must be finite and not "
                "below 0"
            )
        if self.hvp not in ("auto", *LINEARISERS):
            raise ValueError(
                f"ImplicitHypergradient(hvp={self.hvp!r}): choose one of "
                f"{', '.join(map(repr, ('auto', *LINEARISERS)))}"
            )
        if not isinstance(self.preconditioner, (SecondMoments, Mapping, type(None))):
            raise TypeError(
                f"ImplicitHypergradient(preconditioner={self.preconditioner!r}): choose "
                "SecondMoments(), or a dict of positive tensors by the names of the parameters"
            )

    def __call__(
        self,
        inner: Objective,
        outer: Objective,
        params: Tree,
        hparams: Tree,
    ) -> tuple[Tree, SolveInfo]:
        """Differentiate ``outer(θ*(φ), φ)`` by ``φ``.

        Args:
            inner: ``(params, hparams) -> []``, the loss that ``params`` minimise.
            outer: ``(params, hparams) -> []``; where it uses ``hparams`` itself, the direct term
                is part of the result.
            params: θ, named tensors at (or near) the minimum of ``inner``.
            hparams: φ, named tensors.

        Returns:
            The hypergradient, with the names and shapes of ``hparams``, and the verdict.

        Raises:
            ValueError: a loss that is not a finite scalar, or that does not depend on what it is
                differentiated by.
            FloatingPointError: a gradient or Hessian-vector product that is not finite.
        """
        for name, tree in (("params", params), ("hparams", hparams)):
            check_tree(name, tree)
        with torch.enable_grad():
            theta = {k: p.detach().requires_grad_(True) for k, p in params.items()}
            phi = {k: h.detach().requires_grad_(True) for k, h in hparams.items()}
            loss = check_loss("outer", outer(theta, phi))
            grads = _grad(loss, [*theta.values(), *phi.values()])
            if all(g is None for g in grads[: len(theta)]):
                raise ValueError(
                    "the outer loss does not depend on any of params "
                    f"({some(theta)}): a detach() or no_grad() in outer, or other tensors used "
                    "in the place of params"
                )
            rhs = filled(grads[: len(theta)], theta)
            direct = dict(zip(phi, grads[len(theta) :], strict=True))

            def checked(p: Tree, h: Tree) -> Tensor:
                return check_loss("inner", inner(p, h))

            def linearise(mode: Mode) -> Linearisation:
                # Inside torch.func a value can't be read, so nothing can be checked there.
                return LINEARISERS[mode](inner if mode == "func" else checked, theta, phi)

            def diagonal(system: Linearisation) -> Tree | None:
                return diagonal_of(self.preconditioner, None, {n: theta[n] for n in system.params})

            mixed, info = self.solve(linearise, rhs, zeros_like(hparams), diagonal=diagonal)
        unused = [name for name in phi if mixed[name] is None and direct[name] is None]
        if unused:
            raise ValueError(
                f"neither the outer loss nor the gradient of the inner loss depends on hparams "
                f"{', '.join(map(repr, unused[:3]))}: a detach() between them and the losses, or "
                "other tensors used in their place; leave out what is not used"
            )
        total = axpy(-1.0, filled(mixed.values(), hparams), filled(direct.values(), hparams))
        check_finite("the hypergradient", total)
        return total, info

    def solve(
        self,
        linearise: Linearise,
        rhs: Tree,
        zero: Tree,
        shift: Mapping[str, float] | None = None,
        diagonal: Diagonal = lambda system: None,
        fresh: Iterable[Linearise] | None = None,
        ruled_out: dict[Mode, BaseException] | None = None,
    ) -> tuple[Partial, SolveInfo]:
        """Solve for ``u`` and return ``∂/∂φ ⟨∇θ inner, u⟩`` with the verdict.

        Args:
            linearise: makes the linearisation of the inner gradient in the mode asked for.
            rhs: ``v = ∂outer/∂θ``; sparse for tables of which few rows are concerned.
            zero: a zero of the result's structure.
            shift: curvature per parameter that the inner loss does not show, such as the
                optimizer's weight decay.
            diagonal: ``D`` of the preconditioner, or ``None``, for what a linearisation is about.
            fresh: linearisations of other batches, one for each product of the solver; can be
                iterated over anew where a mode fails.
            ruled_out: modes that are known not to serve, and why; those that turn out not to are
                added if another one does.
        """
        largest = max_abs(stored(rhs))
        if not math.isfinite(largest):
            check_finite("the gradient of the outer loss", stored(rhs))
        if largest == 0.0:
            return dict(zero), _nothing_to_solve("the gradient of the outer loss is zero")
        modes: tuple[Mode, ...] = tuple(LINEARISERS) if self.hvp == "auto" else (self.hvp,)
        known = {} if ruled_out is None else ruled_out
        failures = dict(known)
        for mode in modes:
            if mode in failures:
                continue
            try:
                answer = self._solve_in(mode, linearise, rhs, zero, shift or {}, diagonal, fresh)
            except Foreign as foreign:
                raise foreign.error from None
            except Unserved as unserved:
                logger.info("hvp mode %r does not serve this model: %s", mode, str(unserved))
                failures[mode] = unserved.cause
            else:
                # Words only: an error holds on to the frames it went through, and so to the batch.
                known.update({m: RuntimeError(str(e)) for m, e in failures.items()})
                return answer
        first = next(iter(failures.values()))
        if len({str(error) for error in failures.values()}) == 1:
            raise first
        reasons = "\n".join(f"  {mode}: {error}" for mode, error in failures.items())
        raise RuntimeError(
            f"no way to multiply with the Hessian worked for this model:\n{reasons}"
        ) from first

    def _solve_in(
        self,
        mode: Mode,
        linearise: Linearise,
        rhs: Tree,
        zero: Tree,
        shift: Mapping[str, float],
        diagonal: Diagonal,
        fresh: Iterable[Linearise] | None,
    ) -> tuple[Partial, SolveInfo]:
        with serving():
            linearisation = linearise(mode)
        # What the inner loss leaves alone decouples from the rest and has no mixed derivative, so
        # leaving it out changes nothing but the conditioning of the system.
        everything, rhs = rhs, _restricted(rhs, linearisation)
        if not rhs:
            return dict.fromkeys(zero), _nothing_to_solve("the inner loss uses no parameter")
        b = flatten(rhs)
        largest = max_abs(b)
        if largest == 0.0:
            return dict(zero), SolveInfo(0.0, 0, Status.DISJOINT, None, "none")
        solver, hvp = self.solver, linearisation.hvp
        if fresh is not None:
            solver, hvp = self._on_fresh_batches(), _product_by_product(fresh, mode, everything)
        scales = diagonal(linearisation)
        reuse = isinstance(solver, LinearSolver) and not solver.keeps_products
        operator = Operator(hvp, rhs, shift, self.damping, reuse)
        u, solution = _solution(solver, operator, b, rhs, scales)
        with serving():
            product, mixed = linearisation.cross(unflatten(u, rhs))
            doubt = linearisation.doubt(unflatten(u, rhs), product) if linearisation.doubt else 0.0
        left = b - operator.shifted(product, u)
        check_finite(
            "the derivative of the inner gradient",
            {k: m for k, m in mixed.items() if m is not None},
            "the inner loss has no finite derivative here",
        )
        info = _verdict(
            mode,
            operator,
            solution,
            # Where squares would underflow or overflow, all is measured in other units.
            1.0 if _PLAIN[0] < largest < _PLAIN[1] else 1.0 / power_of_two(rhs, largest),
            b,
            u,
            left,
            doubt,
            rounding(rhs),
            preconditioned=scales is not None,
            fresh=fresh is not None,
        )
        if not math.isfinite(info.relative_residual):
            check_finite(
                "the product of the Hessian with the solution",
                product,
                "the inner loss has no finite second derivative here",
            )
        return mixed, info

    def _on_fresh_batches(self) -> Callable[[Any, Any], Solution]:
        adapt = getattr(self.solver, "on_fresh_batches", None)
        if adapt is None:
            raise ValueError(
                f"batches= gives every product another batch, and {self.solver!r} needs products "
                "with one and the same matrix; use Neumann, or leave batches out"
            )
        adapted: Callable[[Any, Any], Solution] = adapt()
        return adapted


def _restricted(x: Tree, linearisation: Linearisation) -> Tree:
    """``x`` on what the linearisation is about."""
    rows = linearisation.rows
    return {
        name: pick(x[name], rows[name]) if name in rows else dense(x[name])
        for name in linearisation.params
    }


def _verdict(
    mode: Mode,
    operator: Operator,
    solution: Solution,
    unit: float,
    b: Tensor,
    u: Tensor,
    left: Tensor,
    doubt: float,
    eps: float,
    *,
    preconditioned: bool,
    fresh: bool,
) -> SolveInfo:
    """What the answer ``u`` to ``b`` is worth, given what it leaves of it."""
    if unit != 1.0:
        b, left, u, doubt = b * unit, left * unit, u * unit, doubt * unit
    size, measured = norm(b), norm(left)
    residual = measured + doubt
    status = solution.status
    if status is Status.CONVERGED and residual > TRUSTED_RESIDUAL * size:
        noisy = measured <= TRUSTED_RESIDUAL * size
        status = Status.NOISY_PRODUCTS if noisy else Status.UNCONFIRMED
    largest, smallest = operator.largest, operator.smallest
    if not preconditioned:
        # What the solver saw of the operator itself is worth as much as a product.
        largest = _end(max, largest, solution.curvature)
        smallest = _end(min, smallest, solution.smallest_curvature)
    if not fresh and 0.0 < measured <= TRUSTED_RESIDUAL * size:
        # The residual is what is still unsolved. If that is where the curvature is small, the
        # solution is far off however small the residual; a few more products show it.
        smallest = _end(min, smallest, operator.flattest(left * (1.0 / measured)))
    detail = solution.detail
    if fresh:
        note = "a batch for every product, so the residual is that of one batch among many"
        detail = f"{detail}; {note}" if detail else note
    hidden = _hidden_error(residual / size, norm(u) / size, smallest, largest, eps)
    return SolveInfo(
        relative_residual=residual / size,
        num_hvps=operator.count,
        status=status,
        curvature=largest,
        hvp_mode=mode,
        smallest_curvature=smallest,
        detail=detail,
        error_estimate=hidden,
    )


def _end(
    choose: Callable[[list[float]], float], one: float | None, other: float | None
) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return choose(known) if known else None


def _hidden_error(
    residual: float, size: float, smallest: float | None, largest: float | None, eps: float
) -> float | None:
    """The relative error that a residual can hide in ``u``; both sizes are relative to ``v``."""
    if smallest is None or largest is None or size == 0.0:
        return None
    if smallest <= eps * abs(largest):
        # Flat, to rounding: a residual beyond rounding can hide anything.
        return math.inf if residual > _ROUNDING * eps else None
    return residual / (smallest * size)


def _nothing_to_solve(detail: str) -> SolveInfo:
    return SolveInfo(0.0, 0, Status.CONVERGED, None, "none", detail=detail)


def _solution(
    solver: Callable[[Any, Any], Solution],
    operator: Operator,
    b: Tensor,
    rhs: Tree,
    diagonal: Tree | None,
) -> tuple[Tensor, Solution]:
    """Solve ``A u = b``, in the variables ``D^{-½}u`` where there is a diagonal.

    ``rhs`` is ``b`` apart, as solvers of other makes see it.
    """
    matvec: Callable[[Tensor], Tensor] = operator
    roots: Tensor | None = None
    if diagonal is not None:
        roots = flatten({name: diagonal[name] for name in rhs}).to(b.dtype).sqrt()
        b = roots * b

        def matvec(v: Tensor) -> Tensor:
            return operator(v.mul(roots)).mul_(roots)

    if isinstance(solver, LinearSolver):
        solution = solver.solve_flat(matvec, b, rounding(rhs))
        value = solution.value
        if not math.isfinite(max_abs(value)):
            _checked_value(solver, replace(solution, value=unflatten(value, rhs)), rhs)
    else:

        def apart(v: Tree) -> Tree:
            for name, entry in rhs.items():
                if name not in v or v[name].shape != entry.shape:
                    found = tuple(v[name].shape) if name in v else "nothing"
                    raise ValueError(
                        f"the solver {solver!r} asked for a product with {found} for {name!r}, "
                        f"where b has {tuple(entry.shape)}: of an embedding table b holds the rows "
                        "that the batch reads, so what a solver keeps from one call does not fit "
                        "the next"
                    )
            return unflatten(matvec(flatten({name: v[name] for name in rhs})), rhs)

        # A copy: a solver may work in place, and the verdict needs the original.
        solution = solver(apart, unflatten(b.clone(), rhs))
        value = flatten(_checked_value(solver, solution, rhs))
    return value if roots is None else roots * value, solution


def _product_by_product(
    fresh: Iterable[Linearise], mode: Mode, like: Tree
) -> Callable[[Tree], Tree]:
    """Each product with the Hessian of the next batch, on the parameters of the train batch."""
    remaining, count = iter(fresh), itertools.count()

    def hvp(v: Tree) -> Tree:
        made = next(count)
        try:
            linearise = next(remaining, None)
        except Exception as error:
            raise Foreign(error) from error
        if linearise is None:
            raise ValueError(
                f"batches ran out after {made} of them: the solver needs one for every "
                "Hessian-vector product; hand over an iterator that goes on, such as one of a "
                "generator that runs through the loader again and again"
            )
        linearisation = linearise(mode)
        # Each batch may touch other parameters, which have no curvature in those that do not.
        given = {n: v[n] if n in v else torch.zeros_like(like[n]) for n in linearisation.params}
        product = linearisation.hvp(given)
        return {n: product[n] if n in product else torch.zeros_like(x) for n, x in v.items()}

    return hvp


def _checked_value(solver: object, solution: object, b: Tree) -> Tree:
    """The solution's value, if it is one for ``b``."""
    if not isinstance(solution, Solution):
        raise TypeError(
            f"the solver {solver!r} returned {type(solution).__name__}: a solver is a callable "
            "(matvec, b) -> Solution, so return reweight.Solution(u, Status.CONVERGED)"
        )
    u: Any = solution.value
    if not isinstance(u, Mapping) or u.keys() != b.keys():
        found = ", ".join(map(repr, u)) if isinstance(u, Mapping) else type(u).__name__
        raise ValueError(
            f"the solver {solver!r} returned a solution made of {found}; it needs the keys of b: "
            f"{', '.join(map(repr, b))}"
        )
    for name, entry in u.items():
        if not isinstance(entry, Tensor) or entry.shape != b[name].shape:
            shape = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
            raise ValueError(
                f"the solver {solver!r} returned {shape} for {name!r}, where b has "
                f"{tuple(b[name].shape)}"
            )
    value: Tree = dict(u)
    check_finite(f"the direction of {solver!r}", value, f"{solution.status} {solution.detail}")
    return value


def _grad(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(inputs)
    return torch.autograd.grad(loss, inputs, allow_unused=True)
