"""A hypergradient against finite differences of the inner problem, solved again."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweight._isolation import isolated, twice_differentiable
from reweight._linearise import from_graph
from reweight._notices import Notices
from reweight._penalty import weight_decay
from reweight._trees import Tree, axpy, dot, filled, map_tensors, norm, scale
from reweight.losses import Losses
from reweight.solvers import ConjugateGradient
from reweight.verdict import SolveInfo
from reweight.wrapping import Reweighted

logger = logging.getLogger("reweight")

# Central differences: truncation ~ step², solving error ~ 1e-10 / step.
_STEP = 1e-4
# The inner problem counts as solved when its gradient is this small beside the outer gradient.
_SOLVED = 1e-6
# Derivatives below this share of the outer gradient are taken for zero.
_NOTHING = 1e-9
# Weights that depend on the losses settle together with the parameters, in at most so many rounds.
_ROUNDS = 50


@dataclass(frozen=True)
class CheckRow:
    """One weighter parameter, moved along a random unit direction.

    Attributes:
        name: of the parameter.
        hypergradient: the derivative along the direction, as the wrapped object computes it.
        exact: the same with the linear system solved to rounding.
        finite_difference: the same by solving the inner problem again on both sides.
    """

    name: str
    hypergradient: float
    exact: float
    finite_difference: float


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_hypergradient` found; ``print`` it.

    Attributes:
        rows: one per weighter parameter.
        error: largest difference between hypergradient and finite difference, relative to the
            largest finite difference (to 1e-9 of the outer gradient, where that is larger).
        exact_error: the same for the exact solve.
        rtol: what was asked for.
        inner_gradient: norm of the inner gradient at the solution found, relative to the outer
            gradient's.
        info: the verdict of the wrapped object's own solve.
        advice: what a mismatch most likely comes from; says so if there is none.
    """

    rows: tuple[CheckRow, ...]
    error: float
    exact_error: float
    rtol: float
    inner_gradient: float
    info: SolveInfo
    advice: str

    @property
    def ok(self) -> bool:
        """Whether the hypergradient agrees with finite differences to ``rtol``."""
        return self.error <= self.rtol

    def __str__(self) -> str:
        width = max(9, *(len(row.name) for row in self.rows))
        columns = "".join(f"  {c:>14}" for c in ("hypergradient", "exact solve", "finite diff."))
        lines = [
            f"{row.name:<{width}}  {row.hypergradient:>14.6e}  {row.exact:>14.6e}  "
            f"{row.finite_difference:>14.6e}"
            for row in self.rows
        ]
        verdict = "agrees" if self.ok else "DISAGREES"
        if not self.ok and self.inner_gradient > _SOLVED:
            verdict = "COULD NOT BE COMPARED"
        return "\n".join(
            [
                f"hypergradient {verdict} with finite differences: relative error {self.error:.2g} "
                f"(asked: {self.rtol:.2g}; with an exact solve: {self.exact_error:.2g})",
                f"{'parameter':<{width}}{columns}",
                *lines,
                self.advice,
            ]
        )


def check_hypergradient(
    rw: Reweighted,
    batch: Any,
    dev_batch: Any,
    *,
    rtol: float = 1e-3,
    seed: int = 0,
    raise_on_mismatch: bool = False,
) -> CheckReport:
    """Compare ``rw.hypergradient`` with finite differences on a small slice of your data.

    Works on a float64 copy; ``rw`` is left as it is. On the copy the inner problem (weight decay
    and damping included) is solved to rounding on ``batch``. Each parameter of the weighter is then
    moved a little along a random direction to both sides, the inner problem is solved again, and
    the change of the outer loss on ``dev_batch`` is what the hypergradient has to predict. The
    losses and inputs that the weighter looks at are held at the solution, as they are detached;
    whatever else it reads of the model is not.

    A truncated solver, such as the default ``Neumann(num_terms=3)``, is not meant to agree: then
    ``exact_error`` tells whether everything but the truncation is right.

    Args:
        rw: what :func:`reweight.wrap` returned.
        batch: a train batch, small enough to solve the inner problem on it many times.
        dev_batch: a dev batch.
        rtol: the relative error that counts as agreement.
        seed: of the random directions.
        raise_on_mismatch: raise instead of only reporting.

    Returns:
        The report.

    Raises:
        RuntimeError: if asked for, where the two disagree; the message is the report.

    Example:
        >>> import torch, reweight
        >>> from reweight import ConjugateGradient, ImplicitHypergradient
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     x, y = batch
        ...     return (model(x).squeeze(-1) - y).square()
        >>> rw = reweight.wrap(model, reweight.LossWeighter(hidden=4), losses,
        ...                    outer_loss=lambda model, batch: losses(model, batch).mean(),
        ...                    hypergradient=ImplicitHypergradient(ConjugateGradient()))
        >>> train, dev = ((torch.randn(8, 3), torch.randn(8)) for _ in range(2))
        >>> reweight.check_hypergradient(rw, train, dev).ok
        True
    """
    problem = _Resolvable(rw, batch, dev_batch)
    return problem.report(rtol, seed, raise_on_mismatch)


class _Resolvable:
    """A float64 copy whose inner problem can be solved to rounding."""

    def __init__(self, rw: Reweighted, batch: Any, dev_batch: Any) -> None:
        decay = {} if rw._optimizer is None else weight_decay(rw._optimizer, rw._theta())
        model, weighter = copy.deepcopy((rw.model, rw.weighter))
        self.rw = copy.copy(rw)
        self.rw.model, self.rw.weighter = model.double(), weighter.double()
        self.rw._notices = Notices()
        self.theta = self.rw._theta()
        # An optimizer that holds nothing but the copy's weight decay.
        self.rw._optimizer = torch.optim.SGD(
            [{"params": [p], "weight_decay": decay.get(n, 0.0)} for n, p in self.theta.items()],
            lr=1.0,
        )
        self.decay = decay
        self.damping = rw._hypergradient.damping
        self.batch, self.dev_batch = (map_tensors(_double, b) for b in (batch, dev_batch))
        self.side_channel = False

    def report(self, rtol: float, seed: int, raise_on_mismatch: bool) -> CheckReport:
        with (
            isolated((self.rw.model, self.rw.weighter), self.rw._devices()) as self.isolation,
            twice_differentiable(),
        ):
            self.outer_gradient = self._first_evaluation()
            weigh = self._settle()
            start = self._position()
            left = self._left(weigh())
            ours = self.rw.hypergradient(self.batch, self.dev_batch)
            size = sum(p.numel() for p in start.values())
            self.rw._hypergradient = dataclasses.replace(
                self.rw._hypergradient,
                solver=ConjugateGradient(max_steps=10 * size, rtol=1e-13),
            )
            exact = self.rw.hypergradient(self.batch, self.dev_batch)
            generator = torch.Generator().manual_seed(seed)
            rows = tuple(
                CheckRow(
                    name,
                    dot(ours.grads[name], direction),
                    dot(exact.grads[name], direction),
                    self._difference(weigh, start, parameter, direction),
                )
                for name, parameter in self.rw._phi().items()
                for direction in [_unit(parameter, generator)]
            )
        # Where all are zero beside the outer gradient, differences of rounding size agree.
        floor = max(_NOTHING * self.outer_gradient, 1e-300)
        largest = max(floor, *(abs(row.finite_difference) for row in rows))
        error = max(abs(row.hypergradient - row.finite_difference) for row in rows) / largest
        exact_error = max(abs(row.exact - row.finite_difference) for row in rows) / largest
        advice = self._advice(error, exact_error, rtol, left, ours.info, exact.info)
        if error <= rtol and largest == floor:
            advice = (
                "but little was tested: every derivative is zero on this slice, as where the model "
                "fits its samples exactly whatever their weights. Take more samples, or add weight "
                "decay"
            )
        report = CheckReport(rows, error, exact_error, rtol, left, ours.info, advice)
        if raise_on_mismatch and not report.ok:
            raise RuntimeError(str(report))
        return report

    def _first_evaluation(self) -> float:
        """The size of the outer gradient; tells what a float64 copy may stumble over."""
        try:
            self._losses()
            return norm(self.rw._outer_gradient(self.theta, self.dev_batch))
        except (RuntimeError, ValueError) as error:
            raise type(error)(
                "on the float64 copy of the model that is checked, the losses can't be "
                f"differentiated: {error}. If training runs, then losses or outer_loss make "
                "float32 tensors of their own, or use a model that they remember and not the one "
                "they are given"
            ) from error

    def _losses(self) -> Losses:
        self.isolation.restore()
        with torch.no_grad():
            losses = self.rw._evaluate(self.batch)
        losses.check_finite()
        return losses

    def _settle(self) -> Callable[[], Tensor]:
        """Solve the inner problem, and bring weights that depend on its losses to rest too.

        Returns:
            The weights, as a function of the weighter's parameters alone: the losses and inputs
            are those of the solution.
        """
        previous: Tensor | None = None
        for _ in range(_ROUNDS):
            losses = self._losses()
            weights = self._weigh(losses)
            if previous is not None and _same(weights, previous):
                break
            (self._minimise if previous is None else self._resume)(weights, None)
            previous = weights
            if self._left(weights) > _SOLVED:  # further rounds would not mend it
                losses = self._losses()
                break
        else:
            losses = self._losses()
        return lambda: self._weigh(losses)

    def _weigh(self, losses: Losses) -> Tensor:
        self.isolation.restore()
        with torch.no_grad():
            return self.rw._weigh(losses)

    def _difference(
        self, weigh: Callable[[], Tensor], start: Tree, parameter: Tensor, direction: Tensor
    ) -> float:
        values = []
        kept = parameter.detach().clone()
        for sign in (1.0, -1.0):
            _move([parameter], [kept + sign * _STEP * direction])
            self._solve_again(weigh, start)
            self.isolation.restore()
            with torch.no_grad():
                values.append(float(self.rw._outer(self.dev_batch)))
            self._move_to(start)
        _move([parameter], [kept])
        return (values[0] - values[1]) / (2.0 * _STEP)

    def _solve_again(self, weigh: Callable[[], Tensor], start: Tree) -> None:
        weights = weigh()
        for _ in range(_ROUNDS):
            self._resume(weights, start)
            again = weigh()
            if _same(again, weights):
                return
            # Losses and inputs are held, so only the inner parameters can have moved the weights.
            self.side_channel = True
            weights = again

    # -- the inner problem at fixed weights ----------------------------------------------------

    def _objective(self, weights: Tensor, centre: Tree | None) -> Tensor:
        """The inner loss with all that belongs to the linear system."""
        self.isolation.restore()
        loss = self.rw._reduce(self.rw._evaluate(self.batch), weights)
        for name, p in self.theta.items():
            loss = loss + 0.5 * self.decay.get(name, 0.0) * p.square().sum()
            if centre is not None and self.damping:
                loss = loss + 0.5 * self.damping * (p - centre[name]).square().sum()
        return loss

    def _gradient(self, weights: Tensor, centre: Tree | None) -> Tree:
        grads = torch.autograd.grad(
            self._objective(weights, centre),
            list(self.theta.values()),
            allow_unused=True,
        )
        return filled(grads, self.theta)

    def _minimise(self, weights: Tensor, centre: Tree | None) -> None:
        """L-BFGS down to where it stalls, then Newton steps down to rounding."""
        parameters = list(self.theta.values())
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=500,
            tolerance_grad=1e-9,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            for parameter, grad in zip(
                parameters, self._gradient(weights, centre).values(), strict=True
            ):
                parameter.grad = grad
            with torch.no_grad():
                return float(self._objective(weights, centre))

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None
        self._newton(weights, centre)

    def _resume(self, weights: Tensor, centre: Tree | None) -> None:
        """Minimise from near a minimum, where Newton's method is enough if it can be had."""
        if self._newton(weights, centre) > 1e-3 * _SOLVED * self.outer_gradient:
            self._minimise(weights, centre)

    def _newton(self, weights: Tensor, centre: Tree | None) -> float:
        """Newton steps as long as they make the gradient smaller; returns its norm."""
        gradient = self._gradient(weights, centre)
        size = sum(p.numel() for p in self.theta.values())
        solver = ConjugateGradient(max_steps=2 * size, rtol=1e-6)
        for _ in range(20):
            here = self._position()
            try:
                hvp = from_graph(self._objective(weights, centre), self.theta, {}).hvp
                self._move_to(axpy(-1.0, solver(hvp, gradient).value, here))
            except RuntimeError as error:  # no double backward: L-BFGS has to do
                logger.info("no Newton steps on the inner problem: %s", error)
                break
            after = self._gradient(weights, centre)
            if not norm(after) < norm(gradient):
                self._move_to(here)
                break
            gradient = after
        return norm(gradient)

    def _left(self, weights: Tensor) -> float:
        """The size of the inner gradient beside the outer one's."""
        return norm(self._gradient(weights, None)) / max(self.outer_gradient, 1e-300)

    def _position(self) -> Tree:
        return {name: p.detach().clone() for name, p in self.theta.items()}

    def _move_to(self, params: Tree) -> None:
        _move(list(self.theta.values()), [params[name] for name in self.theta])

    def _advice(
        self,
        error: float,
        exact_error: float,
        rtol: float,
        left: float,
        ours: SolveInfo,
        exact: SolveInfo,
    ) -> str:
        if error <= rtol:
            return "nothing to mend"
        if self.side_channel:
            return (
                f"{type(self.rw.weighter).__name__} reads inner parameters by a side channel: with "
                "its losses and inputs held, its weights still moved with the inner parameters, "
                "which the hypergradient leaves out. Hand what it needs of the model over as "
                "Losses(inputs=...)"
            )
        if left > _SOLVED:
            return (
                "the inner problem could not be solved on this batch (its gradient is still "
                f"{left:.2g} of the outer gradient), so finite differences say little: use a "
                "smaller or smoother slice, add weight decay or damping, or train further first"
            )
        if exact_error <= rtol:
            return (
                "the set-up is right: with the linear system solved exactly the two agree. The "
                f"difference is the solver's: {ours.message}"
            )
        if not exact.trustworthy:
            return f"the linear system itself has no good answer here: {exact.message}"
        return (
            "also an exact solve disagrees. Likely causes: the losses are not a function of "
            "parameters and batch alone (noise from another source than torch's generators, a "
            "state that changes with every call); custom gradients that are not the gradients of "
            "the loss; a detach() inside the model"
        )


def _same(weights: Tensor, others: Tensor) -> bool:
    return torch.allclose(weights, others, rtol=0.0, atol=1e-13)


def _move(tensors: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def _unit(parameter: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return scale(1.0 / norm(direction), direction).to(parameter.device)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
