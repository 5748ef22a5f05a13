"""Weights found on folds, and the model that is trained with them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scenarios import brief

from cdr.data import CrossDomainData
from cdr.runs import Source, Task, options_read
from cdr.runs.runner import _stacked, run
from cdr.training import Fold, Options, Result, Scores, Training, auc, train
from cdr.training.agreement import Agreement
from cdr.training.calibration import calibrated_outer_loss
from cdr.training.crossfit import CrossFit, Found, cross_fitted
from cdr.training.one_shot import _influence, by_held_out_loss
from cdr.training.pairs import pair_sampler
from cdr.training.procedure import _FINDERS, PLAIN, preferred
from cdr.training.saves import Saves
from cdr.training.spread import WEIGHT_SPREAD, spread

FOUND = ("crossfit", "influence", "held-out-loss")


def options(model: str = "conet", **changes: object) -> Options:
    return brief(model).changed({"search.folds": 3, **changes})


class AlwaysAgreeing(Agreement):
    """Folds that agree from the first outer step on, with a given share of signal."""

    share = 1.0

    def add(self, hypergradients: torch.Tensor) -> float:
        super().add(hypergradients)
        self.agrees = True
        return self.share


@pytest.fixture
def agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folds always agree, and outer steps begin after the first epoch.

    The dev loss is the plain one: a model of a few steps often ranks held-out rows backwards, and
    then the calibrated loss has no gradient.
    """
    monkeypatch.setattr("cdr.training.crossfit._SETTLED", np.inf)
    monkeypatch.setattr("cdr.training.crossfit.Agreement", AlwaysAgreeing)
    monkeypatch.setattr(
        "cdr.training.learner.calibrated_outer_loss", lambda model, batch: model.target_loss(batch)
    )


def same(one: Result, other: Result) -> bool:
    models = zip(one.state["model"].values(), other.state["model"].values(), strict=True)
    return all(torch.equal(a, b) for a, b in models) and np.array_equal(
        one.test.probability, other.test.probability
    )


# Folds.


@pytest.mark.parametrize("num", [9, 10, 11])
def test_folds_divide_the_rows_and_no_model_sees_its_own(num: int) -> None:
    held_out = []
    for number in range(3):
        fold = Fold(number, 3)
        own = fold.rows(num, seed=4)
        sampler = pair_sampler(num, 4, 4, options().outer, fold)
        trained = torch.cat([rows for rows, _ in sampler])
        assert sorted(torch.cat([trained, own]).tolist()) == list(range(num))
        assert set(torch.cat([dev for _, dev in sampler]).tolist()) <= set(own.tolist())
        held_out += own.tolist()
    assert sorted(held_out) == list(range(num))


# Cross-fitting.


@pytest.mark.parametrize("model", ["conet", "minet"])
def test_one_weighter_learns_from_all_folds(
    tiny: CrossDomainData, model: str, agreeing: None
) -> None:
    found = cross_fitted(tiny, options(model, **{"search.epochs": 2}), seed=0)
    assert found.weights is not None and found.weights.shape == (len(tiny.source),)
    assert found.weights.mean() == pytest.approx(1.0) and found.weights.std() > 0
    assert (found.weights >= 0).all()
    assert found.records and all(record["taken"] == 1.0 for record in found.records)
    assert "3 folds agree in" in found.note


def test_all_models_begin_alike_and_share_the_weighter(tiny: CrossDomainData) -> None:
    first, *others = CrossFit(tiny, options(), seed=0)._trainings
    for other in others:
        for one, same_one in zip(first.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(one, same_one) and one is not same_one
        assert first.learner.rw.weighter is other.learner.rw.weighter


@pytest.mark.parametrize("weighter", ["perceptron", "loss", "group"])
def test_a_factor_of_all_weights_is_not_what_the_folds_agree_on(
    tiny: CrossDomainData, weighter: str, agreeing: None
) -> None:
    crossfit = CrossFit(tiny, options(**{"search.epochs": 2, "outer.weighter": weighter}), seed=0)
    own = crossfit._trainings[0].learner.rw.weighter
    scale = own.raw_gamma if weighter == "perceptron" else own.raw_scale
    before, rows = scale.clone(), sum(p.numel() for p in own.parameters())
    seen = []
    add = crossfit._steps._agreement.add
    crossfit._steps._agreement.add = lambda hypergradients: (
        seen.append(hypergradients.shape),
        add(hypergradients),
    )[1]
    crossfit.run_epoch(lambda *where: None)
    crossfit.run_epoch(lambda *where: None)
    assert set(seen) == {(3, rows - 1)}
    assert torch.equal(scale, before)


def test_one_weight_for_all_is_nothing_to_cross_fit(tiny: CrossDomainData) -> None:
    with pytest.raises(ValueError, match="--outer.weighter constant: cross-fitting compares"):
        CrossFit(tiny, options(**{"outer.weighter": "constant"}), seed=0)


def test_what_does_not_agree_moves_nothing(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdr.training.crossfit._SETTLED", np.inf)
    crossfit = CrossFit(tiny, options(**{"search.epochs": 2}), seed=0)
    weighter = crossfit._trainings[0].learner.rw.weighter
    before = [p.detach().clone() for p in weighter.parameters()]
    with monkeypatch.context() as patch:
        patch.setattr(Agreement, "t", property(lambda self: -1.0))
        while not crossfit.done:
            crossfit.run_epoch(lambda *told: None)
    assert all(torch.equal(a, b) for a, b in zip(before, weighter.parameters(), strict=True))
    found = crossfit.found()
    assert found.weights is None and found.records and "agree in none of" in found.note


@pytest.mark.slow
@pytest.mark.parametrize(("within", "t", "epochs"), [(1, 2.0, 1), (10_000, 2.0, 8), (50, -2.5, 2)])
def test_folds_are_waited_for_as_long_as_they_may_agree(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch, within: int, t: float, epochs: int
) -> None:
    monkeypatch.setattr("cdr.training.crossfit._SETTLED", np.inf)
    monkeypatch.setattr("cdr.training.crossfit._WITHIN", within)
    monkeypatch.setattr(Agreement, "t", property(lambda self: t))
    monkeypatch.setattr("cdr.training.crossfit.Agreement", partial(Agreement, window=3))
    # The first epoch is the steep part, in which no outer step is looked at. The one in which folds
    # are given up is not trained to its end.
    crossfit = CrossFit(tiny, options(**{"search.epochs": 4}), seed=0)
    while not crossfit.done:
        crossfit.run_epoch(lambda *told: None)
    assert crossfit._trainings[0].epoch == epochs
    assert crossfit.found().weights is None


@pytest.mark.parametrize("model", ["conet", "dasl"])
def test_folds_that_were_given_up_are_not_taken_up_again(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    monkeypatch.setattr("cdr.training.crossfit._SETTLED", np.inf)
    monkeypatch.setattr("cdr.training.crossfit._WITHIN", 1)
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    # In the middle of an epoch, with the state that is kept after it.
    told = options(model, **{"search.epochs": 4, "outer.interval": 1})
    saves = Saves(tmp_path / "state", required=True)
    found = cross_fitted(tiny, told, seed=0, saves=saves, on_step=count)
    an_epoch = len(CrossFit(tiny, told, seed=0)._trainings[0].sampler)
    assert steps == an_epoch + 1 and found.weights is None and len(found.records) == 1
    again = cross_fitted(tiny, told, seed=0, saves=saves, on_step=count)
    assert steps == an_epoch + 1 and len(again.records) == 1
    assert (again.weights, again.note) == (None, found.note)


def test_a_step_is_shortened_to_the_share_of_the_signal(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch, agreeing: None
) -> None:
    moved = []
    for share in (1.0, 0.25):
        monkeypatch.setattr(AlwaysAgreeing, "share", share)
        crossfit = CrossFit(tiny, options(**{"outer.optimizer": "sgd"}), seed=0)
        weighter = crossfit._trainings[0].learner.rw.weighter
        before = torch.cat([p.detach().reshape(-1) for p in weighter.parameters()])
        crossfit._steps.take()
        moved.append(torch.cat([p.detach().reshape(-1) for p in weighter.parameters()]) - before)
    assert moved[0].abs().max() > 0
    # Differences of float32 numbers of size 1.
    assert torch.allclose(moved[0], 4 * moved[1], atol=1e-6)


# Inner steps.


def after_epochs(crossfit: CrossFit, epochs: int = 2) -> list[torch.Tensor]:
    """The parameters of all models and of the weighter."""
    for _ in range(epochs):
        crossfit.run_epoch(lambda *where: None)
    modules = [training.model for training in crossfit._trainings]
    modules.append(crossfit._trainings[0].learner.rw.weighter)
    return [p.detach().clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("weighter", ["perceptron", "group"])
@pytest.mark.parametrize("model", ["conet", "minet"])
def test_steps_taken_together_are_those_of_each_model(
    double: CrossDomainData,
    monkeypatch: pytest.MonkeyPatch,
    agreeing: None,
    model: str,
    weighter: str,
) -> None:
    told = options(model, **{"outer.interval": 2, "outer.weighter": weighter, "search.lr": 0.1})
    crossfit = CrossFit(double, told, seed=0)
    assert crossfit._stack is not None
    together = after_epochs(crossfit)
    assert crossfit._steps.taken > 0
    monkeypatch.setattr("cdr.training.crossfit._stack", lambda *_: None)
    one_by_one = after_epochs(CrossFit(double, told, seed=0))
    for one, other in zip(together, one_by_one, strict=True):
        # A batched product adds up in another order, and Adam divides by gradients that may be
        # next to nothing: see test_side_by_side.py.
        assert torch.allclose(one, other, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("unfit", ["dasl", "inner.lazy_tables"])
def test_models_that_cannot_be_stacked_take_their_own_steps(
    tiny: CrossDomainData, unfit: str
) -> None:
    model, changes = ("dasl", {}) if unfit == "dasl" else ("conet", {unfit: True})
    crossfit = CrossFit(tiny, options(model, **changes), seed=0)
    assert crossfit._stack is None
    before = after_epochs(crossfit, 0)
    assert any(
        not torch.equal(*pair) for pair in zip(before, after_epochs(crossfit, 1), strict=True)
    )


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("batch_size", [20, 40])
def test_folds_of_different_size_take_equally_large_steps(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch, stacked: bool, batch_size: int
) -> None:
    # Of 61 rows, three models are trained on 40, 41 and 41 of them.
    data = replace(tiny, train=tiny.train.select(torch.arange(61)))
    if not stacked:
        monkeypatch.setattr("cdr.training.crossfit._stack", lambda *_: None)
    crossfit = CrossFit(data, options(**{"inner.batch_size": batch_size}), seed=0)
    seen = []
    for training in crossfit._trainings:
        monkeypatch.setattr(
            training, "step", lambda batch: seen.append(len(batch)) or torch.zeros(())
        )
    if stacked:
        monkeypatch.setattr(
            crossfit._stack,
            "step",
            lambda batches: seen.extend(map(len, batches)) or torch.zeros(len(batches)),
        )
    crossfit.run_epoch(lambda *where: None)
    assert seen == [batch_size] * (3 * 40 // batch_size)
    # Every sampler has come to the end of its epoch.
    assert len({training.epoch for training in crossfit._trainings}) == 1
    crossfit.run_epoch(lambda *where: None)
    assert len(seen) == 2 * (3 * 40 // batch_size)


@pytest.mark.parametrize("weighted_ahead", [1, 2])
def test_a_weighter_that_has_not_moved_gives_the_weights_that_are_not_asked_for(
    tiny: CrossDomainData, weighted_ahead: int
) -> None:
    told = options(**{"outer.weights_ahead": weighted_ahead, "outer.interval": 2})
    training = Training("ours", tiny, told, seed=0)
    batches = list(islice(training.epoch_batches(), 2))
    for batch in batches:
        assert (batch.weight is None) == (weighted_ahead == 1)
        # Histories are not gathered where nothing reads them.
        assert (batch.source_history is None) == (weighted_ahead == 2)
    if weighted_ahead == 2:
        assert all((batch.weight == 1).all() for batch in batches)
        learner, own = training.learner, torch.arange(len(tiny.source))
        with torch.no_grad():
            losses = learner.losses(training.model, training.batches.source_rows(own))
            asked = learner.rw.weighter(losses.weighted, losses.inputs)
        assert (asked == 1).all()
        learner.weighing.step()
        training.count_step(), training.count_step()
        (after,) = islice(training.epoch_batches(), 1)
        assert learner.weighing.moved and after.weight is not None


@pytest.mark.slow
def test_an_interrupted_one_goes_on_from_its_last_epoch(
    tiny: CrossDomainData, tmp_path: Path, agreeing: None
) -> None:
    told = options(**{"search.epochs": 2, "outer.interval": 2})
    whole = cross_fitted(tiny, told, seed=0)
    saves, steps = Saves(tmp_path / "state", required=True), 0

    def interrupt(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_fitted(tiny, told, seed=0, saves=saves, on_step=interrupt)
    again = cross_fitted(tiny, told, seed=0, saves=saves)
    assert np.array_equal(whole.weights, again.weights)
    assert whole.records == again.records
    with pytest.raises(ValueError, match="--search.folds"):
        cross_fitted(tiny, told.changed({"search.folds": 2}), seed=0, saves=saves)


# What is trained with the weights.


def test_where_the_folds_do_not_agree_a_plain_model_is_kept(tiny: CrossDomainData) -> None:
    result = train("crossfit", tiny, options(), seed=0)
    assert (result.weights == 1).all() and result.weight_auc == 0.5
    plain = {name: train(name, tiny, options(), seed=0) for name in PLAIN}
    kept = preferred(plain)
    assert same(result, plain[kept]) and result.kept == kept
    assert result.note.endswith(f"kept: {kept}")


def test_weights_are_kept_unless_the_base_model_is_better(
    tiny: CrossDomainData, agreeing: None
) -> None:
    told = options(**{"search.epochs": 2, "search.lr": 0.01})
    found = cross_fitted(tiny, told, seed=0).weights
    assert found is not None and found.std() < WEIGHT_SPREAD
    given = {"crossfit": found, "spread": spread(found)}
    trained = {
        name: train("retrain", tiny, told, seed=0, learned=weights)
        for name, weights in given.items()
    }
    trained |= {name: train(name, tiny, told, seed=0) for name in PLAIN}
    kept = preferred(trained)
    for finished in (lambda name: None, trained.get):
        result = train("crossfit", tiny, told, seed=0, finished=finished)
        assert np.array_equal(result.weights, given.get(kept, found))
        assert same(result, trained[kept])


@pytest.mark.parametrize("much", [False, True])
def test_weights_that_hardly_differ_are_spread_if_that_is_better(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch, much: bool
) -> None:
    assert tiny.relevant is not None
    flags = tiny.relevant.numpy().astype(np.float32)
    draws = np.random.default_rng(0).uniform(size=len(flags)).astype(np.float32)
    found = flags * draws**3 if much else 1 + 0.02 * flags
    found /= found.mean()
    monkeypatch.setitem(_FINDERS, "crossfit", lambda *_, **__: Found(found, [], "told"))
    given = []

    def judged_by_spread(name: str, *_: object, **told: Any) -> Result:
        weights = told["learned"]
        given.append(0.0 if weights is None else float(weights.std()))
        return judged(min(0.6 + 0.2 * given[-1], 0.9), 4000, seed=len(given))

    monkeypatch.setattr("cdr.training.epochs.train", judged_by_spread)
    result = train("crossfit", tiny, options(), seed=0)
    assert result.weight_auc == 1.0
    if much:
        assert (
            len(given) == 4 and given[0] >= WEIGHT_SPREAD and np.array_equal(result.weights, found)
        )
        assert result.note == "told; kept: the weights" and result.kept == "crossfit"
    else:
        assert len(given) == 5 and given[:2] == pytest.approx([found.std(), WEIGHT_SPREAD])
        assert result.weights.std() == pytest.approx(WEIGHT_SPREAD)
        assert result.note == "told; kept: the weights, spread" and result.kept == "spread"


def judged(best: float, num: int, seed: int = 0) -> Result:
    """A result whose validation rows have about this AUC."""
    rng = np.random.default_rng(seed)
    label = (np.arange(num) % 2).astype(np.float32)
    shift = np.sqrt(2) * float(scipy.stats.norm.ppf(best))
    scores = rng.normal(size=num) + shift * label
    probability = (1 / (1 + np.exp(-scores))).astype(np.float32)
    valid = Scores(probability, label, np.arange(num))
    result = Result(valid, None, [{"auc": auc(probability, label)}], {})
    result.valid = valid
    return result


def test_what_nothing_was_learned_of_is_kept_only_if_it_is_clearly_better() -> None:
    plain = {"base": judged(0.70, 4000), "S": judged(0.60, 4000, 1)}
    # A standard error of the difference of two AUCs on 4,000 rows each is about .011.
    by_chance = (judged(0.70, 4000, seed) for seed in range(2, 99))
    little = next(one for one in by_chance if 0 < one.best - plain["base"].best < 0.008)
    assert preferred({**plain, "0": little}) == "base"
    assert preferred({**plain, "0": judged(0.76, 4000, 2)}) == "0"
    assert preferred({"crossfit": judged(0.701, 4000), **plain, "0": judged(0.6, 4000, 2)}) == (
        "crossfit"
    )
    found = {"crossfit": judged(0.70, 4000), "0": judged(0.6, 4000, 2)}
    assert preferred({**found, **plain, "spread": little}) == "crossfit"
    assert preferred({**found, **plain, "spread": judged(0.76, 4000, 2)}) == "spread"
    worse = {**found, **plain, "crossfit": judged(0.65, 4000)}
    assert preferred({**worse, "spread": little}) == "base"
    assert preferred({**worse, "spread": judged(0.76, 4000, 2)}) == "spread"
    assert preferred({"crossfit": judged(0.69, 4000), **plain, "0": judged(0.6, 4000, 2)}) == "base"


@pytest.mark.parametrize("variant", FOUND)
def test_found_weights_go_to_the_permuted_control(tiny: CrossDomainData, variant: str) -> None:
    source = Source("g1", (("num_users", 60),), seeded=True)
    tasks = [Task(v, 3, source, options(), "cpu") for v in (f"{variant}-random", variant)]
    results = {task.variant: result for task, result in run(tasks, 1, lambda text: None)}
    assert not any(isinstance(result, Exception) for result in results.values())
    found = results[variant]
    assert found.note and found.weights.mean() == pytest.approx(1.0)
    assert found.seconds > 0


def test_a_permuted_control_counts_the_source_as_much(tiny: CrossDomainData) -> None:
    told = options(**{"inner.gamma": 0.5})
    found = train("held-out-loss", tiny, told, seed=0).weights
    assert found.mean() == pytest.approx(0.5)
    control = Training("held-out-loss-random", tiny, told, seed=0, learned=found)
    assert float(control._judged.mean()) == pytest.approx(0.5)


@pytest.mark.parametrize("variant", FOUND)
def test_seeds_side_by_side_find_weights_one_by_one(tiny: CrossDomainData, variant: str) -> None:
    log = Source("epinions", seeded=False)

    tasks = [Task(variant, seed, log, options(), "cpu") for seed in (0, 1)]
    assert len(_stacked(tasks)) == 2


@pytest.mark.parametrize("variant", FOUND)
def test_the_options_of_the_search_decide_what_is_found(variant: str) -> None:
    source = Source("g1", (("num_users", 60),), seeded=True)
    one, other = (
        options_read(Task(variant, 0, source, options(**{"search.folds": folds}), "cpu"))
        for folds in (3, 4)
    )
    assert one != other


def test_the_rows_of_an_outer_step_are_read_by_cross_fitting_alone() -> None:
    source = Source("g1", (("num_users", 60),), seeded=True)
    for variant in FOUND:
        one, other = (
            options_read(Task(variant, 0, source, options(**{"search.batch_size": rows}), "cpu"))
            for rows in (64, 128)
        )
        assert (one != other) == (variant == "crossfit")


# Weights read off trained models.


def test_influence_is_the_product_of_gradients_without_curvature(tiny: CrossDomainData) -> None:
    told = options(**{"outer.solver": "identity", "outer.step_size": 1.0})
    fold = Fold(0, 3)
    training = Training("base", tiny, told, seed=0, fold=fold)
    training.run_epoch(lambda *_: None)
    held_out = fold.rows(len(tiny.train), seed=0)
    training.batches.load_state_dict(state := training.batches.state_dict())
    found = _influence(training, tiny, told, held_out)
    training.batches.load_state_dict(state)
    parameters = list(training.model.parameters())

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([grad.reshape(-1) for grad in grads])

    dev = gradient(calibrated_outer_loss(training.model, training.batches.train_pairs(held_out)))
    last = {int(user): row for row, user in enumerate(tiny.train.user)}
    for row in (0, 17, 400):
        target = torch.tensor([last.get(int(tiny.source.user[row]), 0)])
        batch = training.batches.source_rows(torch.tensor([row]), beside=tiny.train.select(target))
        own = gradient(training.model.losses(batch).weighted.sum())
        # float32 sums of thousands of products
        assert found[row] == pytest.approx(float(own @ dev), rel=1e-3, abs=1e-7)


def test_a_behaviour_that_fits_no_other_counts_less(tiny: CrossDomainData) -> None:
    found = by_held_out_loss(tiny, options(), seed=0)
    assert found.weights.mean() == pytest.approx(1.0) and found.weights.min() >= 0
    assert found.weights.max() < 2
    assert len(np.unique(found.weights)) > len(tiny.source) / 2
