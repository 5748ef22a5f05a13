"""The influence by the rows that a batch reads is that of whole tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

import reweight
from _support.tables import BAG, DIM, ITEMS, USERS, WORDS, product, quiet
from reweight import Identity, ImplicitHypergradient, Neumann
from reweight.verdict import WAYS


@dataclass(frozen=True)
class Spec:
    """What hypothesis chooses; the batches follow from the seed."""

    seed: int
    batch_size: int
    sparse: bool
    padding: int | None
    bag: str
    tied: bool  # one table for users and items
    weighted_bag: bool
    decay: float
    damping: float
    solver: Any
    hvp: str


specs = st.builds(
    Spec,
    seed=st.integers(0, 10_000),
    batch_size=st.integers(1, 5),
    sparse=st.booleans(),
    padding=st.sampled_from((None, 0, 2)),
    bag=st.sampled_from(("sum", "mean", "max")),
    tied=st.booleans(),
    weighted_bag=st.booleans(),
    decay=st.sampled_from((0.0, 0.3)),
    damping=st.sampled_from((0.0, 0.5)),
    solver=st.sampled_from((Identity(0.3), Neumann(3, step_size=0.2), Neumann(0, step_size=0.7))),
    hvp=st.sampled_from(("autograd", "func", "finite_difference")),
)


class Model(nn.Module):
    """Several tables, looked up in all the ways there are, under a small network."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(spec.seed)
        self.spec = spec
        self.items = nn.Embedding(ITEMS, DIM, padding_idx=spec.padding, sparse=spec.sparse)
        self.users = self.items if spec.tied else nn.Embedding(USERS, DIM)
        self.bag = nn.EmbeddingBag(WORDS, DIM, mode=spec.bag, padding_idx=spec.padding)
        self.out = nn.Sequential(nn.Linear(5 * DIM, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, batch: Batch) -> Tensor:
        read = torch.cat(
            [
                self.users(batch.user),
                self.items(batch.item),
                self.items(batch.other).mean(1),
                self.users.weight[batch.item - 1],  # -1 among them, and no padding here
                self.bag(batch.words, per_sample_weights=batch.factors),
            ],
            -1,
        )
        return self.out(read).squeeze(-1)


class Dense(Model):
    """The same by products with whole tables, in which autograd sees no look-up."""

    def forward(self, batch: Batch) -> Tensor:
        pad = self.spec.padding
        table = self.users.weight
        of_users = self.spec.padding if self.spec.tied else None
        read = torch.cat(
            [
                product(table, batch.user, of_users),
                product(self.items.weight, batch.item, pad),
                product(self.items.weight, batch.other, pad).mean(1),
                product(table, batch.item - 1, None),
                self.bagged(batch),
            ],
            -1,
        )
        return self.out(read).squeeze(-1)

    def bagged(self, batch: Batch) -> Tensor:
        pad = self.spec.padding
        real = torch.ones(batch.words.shape, dtype=torch.bool)
        if pad is not None:
            real = batch.words != pad
        read = product(self.bag.weight, batch.words, None)
        if batch.factors is not None:
            read = read * batch.factors.unsqueeze(-1)
        if self.spec.bag == "max":
            largest = read.masked_fill(~real.unsqueeze(-1), -torch.inf).amax(1)
            return torch.where(real.any(1, keepdim=True), largest, torch.zeros_like(largest))
        total = (read * real.unsqueeze(-1)).sum(1)
        return total / real.sum(1, keepdim=True).clamp(min=1) if self.spec.bag == "mean" else total


@dataclass
class Batch:
    user: Tensor
    item: Tensor
    other: Tensor
    words: Tensor
    factors: Tensor | None
    y: Tensor

    @classmethod
    def random(cls, spec: Spec, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def ids(high: int, *shape: int) -> Tensor:
            return torch.randint(high, (spec.batch_size, *shape), generator=generator)

        def randn(*shape: int) -> Tensor:
            return torch.randn(spec.batch_size, *shape, generator=generator).double()

        weighted = spec.weighted_bag and spec.bag == "sum"
        return cls(
            ids(USERS),
            ids(ITEMS),
            ids(ITEMS, 2),
            ids(WORDS, BAG),
            randn(BAG) if weighted else None,
            randn(),
        )


def losses(model: nn.Module, batch: Batch) -> reweight.Losses:
    error = (model(batch) - batch.y).square()
    return reweight.Losses(error, 0.1 * error.mean())


def outer(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch) - batch.y).square().mean()


def wrapped(model: nn.Module, spec: Spec, **options: Any) -> reweight.Reweighted:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=spec.decay)
    hypergradient = ImplicitHypergradient(spec.solver, spec.damping, spec.hvp)
    options = {"optimizer": optimizer, "hypergradient": hypergradient, **options}
    return reweight.wrap(model, reweight.LossWeighter().double(), losses, outer, **options)


def dense_influence(spec: Spec, model: nn.Module, train: Batch, dev: Batch) -> Tensor:
    """The influence, from the Hessian over all entries of all tables."""
    dense = Dense(spec).double()
    dense.load_state_dict(model.state_dict())
    params = {n: p.detach() for n, p in dense.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in params.values()])

    def at(theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([p.numel() for p in params.values()])
        return {n: x.view(p.shape) for (n, p), x in zip(params.items(), parts, strict=True)}

    def errors(theta: Tensor, batch: Batch) -> Tensor:
        return (functional_call(dense, at(theta), (batch,)) - batch.y).square()

    # The weights of an untrained weighter are ones.
    H = hessian(lambda t: 1.1 * errors(t, train).mean(), flat)
    A = H + (spec.decay + spec.damping) * torch.eye(len(flat)).double()
    v = torch.autograd.functional.jacobian(lambda t: errors(t, dev).mean(), flat)
    if isinstance(spec.solver, Identity):
        u = spec.solver.step_size * v
    else:
        term = total = v
        for _ in range(spec.solver.num_terms):
            term = term - spec.solver.step_size * (A @ term)
            total = total + term
        u = spec.solver.step_size * total
    J = torch.autograd.functional.jacobian(lambda t: errors(t, train), flat)
    return -(J @ u) / len(train.y)


@pytest.mark.slow
@settings(max_examples=60)
@given(specs)
def test_the_influence_is_that_of_whole_tables(spec: Spec) -> None:
    model = Model(spec).double()
    train, dev = Batch.random(spec, spec.seed), Batch.random(spec, spec.seed + 1)
    with quiet():
        got = wrapped(model, spec).hypergradient(train, dev)
    expected = dense_influence(spec, model, train, dev)
    assert got.info.hvp_mode == spec.hvp or got.info.hvp_mode == "none"
    # Differences of gradients have six to ten digits in float64.
    tolerance = 1e-5 if spec.hvp == "finite_difference" else 1e-10
    assert float((got.influence - expected).norm()) <= tolerance * float(expected.norm()) + 1e-12


@pytest.mark.slow
@settings(max_examples=60)
@given(specs, st.sampled_from(WAYS))
def test_first_order_steps_move_what_whole_tables_would(spec: Spec, way: str) -> None:
    spec = replace(spec, solver=Identity(0.3), hvp=way)
    model = Model(spec).double()
    train, dev = Batch.random(spec, spec.seed), Batch.random(spec, spec.seed + 1)
    with quiet():
        got = wrapped(model, spec).hypergradient(train, dev)
    expected = dense_influence(spec, model, train, dev)
    # A padding row that is also read without padding needs a graph.
    assert got.info.hvp_mode in (way, "none") or (spec.tied and spec.padding is not None)
    # Differences in float64 have ten digits, of losses whose third derivatives are of order ten.
    tolerance = 1e-7 if got.info.hvp_mode == "differences" else 1e-10
    assert float((got.influence - expected).norm()) <= tolerance * float(expected.norm()) + 1e-12
