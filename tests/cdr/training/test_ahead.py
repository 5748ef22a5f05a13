"""Weights made ahead: the same batches, and weights that lag behind the model alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scenarios import brief
from torch import Tensor

from cdr.data import CrossDomainData, PairBatch
from cdr.training.loop import Training
from cdr.training.options import Options, OuterOptions


def told(normalization: str = "centered", mask_keys: bool = True, **outer: object) -> Options:
    start = brief("conet")
    return replace(
        start,
        inner=replace(start.inner, batch_size=16),
        outer=replace(start.outer, interval=5, **outer),
        perceptron=replace(
            start.perceptron, normalization=normalization, mask_keys=mask_keys, history=6
        ),
    )


def training_of(data: CrossDomainData, options: Options) -> Training:
    """A training in float64, whose weights are away from 1."""
    training = Training("ours", data, options, seed=0)
    training.model.double()
    weighter = training.learner.rw.weighter.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in weighter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    training.learner.weighing.moved = True
    return training


@pytest.mark.parametrize("normalization", ["sigmoid", "centered", "softmax"])
@pytest.mark.parametrize("mask_keys", [True, False])
@pytest.mark.parametrize("name", ["tiny", "gappy"])
def test_with_a_model_at_rest_they_are_those_of_each_step(
    name: str, normalization: str, mask_keys: bool, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(name)
    ahead = training_of(data, told(normalization, mask_keys, weights_ahead=3))
    each = training_of(data, told(normalization, mask_keys, weights_ahead=1))
    weights = []
    for batch, other in zip(ahead.epoch_batches(), each.epoch_batches(), strict=True):
        assert other.weight is None and batch.weight is not None
        for drawn in ("user", "source_row", "has_source", "target_label", "source_label"):
            assert torch.equal(getattr(batch, drawn), getattr(other, drawn))
        expected = each.learner.rw.weights(other)
        # Rounding of sums of some tens of terms of order 1. A pad's weight multiplies a loss of 0.
        real = other.has_source
        torch.testing.assert_close(batch.weight[real], expected[real], rtol=1e-12, atol=1e-12)
        # The batch is float32, the models are float64.
        torch.testing.assert_close(ahead.loss(batch), each.loss(other), rtol=1e-12, atol=0.0)
        weights.append(batch.weight)
    assert torch.cat(weights).std() > 0.01, "all weights are equal, so that any order would do"


def groups(training: Training, epochs: int) -> list[tuple[int, int]]:
    """The inner steps before each call of the perceptron, and the batches in it."""
    # One that has not moved is not called.
    training.learner.weighing.moved = True
    perceptron, found = training.learner.rw.weighter, []
    normalize, steps = perceptron.normalize, [0]

    def counted(scores: Tensor) -> Tensor:
        if not found or found[-1][0] != steps[0]:
            found.append((steps[0], 0))
        found[-1] = steps[0], found[-1][1] + 1
        return normalize(scores)

    perceptron.normalize = counted
    outer_step = training.learner.outer_step
    # An outer step normalizes too.
    training.learner.outer_step = lambda batches: None
    for _ in range(epochs):
        for batch in training.epoch_batches():
            training.step(batch)
            training.after_step()
            steps[0] += 1
    training.learner.outer_step, perceptron.normalize = outer_step, normalize
    return found


@pytest.mark.parametrize(
    ("most", "sizes"),
    # Outer steps after 5, 10, …; as few calls as possible between them, of even size.
    [(2, [2, 2, 1]), (3, [3, 2]), (4, [3, 2]), (5, [5]), (32, [5])],
)
def test_no_group_passes_the_next_outer_step(
    tiny: CrossDomainData, most: int, sizes: list[int]
) -> None:
    training = Training("ours", tiny, told(weights_ahead=most), seed=0)
    found = groups(training, epochs=1)
    assert [size for _, size in found][: len(sizes)] == sizes
    for start, size in found:
        assert size <= most and start // 5 == (start + size - 1) // 5
    assert sum(size for _, size in found) == len(training.sampler)


def test_a_group_ends_with_the_epoch_and_the_next_one_with_the_outer_step(
    tiny: CrossDomainData,
) -> None:
    training = Training("ours", tiny, told(weights_ahead=32), seed=0)
    steps = len(training.sampler)
    assert steps % 5, "the epoch ends with an outer step, so that nothing is tested"
    starts = [start for start, _ in groups(training, epochs=2)]
    assert starts == sorted({*range(0, 2 * steps, 5), steps})


def test_an_outer_step_sees_the_same_draws(tiny: CrossDomainData) -> None:
    def drawn(most: int) -> list[Tensor]:
        training = Training("ours", tiny, told(weights_ahead=most), seed=0)
        seen: list[Tensor] = []
        outer_backward = training.learner.rw.outer_backward

        def noted(batch: PairBatch, dev: PairBatch) -> object:
            seen.extend((batch.source_row, dev.source_row))
            return outer_backward(batch, dev)

        training.learner.rw.outer_backward = noted  # type: ignore[method-assign]
        training.run_epoch(lambda *_: None)
        return seen

    one, other = drawn(1), drawn(32)
    assert len(one) == len(other) > 2
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("weighter", ["loss", "group", "constant"])
def test_other_weighters_see_every_step(tiny: CrossDomainData, weighter: str) -> None:
    training = Training("ours", tiny, told(weighter=weighter), seed=0)
    assert all(batch.weight is None for batch in training.epoch_batches())


def test_at_least_one_batch_has_its_weights() -> None:
    with pytest.raises(ValueError, match="--outer.weights-ahead 0.*1 or more"):
        OuterOptions(weights_ahead=0)
