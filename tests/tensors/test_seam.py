"""All that several processes would have to reduce passes one place."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.catalogue.gauss_newton import PROBLEMS
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, Neumann, SampleSpace
from reweight._tensors import cosine, dot, norm, reducing

Tree = dict[str, Tensor]
RANKS = 2


class AllReduce:
    """The sum over threads that stand for processes."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=60.0)
        self.parts: dict[int, Tensor] = {}
        self.calls = 0

    def of(self, rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(x: Tensor) -> Tensor:
            self.parts[rank] = x
            self.barrier.wait()
            total = torch.stack([self.parts[r] for r in range(RANKS)]).sum(0)
            self.calls += rank == 0
            self.barrier.wait()
            return total

        return reduce


def on_two_ranks(run: Callable[[int, slice], None], parts: tuple[slice, slice]) -> None:
    """Call ``run(rank, part)`` in a thread for each rank."""
    threads = [threading.Thread(target=run, args=(rank, part)) for rank, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def data(samples: slice) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(10, generator=generator, dtype=torch.float64)
    return x[samples], y[samples]


def problem(samples: slice) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Sums over these samples; the penalties are sums over samples too."""
    x, y = data(samples)

    def inner(params: Tree, hparams: Tree) -> Tensor:
        errors = torch.tanh(x @ params["w"]) - y
        penalty = hparams["penalty"].exp() * params["w"].square().sum()
        return (hparams["scale"] * errors.square()).sum() + len(x) * penalty

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return (x @ params["w"] - y).abs().sum() * (1.0 + hparams["scale"])

    return inner, outer


def point() -> tuple[Tree, Tree]:
    return (
        {"w": torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)},
        {
            "penalty": torch.tensor(-1.0, dtype=torch.float64),
            "scale": torch.tensor(0.7, dtype=torch.float64),
        },
    )


@pytest.mark.parametrize("hvp", ["autograd", "func", "finite_difference"])
@pytest.mark.parametrize("solver", [Neumann(3), ConjugateGradient(3), Identity()])
def test_two_halves_with_a_sum_at_the_seam_are_the_whole(solver: object, hvp: str) -> None:
    strategy = ImplicitHypergradient(solver, hvp=hvp)  # type: ignore[arg-type]
    whole, info = strategy(*problem(slice(0, 10)), *point())
    allreduce, found = AllReduce(), {}

    def run(rank: int, samples: slice) -> None:
        with reducing(samples=allreduce.of(rank)):
            found[rank] = strategy(*problem(samples), *point())

    on_two_ranks(run, (slice(0, 4), slice(4, 10)))
    # The differences' step depends on the parameters alone, so that they are sums too; their
    # rounding is that of values around 10 over a step of 1e-5.
    rtol = 1e-8 if hvp == "finite_difference" else 1e-12
    for grads, own in found.values():
        for name, expected in whole.items():
            torch.testing.assert_close(grads[name], expected, rtol=rtol, atol=rtol)
        assert own.relative_residual == pytest.approx(info.relative_residual, abs=rtol)
        assert own.num_hvps == info.num_hvps
    # Bit-equal, or weighters drift apart.
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in whole)


def test_a_half_alone_is_not_the_whole() -> None:
    strategy = ImplicitHypergradient(Neumann(3))
    whole, _ = strategy(*problem(slice(0, 10)), *point())
    half, _ = strategy(*problem(slice(0, 4)), *point())
    assert abs(float(whole["penalty"] - half["penalty"])) > 1e-3


def test_inner_products_of_shards_are_those_of_the_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(2))
    allreduce, found = AllReduce(), {}

    def run(rank: int, entries: slice) -> None:
        with reducing(entries=allreduce.of(rank)):
            found[rank] = dot(x[entries], y[entries]), norm({"a": x[entries]}), norm(x[entries])

    on_two_ranks(run, (slice(0, 3), slice(3, 7)))
    expected = float(x @ y), float(x.norm()), float(x.norm())
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-14)
    # Outside of the context nothing is reduced.
    assert norm(x) == pytest.approx(expected[1], rel=1e-14)
    assert cosine({"a": x}, {"a": x}) == pytest.approx(1.0)


def test_the_sample_space_is_that_of_one_process() -> None:
    rw, batch, dev_batch = PROBLEMS["logistic"].wrapped(SampleSpace())
    with reducing(samples=lambda x: x), pytest.raises(ValueError, match="several processes"):
        rw.hypergradient(batch, dev_batch)
