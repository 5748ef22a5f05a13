"""What an older torch lacks. Each is looked for by what it offers, not by its number."""

from __future__ import annotations

from typing import Any

import torch


def no_compiling() -> str:
    """Why outer steps can't be compiled by this torch; ``""`` where they can."""
    if hasattr(torch.compiler, "set_stance"):  # runs a program only where one fits
        return ""
    return f"it needs torch 2.6 or newer, and this is {torch.__version__}"


def shows_types(node: Any) -> bool:
    """Whether an operation in a graph shows the types and shapes of what it gives."""
    return hasattr(node, "_input_metadata")
