"""An outer step as one pure function of tensors, for compilers."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jvp, vjp

from reweight._problem.bilevel import BilevelProblem
from reweight._problem.progress import levels
from reweight._tensors import Pending, Tree
from reweight.losses import Losses
from reweight.preconditioning import Preconditioner, diagonal_of
from reweight.solvers import TracedSolver

Slots = dict[str, str]


class Holder(nn.Module):
    """Modules under one root, so that they can be called with other tensors by a function."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that uses the modules."""
        return function(*args)

    def slots(self, tensors: Mapping[str, Tensor]) -> Slots:
        """The names of tensors by every place that holds them.

        Each place of a module once: ``functional_call`` puts back another tensor where a module
        with two names is given twice.
        """
        names = {id(x): name for name, x in tensors.items()}
        return {
            f"{path}.{key}": names[id(x)]
            for path, module in self.named_modules()
            for key, x in (*module._parameters.items(), *module._buffers.items())
            if id(x) in names
        }

    def buffers_now(self, but: Slots) -> Tree:
        """The buffers that modules use now, each by its first place, except for some places."""
        return {
            place: x
            for path, module in self.named_modules()
            for key, x in module._buffers.items()
            if x is not None and (place := f"{path}.{key}") not in but
        }


class PureStep:
    """The hypergradient as a function of θ, φ, buffers and two batches.

    Args:
        problem: the problem.
        solver: the solver, which is to read nothing.
        theta: the inner parameters.
        phi: the parameters of the weighter.
        names: those inner parameters that the inner loss depends on.
        first_order: the factor of the direction where no Hessian is needed, else ``None``.

    Attributes:
        missing: inner parameters that no module holds, so that they can't be replaced.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        solver: TracedSolver,
        theta: Tree,
        phi: Tree,
        names: Sequence[str],
        *,
        first_order: float | None,
    ) -> None:
        self._first_order = first_order
        self._problem, self._solver, self._names = problem, solver, tuple(names)
        self._holder = Holder(problem.roots())
        self._inner, self._outer = self._holder.slots(theta), self._holder.slots(phi)
        held = {*self._inner.values()}
        self.missing = [name for name in theta if name not in held]

    def arguments(
        self,
        theta: Tree,
        phi: Tree,
        shift: Mapping[str, float],
        preconditioner: Preconditioner | None,
        batch: Any,
        dev_batch: Any,
    ) -> tuple[Any, ...]:
        """The arguments of :meth:`function`: tensors as they are now.

        Args:
            theta: the inner parameters.
            phi: the parameters of the weighter.
            shift: curvature by name that the inner loss does not have.
            preconditioner: as the user stated it.
            batch: the train batch.
            dev_batch: the dev batch.
        """
        like = theta[self._names[0]]
        params = {name: theta[name] for name in self._names}
        diagonal = diagonal_of(preconditioner, self._problem.optimizers, params, {})
        if diagonal is not None:
            diagonal = {name: entry.to(like.dtype) for name, entry in diagonal.items()}
        return (
            {name: p.detach() for name, p in theta.items()},
            {name: p.detach() for name, p in phi.items()},
            self._holder.buffers_now({**self._inner, **self._outer}),
            # A tensor, since a number would be compiled into the program.
            torch.tensor([shift[n] for n in self._names], dtype=like.dtype, device=like.device),
            diagonal,
            batch,
            dev_batch,
        )

    def function(self) -> types.FunctionType:
        """The outer step, as a function of :meth:`arguments` that changes nothing.

        It returns the hypergradient by name, the influence ``[B]``, and numbers ``[n]`` in float64:
        the outer loss, the fixed part, the largest loss, those that ``Progress.meet`` wants of the
        weights, the largest entry of the right-hand side (of the influence in a first-order step),
        the norm of the influence, the norms of the term through the minimiser; where there is a
        preconditioner, ``vᵀv`` and ``vᵀAv`` of each product; and those of the solver.
        """
        problem, solver, names = self._problem, self._solver, self._names
        holder, inner_slots, outer_slots = self._holder, self._inner, self._outer
        first_order = self._first_order

        def step(
            theta: Tree,
            phi: Tree,
            buffers: Tree,
            shift: Tensor,
            diagonal: Tree | None,
            batch: Any,
            dev_batch: Any,
        ) -> tuple[Tree, Tensor, Tensor]:
            def call(th: Tree, ph: Tree, function: Callable[..., Any], *args: Any) -> Any:
                values = {slot: th[name] for slot, name in inner_slots.items()}
                values.update({slot: ph[name] for slot, name in outer_slots.items()})
                # Every pass starts from the same buffers, and may write into its own.
                values.update({slot: x.clone() for slot, x in buffers.items()})
                return functional_call(holder, values, (function, *args), tie_weights=False)

            def outer(th: Tree, ph: Tree) -> Tensor:
                return call(th, ph, problem.outer_loss, dev_batch, Pending())  # type: ignore[no-any-return]

            slopes: Any = grad_and_value(outer, argnums=(0, 1))(theta, phi)
            (gradient, direct), outer_loss = slopes
            losses = call(theta, phi, problem.evaluated, batch)

            def weighed(ph: Tree) -> Tensor:
                # Nothing to detach: the losses are values here, not functions of θ or φ.
                return call(theta, ph, problem.weighter, losses.weighted, losses.inputs)  # type: ignore[no-any-return]

            weighing: Any = vjp(weighed, phi)
            weights, pull_weights = weighing

            def evaluated(part: Tree) -> Losses:
                return call({**theta, **part}, phi, problem.evaluated, batch)  # type: ignore[no-any-return]

            def inner(part: Tree, w: Tensor) -> Tensor:
                return problem.inner_loss(evaluated(part), w)

            params = {name: theta[name] for name in names}
            met: list[Tensor] = []
            if first_order is not None:
                rates = _along(lambda part: evaluated(part).weighted, params, gradient, diagonal)
                influence = rates * (-first_order / problem.divisor(losses.weighted))
                largest, of_solver = influence.abs().max(), influence.new_zeros(0)
            else:
                pull = vjp(torch.func.grad(inner), params, weights)[1]
                b = _flat([gradient[name] for name in names])
                u, largest, met, of_solver = _solved(solver, pull, params, b, shift, diagonal)
                influence = -pull(_unflat(u, params))[1]
            (indirect,) = pull_weights(influence)
            numbers = [
                outer_loss,
                torch.as_tensor(losses.fixed).reshape(()),
                losses.weighted.abs().max(),
                *levels(weights),
                largest,
                torch.linalg.vector_norm(influence),
                *map(torch.linalg.vector_norm, indirect.values()),
                *met,
            ]
            known = torch.stack([x.to(influence.device, torch.float64) for x in numbers])
            grads = {name: direct[name] + indirect[name] for name in phi}
            return grads, influence, torch.cat((known, of_solver.double()))

        return step  # type: ignore[return-value]


def _along(
    losses: Callable[[Tree], Tensor], params: Tree, gradient: Tree, diagonal: Tree | None
) -> Tensor:
    """``[B]``, the derivative of losses along ``D·v``."""
    direction = {n: gradient[n] if diagonal is None else diagonal[n] * gradient[n] for n in params}
    moved: Any = jvp(losses, (params,), (direction,))
    rates: Tensor = moved[1]
    return rates


def _solved(
    solver: TracedSolver,
    pull: Callable[[Tree], Any],
    params: Tree,
    b: Tensor,
    shift: Tensor,
    diagonal: Tree | None,
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """The solution, flat, and numbers.

    Args:
        solver: the solver.
        pull: ``v -> (H v, ...)``.
        params: what a flat vector is made of.
        b: the right-hand side.
        shift: ``[len(params)]``, curvature that ``pull`` does not have.
        diagonal: the preconditioner.

    Returns:
        The solution; the largest entry of the right-hand side that the solver gets; with a
        preconditioner ``vᵀv`` and ``vᵀAv`` of each product; the numbers of the solver.
    """
    met: list[Tensor] = []

    def matvec(v: Tensor) -> Tensor:
        along = _unflat(v, params)
        product = pull(along)[0]
        return _flat([product[n] + shift[i] * along[n] for i, n in enumerate(params)])

    if diagonal is None:
        u, of_solver = solver.solve(matvec, b)
        return u, b.abs().max(), met, of_solver
    root = _flat([diagonal[name] for name in params]).sqrt()

    def preconditioned(v: Tensor) -> Tensor:
        along = root * v
        product = matvec(along)
        met.extend((torch.dot(along, along), torch.dot(along, product)))
        return root * product

    b = root * b
    u, of_solver = solver.solve(preconditioned, b)
    return root * u, b.abs().max(), met, of_solver


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of tensors of one type. A compiler can't follow how several types are joined."""
    return torch.cat([x.reshape(-1) for x in tensors])


def _unflat(flat: Tensor, like: Tree) -> Tree:
    parts = torch.split(flat, [x.numel() for x in like.values()])
    return {name: part.view(x.shape) for part, (name, x) in zip(parts, like.items(), strict=True)}
