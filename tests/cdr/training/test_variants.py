"""Variants: each trains with every model, and does what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scenarios import brief
from torch import Tensor

from cdr.data import Batches, CrossDomainData
from cdr.models import MODELS
from cdr.training.inner import fixed_weights
from cdr.training.loop import Training
from cdr.training.metrics import auc
from cdr.training.options import Options
from cdr.training.procedure import train
from cdr.training.result import Result
from cdr.training.variants import VARIANTS, check_variants, plan, variant_label

LEARNING = ("ours", "no-global", "no-user", "search", "loss", "group", "constant", "split-0.2")


FINDING = ("crossfit", "influence", "held-out-loss")


@pytest.fixture(scope="module")
def learned(tiny: CrossDomainData) -> NDArray[np.float32]:
    """Weights as "search" could have learned them, all different."""
    return np.random.default_rng(0).permutation(len(tiny.source)).astype(np.float32) / 500


def same_model(one: Result, other: Result) -> bool:
    pairs = zip(one.state["model"].values(), other.state["model"].values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", [*VARIANTS, "split-0.2"])
def test_every_variant_trains_with_every_model(
    tiny: CrossDomainData, learned: NDArray[np.float32], variant: str, model: str
) -> None:
    result = train(variant, tiny, brief(model), seed=0, learned=learned)
    assert np.isfinite(result.history[0]["loss"])
    assert ((result.test.probability > 0) & (result.test.probability < 1)).all()
    learns = variant in LEARNING
    # What is found on folds may be that there is nothing to be told.
    finds = variant in FINDING
    assert finds or (result.weights is not None) == (len(result.outer) > 0) == learns
    if learns or finds:
        assert result.weights.shape == (len(tiny.source),) and (result.weights >= 0).all()
        assert result.weight_auc == auc(result.weights, tiny.relevant.numpy())
    elif variant == "retrain":
        assert result.weight_auc == auc(learned, tiny.relevant.numpy())
    else:
        assert (result.weight_auc is None) == (not variant.endswith("random"))


@pytest.mark.parametrize("model", MODELS)
def test_tables_of_every_model_can_be_lazy(tiny: CrossDomainData, model: str) -> None:
    told = brief(model)
    told = replace(told, inner=replace(told.inner, lazy_tables=True))
    result = train("ours", tiny, told, seed=0)
    assert len(result.outer) == 2 and np.isfinite(result.test.probability).all()


# Names.


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("S", "-S"),
        ("0", "-0"),
        ("base", ""),
        ("ours", "+ours"),
        ("search", "+ours, search"),
        ("retrain", "+ours retrained"),
        ("split-0.05", "+ours split 0.05"),
        ("split-0.10", "+ours split 0.1"),
    ],
)
def test_labels(variant: str, expected: str) -> None:
    assert variant_label(variant) == expected


@pytest.mark.parametrize(
    "variant", ["", "Ours", "split", "split-", "split-0", "split-1", "split-x", "split-nan"]
)
def test_what_is_no_variant_is_told(variant: str) -> None:
    with pytest.raises(ValueError, match=rf"{variant}.*split-RATIO"):
        plan(variant)
    with pytest.raises(ValueError, match="--variants"):
        check_variants(("base", variant))


def test_the_choice_of_variants_is_checked() -> None:
    check_variants(("S", "base", "search", "retrain", "random", "split-0.05", "split-0.1"))
    with pytest.raises(ValueError, match="at least one"):
        check_variants(())
    with pytest.raises(ValueError, match="base base.*once"):
        check_variants(("base", "base"))
    for variant in ("retrain", "random"):
        with pytest.raises(ValueError, match=f"{variant}.*search"):
            check_variants(("base", "ours", variant))


def test_only_those_that_take_weights_follow_a_search() -> None:
    teachers = {name: plan(name).teacher for name in VARIANTS if plan(name).teacher}
    permuted = {f"{name}-random": name for name in FINDING}
    assert teachers == {"retrain": "search", "random": "search", **permuted}
    assert plan("split-0.1").teacher is None


def test_a_split_changes_the_outer_problem_alone() -> None:
    told = brief("minet")
    changed = plan("split-0.25").change(told)
    assert changed.outer == replace(told.outer, dev="split", split=0.25)
    assert replace(changed, outer=told.outer) == told


# Fixed weights.


def weights_of_rows(training: Training, num: int) -> Tensor:
    """What a training multiplies the loss of each source behaviour by."""
    model, found = training.model.eval(), []
    for row in range(num):
        batch = training.batches.source_rows(torch.tensor([row]))
        losses = model.losses(batch)
        found.append((training.loss(batch) - losses.fixed) / losses.weighted[0])
    return torch.stack(found).detach()


@pytest.mark.parametrize("model", MODELS)
def test_retrained_on_fixed_weights(
    tiny: CrossDomainData, learned: NDArray[np.float32], model: str
) -> None:
    training = Training("retrain", tiny, brief(model), 0, learned)
    training.model.eval()  # batch statistics move in training
    batch = training.batches.train_pairs(torch.arange(100))
    losses = training.model.losses(batch)
    by_row = torch.from_numpy(learned)[batch.source_row]
    assert torch.equal(tiny.source.item[batch.source_row], batch.source.item)
    expected = losses.fixed + (by_row * losses.weighted).sum() / 100
    torch.testing.assert_close(training.loss(batch), expected)
    assert by_row.unique().numel() > 50


def test_the_mean_of_all_is_a_weight_of_one(tiny: CrossDomainData) -> None:
    ones = np.ones(len(tiny.source), dtype=np.float32)
    for name in ("conet", "minet"):
        retrained = train("retrain", tiny, brief(name), 0, learned=ones)
        assert same_model(retrained, train("base", tiny, brief(name), 0))


def test_pads_take_no_weight(gappy: CrossDomainData) -> None:
    # A pad's row is 0, that of a behaviour of another user.
    weights = np.full(len(gappy.source), 1.0, dtype=np.float32)
    other = weights.copy()
    other[0] = 100.0
    rows = torch.nonzero(gappy.source_offsets.diff()[gappy.train.user] == 0).flatten()
    losses = []
    for each in (weights, other):
        training = Training("retrain", gappy, brief("minet"), 0, each)
        losses.append(training.loss(training.batches.train_pairs(rows)))
    assert torch.equal(*losses)


def test_permuted_weights_are_the_same_ones_elsewhere(
    tiny: CrossDomainData, learned: NDArray[np.float32]
) -> None:
    found = [
        weights_of_rows(Training("random", tiny, brief("twotower"), seed, learned), 100)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    every = fixed_weights("random", tiny, learned, seed=0)
    assert every is not None
    assert torch.equal(every.sort().values, torch.from_numpy(learned).sort().values)
    assert not torch.equal(every, torch.from_numpy(learned))
    # Back from float32 quotients.
    torch.testing.assert_close(found[0], every[:100], rtol=1e-3, atol=1e-4)


def test_the_oracle_weighs_by_the_flags(tiny: CrossDomainData) -> None:
    found = weights_of_rows(Training("oracle", tiny, brief("minet"), 0), 100)
    # Back from float32 quotients.
    torch.testing.assert_close(found, tiny.relevant[:100].float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", ["retrain", "random"])
def test_weights_that_are_missing_or_of_other_data_are_told(
    tiny: CrossDomainData, learned: NDArray[np.float32], variant: str
) -> None:
    num = len(tiny.source)
    with pytest.raises(ValueError, match=f"{variant}.* 0 .*{num}"):
        train(variant, tiny, brief("conet"), seed=0)
    with pytest.raises(ValueError, match=f" 5 .*{num}"):
        train(variant, tiny, brief("conet"), seed=0, learned=learned[:5])


# What is learned, and from which rows.


def seen_rows(training: Training) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The rows of inner steps, and of the train and dev batches of outer steps, of one epoch."""
    train_pairs, outer_step = training.batches.train_pairs, training.learner.outer_step
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    asked = inner

    def noted(*rows: Tensor, flat: bool = False) -> object:
        asked.extend(rows)
        return train_pairs(*rows, flat=flat)

    def outer_noted(batches: Batches) -> None:
        nonlocal asked
        asked = outer
        outer_step(batches)
        asked = inner

    training.batches.train_pairs = noted  # type: ignore[method-assign]
    training.learner.outer_step = outer_noted  # type: ignore[method-assign]
    while not training.done:
        training.run_epoch(lambda *_: None)
    return inner, outer[::2], outer[1::2]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.05, 0.2])
@pytest.mark.parametrize("model", ["conet", "minet"])
@pytest.mark.parametrize("search", [False, True])
def test_rows_that_are_held_out_serve_the_outer_problem_alone(
    tiny: CrossDomainData, model: str, ratio: float, search: bool
) -> None:
    told = brief(model)
    inner, how = replace(told.inner, epochs=6, patience=6), replace(told.search, split=ratio)
    told = replace(told, inner=inner, search=replace(how, epochs=6))
    training = Training("search" if search else f"split-{ratio}", tiny, told, seed=3)
    seen = seen_rows(training)
    inner, outer, dev = (set(torch.cat(rows).tolist()) for rows in seen)
    everything = set(range(len(tiny.train)))
    held_out = everything - inner  # the others are seen in each epoch
    assert len(held_out) == round(ratio * len(tiny.train))
    assert outer <= inner and dev <= held_out
    if search:
        user = tiny.train.user
        assert all(torch.equal(user[a], user[b]) for a, b in zip(*seen[1:], strict=True))
    else:
        assert dev == held_out


@pytest.mark.slow
def test_a_search_goes_on_and_keeps_what_it_ends_with(tiny: CrossDomainData) -> None:
    told = brief("conet")
    told = replace(told, search=replace(told.search, epochs=7))
    inner = replace(told.inner, lr=told.search.inner_lr, epochs=7, patience=7)
    same = replace(told.outer, dev="split-users", split=told.search.split, lr=told.search.lr)
    searched = train("search", tiny, told, seed=0)
    learned = train("ours", tiny, replace(told, inner=inner, outer=same), seed=0)
    aucs = [record["auc"] for record in searched.history]
    assert aucs == [record["auc"] for record in learned.history] and len(aucs) == 7
    assert aucs.index(max(aucs)) < 6  # the best epoch is another one
    assert not same_model(searched, learned)
    assert not np.array_equal(searched.weights, learned.weights)
    model = Training("search", tiny, told, seed=0)
    while not model.done:
        model.run_epoch(lambda epoch, step, steps, best: None)
    ended = model.model.state_dict()
    assert all(torch.equal(ended[name], kept) for name, kept in searched.state["model"].items())


def test_no_rows_are_held_out_from_a_variant_that_learns_no_weights(tiny: CrossDomainData) -> None:
    told = brief("conet")
    told = replace(told, outer=replace(told.outer, dev="split", split=0.5))
    rows = torch.cat([rows for rows, _ in Training("base", tiny, told, seed=3).sampler])
    assert sorted(rows.tolist()) == list(range(len(tiny.train)))


def test_reordered_rows_serve_both_problems(tiny: CrossDomainData) -> None:
    seen = seen_rows(Training("ours", tiny, brief("minet"), seed=3))
    inner, _, dev = (set(torch.cat(rows).tolist()) for rows in seen)
    assert inner == set(range(len(tiny.train))) and dev & inner
    for rows, others in zip(*seen[1:], strict=True):
        assert torch.equal(tiny.train.user[rows], tiny.train.user[others])
        assert (rows != others).all()


@pytest.mark.parametrize(
    ("variant", "gone", "kept"),
    [("no-global", "global_mlp", "local_mlp"), ("no-user", "local_mlp", "global_mlp")],
)
def test_a_branch_that_is_left_out_has_no_parameters(
    tiny: CrossDomainData, variant: str, gone: str, kept: str
) -> None:
    def branches(variant: str) -> set[str]:
        learner = Training(variant, tiny, brief("minet"), 0).learner
        assert learner is not None
        return {name.split(".")[0] for name, _ in learner.rw.weighter.named_parameters()}

    every = branches("ours")
    assert {gone, kept, "source_attention", "target_attention", "raw_gamma"} == every
    attention = {"source_attention", "target_attention"} if variant == "no-user" else set()
    assert branches(variant) == every - {gone} - attention


def test_other_weighters_see_what_they_need(tiny: CrossDomainData) -> None:
    for variant in ("group", "loss", "constant"):
        training = Training(variant, tiny, brief("minet"), 0)
        batch = training.batches.train_pairs(torch.arange(20))
        assert batch.source_history is None  # nobody looks at it
        assert training.learner is not None
        inputs = training.learner.losses(training.model, batch).inputs
        if variant == "group":
            assert torch.equal(inputs, batch.source.category)
        else:
            assert inputs is None


# Source behaviours of all users.


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dasl", "minet", "twotower"])
def test_an_independent_source_batch_is_drawn_from_all(gappy: CrossDomainData, model: str) -> None:
    told: Options = brief(model)
    told = replace(told, inner=replace(told.inner, source_batch="independent", epochs=2))
    training = Training("ours", gappy, told, seed=0)
    seen = []
    for _ in range(60):
        batch = training.batches.train_pairs(torch.arange(len(gappy.train)))
        assert batch.has_source.all()
        assert torch.equal(batch.source_user, gappy.source.user[batch.source_row])
        assert torch.equal(batch.source.item, gappy.source.item[batch.source_row])
        assert torch.equal(batch.source_label, gappy.source.label[batch.source_row])
        seen.append(batch.source_row)
    assert (batch.source_user != batch.user).double().mean() > 0.5
    # Some 500 rows drawn 10,000 times: to miss one has a probability below 1e-5.
    assert len(torch.cat(seen).unique()) == len(gappy.source)
    result = train("ours", gappy, told, seed=0)
    paired = replace(told, inner=replace(told.inner, source_batch="paired"))
    assert not same_model(result, train("ours", gappy, paired, seed=0))
    assert len(result.weights) == len(gappy.source)
