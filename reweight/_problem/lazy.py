"""Modules that make their parameters in their first forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from reweight._problem.bilevel import BilevelProblem


def build(problem: BilevelProblem, parts: Iterable[nn.Module], batch: Any) -> None:
    """Let lazy modules of the model make their parameters, from a batch, if they have not yet.

    The parameters are drawn as in the model's first pass. Buffers keep their initial values.
    """
    unbuilt = [part for part in parts if _is_unbuilt(part)]
    if not unbuilt:
        return
    fresh: list[tuple[Tensor, Tensor]] = []

    def remember(part: nn.Module, args: Any) -> None:
        # Runs after the module's own hook, which makes its parameters and buffers.
        fresh.extend((b, b.clone()) for b in part._buffers.values() if b is not None)

    hooks = [part.register_forward_pre_hook(remember) for part in unbuilt]
    try:
        problem.losses(batch)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for buffer, value in fresh:
                buffer.copy_(value)


def _is_unbuilt(part: nn.Module) -> bool:
    return isinstance(part, LazyModuleMixin) and any(
        is_lazy(x) for x in (*part._parameters.values(), *part._buffers.values()) if x is not None
    )
