"""Tensors that losses depend on without the library's knowledge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from reweight.losses import Losses


def unknown_leaves(
    losses: Sequence[Losses], known: Iterable[Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """Leaves that require a gradient and that losses reach, apart from those known, by name.

    Args:
        losses: of one batch, from two evaluations. A leaf that an evaluation makes for itself, as
            losses with a gradient penalty do, is another tensor in the next evaluation.
        known: parameters, and tensors of the batch.
        model: gives names.
    """
    first, second = map(_leaves, losses)
    ignored = {id(tensor) for tensor in known}
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for key, leaf in first.items():
        if key in second and key not in ignored:
            name = names.get(key, f"a {type(leaf).__name__} of shape {tuple(leaf.shape)}")
            found[name if name not in found else f"{name} (no. {len(found) + 1})"] = leaf
    return found


def _leaves(losses: Losses) -> dict[int, Tensor]:
    waiting: list[Node | None] = [losses.weighted.grad_fn, torch.as_tensor(losses.fixed).grad_fn]
    seen: set[Node] = set()
    found: dict[int, Tensor] = {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate gradients
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        waiting += [taken for taken, _ in node.next_functions]
    return found
