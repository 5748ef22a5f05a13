"""Trainings with weights that were learned before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from reweight.valuation import FixedWeights, SampleValues, WeightedCollate, WeightedTrainAndDev

VALUES = SampleValues([10, 11, 12, 13], [0.0, 1.0, 2.0, 5.0])


def test_fixed_weights_scale_gradients_without_wrap() -> None:
    model = nn.Linear(2, 1).double()
    x, ids = torch.eye(2, dtype=torch.float64), torch.tensor([13, 11])
    losses = model(x).squeeze(-1)
    weights = FixedWeights(VALUES)
    (weights(losses, ids) * losses).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[2.5, 0.5]]  # divided by their mean of 2
    assert not list(weights.parameters())
    assert FixedWeights(VALUES, normalize=False)(losses, ids).tolist() == [5.0, 1.0]


def test_fixed_weights_are_saved_with_their_ids() -> None:
    other = FixedWeights(SampleValues([0, 1, 2, 3], [1.0] * 4))
    other.load_state_dict(FixedWeights(VALUES).state_dict())
    assert other(torch.zeros(1), torch.tensor([12])).tolist() == [1.0]
    assert "4 samples" in repr(other)


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        (torch.tensor([9, 11]), ValueError, r"1 of 2 ids.*first is 9\b.*10 to 13"),
        (torch.tensor([11, 14]), ValueError, r"first is 14\b"),
        (torch.tensor([11]), ValueError, r"\(1,\).*\(2,\)"),
        (torch.tensor([11.0, 12.0]), TypeError, "float32"),
        ([11, 12], TypeError, "list"),
    ],
)
def test_ids_without_a_weight_are_refused(ids: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FixedWeights(VALUES)(torch.ones(2), ids)


def test_fixed_weights_are_compiled_and_an_unknown_id_stays_visible() -> None:
    compiled = torch.compile(FixedWeights(VALUES), backend="eager", fullgraph=True)
    found = compiled(torch.ones(3), torch.tensor([13, 9, 12]))
    assert found.tolist()[::2] == [2.5, 1.0] and math.isnan(found[1])


def test_a_table_that_cannot_be_looked_up_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        FixedWeights(SampleValues([], []))
    with pytest.raises(TypeError, match="'a'"):
        FixedWeights(SampleValues(["a"], [1.0]))
    with pytest.raises(ValueError, match="mean weight.*ran to 0"):
        FixedWeights(SampleValues([0, 1], [0.0, 0.0]))


class Words(Dataset[dict[str, Any]]):
    """Samples of different lengths, in dicts, with names."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise AssertionError("a position of the other data set")
        return {"name": self.names[index], "length": torch.tensor(len(self.names[index]))}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_keeps_its_weight_in_a_shuffled_loader(workers: int) -> None:
    train, dev = Words(["a", "bb", "ccc"]), Words(["dev", "other dev"])
    values = SampleValues(["ccc", "a", "bb", "not in train"], [3.0, 1.0, 2.0, 99.0])
    both = WeightedTrainAndDev(train, dev, values, ids=train.names, dev_weight=1.5)
    loader = DataLoader(both, batch_size=2, shuffle=True, num_workers=workers)
    found: dict[str, float] = {}
    for batch, weights in loader:
        assert weights.dtype == torch.float32
        found |= zip(batch["name"], weights.tolist(), strict=True)
    assert found == {"a": 0.5, "bb": 1.0, "ccc": 1.5, "dev": 1.5, "other dev": 1.5}


def test_a_loader_with_its_own_batches_gets_the_weights_beside_them() -> None:
    both = WeightedTrainAndDev(Words(["a", "bb"]), Words([]), SampleValues([0, 1], [1.0, 3.0]))
    collate = WeightedCollate(lambda samples: "+".join(sample["name"] for sample in samples))
    ((batch, weights),) = DataLoader(both, batch_size=2, collate_fn=collate)
    assert batch == "a+bb" and weights.tolist() == [0.5, 1.5]


def test_a_pruned_data_set_is_weighted_by_its_own_ids() -> None:
    whole = TensorDataset(torch.arange(4.0))
    values = SampleValues([0, 1, 2, 3], [9.0, 1.0, 9.0, 3.0])
    both = WeightedTrainAndDev(Subset(whole, [1, 3]), Subset(whole, []), values, ids=[1, 3])
    assert [(float(x), float(w)) for (x,), w in both] == [(1.0, 0.5), (3.0, 1.5)]


def test_dev_samples_alone_are_a_data_set_too() -> None:
    both = WeightedTrainAndDev(Words([]), Words(["dev"]), SampleValues([], []))
    assert len(both) == 1 and both[0][1] == 1.0


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"dev_weight": -1.0}, ValueError, "dev_weight=-1.0"),
        ({"dev_weight": math.nan}, ValueError, "dev_weight=nan"),
        ({"ids": [0]}, ValueError, "ids: there are 1 of them for 2"),
        ({"ids": [0, 7]}, ValueError, "no values: 7"),
        ({"values": SampleValues([0], [1.0])}, ValueError, "no values: 1"),
        ({"values": SampleValues([0, 1], [0.0, 0.0])}, ValueError, "mean weight"),
        ({"dev": Endless()}, TypeError, "dev is a Endless without a length"),
    ],
)
def test_two_data_sets_that_do_not_fit_are_refused(
    changes: Any, error: type[Exception], words: str
) -> None:
    arguments = {"train": Words(["a", "bb"]), "dev": Words(["dev"])}
    arguments |= {"values": SampleValues([0, 1], [1.0, 1.0])} | changes
    with pytest.raises(error, match=words):
        WeightedTrainAndDev(**arguments)


def test_the_mean_of_the_weights_is_over_the_training_samples_only() -> None:
    values = SampleValues(range(100), np.random.default_rng(0).random(100))
    data = TensorDataset(torch.zeros(100))
    both = WeightedTrainAndDev(data, Subset(data, range(7)), values)
    # The weights are kept in float32, so their mean is 1 to its rounding.
    assert math.isclose(float(both.weights[:100].double().mean()), 1.0, rel_tol=1e-6)
    assert both.weights[100:].tolist() == [1.0] * 7
