"""What the first outer step costs more than later ones: it compares second derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.memory import peak_bytes
from reweight import Identity, ImplicitHypergradient, LossWeighter, Neumann, wrap


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]).squeeze(-1) - batch[1]).square()


def outer(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return losses(model, batch).mean()


def batch(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 256, generator=generator), torch.randn(16, generator=generator)


@pytest.mark.parametrize("solver", [Neumann(3), Identity()], ids=["neumann", "first-order"])
def test_the_first_step_takes_at_most_twice_the_memory_of_a_later_one(
    solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # First-order steps of a small model are compared in float64, which takes more.
    monkeypatch.setattr("reweight._problem.ways._LARGE", 100_000)
    torch.manual_seed(0)
    layers = [part for _ in range(3) for part in (nn.Linear(256, 256), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(256, 1))
    rw = wrap(model, LossWeighter(), losses, outer, hypergradient=ImplicitHypergradient(solver))
    first, later = (peak_bytes(lambda: rw.hypergradient(batch(0), batch(1))) for _ in range(2))
    assert first <= 2 * later
