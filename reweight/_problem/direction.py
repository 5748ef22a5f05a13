"""The direction of a first-order step: ``u = D·v``, without a linear system.

``v`` is the gradient of the outer loss and ``D`` a diagonal that is known beforehand. Of an
embedding table ``v`` holds the rows that the outer loss reads, and so does ``u``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from reweight._curvature import Partial
from reweight._tables import Graph, Table, leaf_of, of_all_samples, pick
from reweight._tensors import Tree, detached, filled, stored
from reweight.preconditioning import Preconditioner, diagonal_of


@dataclass(frozen=True)
class Direction:
    """A vector over inner parameters; zero in all that it does not name.

    Attributes:
        values: by the name of the parameter, in its shape, or ``[r, D]`` for rows of a table.
        rows: ``[r]``, these rows, ascending, by the name of the table.
        loss: the value of the loss that the direction was made from; ``None`` if from none.
        gradient: the gradient of that loss, in the same form.
    """

    values: Tree
    rows: Tree = field(default_factory=dict)
    loss: Tensor | None = None
    gradient: Tree = field(default_factory=dict)

    def of(self, theta: Tree) -> Tree:
        """What moves along the direction: parameters, and copies of the rows of tables."""
        return {
            name: pick(theta[name].detach(), self.rows[name])
            if name in self.rows
            else theta[name].detach()
            for name in self.values
        }

    def tables(self, theta: Tree) -> dict[str, Table]:
        """The tables of which it holds rows."""
        return {name: Table.at(theta[name], rows) for name, rows in self.rows.items()}


def direction_of(
    rhs: Tree,
    loss: Tensor,
    theta: Tree,
    free: Tree,
    preconditioner: Preconditioner | None,
    optimizers: Sequence[Optimizer],
) -> Direction:
    """``D·v``.

    Args:
        rhs: ``v``; sparse and coalesced for tables of which the outer loss reads rows.
        loss: the outer loss.
        theta: the inner parameters.
        free: masks of the parameters' shapes, 0 where an entry is a constant.
        preconditioner: gives ``D``; ``None``: ones.
        optimizers: the inner optimizers, which a preconditioner may read.
    """
    rhs = of_all_samples(rhs)
    gradient = {name: v for name, v in stored(rhs).items() if v.numel()}
    rows = {name: rhs[name].indices()[0] for name in gradient if rhs[name].is_sparse}
    params = {name: theta[name] for name in gradient}
    diagonal = diagonal_of(preconditioner, optimizers, params, rows) if params else None
    values: Tree = {}
    for name, v in gradient.items():
        # Out of place: autograd may give one tensor as the gradient of two parameters.
        if diagonal is not None:
            v = v * diagonal[name]
        if name in free:
            v = v * (pick(free[name], rows[name]) if name in rows else free[name])
        values[name] = v.to(theta[name].dtype)
    return Direction(values, rows, loss, gradient)


def by_backward(loss: Tensor, graph: Graph, theta: Tree, phi: Tree) -> tuple[Tree, Partial]:
    """``∂loss/∂θ`` and ``∂loss/∂φ`` by ``backward()``, as a reentrant checkpoint needs it.

    The ``.grad`` of θ and φ have to be ``None``; those of all leaves in the graph are put back.
    """
    kept = [(leaf, leaf.grad) for leaf in map(leaf_of, graph.leaves.values())]
    loss.backward()  # type: ignore[no-untyped-call]
    rhs = filled((p.grad for p in theta.values()), detached(theta))
    direct: Partial = {name: p.grad for name, p in phi.items()}
    for p in (*theta.values(), *phi.values()):
        p.grad = None
    for leaf, grad in kept:
        leaf.grad = grad
    return rhs, direct


def moves_padding(direction: Direction, padding: Mapping[str, int]) -> bool:
    """Whether a direction moves a padding row, which is a constant to look-ups and not to others.

    Args:
        direction: the direction.
        padding: the padding rows of tables, by name.
    """
    for name, row in padding.items():
        if name not in direction.values:
            continue
        values, rows = direction.values[name], direction.rows.get(name)
        moved = values[row] if rows is None else values[rows == row]
        if bool(moved.any()):
            return True
    return False


class _Move(Protocol):
    def __call__(self, step: float) -> None:
        """Write ``θ + step·u`` into the parameters."""


@contextmanager
def movable(theta: Tree, direction: Direction) -> Iterator[_Move]:
    """Write other values into the parameters themselves, and put the old ones back bit for bit.

    Whatever holds a parameter follows: a list, a closure, a scripted function. Version counters do
    not see it, so graphs that saved a parameter stay valid. Of a table only rows are written.
    """
    start = {
        name: value if name in direction.rows else value.clone()
        for name, value in direction.of(theta).items()
    }

    def write(step: float) -> None:
        for name, value in start.items():
            u, to = direction.values[name], theta[name].data
            if name in direction.rows:
                to.index_copy_(0, direction.rows[name], torch.add(value, u, alpha=step))
            else:
                torch.add(value, u, alpha=step, out=to)

    def put_back() -> None:
        for name, value in start.items():
            if name in direction.rows:
                theta[name].data.index_copy_(0, direction.rows[name], value)
            else:
                theta[name].data.copy_(value)

    try:
        yield write
    finally:
        put_back()
