"""Training: reproducible, stopped at its best epoch, and clear about what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from cdr.data import CrossDomainData, Interactions, build
from cdr.data.batches import Batches
from cdr.models.conet import CoNet, CoNetOptions
from cdr.training.epochs import train
from cdr.training.evaluation import NUM_SOURCE, score
from cdr.training.learner import Learner
from cdr.training.loop import Training
from cdr.training.metrics import auc
from cdr.training.options import InnerOptions, Options
from cdr.training.presets import PresetName, preset
from cdr.training.result import Result

DEFAULT = Options()
VARIANTS = ("S", "0", "base", "ours", "oracle")


def options(base: Options = DEFAULT, *, epochs: int = 1, **groups: dict[str, object]) -> Options:
    """Some epochs of small batches, with outer steps among them."""
    inner = {"epochs": epochs, "batch_size": 64, **groups.get("inner", {})}
    outer = {"interval": 2, "dev_head_steps": 3, **groups.get("outer", {})}
    return replace(
        base,
        inner=replace(base.inner, **inner),
        outer=replace(base.outer, **outer),
        perceptron=replace(base.perceptron, **groups.get("perceptron", {})),
    )


def equal_states(one: Result, other: Result) -> bool:
    pairs = zip(one.state["model"].values(), other.state["model"].values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("start", get_args(PresetName))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_with_every_preset(
    tiny: CrossDomainData, variant: str, start: PresetName
) -> None:
    result = train(variant, tiny, options(preset(start, "conet")), seed=0)
    assert len(result.history) == 1 and np.isfinite(result.history[0]["loss"])
    assert len(result.test.probability) == len(tiny.test)
    assert len(result.extra_test.probability) == len(tiny.extra_test)
    assert ((result.test.probability > 0) & (result.test.probability < 1)).all()
    if variant == "ours":
        assert len(result.outer) == 2 and result.weights.shape == (len(tiny.source),)
        assert np.isfinite(result.weights).all() and (result.weights >= 0).all()
        assert result.weight_auc == auc(result.weights, tiny.relevant.numpy())
    else:
        assert result.outer == [] and result.weights is None and result.weight_auc is None


@pytest.mark.parametrize("variant", ["base", "ours"])
def test_lazy_tables_leave_alone_what_no_batch_has_looked_up(
    tiny: CrossDomainData, variant: str
) -> None:
    unseen = torch.ones(tiny.target_items.num, dtype=torch.bool)
    unseen[tiny.train.item] = False
    assert unseen.any()
    states = []
    for epochs in (1, 2):
        told = options(epochs=epochs, inner={"lazy_tables": True, "lr": 0.01})
        running = Training(variant, tiny, told, seed=0)
        while not running.done:
            running.run_epoch(lambda *_: None)
        states.append(running.model.target_items.item.weight.detach())
    assert torch.equal(states[0][unseen], states[1][unseen])
    assert (states[0] != states[1])[~unseen].all()


def test_a_cuda_graph_needs_a_gpu(tiny: CrossDomainData) -> None:
    with pytest.raises(ValueError, match="--inner.cuda-graphs.*cpu"):
        train("base", tiny, options(inner={"cuda_graphs": True}), seed=0)


@pytest.mark.parametrize("variant", VARIANTS[:-1])
def test_every_variant_runs_on_data_with_gaps(gappy: CrossDomainData, variant: str) -> None:
    counts = gappy.statistics
    assert counts["users_without_source"] and counts["users_with_two"]
    assert (torch.bincount(gappy.train.user) == 1).any()
    result = train(variant, gappy, options(epochs=2), seed=0)
    assert len(result.test.probability) == len(gappy.test) == gappy.num_users
    assert result.extra_test is None and result.weight_auc is None


@pytest.mark.parametrize("variant", ["S", "base", "ours"])
def test_a_seed_gives_one_result(tiny: CrossDomainData, variant: str) -> None:
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        results.append(train(variant, tiny, options(epochs=2), seed=5))
    one, other = results
    assert [r["auc"] for r in one.history] == [r["auc"] for r in other.history]
    assert equal_states(one, other)
    assert np.array_equal(one.test.probability, other.test.probability)
    if variant == "ours":
        assert np.array_equal(one.weights, other.weights)
    assert not equal_states(one, train(variant, tiny, options(epochs=2), seed=6))


def test_the_best_epoch_is_kept(tiny: CrossDomainData) -> None:
    # A high learning rate, so that the model soon overfits.
    result = train("base", tiny, options(epochs=30, inner={"lr": 0.03, "patience": 2}), seed=0)
    by_epoch = [record["auc"] for record in result.history]
    best = int(np.argmax(by_epoch))
    assert len(by_epoch) < 30, "it should have stopped early"
    assert len(by_epoch) == best + 1 + 2  # patience
    model = CoNet(tiny, CoNetOptions())
    model.load_state_dict(result.state["model"])
    batches = Batches(tiny, 0, seed=9)
    assert score(model, batches, tiny.valid, NUM_SOURCE).metrics()["auc"] == by_epoch[best]
    again = score(model, batches, tiny.test, NUM_SOURCE)
    assert np.array_equal(again.probability, result.test.probability)
    assert [record["epoch"] for record in result.history] == list(range(1, len(by_epoch) + 1))


def test_no_source_loss_is_a_weight_of_zero(tiny: CrossDomainData) -> None:
    zero = train("0", tiny, options(), seed=0)
    assert equal_states(zero, train("base", tiny, options(inner={"gamma": 0.0}), seed=0))
    assert not equal_states(zero, train("base", tiny, options(), seed=0))


def test_an_oracle_that_finds_all_relevant_is_the_base_model(tiny: CrossDomainData) -> None:
    everything = replace(tiny, relevant=torch.ones_like(tiny.relevant))
    oracle = train("oracle", everything, options(), seed=0)
    assert equal_states(oracle, train("base", tiny, options(), seed=0))
    nothing = replace(tiny, relevant=torch.zeros_like(tiny.relevant))
    oracle = train("oracle", nothing, options(), seed=0)
    # The source head gets a gradient of zero there and none in "0": weight decay sees it.
    plain = train("0", tiny, options(), seed=0)
    assert np.allclose(oracle.test.probability, plain.test.probability, atol=1e-6)


def test_the_validation_rows_are_not_trained_on(tiny: CrossDomainData) -> None:
    flipped = replace(tiny, test=replace(tiny.test, label=1 - tiny.test.label))
    assert equal_states(
        train("ours", tiny, options(), seed=0), train("ours", flipped, options(), seed=0)
    )


def test_weights_are_in_the_order_of_the_source_rows(tiny: CrossDomainData) -> None:
    # This σ looks at one behaviour at a time, so that the weight does not depend on the batch.
    told = options(
        epochs=3, outer={"lr": 0.01}, perceptron={"normalization": "sigmoid", "history": 5}
    )
    learner, batches = learner_of(tiny, told)
    for _ in range(20):
        learner.outer_step(batches)
    weights = learner.weights(batches)
    rows = torch.arange(0, len(tiny.source), 50)
    expected = learner.rw.weights(batches.source_rows(rows))
    assert weights.std() > 0.01, "nothing was learned, so that any order would do"
    # Another batch size, another order of float32 sums.
    assert np.allclose(weights[rows.numpy()], expected.numpy(), atol=1e-5)


def learner_of(data: CrossDomainData, told: Options) -> tuple[Learner, Batches]:
    torch.manual_seed(0)
    model = CoNet(data, told.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=told.inner.lr)
    return (
        Learner(model, optimizer, data, told, seed=0),
        Batches(data, told.perceptron.history, seed=0),
    )


def scenario(target_sizes: list[int], seed: int = 0) -> CrossDomainData:
    """Users with five source behaviours and so many target behaviours."""
    rng = np.random.default_rng(seed)
    num = len(target_sizes)

    def log(sizes: list[int], later: float) -> Interactions:
        user = np.repeat(np.arange(num), sizes)
        n = len(user)
        label = rng.random(n) < 0.5
        return Interactions(user, rng.integers(0, 30, n), label, rng.random(n) + later)

    return build("small", log([5] * num, 0.0), log(target_sizes, 2.0))


@pytest.mark.parametrize("dev", ["same-users", "reshuffled", "in-order", "split-users"])
def test_users_with_a_single_training_row_are_enough(dev: str) -> None:
    data = scenario([3] * 40)
    assert torch.bincount(data.train.user).max() == 1
    result = train("ours", data, options(inner={"batch_size": 8}, outer={"dev": dev}), seed=0)
    assert len(result.outer) == 2


def test_a_batch_without_a_user_of_two_rows_is_no_trouble() -> None:
    # One user of 40 has a second row: hardly any outer batch of four holds it.
    data = scenario([4] + [3] * 39)
    told = options(inner={"batch_size": 4}, outer={"interval": 1, "batch_size": 4})
    result = train("ours", data, told, seed=0)
    assert len(result.outer) == 11
    assert np.isfinite(result.weights).all()


@pytest.mark.parametrize("variant", ["S", "base", "ours"])
def test_batches_larger_than_the_data_are_cut(variant: str) -> None:
    data = scenario([4, 4, 4, 5])
    result = train(variant, data, options(inner={"batch_size": 10_000}), seed=0)
    assert len(result.history) == 1


@pytest.mark.parametrize("variant", ["S", "base", "ours"])
def test_a_learning_rate_that_is_too_high_is_told(tiny: CrossDomainData, variant: str) -> None:
    told = options(epochs=3, inner={"lr": 1e12})
    with pytest.raises(ValueError, match=rf"{variant}.*seed 3.*--inner.lr.*1e\+12"):
        train(variant, tiny, told, seed=3)


def test_parameters_that_break_in_the_last_step_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One batch an epoch: its loss is that of the initial parameters, and finite.
    step = torch.optim.Adam.step

    def broken(self: torch.optim.Adam) -> None:
        step(self)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    with pytest.raises(ValueError, match="--inner.lr"):
        train("base", scenario([4] * 8), options(inner={"batch_size": 100}), seed=0)


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize(("label", "word"), [(0.0, "negative"), (1.0, "positive")])
def test_rows_of_one_class_are_refused(
    tiny: CrossDomainData, part: str, label: float, word: str
) -> None:
    rows = getattr(tiny, part)
    data = replace(tiny, **{part: replace(rows, label=torch.full_like(rows.label, label))})
    with pytest.raises(ValueError, match=f"{part}.*{word}"):
        train("S", data, options(), seed=0)


def test_an_oracle_needs_flags(gappy: CrossDomainData) -> None:
    with pytest.raises(ValueError, match="flags"):
        train("oracle", gappy, options(), seed=0)


def test_each_step_is_told(tiny: CrossDomainData) -> None:
    told: list[tuple[int, int, int, float]] = []
    result = train("S", tiny, options(epochs=2), 0, on_step=lambda *where: told.append(where))
    steps = told[0][2]
    assert [where[:3] for where in told] == [
        (epoch, step, steps) for epoch in range(2) for step in range(1, steps + 1)
    ]
    assert told[0][3] < 0 and told[-1][3] == result.history[0]["auc"]


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: InnerOptions(lr=0.0), "--inner.lr 0.0"),
        (lambda: InnerOptions(lr=float("nan")), "--inner.lr nan"),
        (lambda: InnerOptions(batch_size=-1), "--inner.batch-size -1"),
        (lambda: InnerOptions(weight_decay=-1.0), "--inner.weight-decay"),
        (lambda: InnerOptions(epochs=0), "--inner.epochs 0"),
        (lambda: InnerOptions(patience=0), "--inner.patience 0"),
        (lambda: CoNetOptions(dim=0), "--model.dim 0"),
        (lambda: CoNetOptions(hidden=(8, 0)), "--model.hidden 8 0"),
        (lambda: CoNetOptions(hidden=(8,), cross_layers=2), "--model.cross-layers 2"),
        (lambda: CoNetOptions(init_std=0.0), "--model.init-std"),
        (lambda: options(outer={"interval": 0}), "--outer.interval 0"),
        (lambda: options(outer={"batch_size": 0}), "--outer.batch-size 0"),
        (lambda: options(outer={"clip": 0.0}), "--outer.clip 0.0"),
        (lambda: options(outer={"step_size": -1.0}), "--outer.step-size -1.0"),
        (lambda: options(outer={"num_terms": -1}), "--outer.num-terms -1"),
        (lambda: options(perceptron={"heads": 3}), "--perceptron.heads 3.* 1, 2, 4, 5"),
        (lambda: options(perceptron={"heads": 0}), "--perceptron.heads 0"),
        (lambda: options(perceptron={"history": 0}), "--perceptron.history 0"),
        (lambda: options(perceptron={"local_hidden": (0,)}), "--perceptron.local-hidden 0"),
        (lambda: options(perceptron={"global_bias": float("inf")}), "--perceptron.global-bias"),
    ],
)
def test_options_out_of_range_name_their_flag(make: object, flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        make()
