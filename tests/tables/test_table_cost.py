"""Nothing of a table's size is made, whatever is kept for its rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reweight
from _support.tables import (
    DEV,
    DIM,
    MODES,
    THREE_TERMS,
    TRAIN,
    Catalogue,
    catalogue,
    quiet,
    squares,
)
from benchmarks.catalogue.problems import relative_error
from reweight import ConjugateGradient, ImplicitHypergradient, SecondMoments
from reweight._problem.writes import memory

MANY = 30_000


class _Largest(TorchDispatchMode):
    """The most entries that any result of an operation has had, views of a parameter aside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.entries = 0
        # None: a tensor of a transform, whose values are seen below it.
        self.owned = {None, *map(memory, model.parameters())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for entry in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(entry, Tensor) or entry.layout is not torch.strided:
                continue
            if memory(entry) not in self.owned:
                self.entries = max(self.entries, entry.numel())
        return result


@pytest.mark.parametrize("hvp", MODES)
@pytest.mark.parametrize(
    ("sparse", "scaled"), [(False, None), (True, None), (False, SecondMoments())], ids=str
)
def test_nothing_of_the_size_of_a_table_is_made(hvp: str, sparse: bool, scaled: Any) -> None:
    model = Catalogue(MANY, sparse=sparse).double()
    if sparse:
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    squares(model, TRAIN).mean().backward()
    optimizer.step()
    rw = catalogue(model=model, hvp=hvp, optimizer=optimizer, scaled=scaled)
    with quiet(), _Largest(model) as largest:
        rw.hypergradient(TRAIN, DEV)
        rw.hypergradient(DEV, TRAIN)
    assert 0 < largest.entries < MANY


def test_second_moments_of_rows_are_rows_of_second_moments() -> None:
    model = Catalogue()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    squares(model, TRAIN).mean().backward()
    optimizer.step()
    params = dict(model.named_parameters())
    rows = {"items.weight": torch.tensor([1, 8])}
    whole = SecondMoments().diagonal(optimizer, params)
    some = SecondMoments().diagonal(optimizer, params, rows)
    assert torch.equal(some["items.weight"], whole["items.weight"][[1, 8]])
    assert torch.equal(some["out.weight"], whole["out.weight"])


def test_a_preconditioner_by_hand_is_given_for_whole_tables() -> None:
    model = Catalogue().double()
    scaled = {n: torch.rand_like(p).detach() + 0.5 for n, p in model.named_parameters()}
    options: Any = {"scaled": scaled, "solver": ConjugateGradient(200, 1e-12), "damping": 5.0}
    got = catalogue(model=model, **options).hypergradient(TRAIN, DEV)
    whole = catalogue(
        lambda m, b: squares(m, b) + 0.0 * m.items.weight.sum(), model=model, **options
    ).hypergradient(TRAIN, DEV)
    assert got.info.trustworthy and whole.info.trustworthy
    assert relative_error(got.influence, whole.influence) < 1e-10
    del scaled["items.weight"]
    with pytest.raises(ValueError, match=r"preconditioner.*items\.weight"):
        catalogue(model=model, scaled=scaled).hypergradient(TRAIN, DEV)


@pytest.mark.parametrize("hvp", MODES)
def test_nothing_is_made_of_a_table_that_only_the_train_loss_reads(hvp: str) -> None:
    model = Catalogue(MANY).double()
    rw = reweight.wrap(
        model,
        reweight.LossWeighter().double(),
        squares,
        lambda m, b: m.out.weight.square().sum(),
        hypergradient=ImplicitHypergradient(THREE_TERMS, hvp=hvp),
    )
    with quiet(), _Largest(model) as largest:
        rw.hypergradient(TRAIN, DEV)
    assert 0 < largest.entries < MANY


def test_second_moments_of_rows_that_no_step_has_touched_are_those_of_whole_tables() -> None:
    class Popularity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(9, DIM)

        def forward(self, index: Tensor) -> Tensor:
            return self.items(index).tanh()

    model = Popularity().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    squares(model, torch.tensor([5, 6])).mean().backward()
    optimizer.step()
    options: Any = {"model": model, "optimizer": optimizer, "scaled": SecondMoments()}
    with quiet():
        got = catalogue(**options).hypergradient(TRAIN, TRAIN)
        whole = catalogue(
            lambda m, b: squares(m, b) + 0.0 * m.items.weight.sum(), **options
        ).hypergradient(TRAIN, TRAIN)
    assert relative_error(got.influence, whole.influence) < 1e-12
