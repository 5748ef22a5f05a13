"""What the recorded graph of a loss says about it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node

from reweight._trees import Tree


def _nodes(loss: Tensor) -> Iterator[Node]:
    """Every operation behind ``loss``, and the leaves."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [parent for parent, _ in node.next_functions]


def reached(loss: Tensor, params: Tree) -> Tree:
    """The entries of ``params``, all leaves, that ``loss`` may depend on."""
    found = {
        id(variable)
        for node in _nodes(loss)
        if (variable := getattr(node, "variable", None)) is not None
    }
    return {name: p for name, p in params.items() if id(p) in found}


def consumers(loss: Tensor, params: Tree) -> dict[str, list[Node]]:
    """The operations behind ``loss`` that take an entry of ``params``, all leaves, as it is."""
    names = {id(p): name for name, p in params.items()}
    found: dict[str, list[Node]] = {name: [] for name in params}
    for node in _nodes(loss):
        for parent, _ in node.next_functions:
            name = names.get(id(getattr(parent, "variable", None)))
            if name is not None:
                found[name].append(node)
    return found


def refuse_reentrant(name: str, loss: Tensor) -> None:
    """Raise where a part of the graph is checkpointed the reentrant way.

    ``torch.autograd.grad`` gives ``None`` for every parameter inside such a part, without a word.
    """
    if any(node.name() == "CheckpointFunctionBackward" for node in _nodes(loss)):
        raise ValueError(
            f"{name} runs through torch.utils.checkpoint with use_reentrant=True, which drops the "
            "gradients of the parameters inside when they are asked for by name; pass "
            "use_reentrant=False"
        )
