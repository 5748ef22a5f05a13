"""What makes the formula of a hypergradient wrong, as far as the graph of the losses shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from reweight._problem.bilevel import BilevelProblem
from reweight._problem.inner import InnerProblem
from reweight._problem.unheld import caveat_of, unheld
from reweight._tables import Graph
from reweight._tensors import Tree, rounding, some


def caveats_of(
    problem: BilevelProblem,
    inner: InnerProblem,
    phi: Tree,
    leaves: dict[int, Any],
    given: Iterable[Tensor],
    *,
    look: bool,
) -> list[str]:
    """What is wrong with the losses, in words.

    Args:
        problem: the problem.
        inner: the losses of the train batch, with their graph.
        phi: the parameters of the weighter.
        leaves: the nodes of the leaves of the outer loss, by the ``id`` of the leaf.
        given: the tensors of the batches.
        look: whether the losses may be evaluated once more to find out.

    Raises:
        ValueError: the losses depend on the weighter in another way than through the weights.
    """
    theta, graph = inner.theta, inner.graph
    if not inner.weights.numel():
        return []
    for name in graph.reached(phi):
        raise ValueError(
            f"the losses depend on the weighter's {name} in another way than through the "
            "weights: a module that the weighter shares with the model, or a penalty in "
            "Losses(fixed=...). Freeze it, give the weighter a copy, or put the penalty "
            "into outer_loss"
        )
    caveats = []
    known = {id(p) for p in (*theta.values(), *phi.values(), inner.weights)}
    rest = [n for key, n in (*leaves.items(), *graph.leaves.items()) if key not in known]
    if rest:
        found = unheld(problem, rest, given, _again(inner) if look else None)
        caveats.append(caveat_of(found, with_optimizers=bool(problem.optimizers)))
    if rewritten := inner.isolation.rewrites(theta):
        caveats.append(
            f"the losses give {some(dict.fromkeys(rewritten))} other values in place (a clamp, "
            "a normalisation, a decay), which no derivative shows: do it after the optimizer's "
            "step, or as an operation on the parameter"
        )
    return caveats


def _again(inner: InnerProblem) -> Callable[[], Graph]:
    def evaluated() -> Graph:
        with inner.isolation.aside():
            inner.isolation.restore()
            return Graph(inner.evaluate(inner.batch, inner.weights))

    return evaluated


def remarks_on(inner: InnerProblem) -> list[str]:
    """What is wrong with the problem for as long as it is of this kind."""
    narrow, own = inner.narrowest(), max(rounding(inner.theta), torch.finfo(torch.float32).eps)
    if narrow is None or torch.finfo(narrow).eps <= own:
        return []
    return [
        f"a part of the losses is computed in {narrow} (autocast inside the forward method), and "
        "products with the Hessian have errors of percents: leave autocast to the caller, who "
        "opens it around the call; outer steps then turn it off"
    ]
