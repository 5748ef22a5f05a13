"""One fold of several is held out, and each sample in one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reweight
from _support.samplers import all_ranks, epoch_of, fold_settings, globally
from reweight.samplers import FoldSampler


@given(fold_settings(), st.integers(0, 6))
def test_the_folds_hold_out_each_sample_once(settings: dict[str, Any], epochs: int) -> None:
    n, folds = settings["n"], settings["folds"]
    held_out = []
    for fold in range(folds):
        ranks = all_ranks(FoldSampler, settings | {"fold": fold})
        trained, dev = set(), set()
        for train_batch, dev_batch in globally(ranks) + (globally(ranks) if epochs else []):
            trained.update(train_batch)
            dev.update(dev_batch)
        assert not trained & dev
        assert trained | dev <= set(range(n))
        if settings["batch_size"] > 1:  # else a rank may leave a sample out
            size = n // folds + (fold < n % folds)
            assert len(trained) == n - size
            assert len(dev) <= size
        held_out.append(set(ranks[0]._samples.dev.tolist()))
    assert sorted(i for fold in held_out for i in fold) == list(range(n))


def test_the_folds_of_a_seed_are_the_same_whatever_else_is_chosen() -> None:
    def held_out(**settings: Any) -> list[int]:
        sampler = FoldSampler(20, 4, 1, **({"batch_size": 5} | settings))
        return sorted({i for _ in range(3) for _, dev in epoch_of(sampler) for i in dev})

    assert held_out() == held_out(batch_size=3) == held_out(dev_batch_size=2)
    assert held_out() != held_out(seed=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"folds": 1}, "folds = 1 must be 2 or more"),
        ({"fold": 3}, "fold = 3 of folds = 3: folds are counted from 0, so the last one is 2"),
        ({"fold": -1}, "fold = -1 must be 0 or more"),
        ({"n": 2}, "leave 0 in the smallest fold"),
        ({"num_replicas": 4}, "or more in each; take fewer folds or fewer replicas"),
    ],
)
def test_what_cannot_be_folded_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FoldSampler(**({"n": 9, "folds": 3, "fold": 0, "batch_size": 2} | settings))


def test_a_state_of_another_fold_is_refused() -> None:
    state = FoldSampler(9, 3, 0, 2).state_dict()
    with pytest.raises(ValueError, match="fold"):
        FoldSampler(9, 3, 1, 2).load_state_dict(state)


def test_a_weighter_learns_from_the_models_of_all_folds() -> None:
    """The hypergradients add up in ``.grad``, as any gradients do."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 2, dtype=torch.float64), torch.randn(12, dtype=torch.float64)

    def losses(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return (model(x[rows]).squeeze(-1) - y[rows]).square()

    def dev_loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return losses(model, rows).mean()

    weighter = reweight.LossWeighter(4).double()
    total: dict[str, torch.Tensor] = {}
    for fold in range(3):
        rw = reweight.wrap(nn.Linear(2, 1).double(), weighter, losses, dev_loss)
        for name, grad in rw.outer_backward(*next(iter(FoldSampler(12, 3, fold, 8)))).grads.items():
            total[name] = total.get(name, torch.zeros_like(grad)) + grad
    for name, p in weighter.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, total[name], rtol=1e-14, atol=1e-16)
