"""The inner gradient, differentiated once and applied many times.

Each function here returns a :class:`Linearisation` of ``∇θ inner(θ, φ)`` at the given point. The
forward pass, and with it every dropout mask, is fixed when the linearisation is made, so the solver
multiplies with one linear operator.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from reweight._tables import GraphInputs, Table
from reweight._tensors import (
    Tree,
    axpy,
    central_difference,
    detached,
    filled,
    new_leaves,
    norm,
    zeros_like,
)

Objective = Callable[[Tree, Tree], Tensor]
Partial = dict[str, Tensor | None]
# ``(θ, φ) -> (∇θ inner, ∂inner/∂φ)``
Gradients = Callable[[Tree, Tree], tuple[Tree, Partial]]
Inverse = Callable[[Tree, Mapping[str, float], Tree], float]
Mode = Literal["autograd", "func", "finite_difference"]
# In the order in which hvp="auto" tries them.
MODES: tuple[Mode, ...] = ("autograd", "func", "finite_difference")


@dataclass(frozen=True)
class Linearisation:
    """The second derivatives of the inner loss at one point.

    Attributes:
        params: names of the entries of θ that the inner loss may depend on. All others have zero
            rows and columns in ``H`` and no mixed derivative.
        hvp: ``v -> H v`` over ``params``, with ``H = ∂²inner/∂θ²``.
        cross: ``u -> (H u, ∂/∂φ ⟨∇θ inner, u⟩)``, both from one pass; ``None`` for entries of φ
            that the gradient does not depend on.
        mixed: the second of these alone, which takes less.
        doubt: ``(u, H u) -> size of the error in H u``, where products are approximate.
        rows: for the entries of θ that are tables, the rows that stand for them, ascending. The
            inner loss does not depend on the other rows.
        inverse: ``(b, shift, out) -> lower bound of the largest curvature``, which writes ``u``
            with ``(H + shift) u = b`` to ``out``, where the linearisation has an exact way to it.
    """

    params: tuple[str, ...]
    hvp: Callable[[Tree], Tree]
    cross: Callable[[Tree], tuple[Tree, Partial]]
    mixed: Callable[[Tree], Partial]
    doubt: Callable[[Tree, Tree], float] | None = None
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    inverse: Inverse | None = None

    def everywhere(self, v: Tree) -> Tree:
        """``H v`` over all entries of ``v``: zero outside of :attr:`params`."""
        product = self.hvp({name: v[name] for name in self.params})
        return filled((product.get(name) for name in v), v)


def from_graph(
    loss: Tensor, params: Tree, hparams: Tree, tables: Mapping[str, Table] | None = None
) -> Linearisation:
    """Linearise a loss that was already evaluated on ``params`` and ``hparams``.

    The first gradient is built with its graph, which every product reuses: the fastest way in
    eager mode. Needs second derivatives of every operation in the loss except for the look-ups in
    ``tables``: the graph is differentiated by their outputs.

    Raises:
        RuntimeError: a look-up whose factors depend on parameters.
    """
    tables = tables or {}
    if learned := [name for name, table in tables.items() if not table.linear]:
        raise RuntimeError(
            f"{learned[0]} is read with per_sample_weights that are learned, of which there is no "
            "second derivative"
        )
    all_inputs = GraphInputs(params, tables)
    grads: tuple[Tensor | None, ...] = ()
    if all_inputs.inputs:
        grads = torch.autograd.grad(loss, all_inputs.inputs, create_graph=True, allow_unused=True)
    # A parameter in which the loss is linear has a constant gradient, without a graph.
    alive = [g is not None and g.requires_grad for g in grads]
    live = list(itertools.compress(grads, alive))
    touched = all_inputs.reached(grads)

    def pull(along: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
        if not live:
            return (None,) * len(inputs)
        return torch.autograd.grad(
            live,  # type: ignore[arg-type]
            inputs,
            list(itertools.compress(along, alive)),
            retain_graph=True,
            allow_unused=True,
        )

    def hvp(v: Tree) -> Tree:
        return touched.collect(pull(all_inputs.spread(v), touched.inputs))

    def cross(u: Tree) -> tuple[Tree, Partial]:
        count = len(touched.inputs)
        pulled = pull(all_inputs.spread(u), [*touched.inputs, *hparams.values()])
        return touched.collect(pulled[:count]), dict(zip(hparams, pulled[count:], strict=True))

    def mixed(u: Tree) -> Partial:
        pulled = pull(all_inputs.spread(u), list(hparams.values()))
        return dict(zip(hparams, pulled, strict=True))

    rows = {name: table.rows for name, table in touched.tables.items()}
    return Linearisation(tuple(touched.params), hvp, cross, mixed, rows=rows)


def with_func(inner: Objective, params: Tree, hparams: Tree) -> Linearisation:
    """Linearise by ``torch.func``: ``vjp(grad(inner))``.

    Works where a module is compiled. ``inner`` must not update outside state in place.
    """
    params, hparams = detached(params), detached(hparams)

    def gradient(p: Tree, h: Tree) -> Tree:
        return torch.func.grad(inner)(p, h)  # type: ignore[no-any-return]

    # The products do not need φ: without it they leave out everything that φ alone goes through.
    pull_params = torch.func.vjp(lambda p: gradient(p, hparams), params)[1]

    # Detached: parameters that are not in ``params`` but require gradients add a graph.
    def hvp(v: Tree) -> Tree:
        (product,) = pull_params(v)
        return detached(product)

    def cross(u: Tree) -> tuple[Tree, Partial]:
        product, mixed = torch.func.vjp(gradient, params, hparams)[1](u)
        return detached(product), dict(detached(mixed))

    def mixed(u: Tree) -> Partial:
        (found,) = torch.func.vjp(lambda h: gradient(params, h), hparams)[1](u)
        return dict(detached(found))

    return Linearisation(tuple(params), hvp, cross, mixed)


def of_constant(hparams: Tree, doubt: float | None = None) -> Linearisation:
    """Of a loss that depends on no parameter, as that of a process without samples.

    Args:
        hparams: φ.
        doubt: of the products, where those of other processes are approximate.
    """

    def nothing(u: Tree) -> Partial:
        return dict(zeros_like(hparams))

    error = None if doubt is None else lambda u, product: doubt
    return Linearisation((), lambda v: {}, lambda u: ({}, nothing(u)), nothing, error)


def gradients_of(inner: Objective) -> Gradients:
    """The first derivatives of a function, by autograd at new leaves."""

    def gradients(params: Tree, hparams: Tree) -> tuple[Tree, Partial]:
        p, h = new_leaves(params), new_leaves(hparams)
        grads = torch.autograd.grad(inner(p, h), [*p.values(), *h.values()], allow_unused=True)
        return filled(grads[: len(p)], p), dict(zip(h, grads[len(p) :], strict=True))

    return gradients


def with_finite_difference(gradients: Gradients, params: Tree, hparams: Tree) -> Linearisation:
    """Central differences of first-order gradients, for operations without a second derivative.

    The step is ``(1 + ‖θ‖)·eps^⅓/‖v‖``, which balances truncation against rounding, with ``θ``
    restricted to the entries that ``v`` moves. Expect six to ten digits in float64 and two to five
    in float32.
    """
    params = detached(params)

    def difference(u: Tree, share: float) -> tuple[Tree, Partial]:
        if (step := step_along(params, u, share)) is None:
            return zeros_like(params), dict(zeros_like(hparams))
        return central_difference(lambda p: gradients(p, hparams), params, u, step)

    def cross(u: Tree) -> tuple[Tree, Partial]:
        return difference(u, 1.0)

    def hvp(v: Tree) -> Tree:
        return difference(v, 1.0)[0]

    def mixed(u: Tree) -> Partial:
        return difference(u, 1.0)[1]

    def doubt(u: Tree, product: Tree) -> float:
        # Half the step has a quarter of the truncation error and twice the rounding error.
        return norm(axpy(-1.0, difference(u, 0.5)[0], product))

    return Linearisation(tuple(params), hvp, cross, mixed, doubt)


def step_along(params: Tree, v: Tree, share: float) -> float | None:
    """The step of a central difference along ``v``; ``None`` where ``v`` is zero.

    Raises:
        FloatingPointError: ``v`` is not finite.
    """
    length = norm(v)
    if length == 0.0:
        return None
    if not math.isfinite(length):
        raise FloatingPointError(
            f"a direction for finite differences has norm {length}: the series diverges; lower "
            "the solver's step size, or add damping"
        )
    eps = max(torch.finfo(p.dtype).eps for p in params.values())
    moved = {name: p * (v[name] != 0) for name, p in params.items()}
    return share * (1.0 + norm(moved)) * float(eps ** (1.0 / 3.0)) / length
