"""Products with the Gauss-Newton matrix ``Jᵀ H_out J``.

``J`` is the derivative of the model's outputs by θ, and ``H_out`` the Hessian of the inner loss by
these outputs (Schraudolph, "Fast curvature matrix-vector products for second-order gradient
descent", Neural Computation, 2002). It is the Hessian without the curvature of the model itself,
and positive semi-definite where the loss is convex in the outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reweight._curvature.linearise import Linearisation, Partial, step_along
from reweight._tables import GraphInputs, Table
from reweight._tensors import Tree, axpy, central_difference, detached, norm

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Forward:
    """The model's outputs as a function of θ, evaluated anew at each call.

    Attributes:
        outputs: ``θ -> outputs``.
        params: θ, where it is linearised; rows in the place of tables.
        rows: the rows that stand for tables, by name.
    """

    outputs: Callable[[Tree], Outputs]
    params: Tree
    rows: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Jacobian:
    """``J``, the derivative of the model's outputs by θ at one point.

    Attributes:
        params: names of the entries of θ that the outputs may depend on.
        push: ``v -> J v``.
        pull: ``w -> Jᵀ w``; ``None`` is zero.
        doubt: ``v -> size of the error in J v`` as outputs, where products are approximate.
        rows: see :class:`Linearisation`.
    """

    params: tuple[str, ...]
    push: Callable[[Tree], Outputs]
    pull: Callable[[Sequence[Tensor | None]], Tree]
    doubt: Callable[[Tree], Outputs] | None = None
    rows: Mapping[str, Tensor] = field(default_factory=dict)


class OutputHessian:
    """``H_out`` of the inner loss at one point, as products.

    Args:
        loss: the inner loss, with its graph from ``outputs``.
        outputs: the model's outputs; the loss depends on θ through them only.
        hparams: φ.

    Raises:
        RuntimeError: the loss has no second derivative.
    """

    def __init__(self, loss: Tensor, outputs: Outputs, hparams: Tree) -> None:
        self._outputs, self._hparams = outputs, hparams
        found = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
        self._alive = [g is not None and g.requires_grad for g in found]
        self._grads = list(itertools.compress(found, self._alive))

    def product(self, along: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """``t -> H_out t``."""
        return self._pulled(along, self._outputs)

    def cross(self, along: Sequence[Tensor]) -> tuple[Sequence[Tensor | None], Partial]:
        """``t -> (H_out t, ∂/∂φ ⟨∇ inner by the outputs, t⟩)``, both from one pass."""
        count = len(self._outputs)
        pulled = self._pulled(along, (*self._outputs, *self._hparams.values()))
        return pulled[:count], dict(zip(self._hparams, pulled[count:], strict=True))

    def mixed(self, along: Sequence[Tensor]) -> Partial:
        """The second of these alone."""
        pulled = self._pulled(along, tuple(self._hparams.values()))
        return dict(zip(self._hparams, pulled, strict=True))

    def _pulled(self, along: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        if not self._grads:
            return (None,) * len(inputs)
        weights = list(itertools.compress(along, self._alive))
        return torch.autograd.grad(
            self._grads, inputs, weights, retain_graph=True, allow_unused=True
        )


def gauss_newton(jacobian: Jacobian, curvature: OutputHessian) -> Linearisation:
    """The Gauss-Newton matrix in the place of the Hessian.

    The mixed derivative is that of the inner loss itself, without an approximation.
    """

    def hvp(v: Tree) -> Tree:
        return jacobian.pull(curvature.product(jacobian.push(v)))

    def cross(u: Tree) -> tuple[Tree, Partial]:
        product, mixed = curvature.cross(jacobian.push(u))
        return jacobian.pull(product), mixed

    def mixed(u: Tree) -> Partial:
        return curvature.mixed(jacobian.push(u))

    def doubt(u: Tree, product: Tree) -> float:
        assert jacobian.doubt is not None
        return norm(jacobian.pull(curvature.product(jacobian.doubt(u))))

    approximate = doubt if jacobian.doubt is not None else None
    return Linearisation(jacobian.params, hvp, cross, mixed, approximate, jacobian.rows)


def jacobian_of_graph(
    outputs: Outputs, params: Tree, tables: Mapping[str, Table] | None = None
) -> Jacobian:
    """The Jacobian of outputs that were already evaluated.

    ``Jᵀ w`` is a backward pass. It is linear in ``w``, so ``J v`` is the backward pass of that
    backward pass, whose graph every product reuses. Both cost two thirds of a training step.
    """
    inputs = GraphInputs(params, tables or {})
    weights = [torch.zeros_like(z, requires_grad=True) for z in outputs]
    pulled: Sequence[Tensor | None] = ()
    if inputs.inputs:
        pulled = torch.autograd.grad(
            outputs, inputs.inputs, weights, create_graph=True, allow_unused=True
        )
    alive = [g is not None and g.requires_grad for g in pulled]
    live: list[Any] = list(itertools.compress(pulled, alive))
    touched = inputs.reached(pulled)

    def push(v: Tree) -> Outputs:
        along = list(itertools.compress(inputs.spread(v), alive))
        if not live:
            return tuple(map(torch.zeros_like, outputs))
        found = torch.autograd.grad(live, weights, along, retain_graph=True, allow_unused=True)
        return tuple(
            torch.zeros_like(z) if g is None else g for g, z in zip(found, outputs, strict=True)
        )

    rows = {name: table.rows for name, table in touched.tables.items()}
    pull = pull_of_graph(outputs, touched)
    return Jacobian(tuple(touched.params), push, pull, rows=rows)


def pull_of_graph(
    outputs: Outputs, inputs: GraphInputs
) -> Callable[[Sequence[Tensor | None]], Tree]:
    """``w -> Jᵀ w`` by a backward pass through the graph of the outputs."""

    def pull(along: Sequence[Tensor | None]) -> Tree:
        there = [w is not None for w in along]
        found: Sequence[Tensor | None] = (None,) * len(inputs.inputs)
        if any(there):
            found = torch.autograd.grad(
                list(itertools.compress(outputs, there)),
                inputs.inputs,
                list(itertools.compress(along, there)),
                retain_graph=True,
                allow_unused=True,
            )
        return inputs.collect(found)

    return pull


def jacobian_by_func(forward: Forward) -> Jacobian:
    """The Jacobian by ``torch.func``: forward mode, or two backward passes where that fails."""
    params = detached(forward.params)
    values, pull_params = torch.func.vjp(forward.outputs, params)[:2]

    def forward_mode(v: Tree) -> Outputs:
        found: Outputs = torch.func.jvp(forward.outputs, (params,), (v,))[1]
        return found

    def backward_mode(v: Tree) -> Outputs:
        def pulled(w: Outputs) -> Tree:
            found: Tree = torch.func.vjp(forward.outputs, params)[1](w)[0]
            return found

        zero = tuple(map(torch.zeros_like, values))
        found: Outputs = torch.func.vjp(pulled, zero)[1](v)[0]
        return found

    def push(v: Tree) -> Outputs:
        try:
            return forward_mode(v)
        except torch.OutOfMemoryError:
            raise  # backward passes need more memory
        except (RuntimeError, NotImplementedError):
            return backward_mode(v)

    def pull(along: Sequence[Tensor | None]) -> Tree:
        pairs = zip(along, values, strict=True)
        found = pull_params(tuple(torch.zeros_like(z) if w is None else w for w, z in pairs))
        return detached(found[0])

    return Jacobian(tuple(params), push, pull, rows=forward.rows)


def jacobian_by_differences(
    forward: Forward, pull: Callable[[Sequence[Tensor | None]], Tree]
) -> Jacobian:
    """``J v`` by a central difference of outputs, and ``Jᵀ w`` by an ordinary backward pass.

    So no operation of the model needs a second derivative or a forward-mode one.
    """
    params = detached(forward.params)

    def difference(v: Tree, share: float) -> Outputs:
        if (step := step_along(params, v, share)) is None:
            return tuple(map(torch.zeros_like, forward.outputs(params)))
        return central_difference(forward.outputs, params, v, step)

    def push(v: Tree) -> Outputs:
        return difference(v, 1.0)

    def doubt(v: Tree) -> Outputs:
        # Half the step has a quarter of the truncation error and twice the rounding error.
        pairs = zip(difference(v, 1.0), difference(v, 0.5), strict=True)
        return tuple(axpy(-1.0, half, whole) for whole, half in pairs)

    return Jacobian(tuple(params), push, pull, doubt, forward.rows)
