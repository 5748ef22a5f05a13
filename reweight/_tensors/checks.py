"""Checks of what users pass in. Each error says what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from reweight._tensors.reading import Pending, ends, now_or_later
from reweight._tensors.vectors import Tree


class NotFiniteError(ValueError):
    """A loss or a weight is NaN or infinite."""


def check_finite(
    what: str,
    tree: Tree,
    why: str = "look at the batch and at the model's outputs on it",
    pending: Pending | None = None,
) -> None:
    """Raise on NaN and infinite entries, and name the tensors that hold them.

    Args:
        what: the vector, in words.
        tree: its tensors.
        why: the likely cause, or the next move.
        pending: look when this is read, and not now.
    """

    def look(found: list[float]) -> None:
        if not all(map(math.isfinite, found)):
            where = some({k: v for k, v in tree.items() if not bool(v.isfinite().all())})
            raise FloatingPointError(f"{what} is not finite (in {where}); {why}")

    now_or_later(ends(*tree.values()), look, pending)


def check_loss(name: str, loss: object, pending: Pending | None = None) -> Tensor:
    """Return ``loss`` if it is one finite number; its value is looked at with ``pending``."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"the {name} loss must be a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"the {name} loss must be one number, got shape {tuple(loss.shape)}: reduce it with "
            ".mean() or .sum()"
        )

    def look(found: list[float]) -> None:
        if not math.isfinite(found[0]):
            raise NotFiniteError(
                f"the {name} loss is {found[0]}: a batch with NaN or infinite entries, an average "
                "over no samples, a learning rate that made the parameters overflow, or a "
                "logarithm of zero in the loss"
            )

    now_or_later(loss.detach().reshape(1), look, pending)
    return loss.reshape(())


def check_tree(name: str, tree: object) -> None:
    """Raise unless ``tree`` is a non-empty dict of floating-point tensors."""
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{name} must be a dict of named tensors, got {type(tree).__name__}; for a module use "
            "dict(module.named_parameters())"
        )
    if not tree:
        raise ValueError(
            f"{name} is empty: nothing to differentiate by. An exhausted generator or a filter on "
            "names that matches nothing gives this"
        )
    for key, entry in tree.items():
        if not isinstance(entry, Tensor) or not entry.is_floating_point():
            kind = entry.dtype if isinstance(entry, Tensor) else type(entry).__name__
            raise TypeError(f"{name}[{key!r}] must be a floating-point tensor, got {kind}")


def some(tree: Mapping[str, object], limit: int = 3) -> str:
    """The first few names."""
    names = list(tree)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
