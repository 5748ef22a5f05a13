"""A batch of its own for every product of the series."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problems import relative_error
from torch import Tensor, nn

from reweight import (
    ConjugateGradient,
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    Neumann,
    PowerIteration,
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


def make(solver: Any, model: nn.Module | None = None, hvp: Any = "auto") -> Reweighted:
    torch.manual_seed(0)
    return wrap(
        nn.Linear(3, 1).double() if model is None else model,
        TableWeighter(SIZE).double(),
        losses,
        lambda model, b: losses(model, b).weighted.mean(),
        hypergradient=ImplicitHypergradient(solver, hvp=hvp),
    )


TRAIN, DEV = batch(0), batch(1)


@pytest.mark.parametrize("solver", [Neumann(4, 0.1), Neumann(4), Neumann(0)], ids=repr)
def test_the_same_batch_again_and_again_is_one_operator(solver: Neumann) -> None:
    rw = make(solver)
    result = rw.hypergradient(TRAIN, DEV, batches=itertools.repeat(TRAIN))
    alpha = solver.step_size
    if alpha == "auto":  # by the terms met so far, so compare with what it says it took
        assert result.info.curvature is not None
        assert "step size" in result.info.detail
        assert result.info.relative_residual < 1.0
        return
    expected = make(Neumann(4, alpha)).hypergradient(TRAIN, DEV)
    assert relative_error(result.influence, expected.influence) < 1e-12


def test_each_product_is_of_the_next_batch() -> None:
    """u = α Σ_n Π_{m≤n} (I − αH_m) v, by dense matrices."""
    alpha, batches = 0.1, [batch(seed) for seed in range(5, 8)]
    rw = make(Neumann(3, alpha))
    result = rw.hypergradient(TRAIN, DEV, batches=batches)

    def design(b: Batch) -> Tensor:
        return torch.cat([b[0], torch.ones(SIZE, 1, dtype=torch.float64)], 1)

    theta = torch.cat([p.detach().reshape(-1) for p in rw.model.parameters()])
    v = 2.0 / SIZE * design(DEV).T @ (design(DEV) @ theta - DEV[1])
    term, total = v, v
    for b in batches:
        term = term - alpha * 2.0 / SIZE * design(b).T @ (design(b) @ term)
        total = total + term
    samples = 2.0 / SIZE * (design(TRAIN) @ theta - TRAIN[1])[:, None] * design(TRAIN)
    assert relative_error(result.influence, -alpha * samples @ total) < 1e-12
    assert result.info.num_hvps == 3
    assert "a batch for every product" in result.info.detail


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


def test_no_more_batches_are_taken_than_there_are_products() -> None:
    taken: list[int] = []

    def stream() -> Iterator[Batch]:
        for n in itertools.count():
            taken.append(n)
            yield batch(n)

    make(Neumann(3)).outer_backward(TRAIN, DEV, batches=stream())
    assert len(taken) == 3
    taken.clear()
    power = PowerIteration(num_steps=2, first_steps=4)
    make(Neumann(3, power)).hypergradient(TRAIN, DEV, batches=stream())
    assert len(taken) == 3 + 4  # the estimate of the curvature takes its own


def test_a_mode_that_fails_gives_its_batches_to_the_next() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.bag((x > 0).long())

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
        (Neumann(3, 0.1), [TRAIN], ValueError, "ran out after 1 of them.*itertools.cycle"),
        (Neumann(3, 0.1), [], ValueError, "ran out after 0"),
        (Neumann(3, 0.1), 5, TypeError, "iterable of train batches, got int"),
        (ConjugateGradient(), [TRAIN] * 20, ValueError, "ConjugateGradient.*use Neumann"),
        (custom, [TRAIN] * 20, ValueError, "custom.*use Neumann"),
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
