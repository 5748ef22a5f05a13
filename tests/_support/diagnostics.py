"""A linear model wrapped, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reweight import ImplicitHypergradient, LossWeighter, Neumann, Reweighted, wrap


def losses(model: nn.Module, batch: Any) -> Tensor:
    error: Tensor = (model(batch[0]).squeeze(-1) - batch[1]).square()
    return error


def make(solver: Any = None, outer_loss: Any = None) -> Reweighted:
    torch.manual_seed(0)
    return wrap(
        nn.Linear(3, 1),
        LossWeighter(4),
        losses,
        outer_loss or (lambda model, batch: losses(model, batch).mean()),
        hypergradient=ImplicitHypergradient(solver or Neumann()),
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator), torch.randn(8, generator=generator)
