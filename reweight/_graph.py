"""What the recorded graph of a loss says about it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from reweight._trees import Tree

_Parents = list[Node | None]


def _nodes(loss: Tensor) -> Iterator[tuple[Node, _Parents]]:
    """Every operation behind ``loss``, and the leaves, each with what it takes."""
    waiting: _Parents = [loss.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents: _Parents = [parent for parent, _ in node.next_functions]
        yield node, parents
        waiting += parents


def _leaves(params: Tree) -> dict[Node | None, str]:
    """The node that stands for each of ``params``, all leaves, in every graph."""
    return {get_gradient_edge(p).node: name for name, p in params.items()}


def reached(loss: Tensor, params: Tree) -> Tree:
    """The entries of ``params``, all leaves, that ``loss`` may depend on."""
    names = _leaves(params)
    found = {names[node] for node, _ in _nodes(loss) if node in names}
    return {name: p for name, p in params.items() if name in found}


def consumers(loss: Tensor, params: Tree) -> dict[str, list[Node]]:
    """The operations behind ``loss`` that take an entry of ``params``, all leaves, as it is."""
    names = _leaves(params)
    found: dict[str, list[Node]] = {name: [] for name in params}
    for node, parents in _nodes(loss):
        for parent in parents:
            if parent in names:
                found[names[parent]].append(node)
    return found


def refuse_reentrant(name: str, loss: Tensor) -> None:
    """Raise where a part of the graph is checkpointed the reentrant way.

    ``torch.autograd.grad`` gives ``None`` for every parameter inside such a part, without a word.
    """
    if any(node.name() == "CheckpointFunctionBackward" for node, _ in _nodes(loss)):
        raise ValueError(
            f"{name} runs through torch.utils.checkpoint with use_reentrant=True, which drops the "
            "gradients of the parameters inside when they are asked for by name; pass "
            "use_reentrant=False"
        )
