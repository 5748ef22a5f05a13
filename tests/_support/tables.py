"""A table of items under a small network, and the ways to look it up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import reweight
from reweight import ImplicitHypergradient, Neumann

USERS, ITEMS, WORDS, DIM, BAG = 6, 7, 5, 2, 3
MODES = ("autograd", "func", "finite_difference")


def product(table: Tensor, index: Tensor, padding: int | None) -> Tensor:
    if padding is not None:
        fixed = torch.zeros(len(table), 1, dtype=torch.bool)
        fixed[padding] = True
        table = torch.where(fixed, table.detach(), table)
    return functional.one_hot(index % len(table), len(table)).to(table.dtype) @ table


@contextmanager
def quiet() -> Iterator[None]:
    """Without what is said of random problems away from a minimum."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*hypergradient")
        yield


class Catalogue(nn.Module):
    """Scores items by their embedding; how the table is used is for the tests to say."""

    def __init__(self, num_items: int = 9, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(num_items, DIM, **options)
        self.out = nn.Linear(DIM, DIM)

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.items(index)).tanh()


def squares(model: nn.Module, index: Tensor) -> Tensor:
    return (model(index) - 1.0).square().mean(-1)


THREE_TERMS = Neumann(3, step_size=0.1)
TRAIN, DEV = torch.tensor([1, 3, 3, 8]), torch.tensor([3, 2, 8, 0])


def catalogue(
    losses: Callable[..., Tensor] = squares,
    model: nn.Module | None = None,
    hvp: Any = "auto",
    solver: Any = THREE_TERMS,
    damping: float = 0.0,
    scaled: Any = None,
    **options: Any,
) -> reweight.Reweighted:
    model = Catalogue().double() if model is None else model
    weighter = reweight.LossWeighter().to(next(model.parameters()).dtype)
    told = ImplicitHypergradient(solver, damping, hvp, scaled)
    return reweight.wrap(
        model,
        weighter,
        losses,
        lambda m, b: losses(m, b).mean(),
        hypergradient=told,
        **options,
    )
