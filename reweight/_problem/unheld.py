"""Leaves that the losses depend on and that nothing is known to train."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.autograd.graph import Node

from reweight._problem.bilevel import BilevelProblem
from reweight._tables import Graph, leaf_of
from reweight._tensors import Tree, some


def unheld(
    problem: BilevelProblem,
    rest: Iterable[Node],
    batches: Iterable[Tensor],
    again: Callable[[], Graph] | None,
) -> Tree:
    """Leaves that require a gradient, outlive the step and are held by no optimizer.

    Args:
        problem: the problem.
        rest: leaves of the losses that are neither inner parameters nor the weighter's.
        batches: tensors of the batches, whose gradients are the losses' own business.
        again: evaluates the losses once more, to tell a leaf that is made in every pass from one
            that stays; ``None`` where that was found out in an earlier step.
    """
    leaves: list[Tensor] = [leaf_of(node) for node in dict.fromkeys(rest)]
    settled = problem.settled() | {id(x) for x in batches}
    leaves = [leaf for leaf in leaves if id(leaf) not in settled]
    unsure = [x for x in leaves if not (isinstance(x, nn.Parameter) or id(x) in problem.elsewhere)]
    if unsure and again is not None:
        lasting = again().leaves.keys()
        problem.elsewhere |= {id(x): x for x in unsure if id(x) in lasting}
    return problem.named(
        x for x in leaves if isinstance(x, nn.Parameter) or id(x) in problem.elsewhere
    )


def caveat_of(leaves: Tree, *, with_optimizers: bool) -> str:
    """What was done about such leaves, and what the user can do."""
    if not leaves:
        return ""
    one = len(leaves) == 1
    text = (
        f"{some(leaves)} {'requires' if one else 'require'} a gradient and the losses depend on "
        f"{'it' if one else 'them'}, but "
    )
    if with_optimizers:
        text += "no optimizer that wrap was given holds "
        move = "pass the optimizer that trains {0} too, optimizer=[...]"
    else:
        text += "wrap was given no optimizer that holds "
        move = "pass optimizer= with what trains {0}"
    it = "it" if one else "them"
    counted = "it counted as a constant" if one else "they counted as constants"
    return (
        f"{text}{it}, so {counted}: {move.format(it)}, or call "
        "requires_grad_(False) if nothing does"
    )
