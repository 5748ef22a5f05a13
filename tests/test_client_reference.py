"""The reference of the benchmark of other packages' models, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reweight
from benchmarks.catalogue.problems import relative_error
from benchmarks.clients import _reference
from reweight import ConjugateGradient, ImplicitHypergradient

ROOT = Path(__file__).parent.parent
DAMPING = 1.0


def losses(model: Any, batch: tuple[Tensor, Tensor]) -> reweight.Losses:
    x, y = batch
    return reweight.Losses(
        (model(x).squeeze(-1) - y).square(), fixed=model[0].weight.square().sum()
    )


def outer_loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return losses(model, batch).weighted.mean()


@pytest.mark.parametrize("dense", [True, False])
def test_the_reference_is_the_exact_influence(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense:
        monkeypatch.setattr(_reference, "_DENSE", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    batch, dev = (
        (torch.randn(n, 3, dtype=torch.float64), torch.randn(n, dtype=torch.float64))
        for n in (6, 5)
    )
    strategy = ImplicitHypergradient(ConjugateGradient(200, rtol=1e-12), damping=DAMPING)
    weighter = reweight.LossWeighter(hidden=4).double()
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer, strategy)
    reference = _reference.Reference(model, losses, outer_loss, optimizer)
    found = reference.influence(rw.weights(batch), DAMPING, batch, dev)
    # Differences of gradients are right to 1e-9 or so, and MINRES stops at 1e-8.
    assert relative_error(rw.hypergradient(batch, dev).influence, found) < 1e-7


def test_every_client_is_on_its_page() -> None:
    page = (ROOT / "docs" / "reference" / "clients.md").read_text(encoding="utf-8")
    scripts = list((ROOT / "benchmarks" / "clients").glob("[!_]*_*.py"))
    assert scripts
    assert all(script.name in page for script in scripts)
