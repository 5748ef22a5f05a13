"""A nested state as a flat dict of tensors, which is what safetensors stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reweight.checkpoint import nested

# The name of the tensor with all that is not a tensor, as the bytes of a text.
_TEXT = "state.json"


def to_tensors(state: Any) -> dict[str, Tensor]:
    """A state as a flat dict of tensors, for files that hold nothing else.

    Args:
        state: Tensors, numbers, strings, ``True``, ``False`` and ``None`` in any nesting of dicts,
            lists and tuples.

    Returns:
        The tensors by name, each with memory of its own, and one more that holds the rest.

    Raises:
        TypeError: there is something else in the state.

    Example:
        >>> import torch
        >>> from reweight.checkpoint import from_tensors, to_tensors
        >>> flat = to_tensors({"weight": torch.ones(2), "step": 3})
        >>> sorted(flat)
        ['0 weight', 'state.json']
        >>> from_tensors(flat)
        {'weight': tensor([1., 1.]), 'step': 3}
    """
    described = nested.Described(state)
    text = torch.tensor(list(described.text.encode()), dtype=torch.uint8)
    # Tied parameters share memory, which such files refuse.
    tensors = {name: x.contiguous().clone() for name, x in described.tensors.items()}
    return {**tensors, _TEXT: text}


def from_tensors(tensors: Mapping[str, Tensor]) -> Any:
    """The state that :func:`to_tensors` took apart.

    Args:
        tensors: what it returned, in any order.

    Raises:
        ValueError: these are other tensors.
    """
    if _TEXT not in tensors:
        raise ValueError(
            f"tensors has no entry {_TEXT!r}, so it is not what to_tensors(state) returned: pass "
            "all tensors of the file"
        )
    text = bytes(tensors[_TEXT].tolist()).decode()
    if missing := sorted(nested.names(text).keys() - tensors.keys()):
        raise ValueError(f"tensors lacks {missing[0]!r}, which is part of the state")
    return nested.restored(text, tensors)
