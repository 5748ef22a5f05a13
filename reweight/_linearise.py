"""The inner gradient, differentiated once and applied many times.

Each function here returns a :class:`Linearisation` of ``∇θ inner(θ, φ)`` at the given point. The
forward pass, and with it every dropout mask, is fixed when the linearisation is made, so that what
the solver sees is one linear operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from reweight._places import Places
from reweight._rows import Table
from reweight._trees import Tree, axpy, filled, norm, scale, zeros_like

Objective = Callable[[Tree, Tree], Tensor]
Partial = dict[str, Tensor | None]
Mode = Literal["autograd", "func", "finite_difference"]


@dataclass(frozen=True)
class Linearisation:
    """The second derivatives of the inner loss at one point.

    Attributes:
        params: the names of the entries of θ that the inner loss is not known to leave alone. All
            that it does leave alone has zero rows and columns in ``H`` and no mixed derivative.
        hvp: ``v -> H v`` over ``params``, with ``H = ∂²inner/∂θ²``.
        cross: ``u -> (H u, ∂/∂φ ⟨∇θ inner, u⟩)``, both from one pass; ``None`` for entries of φ
            that the gradient is seen not to depend on.
        doubt: ``(u, H u) -> size of the error in H u``, where products are approximate.
        rows: of the entries of θ that are tables, the rows that stand for them, sorted: what the
            inner loss leaves alone in a table is all the others.
    """

    params: tuple[str, ...]
    hvp: Callable[[Tree], Tree]
    cross: Callable[[Tree], tuple[Tree, Partial]]
    doubt: Callable[[Tree, Tree], float] | None = None
    rows: Mapping[str, Tensor] = field(default_factory=dict)


def from_graph(
    loss: Tensor, params: Tree, hparams: Tree, tables: Mapping[str, Table] | None = None
) -> Linearisation:
    """Linearise a loss that was already evaluated on ``params`` and ``hparams``.

    The first gradient is built with its graph and reused by every product: the fastest way in
    eager mode. Needs double backward of every operation in the loss, but not of the look-ups in
    ``tables``: the graph is differentiated by what they read.

    Raises:
        RuntimeError: a look-up whose factors depend on parameters.
    """
    if mixed_look_ups := [name for name, t in (tables or {}).items() if not t.linear]:
        raise RuntimeError(
            f"{mixed_look_ups[0]} is read with per_sample_weights that are learned, of which "
            "there is no second derivative"
        )
    places = Places(params, tables or {})
    inputs = places.inputs
    grads = (
        torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True) if inputs else ()
    )
    # A parameter in which the loss is linear has a constant gradient, without a graph.
    live = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
    touched = places.reached(grads)

    def pull(v: Tree, *further: Tensor) -> tuple[Tree, tuple[Tensor | None, ...]]:
        inputs = touched.inputs
        products: tuple[Tensor | None, ...] = (None,) * (len(inputs) + len(further))
        if live:
            along = places.spread(v)
            products = torch.autograd.grad(
                [grads[i] for i in live],
                [*inputs, *further],
                [along[i] for i in live],
                retain_graph=True,
                allow_unused=True,
            )
        return touched.collect(products[: len(inputs)]), products[len(inputs) :]

    def hvp(v: Tree) -> Tree:
        return pull(v)[0]

    def cross(u: Tree) -> tuple[Tree, Partial]:
        product, mixed = pull(u, *hparams.values())
        return product, dict(zip(hparams, mixed, strict=True))

    rows = {name: table.rows for name, table in touched.tables.items()}
    return Linearisation(tuple(touched.params), hvp, cross, rows=rows)


def with_autograd(inner: Objective, params: Tree, hparams: Tree) -> Linearisation:
    """Evaluate ``inner`` on fresh leaves and linearise its graph."""
    params, hparams = _leaves(params), _leaves(hparams)
    return from_graph(inner(params, hparams), params, hparams)


def with_func(inner: Objective, params: Tree, hparams: Tree) -> Linearisation:
    """Linearise by ``torch.func``: ``vjp(grad(inner))``.

    Works where a module is compiled; needs an ``inner`` without in-place updates of outside state.
    """
    params, hparams = _detached(params), _detached(hparams)

    def gradient(p: Tree, h: Tree) -> Tree:
        return torch.func.grad(inner)(p, h)  # type: ignore[no-any-return]

    # Only the last pass needs φ. Leaving it out here keeps the products clear of everything that
    # φ alone goes through.
    pull_params = torch.func.vjp(lambda p: gradient(p, hparams), params)[1]

    # Detached: parameters that are not among these, but require gradients, leave a graph behind.
    def hvp(v: Tree) -> Tree:
        (product,) = pull_params(v)
        return _detached(product)

    def cross(u: Tree) -> tuple[Tree, Partial]:
        product, mixed = torch.func.vjp(gradient, params, hparams)[1](u)
        return _detached(product), dict(_detached(mixed))

    return Linearisation(tuple(params), hvp, cross)


def with_finite_difference(
    inner: Objective,
    params: Tree,
    hparams: Tree,
    installed: Callable[[Tree], AbstractContextManager[None]] = lambda params: nullcontext(),
) -> Linearisation:
    """Central differences of first-order gradients, for operations without a second derivative.

    The step is ``(1 + ‖θ‖)·eps^⅓/‖v‖``, which balances truncation against rounding, with ``θ``
    taken where ``v`` moves it; expect six to ten digits in float64 and two to five in float32.
    ``installed(params)`` is open around each evaluation and its backward pass: a checkpointed
    module runs again in the latter.
    """
    params = _detached(params)
    eps = max(torch.finfo(p.dtype).eps for p in params.values())

    def gradients(p: Tree) -> tuple[Tree, Partial]:
        p, h = _leaves(p), _leaves(hparams)
        with installed(p):
            grads = torch.autograd.grad(
                inner(p, h),
                [*p.values(), *h.values()],
                allow_unused=True,
            )
        return filled(grads[: len(p)], p), dict(zip(h, grads[len(p) :], strict=True))

    def difference(u: Tree, share: float) -> tuple[Tree, Partial]:
        length = norm(u)
        if length == 0.0:
            return zeros_like(params), dict(zeros_like(hparams))
        moved = {name: p * (u[name] != 0) for name, p in params.items()}
        step = share * (1.0 + norm(moved)) * eps ** (1.0 / 3.0) / length
        ahead, behind = (gradients(axpy(sign * step, u, params)) for sign in (1.0, -1.0))
        width = 1.0 / (2.0 * step)
        mixed: Partial = {
            name: None if a is None or b is None else (a - b) * width
            for (name, a), b in zip(ahead[1].items(), behind[1].values(), strict=True)
        }
        return scale(width, axpy(-1.0, behind[0], ahead[0])), mixed

    def cross(u: Tree) -> tuple[Tree, Partial]:
        return difference(u, 1.0)

    def hvp(v: Tree) -> Tree:
        return difference(v, 1.0)[0]

    def doubt(u: Tree, product: Tree) -> float:
        # Half the step: a quarter of the truncation error, and twice the rounding error.
        return norm(axpy(-1.0, difference(u, 0.5)[0], product))

    return Linearisation(tuple(params), hvp, cross, doubt)


def _leaves(tree: Tree) -> Tree:
    """Differentiable leaves: the tensor itself where it is one, so that no storage is copied."""
    return {
        name: x if x.is_leaf and x.requires_grad else x.detach().requires_grad_(True)
        for name, x in tree.items()
    }


def _detached(tree: Tree) -> Tree:
    return {name: x.detach() for name, x in tree.items()}


LINEARISERS: dict[Mode, Callable[[Objective, Tree, Tree], Linearisation]] = {
    "autograd": with_autograd,
    "func": with_func,
    "finite_difference": with_finite_difference,
}
