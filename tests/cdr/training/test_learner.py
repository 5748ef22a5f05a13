"""The outer problem: its solvers, and what its options change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scenarios import brief

from cdr.data import CrossDomainData
from cdr.models.conet import CoNetOptions
from cdr.training.epochs import train
from cdr.training.learner import pair_sampler
from cdr.training.loop import Training
from cdr.training.options import Options, OuterOptions
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, Neumann


def told(**outer: object) -> Options:
    start = brief("minet")
    return replace(start, outer=replace(start.outer, **outer))


@pytest.mark.parametrize(
    ("outer", "solver"),
    [
        ({}, Neumann(3, "auto")),
        ({"num_terms": 5, "step_size": 0.2}, Neumann(5, 0.2)),
        # K terms after the first cost K products with the Hessian, as many steps of CG one more.
        ({"solver": "cg", "num_terms": 4}, ConjugateGradient(5)),
        ({"solver": "cg", "num_terms": 4, "step_size": 0.2}, ConjugateGradient(5)),
        ({"solver": "identity"}, Identity(1.0)),
        ({"solver": "identity", "step_size": 0.2, "num_terms": 9}, Identity(0.2)),
    ],
)
def test_options_name_a_solver(outer: dict[str, object], solver: object) -> None:
    assert OuterOptions(**outer).hypergradient() == ImplicitHypergradient(solver)


@pytest.mark.parametrize(
    ("solver", "least", "most"), [("identity", 0, 0), ("cg", 1, 4), ("neumann", 3, 20)]
)
def test_each_solver_trains(tiny: CrossDomainData, solver: str, least: int, most: int) -> None:
    result = train("ours", tiny, told(solver=solver), seed=0)
    assert [least <= record["num_hvps"] <= most for record in result.outer] == [True, True]
    assert result.weights.std() > 0.0


def test_without_curvature_it_is_the_alignment_of_gradients(tiny: CrossDomainData) -> None:
    training = Training("ours", tiny, told(solver="identity", step_size=0.3), seed=0)
    learner, model, rows = training.learner, training.model, torch.arange(40)
    assert learner is not None
    weighter = learner.rw.weighter
    with torch.no_grad():  # off the start, where a last layer is zero and hides the others
        for parameter in weighter.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    batch, dev = (training.batches.train_pairs(r) for r in (rows[:20], rows[20:]))
    params = list(model.parameters())
    v = torch.autograd.grad(model.outer_loss(dev), params, materialize_grads=True)
    losses = model.losses(batch)
    weights = weighter(losses.weighted.detach(), losses.inputs)
    inner = losses.fixed + (weights * losses.weighted).mean()
    grads = torch.autograd.grad(inner, params, create_graph=True)
    products = sum((g * a).sum() for g, a in zip(grads, v, strict=True))
    hparams = dict(weighter.named_parameters())
    mixed = torch.autograd.grad(products, list(hparams.values()), materialize_grads=True)
    result = learner.rw.hypergradient(batch, dev)
    assert result.info.num_hvps == 0
    scale = max(float(m.abs().max()) for m in mixed)
    assert scale > 0.0
    for name, wanted in zip(hparams, mixed, strict=True):
        # Sums of float32 in another order.
        torch.testing.assert_close(result.grads[name], -0.3 * wanted, rtol=1e-4, atol=1e-5 * scale)


def test_solvers_learn_different_weights(tiny: CrossDomainData) -> None:
    learned = [
        train("ours", tiny, told(solver=solver), seed=0).weights
        for solver in ("neumann", "cg", "identity")
    ]
    assert not (learned[0] == learned[1]).all() and not (learned[0] == learned[2]).all()


@pytest.mark.parametrize("split", [0.0, 1.0, -0.1, float("nan")])
def test_a_split_out_of_range_is_told(split: float) -> None:
    with pytest.raises(ValueError, match=f"--outer.split {split}.*0 and 1"):
        OuterOptions(split=split)


def test_batches_of_a_split_fit_what_is_held_out() -> None:
    options = OuterOptions(dev="split", split=0.1, batch_size=1024)
    pairs = list(pair_sampler(50, 128, 0, options))
    assert [(len(train), len(dev)) for train, dev in pairs] == [(45, 5)]
    (train_rows, dev_rows) = pairs[0]
    assert sorted([*train_rows.tolist(), *dev_rows.tolist()]) == list(range(50))
    # Held out by the seed alone, whatever the sizes of batches.
    others = pair_sampler(50, 8, 0, replace(options, batch_size=2))
    assert {row for _, dev in others for row in dev.tolist()} == set(dev_rows.tolist())


def test_one_training_row_is_too_few() -> None:
    with pytest.raises(ValueError, match="one target behaviour"):
        pair_sampler(1, 64, 0, OuterOptions())


@pytest.mark.parametrize("decay_gamma", [True, False])
def test_weight_decay_spares_gamma_if_asked(tiny: CrossDomainData, decay_gamma: bool) -> None:
    options = told(optimizer="sgd", lr=0.5, weight_decay=0.2, decay_gamma=decay_gamma)
    learner = Training("ours", tiny, replace(options, model=CoNetOptions()), seed=0).learner
    assert learner is not None
    learner.rw.weighter.raw_gamma.data.fill_(1.0)  # it starts at zero, which nothing shrinks
    before = {name: p.detach().clone() for name, p in learner.rw.weighter.named_parameters()}
    for parameter in learner.rw.weighter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.weighing.optimizer.step()
    for name, parameter in learner.rw.weighter.named_parameters():
        shrunk = 1.0 if name == "raw_gamma" and not decay_gamma else 1.0 - 0.5 * 0.2
        # Products with 0.9 are rounded differently in one and in two steps.
        assert torch.allclose(parameter, shrunk * before[name], rtol=1e-6, atol=0.0)
