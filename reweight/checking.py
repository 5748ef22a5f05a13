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

from reweight._isolation import Isolation, isolated
from reweight._linearise import with_autograd
from reweight._penalty import weight_decay
from reweight._trees import Tree, axpy, dot, map_tensors, norm, scale
from reweight.hypergradient import SolveInfo
from reweight.solvers import ConjugateGradient
from reweight.wrapping import Reweighted

logger = logging.getLogger("reweight")

# Central differences: truncation ~ step², solving error ~ 1e-10 / step.
_STEP = 1e-4
# The inner problem counts as solved when its gradient is this small beside the outer gradient.
_SOLVED = 1e-6


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
            largest finite difference.
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
        head = f"{'parameter':<{width}}  {'hypergradient':>14}  {'exact solve':>14}  {'finite diff.':>14}"
        lines = [
            f"{row.name:<{width}}  {row.hypergradient:>14.6e}  {row.exact:>14.6e}  "
            f"{row.finite_difference:>14.6e}"
            for row in self.rows
        ]
        verdict = "agrees" if self.ok else "DISAGREES"
        return "\n".join(
            [
                f"hypergradient {verdict} with finite differences: relative error {self.error:.2g} "
                f"(asked: {self.rtol:.2g}; with an exact solve: {self.exact_error:.2g})",
                head,
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
    the change of the outer loss on ``dev_batch`` is what the hypergradient has to predict. What
    the weighter looks at is held at the solution, as its inputs are detached.

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
        self.rw._warned = set()
        self.theta = self.rw._theta()
        # An optimizer that holds nothing but the copy's weight decay.
        self.rw._optimizer = torch.optim.SGD(
            [{"params": [p], "weight_decay": decay.get(n, 0.0)} for n, p in self.theta.items()],
            lr=1.0,
        )
        self.decay = decay
        self.damping = rw._hypergradient.damping
        self.batch, self.dev_batch = (map_tensors(_double, b) for b in (batch, dev_batch))

    def report(self, rtol: float, seed: int, raise_on_mismatch: bool) -> CheckReport:
        with isolated((self.rw.model, self.rw.weighter), self.rw._devices()) as isolation:
            weigh, start = self._settle(isolation)
            outer_gradient = norm(self.rw._outer_gradient(self.theta, self.dev_batch))
            objective = self._objective(isolation, weigh(), start)
            left = norm(_gradient(objective, start)) / max(outer_gradient, 1e-300)
            ours = self.rw.hypergradient(self.batch, self.dev_batch)
            self.rw._hypergradient = dataclasses.replace(
                self.rw._hypergradient,
                solver=ConjugateGradient(max_steps=10 * sum(p.numel() for p in start.values()), rtol=1e-13),
            )
            exact = self.rw.hypergradient(self.batch, self.dev_batch)
            generator = torch.Generator().manual_seed(seed)
            rows = tuple(
                CheckRow(
                    name,
                    dot(ours.grads[name], direction),
                    dot(exact.grads[name], direction),
                    self._difference(isolation, weigh, start, parameter, direction),
                )
                for name, parameter in self.rw._phi().items()
                for direction in [_unit(parameter, generator)]
            )
        size = max(max(abs(row.finite_difference) for row in rows), 1e-300)
        error = max(abs(row.hypergradient - row.finite_difference) for row in rows) / size
        exact_error = max(abs(row.exact - row.finite_difference) for row in rows) / size
        report = CheckReport(
            rows,
            error,
            exact_error,
            rtol,
            left,
            ours.info,
            _advice(error, exact_error, rtol, left, ours.info, exact.info),
        )
        if raise_on_mismatch and not report.ok:
            raise RuntimeError(str(report))
        return report

    def _settle(self, isolation: Isolation) -> tuple[Callable[[], Tensor], Tree]:
        """Solve the inner problem; weights that depend on its losses are brought to rest too."""
        previous: Tensor | None = None
        for _ in range(50):
            isolation.restore()
            with torch.no_grad():
                losses = self.rw._evaluate(self.batch)
            losses.check_finite()

            def weigh(losses: Any = losses) -> Tensor:
                isolation.restore()
                with torch.no_grad():
                    return self.rw._weigh(losses)

            weights = weigh()
            if previous is not None and torch.allclose(weights, previous, rtol=0, atol=1e-13):
                break
            previous = weights
            start = {name: p.detach().clone() for name, p in self.theta.items()}
            self._move_to(_minimise(self._objective(isolation, weights, None), start))
        return weigh, {name: p.detach().clone() for name, p in self.theta.items()}

    def _objective(
        self, isolation: Isolation, weights: Tensor, centre: Tree | None
    ) -> Callable[[Tree], Tensor]:
        """The inner loss at fixed weights, with all that belongs to the linear system."""
        inner = self.rw._inner(self.batch, self.theta, isolation, copy_buffers=False)

        def objective(params: Tree) -> Tensor:
            loss = inner(params, {"weights": weights})
            for name, p in params.items():
                loss = loss + 0.5 * self.decay.get(name, 0.0) * p.square().sum()
                if centre is not None and self.damping:
                    loss = loss + 0.5 * self.damping * (p - centre[name]).square().sum()
            return loss

        return objective

    def _difference(
        self,
        isolation: Isolation,
        weigh: Callable[[], Tensor],
        start: Tree,
        parameter: Tensor,
        direction: Tensor,
    ) -> float:
        values = []
        kept = parameter.detach().clone()
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.copy_(kept + sign * _STEP * direction)
            self._move_to(_minimise(self._objective(isolation, weigh(), start), start))
            isolation.restore()
            values.append(self._outer())
        with torch.no_grad():
            parameter.copy_(kept)
        self._move_to(start)
        return (values[0] - values[1]) / (2.0 * _STEP)

    def _outer(self) -> float:
        with torch.no_grad():
            return float(self.rw._outer(self.dev_batch))

    def _move_to(self, params: Tree) -> None:
        with torch.no_grad():
            for name, p in self.theta.items():
                p.copy_(params[name])


def _minimise(objective: Callable[[Tree], Tensor], start: Tree) -> Tree:
    """L-BFGS down to where it stalls, then Newton steps down to rounding."""
    leaves = {name: p.clone().requires_grad_(True) for name, p in start.items()}
    optimizer = torch.optim.LBFGS(
        list(leaves.values()),
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(leaves)
        loss.backward()
        return loss

    optimizer.step(closure)
    params = {name: p.detach() for name, p in leaves.items()}
    gradient = _gradient(objective, params)
    solver = ConjugateGradient(max_steps=2 * sum(p.numel() for p in params.values()), rtol=1e-6)
    for _ in range(20):
        try:
            hvp = with_autograd(lambda p, _: objective(p), params, {}).hvp
            step = solver(hvp, gradient).value
        except RuntimeError as error:  # no double backward: L-BFGS has to do
            logger.info("no Newton steps on the inner problem: %s", error)
            break
        nearer = axpy(-1.0, step, params)
        after = _gradient(objective, nearer)
        if not norm(after) < norm(gradient):
            break
        params, gradient = nearer, after
    return params


def _gradient(objective: Callable[[Tree], Tensor], params: Tree) -> Tree:
    leaves = {name: p.detach().requires_grad_(True) for name, p in params.items()}
    grads = torch.autograd.grad(
        objective(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return {n: g.to_dense() if g.is_sparse else g for n, g in zip(leaves, grads, strict=True)}


def _unit(parameter: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return scale(1.0 / norm(direction), direction).to(parameter.device)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _advice(
    error: float, exact_error: float, rtol: float, left: float, ours: SolveInfo, exact: SolveInfo
) -> str:
    if error <= rtol:
        return "nothing to mend"
    if left > _SOLVED:
        return (
            f"the inner problem could not be solved on this batch (its gradient is still {left:.2g} "
            "of the outer gradient), so finite differences say little: use a smaller or smoother "
            "slice, add weight decay or damping, or train further first"
        )
    if exact_error <= rtol:
        return (
            "the set-up is right: with the linear system solved exactly the two agree. The "
            f"difference is the solver's: {ours.message}"
        )
    if not exact.trustworthy:
        return f"the linear system itself has no good answer here: {exact.message}"
    return (
        "also an exact solve disagrees. Likely causes: the weighter reads inner parameters by "
        "another way than its losses and inputs; the losses are not a function of parameters and "
        "batch alone (noise from another source than torch's generators); custom gradients that "
        "are not the gradients of the loss"
    )
