"""The derivative of an outer loss through the minimiser of an inner one.

With ``θ*(φ) = argmin_θ inner(θ, φ)`` the implicit function theorem gives (BIAO, Eq. 10–13)

    d outer/dφ = ∂outer/∂φ − ∂/∂φ ⟨∇θ inner(θ*, φ), u⟩,   H u = ∂outer/∂θ,   H = ∂²inner/∂θ².
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from reweight._linearise import LINEARISERS, Linearisation, Mode, Objective, Partial
from reweight._trees import Tree, axpy, dot, filled, max_abs, norm, power_of_two, scale, zeros_like
from reweight.solvers import Neumann, Solution, Status

logger = logging.getLogger("reweight")

# A solve whose true relative residual is at most this counts as an answer to the linear system.
TRUSTED_RESIDUAL = 1e-3


@dataclass(frozen=True)
class SolveInfo:
    """The verdict on one solve, measured apart from the solver.

    Attributes:
        relative_residual: ``‖v − (H + damping)u‖/‖v‖`` of the answer, recomputed.
        num_hvps: Hessian-vector products that the solver asked for.
        status: how the solve ended; ``str(status)`` is the advice.
        curvature: the largest curvature met, in size: an estimate of λmax from below where the
            Hessian is positive definite. ``None`` if no product was made.
        hvp_mode: ``"autograd"``, ``"func"`` or ``"finite_difference"``; ``"none"`` if the dev
            gradient was zero, or the batch without weighted samples, and nothing had to be solved.
        smallest_curvature: the smallest Rayleigh quotient ``vᵀHv/vᵀv`` met, damping included.
        detail: the numbers that belong to the status.
    """

    relative_residual: float
    num_hvps: int
    status: Status
    curvature: float | None
    hvp_mode: str
    smallest_curvature: float | None = None
    detail: str = ""

    @property
    def trustworthy(self) -> bool:
        """Whether ``u`` solves the system, and no direction of negative curvature was met.

        Whether the inner parameters are at a minimum is not looked at: between two outer steps
        they never quite are.
        """
        return self.relative_residual <= TRUSTED_RESIDUAL and not self._curves_down

    @property
    def message(self) -> str:
        """One sentence: what was reached, and if that is not an answer, why and what to do."""
        numbers = f"relative residual {self.relative_residual:.2g} after {self.num_hvps} HVPs"
        if self.trustworthy:
            return f"trustworthy: {numbers}"
        status = Status.NEGATIVE_CURVATURE if self._curves_down else self.status
        detail = f" ({self.detail})" if self.detail else ""
        return f"not an exact hypergradient: {numbers}; {status}{detail}"

    @property
    def _curves_down(self) -> bool:
        if self.smallest_curvature is None or self.curvature is None:
            return False
        # A singular Hessian meets quotients of either sign at rounding size.
        return self.smallest_curvature < -1e-6 * abs(self.curvature)


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
        damping: added once to the operator, ≥ 0. It makes singular systems solvable, and is the
            curvature of a proximal term ``½·damping·‖θ − θ*‖²`` in the inner loss.
        hvp: ``"auto"`` tries ``"autograd"`` (a gradient graph that is reused), then ``"func"``
            (``torch.func``), then ``"finite_difference"``, and takes the first that works.

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

    def __post_init__(self) -> None:
        if not callable(self.solver) or isinstance(self.solver, type):
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
                    f"({_some(theta)}): a detach() or no_grad() in outer, or other tensors used "
                    "in the place of params"
                )
            rhs = filled(grads[: len(theta)], theta)
            direct = dict(zip(phi, grads[len(theta) :], strict=True))

            def checked(p: Tree, h: Tree) -> Tensor:
                return check_loss("inner", inner(p, h))

            def linearise(mode: Mode) -> Linearisation:
                # Inside torch.func a value can't be read, so nothing can be checked there.
                return LINEARISERS[mode](inner if mode == "func" else checked, theta, phi)

            mixed, info = self.solve(linearise, rhs, zeros_like(hparams))
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
        linearise: Callable[[Mode], Linearisation],
        rhs: Tree,
        zero: Tree,
        shift: Mapping[str, float] | None = None,
    ) -> tuple[Partial, SolveInfo]:
        """Solve for ``u`` and return ``∂/∂φ ⟨∇θ inner, u⟩`` with the verdict.

        Args:
            linearise: makes the linearisation of the inner gradient in the mode asked for.
            rhs: ``v = ∂outer/∂θ``.
            zero: a zero of the result's structure.
            shift: curvature per parameter that the inner loss does not show, such as the
                optimizer's weight decay.
        """
        check_finite("the gradient of the outer loss", rhs)
        if max_abs(rhs) == 0.0:
            return dict(zero), SolveInfo(0.0, 0, Status.CONVERGED, None, "none")
        modes: tuple[Mode, ...] = tuple(LINEARISERS) if self.hvp == "auto" else (self.hvp,)
        failures: dict[Mode, BaseException] = {}
        for mode in modes:
            try:
                return self._solve_in(mode, linearise, rhs, shift or {})
            except _Unserved as unserved:
                logger.info("hvp mode %r does not serve this model: %s", mode, unserved.cause)
                failures[mode] = unserved.cause
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
        linearise: Callable[[Mode], Linearisation],
        rhs: Tree,
        shift: Mapping[str, float],
    ) -> tuple[Partial, SolveInfo]:
        with _serving():
            linearisation = linearise(mode)
        operator = _Operator(linearisation.hvp, shift, self.damping)
        # A copy: a solver may work in place, and the verdict needs the original.
        solution = self.solver(operator, {name: v.clone() for name, v in rhs.items()})
        u = _checked_value(self.solver, solution, rhs)
        with _serving():
            product, mixed = linearisation.cross(u)
        check_finite(
            "the product of the Hessian with the solution",
            product,
            "the inner loss has no finite second derivative here",
        )
        check_finite(
            "the derivative of the inner gradient",
            {k: m for k, m in mixed.items() if m is not None},
            "the inner loss has no finite derivative here",
        )
        residual = axpy(-1.0, operator.shifted(product, u), rhs)
        down = 1.0 / power_of_two(rhs)
        info = SolveInfo(
            relative_residual=norm(scale(down, residual)) / norm(scale(down, rhs)),
            num_hvps=operator.count,
            status=solution.status,
            curvature=solution.curvature if solution.curvature else operator.largest,
            hvp_mode=mode,
            smallest_curvature=operator.smallest,
            detail=solution.detail,
        )
        return mixed, info


class _Operator:
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

    def __call__(self, v: Tree) -> Tree:
        with _serving():
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


class _Unserved(Exception):
    """A way to multiply with the Hessian does not work for this model."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _serving() -> Iterator[None]:
    """Tell what the differentiation raises from what a solver raises."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # another mode would need more
    except (RuntimeError, NotImplementedError) as error:
        raise _Unserved(error) from error


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


def check_finite(
    what: str, tree: Tree, why: str = "look at the batch and at the model's outputs on it"
) -> None:
    """Raise on NaN and infinite entries, naming where they are."""
    if not math.isfinite(max_abs(tree)):
        where = _some({k: v for k, v in tree.items() if not bool(v.isfinite().all())})
        raise FloatingPointError(f"{what} is not finite (in {where}); {why}")


def check_loss(name: str, loss: object) -> Tensor:
    """Return ``loss`` if it is one finite number."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"the {name} loss must be a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"the {name} loss must be one number, got shape {tuple(loss.shape)}: reduce it with "
            ".mean() or .sum()"
        )
    if not bool(loss.isfinite()):
        raise ValueError(
            f"the {name} loss is {loss.item()}: a batch with NaN or infinite entries, a learning "
            "rate that made the parameters overflow, or a logarithm of zero in the loss"
        )
    return loss.reshape(())


def check_tree(name: str, tree: object) -> None:
    """Raise unless ``tree`` is a non-empty dict of floating-point tensors."""
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{name} must be a dict of named tensors, got {type(tree).__name__}; for a module use "
            "dict(module.named_parameters())"
        )
    if not tree:
        raise ValueError(
            f"{name} is empty: nothing to differentiate by. An exhausted generator or a filter on "
            "names that matches nothing gives this"
        )
    for key, entry in tree.items():
        if not isinstance(entry, Tensor) or not entry.is_floating_point():
            kind = entry.dtype if isinstance(entry, Tensor) else type(entry).__name__
            raise TypeError(f"{name}[{key!r}] must be a floating-point tensor, got {kind}")


def _grad(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(inputs)
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def _some(tree: Tree, limit: int = 3) -> str:
    names = list(tree)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
