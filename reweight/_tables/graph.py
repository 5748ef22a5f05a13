"""What the recorded autograd graph of a loss says about the loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from reweight._tensors import Tree, shows_types

Grads = tuple[Tensor | None, ...]

_LEAF: type = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)


class Graph:
    """The operations and the leaves that a loss was computed from.

    Args:
        loss: a tensor with its graph.
        until: operations that are not entered: neither they nor what only they take is part of it.

    Attributes:
        nodes: every operation and every leaf, with the nodes that it takes.
        kinds: the kinds of the operations.
        leaves: the nodes of the leaves, by the ``id`` of the leaf.
    """

    def __init__(self, loss: Tensor, until: Container[Node] = ()) -> None:
        self.nodes: dict[Node, list[Node | None]] = {}
        waiting: list[Node | None] = [loss.grad_fn]
        nodes = self.nodes
        while waiting:
            node = waiting.pop()
            if node is None or node in nodes or node in until:
                continue
            nodes[node] = taken = [before for before, _ in node.next_functions]
            waiting += taken
        self.kinds = frozenset(map(type, nodes))
        self.leaves = {id(leaf_of(node)): node for node in nodes if type(node) is _LEAF}

    def is_all_alive(self, loss: Tensor, inputs: list[Any]) -> bool:
        """Whether the gradient of ``loss`` is nonzero at every operation that it passes.

        A term with a factor of 0, or below a layer of zeros, shows nothing in a gradient.
        """
        dead: list[Node] = []

        def look(node: Node, grads: Grads) -> None:
            if not any(g is not None and bool(g.any()) for g in grads):
                dead.append(node)

        self._look_back(look, loss, inputs)
        return not dead

    def _look_back(
        self, look: Callable[[Node, Grads], None], loss: Tensor, inputs: list[Any]
    ) -> None:
        """Show ``look`` the operations that a gradient passes, each with what reaches it."""
        hooks = [
            node.register_prehook(functools.partial(look, node))
            for node in self.nodes
            if type(node) is not _LEAF
        ]
        try:
            torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
        finally:
            for hook in hooks:
                hook.remove()

    def shared(self, other: Graph) -> list[Node]:
        """The operations that are also part of another graph."""
        return [n for n in self.nodes if n in other.nodes and type(n) is not _LEAF]

    def reached(self, params: Tree) -> list[str]:
        """The names of those entries of ``params``, all leaves, that the loss was made with."""
        return [name for name, p in params.items() if id(p) in self.leaves]

    def consumers(self, params: Tree) -> dict[str, list[Node]]:
        """The operations that take an entry of ``params``, all leaves, by its name."""
        names: dict[Node | None, str] = {
            self.leaves[id(p)]: name for name, p in params.items() if id(p) in self.leaves
        }
        found: dict[str, list[Node]] = {name: [] for name in params}
        for node, inputs in self.nodes.items():
            for taken in inputs:
                if taken in names:
                    found[names[taken]].append(node)
        return found

    def leads_to(self, nodes: Iterable[Node], params: Tree) -> bool:
        """Whether an entry of ``params`` takes part in the values of some operations."""
        targets = {self.leaves[id(p)] for p in params.values() if id(p) in self.leaves}
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

    def narrowest(self, loss: Tensor, inputs: list[Any]) -> torch.dtype | None:
        """The floating-point type of fewest digits that an operation gives.

        Args:
            loss: the tensor that it is the graph of.
            inputs: what the loss is differentiated by, where torch does not show the types.
        """
        given: set[torch.dtype] = set()
        if shows_types(loss.grad_fn):
            for node in self.nodes:
                given |= {metadata.dtype for metadata in getattr(node, "_input_metadata", ())}
        else:  # a derivative has the type of what it is taken by
            self._look_back(
                lambda _, grads: given.update(g.dtype for g in grads if g is not None), loss, inputs
            )
        real = [dtype for dtype in given if dtype.is_floating_point]
        return max(real, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    @property
    def is_reentrant(self) -> bool:
        """Whether a part of it is a reentrant checkpoint, whose inside is not part of it."""
        return any(kind.__name__ == "CheckpointFunctionBackward" for kind in self.kinds)

    def refuse_reentrant(self, name: str) -> None:
        """Raise where a part of the graph is a reentrant checkpoint.

        ``torch.autograd.grad`` returns ``None`` for every parameter inside such a part, without an
        error.
        """
        if self.is_reentrant:
            raise ValueError(
                f"{name} runs through torch.utils.checkpoint with use_reentrant=True, which loses "
                "the gradients of the parameters inside under torch.autograd.grad; pass "
                "use_reentrant=False"
            )


def leaf_of(node: Any) -> Tensor:
    """The leaf of a leaf's node."""
    leaf: Tensor = node.variable
    return leaf
