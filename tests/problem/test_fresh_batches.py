"""A batch of its own for every product of the series."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.catalogue.operations import Bag
from benchmarks.catalogue.problems import relative_error
from reweight import (
    ConjugateGradient,
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    Neumann,
    Reweighted,
    Solution,
    Status,
    TableWeighter,
    wrap,
)

SIZE = 16
Batch = tuple[Tensor, Tensor, Tensor]


def batch(seed: int, dim: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, dim, generator=generator, dtype=torch.float64)
    return x, torch.randn(SIZE, generator=generator, dtype=torch.float64), torch.arange(SIZE)


def losses(model: nn.Module, b: Batch) -> Losses:
    return Losses((model(b[0]).squeeze(-1) - b[1]).square(), inputs=b[2])


def make(
    solver: Any,
    model: nn.Module | None = None,
    hvp: Any = "auto",
    outer_loss: Any = lambda model, b: losses(model, b).weighted.mean(),
) -> Reweighted:
    torch.manual_seed(0)
    return wrap(
        nn.Linear(3, 1).double() if model is None else model,
        TableWeighter(SIZE).double(),
        losses,
        outer_loss,
        hypergradient=ImplicitHypergradient(solver, hvp=hvp),
    )


TRAIN, DEV = batch(0), batch(1)


@pytest.mark.parametrize("num_terms", [0, 1, 4])
def test_the_same_batch_again_and_again_is_one_operator(num_terms: int) -> None:
    solver = Neumann(num_terms, 0.1)
    result = make(solver).hypergradient(TRAIN, DEV, batches=itertools.repeat(TRAIN))
    expected = make(solver).hypergradient(TRAIN, DEV)
    assert relative_error(result.influence, expected.influence) < 1e-12


@pytest.mark.parametrize("num_terms", [0, 1, 4])
def test_an_automatic_step_size_goes_by_the_curvatures_met_so_far(num_terms: int) -> None:
    """u ← u + α r, r ← r − α H_n r, with α one over the largest ‖H_n r‖/‖r‖ so far."""
    batches = [batch(seed) for seed in range(5, 5 + max(num_terms, 1))]
    rw = make(Neumann(num_terms))
    result = rw.hypergradient(TRAIN, DEV, batches=batches)
    r, samples = dense(rw.model)
    u, largest = torch.zeros_like(r), 0.0
    for b in batches:
        product = 2.0 / SIZE * design(b).T @ (design(b) @ r)
        largest = max(largest, float(product.norm() / r.norm()))
        if num_terms:
            u, r = u + r / largest, r - product / largest
    assert relative_error(result.influence, -samples @ (u + r / largest)) < 1e-12


def design(b: Batch) -> Tensor:
    return torch.cat([b[0], torch.ones(SIZE, 1, dtype=torch.float64)], 1)


def dense(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The outer gradient, and per-sample gradients over the batch size."""
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    v = 2.0 / SIZE * design(DEV).T @ (design(DEV) @ theta - DEV[1])
    return v, 2.0 / SIZE * (design(TRAIN) @ theta - TRAIN[1])[:, None] * design(TRAIN)


def test_each_product_is_of_the_next_batch() -> None:
    """u = α Σ_n Π_{m≤n} (I − αH_m) v, by dense matrices."""
    alpha, batches = 0.1, [batch(seed) for seed in range(5, 8)]
    rw = make(Neumann(3, alpha))
    result = rw.hypergradient(TRAIN, DEV, batches=batches)

    v, samples = dense(rw.model)
    term, total = v, v
    for b in batches:
        term = term - alpha * 2.0 / SIZE * design(b).T @ (design(b) @ term)
        total = total + term
    assert relative_error(result.influence, -alpha * samples @ total) < 1e-12
    assert result.info.num_hvps == 3
    assert "batch" in result.info.detail


@pytest.mark.slow
def test_independent_batches_take_the_bias_away() -> None:
    """Powers of one batch's Hessian are biased, products of several batches' Hessians are not."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[0.5]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    num_terms, alpha, draws = 8, 0.35, 300
    rw = make(Neumann(num_terms, alpha), Slope())
    dev = batch(1, dim=1)
    v = 2.0 * float((dev[0][:, 0] * (0.5 * dev[0][:, 0] - dev[1])).mean())
    # E h = 2 E x² = 2, so that the series of the mean Hessian is known.
    exact = sum((1.0 - alpha * 2.0) ** n for n in range(num_terms + 1))

    def errors(fresh: bool) -> Tensor:
        """Σ_n Π (1 − αh), as the influence shows it, less what it should be."""
        found = []
        for draw in range(draws):
            first, *others = (batch(1000 + 10 * draw + n, dim=1) for n in range(num_terms + 1))
            result = rw.hypergradient(first, dev, batches=others if fresh else None)
            slope = 2.0 * float((first[0][:, 0] * (0.5 * first[0][:, 0] - first[1])).mean())
            found.append(float(result.influence.sum()) / (-alpha * v * slope))
        return torch.tensor(found) - exact

    one, several = errors(fresh=False), errors(fresh=True)
    assert float(one.mean()) > 5.0 * float(one.std()) / draws**0.5
    assert abs(float(several.mean())) < 2.0 * float(several.std()) / draws**0.5
    assert abs(float(several.mean())) < 0.3 * float(one.mean())


class Headed(nn.Module):
    """A body, and a head of the dev loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 1)
        self.head = nn.Parameter(torch.full((50,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_head_of_the_dev_loss_alone_does_no_harm(fresh: bool) -> None:
    model = Headed().double()
    batches = [batch(5), batch(6), batch(7)] if fresh else None

    def run(outer: Any) -> Hypergradient:
        rw = make(Neumann(3), model, outer_loss=outer)
        return rw.hypergradient(TRAIN, DEV, batches=batches)

    plain = run(lambda m, b: losses(m.body, b).weighted.mean())
    headed = run(lambda m, b: losses(m.body, b).weighted.mean() + m.head.sum())
    assert torch.equal(plain.influence, headed.influence)
    assert plain.info == headed.info
    with pytest.warns(UserWarning, match="no parameter.*inner loss"):
        assert not bool(run(lambda m, b: m.head.sum()).influence.any())


def test_no_more_batches_are_taken_than_there_are_products() -> None:
    taken: list[int] = []

    def stream() -> Iterator[Batch]:
        for n in itertools.count():
            taken.append(n)
            yield batch(n)

    make(Neumann(3)).outer_backward(TRAIN, DEV, batches=stream())
    assert len(taken) == 3


def test_a_mode_that_fails_gives_its_batches_to_the_next() -> None:
    taken: list[int] = []

    def stream() -> Iterator[Batch]:
        for n in range(3):
            taken.append(n)
            yield batch(n)

    torch.manual_seed(0)
    model = Bag().double()
    with pytest.warns(UserWarning, match="finite differences"):
        result = make(Neumann(3, 0.1), model).hypergradient(TRAIN, DEV, batches=stream())
    assert result.info.hvp_mode == "finite_difference"
    assert taken == [0, 1, 2]
    again = make(Neumann(3, 0.1), model, hvp="finite_difference")
    expected = again.hypergradient(TRAIN, DEV, batches=[batch(n) for n in range(3)])
    assert torch.equal(result.influence, expected.influence)


@pytest.mark.parametrize("hvp", ["autograd", "func", "finite_difference"])
def test_every_mode_and_dropout_leave_no_trace(hvp: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1)).double()
    rw = make(Neumann(2, 0.1), model, hvp)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    batches = [batch(5), batch(6)]
    first, second = (rw.hypergradient(TRAIN, DEV, batches=batches) for _ in range(2))
    assert torch.equal(first.influence, second.influence)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())


def custom(matvec: Any, b: Any) -> Solution:
    return Solution(b, Status.CONVERGED)


@pytest.mark.parametrize(
    ("solver", "batches", "error", "words"),
    [
        (Neumann(3, 0.1), [TRAIN], ValueError, r"batches.*\b1\b"),
        (Neumann(3, 0.1), [], ValueError, r"batches.*\b0\b"),
        (Neumann(3, 0.1), 5, TypeError, r"batches.*\bint\b"),
        (ConjugateGradient(), [TRAIN] * 20, ValueError, "ConjugateGradient.*Neumann"),
        (custom, [TRAIN] * 20, ValueError, "custom.*Neumann"),
    ],
)
def test_batches_that_make_no_sense_are_told(
    solver: Any, batches: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make(solver).hypergradient(TRAIN, DEV, batches=batches)


def test_a_hypergradient_may_be_accumulated() -> None:
    rw = make(Neumann(2, 0.1))
    batches = [batch(5), batch(6)]
    expected: Hypergradient = rw.hypergradient(TRAIN, DEV, batches=batches)
    rw.outer_backward(TRAIN, DEV, batches=batches)
    grad = dict(rw.weighter.named_parameters())["raw"].grad
    assert grad is not None and torch.equal(grad, expected.grads["raw"])


def shuffled(seen: list[list[int]]) -> Iterator[Batch]:
    """Draws from torch's global generator, as a loader that shuffles does."""
    while True:
        rows = torch.randperm(SIZE)
        seen.append(rows.tolist())
        yield tuple(t[rows] for t in TRAIN)  # type: ignore[misc]


def test_batches_drawn_from_the_global_generator_are_all_different() -> None:
    seen: list[list[int]] = []
    rw = make(Neumann(3))
    stream = shuffled(seen)
    for _ in range(2):
        rw.hypergradient(TRAIN, DEV, batches=stream)
    assert len({tuple(rows) for rows in seen}) == len(seen) == 6
    torch.manual_seed(0)
    expected = [torch.randperm(SIZE).tolist() for _ in range(6)]
    seen.clear()
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(range(SIZE), batch_size=None, shuffle=True)
    orders = []
    for _ in range(2):
        rw.hypergradient(
            TRAIN,
            DEV,
            batches=(orders.append(int(i)) or TRAIN for i in loader),  # type: ignore[func-returns-value]
        )
    assert orders[:3] != orders[3:]
    torch.manual_seed(0)
    rw.hypergradient(TRAIN, DEV, batches=shuffled(seen))
    assert seen == expected[:3]
    # And the state is where these draws left it.
    assert torch.randperm(SIZE).tolist() == expected[3]


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, OSError])
def test_an_error_of_the_iterator_comes_through_and_rules_nothing_out(
    error: type[Exception],
) -> None:
    def stream() -> Iterator[Batch]:
        yield TRAIN
        raise error("disk is gone")

    rw = make(Neumann(3, 0.1))
    with pytest.raises(error, match="disk is gone"):
        rw.hypergradient(TRAIN, DEV, batches=stream())
    assert rw.hypergradient(TRAIN, DEV).info.hvp_mode == "autograd"
