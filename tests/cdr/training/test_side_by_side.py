"""Seeds trained in common steps: the results that each has by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenarios import brief
from torch import Tensor, nn

from cdr.data import CrossDomainData
from cdr.models import MODELS
from cdr.models.conet import CoNet
from cdr.training.epochs import train
from cdr.training.loop import Training
from cdr.training.options import Options
from cdr.training.presets import PresetName, preset
from cdr.training.result import Result
from cdr.training.side_by_side import train_side_by_side
from cdr.training.stack import Stack

DEFAULT = Options()
SEEDS = (3, 1, 2)
# A batched product adds up in another order: gradients differ by some 1e-16. Adam divides by
# |gradient| + 1e-8, so that a parameter whose gradient is next to nothing is moved differently by
# lr · 1e-8, 1e-10 at the largest lr here. Few gradients are that small: met were 2e-13.
DOUBLE = 1e-10
# The same in float32, where gradients differ by 1e-7, can move such a parameter by lr, 2e-3, in a
# step. What it moves is a prediction's last digits: 2e-7 were met.
SINGLE = 1e-5


def options(base: Options = DEFAULT, *, epochs: int = 2, **inner: object) -> Options:
    """Some epochs of four small batches, with outer steps among them."""
    return replace(
        base,
        inner=replace(base.inner, **{"epochs": epochs, "batch_size": 64, **inner}),
        outer=replace(base.outer, interval=2, dev_head_steps=3),
    )


def tensors(state: dict[str, object]) -> list[Tensor]:
    return [
        tensor
        for entry in state.values()
        for tensor in (tensors(entry) if isinstance(entry, dict) else [entry])
        if isinstance(tensor, Tensor)
    ]


def assert_same(one: Result, other: Result, tolerance: float) -> None:
    assert [r["epoch"] for r in one.history] == [r["epoch"] for r in other.history]
    for a, b in zip(one.history, other.history, strict=True):
        # No two predictions are as close as rounding: their ranks are the same.
        assert a["auc"] == b["auc"]
        assert a["loss"] == pytest.approx(b["loss"], abs=tolerance)
    for a, b in zip(tensors(one.state), tensors(other.state), strict=True):
        assert torch.allclose(a, b, rtol=0.0, atol=tolerance)
    for a, b in ((one.test, other.test), (one.extra_test, other.extra_test)):
        assert np.allclose(a.probability, b.probability, rtol=0.0, atol=tolerance)
    assert len(one.outer) == len(other.outer)
    assert one.weight_auc == pytest.approx(other.weight_auc)
    if one.weights is not None:
        assert np.allclose(one.weights, other.weights, rtol=0.0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["default", "authors"])
@pytest.mark.parametrize("variant", ["S", "0", "base", "ours", "oracle"])
def test_the_results_are_those_of_one_by_one(
    double: CrossDomainData, variant: str, start: PresetName
) -> None:
    told = options(preset(start, "conet"))
    together = train_side_by_side(variant, double, told, SEEDS)
    for seed, result in zip(SEEDS, together, strict=True):
        assert_same(result, train(variant, double, told, seed), DOUBLE)
    assert not np.allclose(together[0].test.probability, together[1].test.probability)
    if variant == "ours":
        assert len(together[0].outer) == 4 and together[0].weights.std() > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["minet", "twotower"])
@pytest.mark.parametrize("variant", ["base", "ours"])
def test_the_results_of_other_models_are_too(
    double: CrossDomainData, variant: str, model: str
) -> None:
    told = brief(model)
    for seed, result in zip(SEEDS, train_side_by_side(variant, double, told, SEEDS), strict=True):
        assert_same(result, train(variant, double, told, seed), DOUBLE)


@pytest.mark.parametrize("weighter", ["loss", "group", "constant"])
def test_other_weighters_weigh_every_seed(double: CrossDomainData, weighter: str) -> None:
    told = options()
    told = replace(told, outer=replace(told.outer, weighter=weighter))
    for seed, result in zip(
        SEEDS[:2], train_side_by_side("ours", double, told, SEEDS[:2]), strict=True
    ):
        assert_same(result, train("ours", double, told, seed), DOUBLE)


def test_batch_statistics_are_not_for_trainings_side_by_side(tiny: CrossDomainData) -> None:
    with pytest.raises(ValueError, match="target_network.norm.running_mean.*buffer"):
        train_side_by_side("base", tiny, brief("dasl"), SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "ours"])
def test_predictions_in_single_precision_are_those_of_one_by_one(
    tiny: CrossDomainData, variant: str
) -> None:
    for seed, result in zip(
        SEEDS, train_side_by_side(variant, tiny, options(), SEEDS), strict=True
    ):
        alone = train(variant, tiny, options(), seed)
        assert np.allclose(result.test.probability, alone.test.probability, rtol=0.0, atol=SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "ours"])
def test_each_seed_stops_when_it_would_by_itself(double: CrossDomainData, variant: str) -> None:
    told = options(epochs=8, patience=1)
    together = train_side_by_side(variant, double, told, SEEDS)
    lengths = {len(result.history) for result in together}
    assert len(lengths) > 1 and min(lengths) < 8, "they should stop at different epochs, and early"
    for seed, result in zip(SEEDS, together, strict=True):
        assert_same(result, train(variant, double, told, seed), DOUBLE)


def test_a_seed_that_has_left_is_not_moved_any_more(double: CrossDomainData) -> None:
    trainings = [Training("base", double, options(epochs=2), seed) for seed in SEEDS]
    stack = Stack(trainings, options().inner)
    rows = torch.arange(64)
    stack.step([training.batches.train_pairs(rows) for training in trainings])
    for _ in range(2):
        trainings[1].end_epoch(0.5)
    left = [p.clone() for p in trainings[1].model.parameters()]
    stayed = [p.clone() for p in trainings[2].model.parameters()]
    stack.keep_running()
    assert stack.trainings == [trainings[0], trainings[2]]
    assert all(map(torch.equal, stayed, trainings[2].model.parameters()))
    losses = stack.step([training.batches.train_pairs(rows) for training in stack.trainings])
    assert losses.shape == (2,)
    assert all(map(torch.equal, left, trainings[1].model.parameters()))
    assert not any(map(torch.equal, stayed, trainings[2].model.parameters()))


def test_a_checkpoint_holds_one_seed_only(tiny: CrossDomainData) -> None:
    for result in train_side_by_side("ours", tiny, options(epochs=1), SEEDS):
        for tensor in tensors(result.state):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_seed_that_breaks_down_is_named(tiny: CrossDomainData) -> None:
    told = options(lr=1e12)
    for variant in ("base", "ours"):
        with pytest.raises(ValueError, match=rf"{variant}.*seed \d.*--inner.lr.*1e\+12"):
            train_side_by_side(variant, tiny, told, SEEDS)


def test_a_model_with_buffers_is_refused(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(CoNet):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, **named)
            self.norm = nn.BatchNorm1d(3)

    monkeypatch.setitem(MODELS, "conet", Counting)
    with pytest.raises(ValueError, match="model.norm.running_mean.*buffer"):
        train_side_by_side("base", tiny, options(), SEEDS)


def test_each_step_is_told_once(tiny: CrossDomainData) -> None:
    told: list[tuple[int, int, int, float]] = []
    results = train_side_by_side(
        "S", tiny, options(), SEEDS, on_step=lambda *where: told.append(where)
    )
    steps = told[0][2]
    assert [where[:3] for where in told] == [
        (epoch, step, steps) for epoch in range(2) for step in range(1, steps + 1)
    ]
    first = [result.history[0]["auc"] for result in results]
    assert told[0][3] < 0 and told[-1][3] == pytest.approx(np.mean(first))
