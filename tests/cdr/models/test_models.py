"""What holds for every model: it is found by its file, its hypergradient is exact, -S is blind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from scenarios import batch_for, brief, part, small
from torch import Tensor, nn

import reweight
from cdr import models
from cdr.data import CrossDomainData, generate
from cdr.data.batches import PairBatch
from cdr.models import MODELS, CrossDomainModel
from cdr.training.epochs import train
from cdr.training.options import Options
from cdr.training.presets import PresetName, preset
from reweight import (
    BehavioralPerceptron,
    ConjugateGradient,
    ImplicitHypergradient,
    Reweighted,
)

DECAY = 1.0  # enough for the Hessian to be positive definite

POPULAR = '''
from dataclasses import dataclass

from cdr.models.base import CrossDomainModel, ModelOptions


@dataclass(frozen=True)
class PopularOptions(ModelOptions):
    """Popular."""


class Popular(CrossDomainModel):
    label = "Popular"
    Options = PopularOptions

    def __init__(self, data, options, single_domain=False):
        super().__init__(data, options, single_domain)
        self._add_heads(2 * options.dim, 2 * options.dim)

    def target_features(self, batch):
        return self.target_items(batch.target)

    def source_features(self, batch):
        return self.source_items(batch.source)
'''


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def made(name: str, data: CrossDomainData, **more: bool) -> CrossDomainModel:
    torch.manual_seed(0)
    return MODELS[name](data, small(name), **more).double()


# Models are found.


def test_each_file_is_a_model() -> None:
    labels = {name: model.label for name, model in MODELS.items()}
    known = {"conet": "CoNet", "dasl": "DASL", "minet": "MiNet", "twotower": "TwoTower"}
    assert {name: labels[name] for name in known} == known
    files = Path(models.__file__).parent.glob("*.py")
    assert list(MODELS) == sorted({file.stem for file in files} - {"__init__", "base"})


def test_options_tell_the_model(name: str) -> None:
    for start in get_args(PresetName):
        told = preset(start, name)
        assert told.model_name == name and told.model_class is MODELS[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A further folder in which models are looked for."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("cdr.models.popular", None)


def test_a_further_model_is_one_file(
    folder: Path, tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "popular.py").write_text(POPULAR)
    found = models._found()
    assert list(found) == sorted([*MODELS, "popular"])
    monkeypatch.setitem(MODELS, "popular", found["popular"])
    told = preset("default", "popular")
    assert told.model_class is found["popular"]
    for variant in ("S", "base", "ours"):
        result = train(variant, tiny, replace(told, inner=replace(told.inner, epochs=1)), seed=0)
        assert np.isfinite(result.test.probability).all()


@pytest.mark.slow
def test_the_command_line_knows_a_further_model(ratings: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cdr"
    shutil.copytree(Path(models.__file__).parents[1], copy)
    (copy / "models" / "popular.py").write_text(POPULAR)
    command = [sys.executable, copy / "run_biao.py", "--data", ratings, "--source", "books"]
    command += ["--target", "toys", "--model", "popular", "--variants", "S", "ours"]
    command += ["--inner.epochs", "1", "--out", tmp_path / "out"]
    library = str(Path(reweight.__file__).parents[1])
    told = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), library])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Popular+ours" in told.stdout and "Popular-S" in told.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"models/popular.py.* 0 .*CrossDomainModel"),
        (POPULAR + "class Other(Popular): pass\n", "models/popular.py.* 2 "),
        (
            POPULAR.replace("    Options = PopularOptions\n", ""),
            "models/twotower.py.*models/popular.py.*ModelOptions",
        ),
    ],
)
def test_a_file_that_is_no_model_is_told(folder: Path, text: str, message: str) -> None:
    (folder / "popular.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        models._found()


# Their hypergradients are exact.


@pytest.fixture(scope="module")
def micro() -> CrossDomainData:
    """So little data that a Hessian can be written down."""
    return generate(num_users=8, num_source_items=30, num_target_items=30)


def wrapped(
    name: str,
    data: CrossDomainData,
    hypergradient: ImplicitHypergradient,
) -> tuple[Reweighted, PairBatch, PairBatch]:
    model = made(name, data)
    with torch.no_grad():
        for table in (m for m in model.modules() if isinstance(m, nn.Embedding)):
            table.weight.normal_()
    weighter = BehavioralPerceptron(2 * model.options.dim, num_heads=2).double()
    with torch.no_grad():  # off the start, where a last layer is zero and hides the others
        for parameter in weighter.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=DECAY)
    rw = reweight.wrap(model, weighter, optimizer=optimizer, hypergradient=hypergradient)
    batch = batch_for(model, data, history=3)
    rows = torch.arange(len(batch))
    return rw, part(batch, rows[::2]), part(batch, rows[1::2])


def dense(rw: Reweighted, batch: PairBatch, dev: PairBatch) -> list[Tensor]:
    """−∂/∂φ ⟨∂inner/∂θ, (H + decay)⁻¹ ∂outer/∂θ⟩, with the Hessian as a matrix."""
    params, hparams = list(rw.model.parameters()), list(rw.weighter.parameters())

    def flat(of: Tensor, rows: Tensor | None = None, **more: bool) -> Tensor:
        grads = torch.autograd.grad(
            of, params, rows, retain_graph=True, materialize_grads=True, **more
        )
        shape = (-1,) if rows is None else (len(rows), -1)
        return torch.cat([grad.reshape(shape) for grad in grads], -1)

    losses = rw.model.losses(batch)
    weights = rw.weighter(losses.weighted.detach(), losses.inputs)
    gradient = flat(losses.fixed + (weights * losses.weighted).mean(), create_graph=True)
    identity = torch.eye(len(gradient), dtype=gradient.dtype)
    hessian = flat(gradient, identity, is_grads_batched=True) + DECAY * identity
    assert torch.linalg.eigvalsh(hessian)[0] > 0.1
    solution = torch.linalg.solve(hessian, flat(rw.model.outer_loss(dev)))
    grads = torch.autograd.grad(gradient @ solution, hparams, materialize_grads=True)
    return [-grad for grad in grads]


def test_the_hypergradient_is_that_of_a_dense_hessian(name: str, micro: CrossDomainData) -> None:
    solver = ConjugateGradient(max_steps=400, rtol=1e-12)
    rw, batch, dev = wrapped(name, micro, ImplicitHypergradient(solver))
    before = {key: value.clone() for key, value in rw.model.state_dict().items()}
    result = rw.hypergradient(batch, dev)
    assert result.info.trustworthy, result.info.message
    for key, value in rw.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    found, wanted = list(result.grads.values()), dense(rw, batch, dev)
    size = torch.stack([grad.norm() for grad in wanted]).norm()
    assert size > 1e-7
    for one, other in zip(found, wanted, strict=True):
        # Solved to 1e-12 of the outer gradient, which is of order 1, however small what comes out.
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


# What the variant -S leaves out, and what pads are to a loss.


def test_a_single_domain_has_nothing_of_the_source(name: str, tiny: CrossDomainData) -> None:
    model = made(name, tiny, single_domain=True)
    assert not [key for key, _ in model.named_parameters() if "source" in key or "cross" in key]
    losses = model.losses(batch_for(model, tiny))
    assert not losses.weighted.any() and losses.inputs is None
    losses.fixed.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_single_domain_does_not_see_the_source(name: str, tiny: CrossDomainData) -> None:
    rows = tiny.source
    other = replace(rows, item=rows.item.flip(0), label=1 - rows.label)
    positives = tiny.source_history
    changed = replace(
        tiny,
        source=other,
        source_history=replace(positives, items=positives.items.flip(0)),
        train=replace(tiny.train, source_past=torch.zeros_like(tiny.train.source_past)),
    )
    told = brief(name)
    one, two = (train("S", data, told, seed=0) for data in (tiny, changed))
    assert np.array_equal(one.test.probability, two.test.probability)
    # The same change is seen by those that read the source.
    one, two = (train("base", data, told, seed=0) for data in (tiny, changed))
    assert not np.array_equal(one.test.probability, two.test.probability)


def test_pads_have_no_loss_and_no_gradient(name: str, gappy: CrossDomainData) -> None:
    model = made(name, gappy)
    batch = batch_for(model, gappy)
    pad = ~batch.has_source
    assert pad.any() and not pad.all()
    losses = model.losses(batch).weighted
    assert (losses[pad] == 0).all() and (losses[batch.has_source] > 0).all()
    losses[pad].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_dev_head_reads_what_the_target_head_reads(name: str, tiny: CrossDomainData) -> None:
    torch.manual_seed(0)
    model = MODELS[name](tiny, replace(small(name), dev_head=True)).double().eval()
    batch = batch_for(model, tiny)
    assert not torch.isclose(model.outer_loss(batch), model.target_loss(batch))
    model.dev_head.load_state_dict(model.target_head.state_dict())
    torch.testing.assert_close(model.outer_loss(batch), model.target_loss(batch))
    assert list(dict(model.dev_head.named_parameters())) == ["weight", "bias"]


def test_target_logits_are_those_of_both(name: str, gappy: CrossDomainData) -> None:
    model = made(name, gappy).eval()
    batch = batch_for(model, gappy)
    target, source = model(batch)
    assert target.shape == source.shape == (len(batch),)
    torch.testing.assert_close(model.target_logits(batch), target)
    hidden = model.source_features(batch)
    torch.testing.assert_close(model.source_head(hidden).squeeze(-1), source)


def test_the_weighter_sees_item_and_histories(name: str, tiny: CrossDomainData) -> None:
    model = made(name, tiny)
    batch = batch_for(model, tiny, history=5)
    inputs = model.losses(batch).inputs
    assert torch.equal(inputs.item, model.source_items(batch.source))
    assert torch.equal(inputs.source_history, model.source_items(batch.source_history.items))
    assert torch.equal(inputs.target_history, model.target_items(batch.target_history.items))
    assert torch.equal(inputs.source_mask, batch.source_history.mask)
    assert torch.equal(inputs.target_mask, batch.target_history.mask)
    assert not any(x.requires_grad for x in inputs)


def test_an_independent_source_batch_is_refused_where_users_are_paired(name: str) -> None:
    told = preset("default", name)
    inner = replace(told.inner, source_batch="independent")
    if MODELS[name].pairs_users:
        label = MODELS[name].label
        with pytest.raises(ValueError, match=f"--inner.source-batch independent.*{label}"):
            replace(told, inner=inner)
    else:
        assert replace(told, inner=inner).inner.source_batch == "independent"


def test_conet_alone_pairs_users_and_mixes_candidates() -> None:
    for name in ("conet", "dasl", "minet", "twotower"):
        kind = MODELS[name]
        assert kind.pairs_users == kind.mixes_candidates == (name == "conet")
    assert Options().model_name == "conet"
