"""What an older torch lacks. Each is looked for by what it offers; a fault has only a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def no_compiling() -> str:
    """Why outer steps can't be compiled by this torch; ``""`` where they can."""
    # Before 2.6 there is no way to run a program only where one fits. In 2.6, a program that raises
    # inside torch.func (an id out of range) leaves that stance on: torch's clean-up fails before it
    # puts it back, and nothing in this process is compiled from then on.
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7):
        return ""
    return f"it needs torch 2.7 or newer, and this is {torch.__version__}"


def shows_types(node: Any) -> bool:
    """Whether an operation in a graph shows the types and shapes of what it gives."""
    return hasattr(node, "_input_metadata")


def set_version(x: Tensor, version: int) -> None:
    """Put a tensor's version counter back, after its values were."""
    put = torch._C._autograd._unsafe_set_version_counter
    try:
        put((x,), (version,))
    except TypeError:  # in torch 2.6 and older it takes one tensor
        put(x, version)  # type: ignore[arg-type]
