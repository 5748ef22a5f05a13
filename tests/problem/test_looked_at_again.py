"""What was found to be right is looked at again when it may have become wrong."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.catalogue.operations import Detaching
from reweight import LossWeighter, Reweighted, wrap
from reweight.verdict import Comparison

GENERATOR = torch.Generator().manual_seed(0)
TRAIN, DEV = (
    (torch.randn(16, 3, generator=GENERATOR), torch.randn(16, generator=GENERATOR))
    for _ in range(2)
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.factor = nn.Linear(3, 4), nn.Linear(4, 1), 0.0

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return self.head(hidden + self.factor * Detaching.apply(hidden)).squeeze(-1)


def losses(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square()


def make(model: nn.Module) -> Reweighted:
    return wrap(model, LossWeighter(4), losses, lambda m, b: losses(m, b).mean())


def ages(rw: Reweighted, steps: int) -> list[int | None]:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            comparison = rw.hypergradient(TRAIN, DEV).info.comparison
            assert isinstance(comparison, Comparison)
            found.append(comparison.age)
    return found


def test_a_problem_that_stays_is_compared_once_in_a_hundred_steps() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
    assert [step for step, age in enumerate(ages(make(model), 102)) if age == 0] == [0, 100]


@pytest.mark.parametrize("change", ["mode", "frozen", "type"])
def test_another_problem_is_compared_at_once(change: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
    rw = make(model)
    assert ages(rw, 2) == [0, 1]
    if change == "mode":
        model.eval()
    elif change == "frozen":
        model[0].requires_grad_(False)
    else:
        model.double()
        rw.weighter.double()
    batches = [tuple(x.to(next(model.parameters()).dtype) for x in b) for b in (TRAIN, DEV)]
    assert rw.hypergradient(*batches).info.comparison == Comparison(0)


def test_a_hidden_term_is_looked_for_again_and_again() -> None:
    """Its factor is 0 at first, so that no comparison can see it."""
    torch.manual_seed(0)
    model = Net()
    rw = make(model)
    assert [step for step, age in enumerate(ages(rw, 9), 1) if age == 0] == [1, 2, 4, 8]
    model.factor = 1.0
    with pytest.warns(UserWarning, match="second derivatives"):
        modes = [rw.hypergradient(TRAIN, DEV).info.hvp_mode for _ in range(8)]
    assert modes[-1] == "finite_difference"


@pytest.mark.slow
def test_graphs_of_ever_new_sizes_are_compared_less_and_less_often() -> None:
    """As those of recurrent models are on ragged batches."""
    count = 0

    def ragged(model: nn.Module, batch: Any) -> Tensor:
        nonlocal count
        count += 1
        out = losses(model, batch)
        for _ in range(count):
            out = out * 1.0
        return out

    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    rw = wrap(model, LossWeighter(4), ragged, lambda m, b: losses(m, b).mean())
    compared = [step for step, age in enumerate(ages(rw, 40)) if age == 0]
    assert len(compared) <= 4 * 5.4 + 1  # four per doubling of the number of steps
