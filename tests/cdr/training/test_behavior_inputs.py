"""A perceptron that sees more of a behaviour than its item."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenarios import brief

from cdr.data import CrossDomainData, Fact
from cdr.models import MODELS
from cdr.runs import Source, Task, options_read
from cdr.training.epochs import train
from cdr.training.loop import Training
from cdr.training.options import Options, PerceptronOptions
from cdr.training.presets import preset
from cdr.training.side_by_side import train_side_by_side

ALL: tuple[Fact, ...] = ("label", "popularity", "recency", "liking")


def seeing(options: Options, *names: Fact, **changes: object) -> Options:
    return options.changed({"perceptron.behavior_inputs": names, **changes})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ahead", [1, 4])
def test_every_model_gives_them_to_the_perceptron(
    gappy: CrossDomainData, model: str, ahead: int
) -> None:
    options = seeing(brief(model), *ALL, **{"outer.weights_ahead": ahead})
    result = train("ours", gappy, options, seed=0)
    assert result.weights is not None and np.isfinite(result.weights).all()
    assert result.weights.std() > 0


def test_pads_that_are_attended_to_are_no_trouble(gappy: CrossDomainData) -> None:
    options = preset("authors", "conet").changed(
        {"inner.epochs": 1, "outer.interval": 2, "outer.dev_head_steps": 1}
    )
    result = train("ours", gappy, seeing(options, "label"), seed=0)
    assert result.weights is not None and np.isfinite(result.weights).all()


def test_behaviours_that_differ_by_their_label_alone_get_another_score(
    tiny: CrossDomainData,
) -> None:
    rows, other = torch.arange(50), replace(tiny.source, label=1 - tiny.source.label)
    differ = []
    for names in ((), ("label",)):
        scores = []
        for data in (tiny, replace(tiny, source=other)):
            training = Training("ours", data, seeing(brief("conet"), *names), seed=0)
            assert training.learner is not None
            perceptron = training.learner.rw.weighter
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():  # off the start, where all weights are 1
                for parameter in perceptron.parameters():
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            inputs = training.model.behavior_inputs(training.batches.source_rows(rows))
            scores.append(perceptron.scores(inputs))
        differ.append((scores[0] != scores[1]).all())
    assert differ == [False, True]


def test_seeds_in_common_steps_see_them_too(gappy: CrossDomainData) -> None:
    options = seeing(brief("conet"), *ALL)
    together = train_side_by_side("ours", gappy, options, (0, 1))
    for seed, result in enumerate(together):
        alone = train("ours", gappy, options, seed)
        # In float32, whose sums are made in another order; see test_side_by_side.
        np.testing.assert_allclose(result.weights, alone.weights, rtol=0, atol=1e-4)


def test_columns_are_a_multiple_of_the_heads() -> None:
    for heads, num, columns in ((4, 0, 0), (4, 1, 4), (2, 3, 4), (1, 3, 3)):
        assert PerceptronOptions(heads=heads, behavior_inputs=ALL[:num]).fact_columns == columns


def test_one_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="--perceptron.behavior-inputs label label"):
        PerceptronOptions(behavior_inputs=("label", "label"))


def test_trainings_without_them_are_kept_as_before() -> None:
    read = [
        options_read(Task("ours", 0, Source("g1"), options, "cpu"))["perceptron"]
        for options in (Options(), seeing(Options(), "label"))
    ]
    assert "behavior_inputs" not in read[0] and read[1]["behavior_inputs"] == ["label"]
