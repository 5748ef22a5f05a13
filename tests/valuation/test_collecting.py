"""Weights and influences gathered by id."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from reweight import (
    Identity,
    ImplicitHypergradient,
    Losses,
    Reweighted,
    TableWeighter,
    wrap,
)
from reweight.valuation import Collector, SampleValues, collect

SIZE = 8


def data(size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(size, generator=generator, dtype=torch.float64), torch.arange(size)


def losses(model: nn.Module, batch: Any) -> Losses:
    x, y, ids = batch
    return Losses((model(x).squeeze(-1) - y).square(), inputs=ids)


def wrapped(reduction: Literal["mean", "sum"] = "mean") -> Reweighted:
    torch.manual_seed(0)
    return wrap(
        nn.Linear(3, 1).double(),
        TableWeighter(SIZE).double(),
        losses,
        lambda model, batch: losses(model, batch).weighted.mean(),
        # Without a Hessian, the influence of a sample does not depend on the rest of its batch.
        hypergradient=ImplicitHypergradient(Identity()),
        reduction=reduction,
    )


def batches(*sizes: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(list(sizes)) for x in data()), strict=True))


def ids_of(batch: Any) -> Tensor:
    ids: Tensor = batch[2]
    return ids


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [(8,), (4, 4), (5, 2, 1)])
def test_influence_does_not_depend_on_how_samples_are_batched(
    reduction: Literal["mean", "sum"], sizes: tuple[int, ...]
) -> None:
    rw = wrapped(reduction)
    whole = rw.hypergradient(data(), data()).influence.numpy()
    values = collect(rw, batches(*sizes), ids_of, data())
    # Only the order of additions differs: float64 rounds at 1e-16.
    np.testing.assert_allclose(values.influence, whole, rtol=1e-12)


def test_outer_steps_give_the_last_weight_and_the_mean_influence() -> None:
    rw = wrapped()
    collector = Collector(rw)
    sums, seen, last = np.zeros(SIZE), np.zeros(SIZE, int), np.zeros(SIZE)
    for step in range(7):
        rows = torch.randperm(SIZE, generator=torch.Generator().manual_seed(step))[:4]
        batch = tuple(x[rows] for x in data())
        result = rw.outer_backward(batch, data())
        with torch.no_grad():
            for parameter in rw.weighter.parameters():
                parameter -= 0.1 * parameter.grad
        collector.add(rows, result, rw.weights(batch))
        sums[rows] += 4 * result.influence.numpy()  # by the weight in the sum over the batch
        seen[rows] += 1
        last[rows] = rw.weights(batch).numpy()
        assert abs(last - 1.0).max() > 1e-3
    values = collector.values()
    assert (seen > 0).all()  # else the ids of the two would differ
    np.testing.assert_array_equal(values.seen, seen)
    np.testing.assert_array_equal(values.weights, last)
    np.testing.assert_allclose(values.influence, sums / seen / SIZE, rtol=1e-12)


def test_gathering_goes_on_after_it_was_saved(tmp_path: Any) -> None:
    rw = wrapped()
    whole, first = Collector(rw), Collector(rw)
    results = [(b, rw.hypergradient(b, data()), rw.weights(b)) for b in batches(4, 4)]
    for batch, result, weights in results:
        whole.add(batch[2], result, weights)
    first.add(results[0][0][2], *results[0][1:])
    torch.save(first.state_dict(), tmp_path / "state")
    second = Collector(rw)
    second.load_state_dict(torch.load(tmp_path / "state"))
    second.add(results[1][0][2], *results[1][1:])
    for name in ("ids", "weights", "influence", "seen"):
        np.testing.assert_array_equal(getattr(second.values(), name), getattr(whole.values(), name))
    with pytest.raises(ValueError, match="not a state"):
        second.load_state_dict({})


def test_one_pass_gives_the_weights_of_a_shuffled_loader_by_id() -> None:
    rw = wrapped()
    with torch.no_grad():
        rw.weighter.raw.copy_(torch.linspace(-1.0, 1.0, SIZE))  # type: ignore[operator]
    loader = DataLoader(TensorDataset(*data()), batch_size=3, shuffle=True)
    values = collect(rw, loader, ids_of)
    np.testing.assert_array_equal(values.weights, rw.weights(data()).numpy())
    assert values.influence is None


def test_names_are_ids_too() -> None:
    rw = wrapped()
    values = collect(rw, batches(4, 4), lambda batch: [f"user {i}" for i in batch[2].tolist()])
    assert values.ids.tolist() == [f"user {i}" for i in range(SIZE)]


def test_an_id_that_several_samples_share_is_refused() -> None:
    rw = wrapped()
    with torch.no_grad():
        rw.weighter.raw.copy_(torch.linspace(-1.0, 1.0, SIZE))  # type: ignore[operator]
    assert len(collect(rw, [*batches(4, 4), *batches(8)], ids_of)) == SIZE  # the same weights
    for sizes in ((4, 4), (8,)):
        with pytest.raises(ValueError, match="0, 1, 2, 3 were met more than once"):
            collect(rw, batches(*sizes), lambda batch: batch[2] % 4)
    collector = Collector(rw)
    (batch,) = batches(8)
    arguments = batch[2] % 4, rw.hypergradient(batch, data()), rw.weights(batch)
    with pytest.warns(UserWarning, match="more than once in one batch"):
        collector.add(*arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        collector.add(*arguments)


def test_samples_that_the_loader_leaves_out_are_counted() -> None:
    loader = DataLoader(TensorDataset(*data()), batch_size=3, drop_last=True)
    with pytest.warns(UserWarning, match="6 of the 8 samples"):
        values = collect(wrapped(), loader, ids_of)
    with pytest.raises(ValueError, match="no values: 6, 7"):
        values.weights_of(range(SIZE))


def test_what_does_not_fit_is_refused() -> None:
    rw = wrapped()
    (batch,) = batches(8)
    result, weights = rw.hypergradient(batch, data()), rw.weights(batch)
    collector = Collector(rw)
    with pytest.raises(ValueError, match="nothing was gathered"):
        collector.values()
    with pytest.raises(ValueError, match=r"weights.*\(8,\).*3 ids"):
        collector.add(batch[2][:3], result, weights)
    with pytest.raises(ValueError, match=r"result.influence.*\(8,\).*3 ids"):
        collector.add(batch[2][:3], result, weights[:3])
    with pytest.raises(ValueError, match="not finite for the samples 2"):
        collector.add(batch[2], result, torch.where(batch[2] == 2, torch.nan, weights))
    with pytest.raises(TypeError, match="Tensor"):
        collector.add(batch[2], result.influence, weights)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Linear"):
        Collector(rw.model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no batches"):
        collect(rw, iter(()), ids_of)
    with pytest.raises(ValueError, match=r"\(8,\).*for 2 ids"):
        collect(rw, [batch], lambda batch: batch[2][:2])
    assert not collector._entries  # what was refused left nothing behind


def test_a_pass_changes_nothing() -> None:
    rw = wrapped()
    before = [p.clone() for p in (*rw.model.parameters(), *rw.weighter.parameters())]
    assert isinstance(collect(rw, batches(4, 4), ids_of, data()), SampleValues)
    after = [*rw.model.parameters(), *rw.weighter.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
