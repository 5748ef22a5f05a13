"""What the recorded autograd graph of a loss says about the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from reweight._tensors import Tree

Leaves = Mapping[str, Node]
_LEAF: type = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)


class Graph:
    """The operations and the leaves that a loss was computed from.

    Args:
        loss: a tensor with its graph.

    Attributes:
        nodes: every operation and every leaf, with the nodes that it takes.
        kinds: the kinds of the operations.
    """

    def __init__(self, loss: Tensor) -> None:
        self.nodes: dict[Node, list[Node | None]] = {}
        waiting: list[Node | None] = [loss.grad_fn]
        nodes = self.nodes
        while waiting:
            node = waiting.pop()
            if node is None or node in nodes:
                continue
            nodes[node] = taken = [before for before, _ in node.next_functions]
            waiting += taken
        self.kinds = frozenset(map(type, nodes))

    def leaves(self) -> list[Node]:
        """The leaves, as nodes."""
        return [node for node in self.nodes if type(node) is _LEAF]

    def shared(self, other: Graph) -> list[Node]:
        """The operations that are also part of another graph."""
        return [n for n in self.nodes if n in other.nodes and type(n) is not _LEAF]

    def reached(self, leaves: Leaves) -> list[str]:
        """The names of the leaves that the loss was computed from."""
        return [name for name, node in leaves.items() if node in self.nodes]

    def consumers(self, leaves: Leaves) -> dict[str, list[Node]]:
        """The operations that take a leaf, by the names of the leaves."""
        names: dict[Node | None, str] = {node: name for name, node in leaves.items()}
        found: dict[str, list[Node]] = {name: [] for name in leaves}
        for node, inputs in self.nodes.items():
            for taken in inputs:
                if taken in names:
                    found[names[taken]].append(node)
        return found

    def leads_to(self, nodes: Iterable[Node], leaves: Leaves) -> bool:
        """Whether a leaf takes part in the values of some operations."""
        targets = set(leaves.values())
        waiting: list[Node | None] = list(nodes)
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            if node in targets:
                return True
            seen.add(node)
            waiting += self.nodes[node]
        return False

    def narrowest(self) -> torch.dtype | None:
        """The floating-point type of fewest digits that an operation gives."""
        given = {
            metadata.dtype
            for node in self.nodes
            for metadata in getattr(node, "_input_metadata", ())
            if metadata.dtype.is_floating_point
        }
        return max(given, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    def refuse_reentrant(self, name: str) -> None:
        """Raise where a part of the graph is a reentrant checkpoint.

        ``torch.autograd.grad`` returns ``None`` for every parameter inside such a part, without an
        error.
        """
        if any(kind.__name__ == "CheckpointFunctionBackward" for kind in self.kinds):
            raise ValueError(
                f"{name} runs through torch.utils.checkpoint with use_reentrant=True, which loses "
                "the gradients of the parameters inside under torch.autograd.grad; pass "
                "use_reentrant=False"
            )


def leaf_nodes(params: Tree) -> Leaves:
    """The nodes of leaves, by name; they are the same in every graph."""
    return {name: get_gradient_edge(p).node for name, p in params.items()}
