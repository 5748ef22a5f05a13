"""The two-tower against its formula, and what its domains share."""

from __future__ import annotations

import pytest
import torch
from scenarios import batch_for, small
from torch import Tensor

from cdr.data import CrossDomainData
from cdr.data.batches import Windows
from cdr.models import ModelOptions
from cdr.models.twotower import TwoTower


def twotower(data: CrossDomainData, **more: bool) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(data, ModelOptions(dim=3, init_std=1.0), **more).double()


def by_hand(p: dict[str, Tensor], user: int, item: int, category: int, domain: str) -> float:
    tables = p[f"{domain}_items.item.weight"], p[f"{domain}_items.category.weight"]
    x = torch.cat([tables[0][item], tables[1][category]])
    mapped = p[f"{domain}_map.weight"] @ x + p[f"{domain}_map.bias"]
    features = torch.cat([p["user.weight"][user] * mapped, x])
    return float(p[f"{domain}_head.weight"][0] @ features + p[f"{domain}_head.bias"])


@pytest.mark.parametrize("name", ["tiny", "gappy"])
def test_forward_is_the_formula(name: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(name)
    model = twotower(data)
    batch, p = batch_for(model, data), dict(model.state_dict())
    logits = dict(zip(("target", "source"), model(batch), strict=True))
    for domain, found in logits.items():
        for row in range(0, len(batch), 7):
            shown = getattr(batch, domain)
            wanted = by_hand(
                p, int(batch.user[row]), int(shown.item[row]), int(shown.category[row]), domain
            )
            assert found[row].item() == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_the_domains_share_nothing_but_the_users(tiny: CrossDomainData) -> None:
    model = twotower(tiny)
    losses = model.losses(batch_for(model, tiny))

    def reached(loss: Tensor) -> set[str]:
        grads = torch.autograd.grad(
            loss, list(model.parameters()), retain_graph=True, allow_unused=True
        )
        names = [name for name, _ in model.named_parameters()]
        return {name for name, grad in zip(names, grads, strict=True) if grad is not None}

    target, source = reached(losses.fixed), reached(losses.weighted.sum())
    assert target & source == {"user.weight"}
    assert target | source == {name for name, _ in model.named_parameters()}


def test_it_reads_no_past(tiny: CrossDomainData) -> None:
    assert TwoTower.windows(small("twotower"), False) == Windows((0, 0), (0, 0))
    batch = batch_for(twotower(tiny), tiny)
    assert batch.target_past is None and batch.source_past is None
