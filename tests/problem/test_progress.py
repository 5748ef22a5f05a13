"""Outer steps that lead nowhere are told once: weights at a bound, a drift, no movement at all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.problems import FreeWeights, SigmoidWeights
from _support.wrapping import DEV, SIZE, TRAIN, make
from reweight import (
    BehavioralPerceptron,
    GroupWeighter,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    Reweighted,
    SampleWeighter,
    wrap,
)
from reweight._problem.notices import Notices
from reweight._problem.progress import Progress

Bounds = tuple[float, float]


def told(run: Callable[[], Any]) -> list[str]:
    """The texts of the warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in seen]


# -- weights at a bound ----------------------------------------------------------------------------


class Given(SampleWeighter):
    """Weights as they are given, times a scale that is learned."""

    def __init__(self, weights: list[float], bounds: Any = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.bounds = bounds

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return self.scale * self.weights


HIGH, LOW = [1.91, 1.99, 1.99, 2.0, 2.0, 1.99], [0.02, 0.0, 0.08, 0.0, 0.01, 0.0]


@pytest.mark.parametrize(
    ("weights", "bounds", "expected"),
    [
        (HIGH, (0.0, 2.0), r"Given.*1\.98 of at most 2, after 0 outer steps"),
        (LOW, (0.0, 2.0), r"Given.*0\.0183 of at least 0"),
        (HIGH, [0.0, 2.0], "at most 2"),
        (HIGH, None, ""),
        (HIGH, (0.0, math.inf), ""),
        (HIGH, (0.0, 4.0), ""),
        ([1.91] * 6, (0.0, 2.0), r"within 5 %.*1\.91 of at most 2"),
        ([1.89] * 6, (0.0, 2.0), ""),
        ([1.89, *HIGH[1:]], (0.0, 2.0), ""),
        (HIGH[:3] + LOW[:3], (0.0, 2.0), ""),  # samples told apart: what weights are for
    ],
)
def test_all_weights_at_one_bound_are_told(
    weights: list[float], bounds: Bounds, expected: str
) -> None:
    rw = make(weighter=Given(weights, bounds))
    if expected:
        with pytest.warns(UserWarning, match=expected) as caught:
            rw.hypergradient(TRAIN, DEV)
        assert len(caught) == 1 and "learning rate" in str(caught[0].message)
    assert not told(lambda: rw.hypergradient(TRAIN, DEV))


@pytest.mark.parametrize("bounds", [2.0, (0.0, 1.0, 2.0), torch.ones(2)], ids=str)
def test_bounds_that_are_no_interval_are_refused(bounds: Any) -> None:
    with pytest.raises(TypeError, match=r"Given\.bounds.*\(0\.0, 2\.0\)"):
        make(weighter=Given(HIGH, bounds)).hypergradient(TRAIN, DEV)


def test_a_module_that_is_no_weighter_of_this_package_may_use_the_name() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bounds = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, losses: Tensor, inputs: Any) -> Tensor:
            return self.bounds * torch.ones_like(losses)

    assert not told(lambda: make(weighter=Other()).hypergradient(TRAIN, DEV))


def test_the_bound_of_the_perceptron_is_that_of_its_scale() -> None:
    perceptron = BehavioralPerceptron(4)
    assert perceptron.bounds == (0.0, 2.0)
    with torch.no_grad():
        perceptron.raw_gamma += 1.0
    assert perceptron.bounds == pytest.approx((0.0, 2.0 * float(perceptron.gamma.detach())))
    assert BehavioralPerceptron(4, normalization="softmax").bounds is None


def noisy(seed: int, outer_lr: float) -> list[str]:
    """Forty outer steps from the start, with a tenth of the labels wrong."""
    torch.manual_seed(seed)
    x = torch.randn(200, 4)
    y = torch.where(torch.rand(200) < 0.1, -1.0, 1.0) * x.sum(1).sign()
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    weighter = SigmoidWeights()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=outer_lr)

    def losses(model: nn.Module, rows: Tensor) -> Tensor:
        return nn.functional.softplus(-y[rows] * model(x[rows]).squeeze(-1))

    rw = wrap(model, weighter, losses, lambda m, rows: losses(m, rows).mean(), optimizer)

    def run() -> None:
        for _ in range(40):
            rows = torch.randint(150, (20,))
            optimizer.zero_grad()
            rw.loss(rows).backward()
            optimizer.step()
            outer_optimizer.zero_grad()
            rw.outer_backward(rows, torch.arange(150, 200))
            outer_optimizer.step()

    return told(run)


@pytest.mark.parametrize("seed", range(3))
def test_a_learning_rate_that_saturates_the_weights_is_told_and_a_lower_one_is_silent(
    seed: int,
) -> None:
    (found,) = noisy(seed, outer_lr=1e-2)
    assert "of at most 2" in found
    assert not noisy(seed, outer_lr=1e-3)


# -- drift -----------------------------------------------------------------------------------------


def fed(means: Iterable[float], largest: float = 0.0, bounds: Any = None) -> list[str]:
    """The warnings on outer steps whose weights have these means, and one of them this size."""
    progress, grads = Progress(Notices()), {"w": torch.ones(1)}

    def run() -> None:
        for step, mean in enumerate(means):
            weights = torch.full((20,), mean)
            if largest:
                weights -= (largest - mean) / 19
                weights[7] = largest
            progress.meet("Mine", progress.level_of(weights).tolist(), bounds and bounds(mean))
            progress.step("Mine", {"w": torch.full((1,), float(step))}, grads)

    return told(run)


def noise(size: float, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    return (size * torch.randn(steps, generator=generator)).exp().tolist()


STEPS = 200
FALLING = [0.98**step for step in range(STEPS)]
CLIMBING = [1.02**step for step in range(STEPS)]


@pytest.mark.parametrize("means", [FALLING, CLIMBING], ids=["falling", "climbing"])
def test_a_mean_weight_that_moves_one_way_and_far_is_told_once(means: list[float]) -> None:
    wavering = [a * b for a, b in zip(means, noise(0.02, STEPS), strict=True)]
    for seen in (fed(means), fed(wavering)):
        (text,) = seen
        assert "mean weight of Mine went from" in text and "Adam" in text and "mean()" in text


@pytest.mark.parametrize(
    "means",
    [
        [1.0] * STEPS,
        noise(0.3, STEPS),
        [0.99**step for step in range(100)],  # 0.37: not far
        [5.0] * STEPS,  # where a ConstantWeighter(5.0) begins
        [max(m, 0.3) for m in FALLING],
        [1.0, *(0.1 * n for n in noise(0.05, STEPS))],  # one jump, and settled
        [1.0 + 4.0 * math.sin(step / 8) ** 2 for step in range(STEPS)],
        [0.0] * STEPS,
        [-m for m in CLIMBING],
    ],
)
def test_a_mean_weight_that_settles_or_turns_is_not_told(means: list[float]) -> None:
    assert not fed(means)


def test_a_mean_that_falls_because_samples_are_dropped_is_no_drift() -> None:
    assert not fed(FALLING[:100], largest=1.2)
    assert fed(FALLING[:100], largest=0.8)


def test_bounds_that_stay_limit_a_drift_and_those_of_a_learned_scale_do_not() -> None:
    assert not fed(FALLING[:80], bounds=lambda mean: (0.0, 2.0))
    (text,) = fed(CLIMBING, bounds=lambda mean: (0.0, 2.0 * mean))
    assert "went from 1" in text


@pytest.mark.parametrize(
    ("weigh", "drifts"),
    [
        (lambda: FreeWeights(5), True),
        (lambda: GroupWeighter(5, learn_scale=True), True),
        (lambda: GroupWeighter(5), False),
    ],
    ids=["free", "learned scale", "mean of one"],
)
def test_the_common_scale_of_like_groups_drifts_under_adam_and_is_told(
    weigh: Callable[[], SampleWeighter], drifts: bool
) -> None:
    """Adam's steps do not see the common scale, on which the hypergradient pulls."""
    torch.manual_seed(0)
    x, groups = torch.randn(200, 30), torch.arange(200) % 5
    y = (torch.rand(200) < (x @ torch.randn(30) / 6).sigmoid()).float()
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    weighter = weigh()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=0.1)

    def losses(model: nn.Module, rows: Tensor) -> Losses:
        scores = model(x[rows]).squeeze(-1)
        each = nn.functional.binary_cross_entropy_with_logits(scores, y[rows], reduction="none")
        return Losses(each, inputs=groups[rows])

    rw = wrap(model, weighter, losses, lambda m, rows: losses(m, rows).weighted.mean(), optimizer)
    train, dev = torch.arange(120), torch.arange(120, 200)

    def run() -> None:
        for step in range(150):
            optimizer.zero_grad()
            rw.loss(train).backward()
            optimizer.step()
            if step >= 50:
                outer_optimizer.zero_grad()
                rw.outer_backward(train, dev)
                outer_optimizer.step()

    found = told(run)
    assert len(found) == drifts
    assert all(f"mean weight of {type(weighter).__name__}" in text for text in found)
    if not drifts:
        assert float(weighter(torch.ones(5), torch.arange(5)).detach().mean()) == pytest.approx(1.0)


# -- few samples -----------------------------------------------------------------------------------


def weighed(weights: Tensor) -> list[str]:
    progress = Progress(Notices())

    def run() -> None:
        for _ in range(2):
            progress.meet("Mine", progress.level_of(weights).tolist(), None)

    return told(run)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_batch_whose_weight_lies_on_few_samples_is_told_once(dtype: torch.dtype) -> None:
    (text,) = weighed(torch.tensor([1e-3] * 99 + [100.0], dtype=dtype))
    assert "of 100 samples" in text and "number is 1.0" in text and "a third of the rate" in text


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(100),
        torch.tensor([0.0] * 60 + [2.0] * 40),
        torch.tensor([0.0] * 90 + [10.0] * 10),
        torch.tensor([0.0, 0.0, 7.0]),  # of so few samples, two can well be worth nothing
        torch.zeros(100),
        torch.tensor([-1.0, 1.0] * 20),
    ],
    ids=len,
)
def test_weights_that_keep_many_samples_are_not_told(weights: Tensor) -> None:
    assert not weighed(weights)


# -- no movement -----------------------------------------------------------------------------------

Loop = Callable[[Reweighted, torch.optim.Optimizer], None]


def right(rw: Reweighted, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    rw.outer_backward(TRAIN, DEV)
    optimizer.step()


def without_step(rw: Reweighted, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    rw.outer_backward(TRAIN, DEV)


def cleared_too_late(rw: Reweighted, optimizer: torch.optim.Optimizer) -> None:
    rw.outer_backward(TRAIN, DEV)
    optimizer.zero_grad()
    optimizer.step()


def cleared_to_zeros(rw: Reweighted, optimizer: torch.optim.Optimizer) -> None:
    rw.outer_backward(TRAIN, DEV)
    optimizer.zero_grad(set_to_none=False)


def neither_cleared_nor_stepped(rw: Reweighted, optimizer: torch.optim.Optimizer) -> None:
    rw.outer_backward(TRAIN, DEV)


def only_looked_at(rw: Reweighted, optimizer: torch.optim.Optimizer) -> None:
    rw.hypergradient(TRAIN, DEV)


def accumulated(rw: Reweighted, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(30):
        rw.outer_backward(TRAIN, DEV)
    optimizer.step()
    optimizer.zero_grad()


def outer_steps(loop: Loop, times: int, rate: float = 1e-3, other: bool = False) -> list[str]:
    rw = make(hypergradient=ImplicitHypergradient(Neumann(0), damping=60.0))
    parameters = LossWeighter(4).parameters() if other else rw.weighter.parameters()
    optimizer = torch.optim.SGD(parameters, lr=rate)

    def run() -> None:
        for _ in range(times):
            loop(rw, optimizer)

    return told(run)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loop": without_step},
        {"loop": cleared_too_late},
        {"loop": cleared_to_zeros},
        {"loop": right, "rate": 0.0},
        {"loop": right, "other": True},
        {"loop": neither_cleared_nor_stepped, "times": 105},
    ],
    ids=lambda arguments: "-".join(getattr(v, "__name__", str(v)) for v in arguments.values()),
)
def test_a_weighter_that_never_moves_is_told_once(arguments: dict[str, Any]) -> None:
    # An optimizer of other parameters does not clear these, as if they were accumulated.
    times = 105 if arguments.get("other") else 25
    (text,) = outer_steps(**{"times": times, **arguments})
    for cause in ("LossWeighter", "step()", "zero_grad()", "learning rate", "rw.weighter"):
        assert cause in text


@pytest.mark.parametrize(
    ("loop", "times"),
    [(right, 30), (only_looked_at, 30), (accumulated, 2)],
    ids=["right", "only_looked_at", "accumulated"],
)
def test_a_weighter_that_moves_or_is_not_asked_to_is_not_told(loop: Loop, times: int) -> None:
    assert not outer_steps(loop, times)


def test_a_hypergradient_of_zero_moves_nothing_and_is_not_told() -> None:
    weighter = Given([1.0] * SIZE)
    rw = make(
        weighter=weighter,
        outer_loss=lambda model, batch: 0.0 * model.weight.sum(),
    )

    def run() -> None:
        for _ in range(25):
            weighter.zero_grad()
            rw.outer_backward(TRAIN, DEV)

    assert not told(run)
