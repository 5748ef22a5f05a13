"""What the recorded autograd graph of a loss says about the loss."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from reweight._tensors import Tree

_Inputs = list[Node | None]


def reached(loss: Tensor, params: Tree) -> Tree:
    """The entries of ``params``, all leaves, that the graph of ``loss`` leads to."""
    names = _leaf_nodes(params)
    found = {names[node] for node, _ in _nodes(loss) if node in names}
    return {name: p for name, p in params.items() if name in found}


def consumers(loss: Tensor, params: Tree) -> dict[str, list[Node]]:
    """The operations in the graph of ``loss`` that take an entry of ``params``, all leaves."""
    names = _leaf_nodes(params)
    found: dict[str, list[Node]] = {name: [] for name in params}
    for node, inputs in _nodes(loss):
        for taken in inputs:
            if taken in names:
                found[names[taken]].append(node)
    return found


def refuse_reentrant(name: str, loss: Tensor) -> None:
    """Raise where a part of the graph is a reentrant checkpoint.

    ``torch.autograd.grad`` returns ``None`` for every parameter inside such a part, without an
    error.
    """
    if any(node.name() == "CheckpointFunctionBackward" for node, _ in _nodes(loss)):
        raise ValueError(
            f"{name} runs through torch.utils.checkpoint with use_reentrant=True, which loses the "
            "gradients of the parameters inside under torch.autograd.grad; pass use_reentrant=False"
        )


def _nodes(loss: Tensor) -> Iterator[tuple[Node, _Inputs]]:
    """Every operation in the graph of ``loss``, and every leaf, each with the nodes it takes."""
    waiting: _Inputs = [loss.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs: _Inputs = [taken for taken, _ in node.next_functions]
        yield node, inputs
        waiting += inputs


def _leaf_nodes(params: Tree) -> dict[Node | None, str]:
    """The graph node of each entry of ``params``, all leaves; it is the same in every graph."""
    return {get_gradient_edge(p).node: name for name, p in params.items()}
