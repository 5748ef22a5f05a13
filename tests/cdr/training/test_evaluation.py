"""Evaluation: free of chance, an average over fixed source behaviours, and no trace left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cdr.data import Behaviors, CrossDomainData
from cdr.data.batches import Batches
from cdr.models.conet import CoNet, CoNetOptions
from cdr.training import evaluation
from cdr.training.evaluation import NUM_SOURCE, Scores, score


@pytest.fixture(scope="module", params=["tiny", "gappy"])
def data(request: pytest.FixtureRequest) -> CrossDomainData:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(data: CrossDomainData) -> CoNet:
    torch.manual_seed(0)
    return CoNet(data, CoNetOptions(init_std=1.0))


def test_scores_do_not_depend_on_chance(data: CrossDomainData, model: CoNet) -> None:
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        batches = Batches(data, 0, seed)
        batches.train_pairs(torch.arange(4))  # moves the generator of the batches
        results.append(score(model, batches, data.test, NUM_SOURCE).probability)
    assert np.array_equal(*results)


def test_no_random_number_is_drawn(data: CrossDomainData, model: CoNet) -> None:
    batches = Batches(data, 0, seed=0)
    untouched, rows = Batches(data, 0, seed=0), torch.arange(len(data.train))
    before = torch.get_rng_state()
    score(model, batches, data.test, NUM_SOURCE)
    assert torch.equal(before, torch.get_rng_state())
    # The source behaviours that come next are those of batches that no score was made from.
    drawn = [each.train_pairs(rows).source_row for each in (batches, untouched)]
    assert torch.equal(*drawn)


def test_a_score_is_the_mean_over_source_behaviours_of_the_user(
    data: CrossDomainData, model: CoNet
) -> None:
    found = score(model, Batches(data, 0, 0), data.test, NUM_SOURCE)
    rows = data.test
    batches = Batches(data, 0, 0)
    for row in range(0, len(rows), 9):
        one = Behaviors(rows.user[[row]], rows.item[[row]], rows.label[[row]])
        probabilities = []
        for place in range(NUM_SOURCE):
            # Spread evenly: the middle of each of NUM_SOURCE equal parts of the user's list.
            pair = batches.pairs(one, torch.tensor([(place + 0.5) / NUM_SOURCE]))
            probabilities.append(float(model(pair)[0].detach().sigmoid()))
        # Sums of float32 in another batch size.
        assert found.probability[row] == pytest.approx(np.mean(probabilities), abs=1e-6)


def test_as_many_source_behaviours_as_the_user_has_are_each_used_once(
    tiny: CrossDomainData,
) -> None:
    count = tiny.source_offsets.diff()
    user = int((count == NUM_SOURCE).nonzero()[0])
    one = Behaviors(torch.tensor([user]), torch.tensor([0]), torch.tensor([1.0]))
    batches = Batches(tiny, 0, 0)
    items = [
        int(batches.pairs(one, torch.tensor([(k + 0.5) / NUM_SOURCE])).source.item)
        for k in range(NUM_SOURCE)
    ]
    own = slice(int(tiny.source_offsets[user]), int(tiny.source_offsets[user + 1]))
    assert items == tiny.source.item[own].tolist()


def test_the_size_of_chunks_does_not_matter(
    data: CrossDomainData, model: CoNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(model, Batches(data, 0, 0), data.test, NUM_SOURCE)
    monkeypatch.setattr(evaluation, "_CHUNK", 7)
    parts = score(model, Batches(data, 0, 0), data.test, NUM_SOURCE)
    # Sums of float32 in another batch size.
    assert np.allclose(whole.probability, parts.probability, atol=1e-6)
    assert np.array_equal(whole.user, parts.user) and np.array_equal(whole.label, parts.label)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(data: CrossDomainData, model: CoNet, training: bool) -> None:
    model.train(training)
    score(model, Batches(data, 0, 0), data.test, 1)
    assert model.training is training
    assert all(p.grad is None for p in model.parameters())


def test_metrics_of_scores() -> None:
    scores = Scores(
        np.array([0.9, 0.2, 0.8, 0.8], dtype=np.float32),
        np.array([1, 0, 1, 0], dtype=np.float32),
        np.array([0, 0, 1, 1]),
    )
    found = scores.metrics()
    assert found["auc"] == 3.5 / 4
    assert found["gauc"] == (1.0 + 0.5) / 2
    expected = -np.log([0.9, 0.8, 0.8, 0.2]).mean()
    assert found["log_loss"] == pytest.approx(expected, rel=1e-6)  # float32 probabilities
    lone = Scores(scores.probability, scores.label, np.arange(4))
    assert math.isnan(lone.metrics()["gauc"])
