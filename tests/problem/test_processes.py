"""Outer steps of several processes are those of one process with all samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import reweight
from _support.problems import SigmoidWeights
from _support.processes import Processes, values
from reweight import (
    BehavioralPerceptron,
    BehaviorInputs,
    ConjugateGradient,
    GroupWeighter,
    Identity,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    SecondMoments,
    whole_batch,
)
from reweight.weighters import SampleWeighter

SAMPLES, DEV, FEATURES, ROWS, GROUPS = 13, 11, 4, 40, 3
# Where the samples of each process begin: ragged, with a process of one sample.
CUTS = {1: (0, 13), 2: (0, 5, 13), 4: (0, 1, 5, 9, 13)}
DEV_CUTS = {1: (0, 11), 2: (0, 7, 11), 4: (0, 3, 4, 9, 11)}

STRATEGIES = {
    "first order": ImplicitHypergradient(Identity()),
    "first order, scaled": ImplicitHypergradient(Identity(), preconditioner=SecondMoments()),
    "Neumann": ImplicitHypergradient(Neumann(3)),
    "Neumann, func": ImplicitHypergradient(Neumann(3), hvp="func"),
    "CG": ImplicitHypergradient(ConjugateGradient(60, rtol=1e-13), damping=0.5),
    "CG, scaled": ImplicitHypergradient(
        ConjugateGradient(60, rtol=1e-13), damping=0.5, preconditioner=SecondMoments()
    ),
    "Gauss-Newton": ImplicitHypergradient(Neumann(3), damping=0.5, curvature="gauss_newton"),
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, batch: Batch) -> Tensor:
        output: Tensor = self.layers(batch.x).squeeze(-1)
        return output


class Tables(nn.Module):
    """Two tables that each process reads other rows of, and one that it may not read at all."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, 3, padding_idx=0)
        self.bags = nn.EmbeddingBag(ROWS, 3, mode="mean")
        self.rare = nn.Embedding(ROWS, 3)
        self.last = nn.Linear(3, 1)

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.items(batch.ids[:, 0]) + self.bags(batch.ids)
        (rare,) = (batch.groups == 0).nonzero(as_tuple=True)
        if len(rare):
            hidden = hidden.index_add(0, rare, self.rare(batch.ids[rare, 1]))
        output: Tensor = self.last(torch.tanh(hidden)).squeeze(-1)
        return output


@dataclass
class Batch:
    x: Tensor
    ids: Tensor
    groups: Tensor
    history: Tensor
    y: Tensor


def batch(part: slice, size: int, seed: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)[part]

    ids = torch.randint(ROWS, (size, 2), generator=generator)[part]
    groups = torch.randint(GROUPS, (size,), generator=generator)[part]
    return Batch(randn(size, FEATURES), ids, groups, randn(size, 5, FEATURES), randn(size))


def own(cuts: tuple[int, ...], rank: int) -> slice:
    return slice(cuts[rank], cuts[rank + 1])


def losses(model: nn.Module, batch: Batch) -> Losses:
    found = Losses.of(model(batch), lambda output: (output - batch.y).square(), inputs=batch.groups)
    fixed = 0.3 * (model(batch) - 0.1).square().mean()
    return Losses(found.weighted, fixed, batch.groups)


def outputs_only(model: nn.Module, batch: Batch) -> Losses:
    return Losses.of(model(batch), lambda output: (output - batch.y).square())


def behaviors(model: nn.Module, batch: Batch) -> Losses:
    mask = torch.ones(len(batch.y), 5, dtype=torch.bool)
    inputs = BehaviorInputs(batch.x, batch.history, batch.history.flip(1), mask, mask)
    return Losses(losses(model, batch).weighted, inputs=inputs)


def dev_loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch) - batch.y).abs().mean()


class Relative(SampleWeighter):
    """A weighter of a user that compares samples with a graph over the processes."""

    compares_samples = True

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        powers = (self.slope * losses).exp()
        return powers / whole_batch(powers)[0].mean()


class Paired(SampleWeighter):
    """A weighter that adds two quantities of the whole batch, which then share a gradient."""

    compares_samples = True

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.zeros(2))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        powers, _ = whole_batch((self.scales[0] * losses).exp())
        waves, own = whole_batch((self.scales[1] * losses).sin())
        return (powers + waves)[own]


WEIGHTERS = {
    "losses": lambda: LossWeighter(5),
    "scaled losses": lambda: LossWeighter(5, learn_scale=True),
    "groups": lambda: GroupWeighter(GROUPS),
    "relative": Relative,
    "paired": Paired,
    "sigmoid": lambda: BehavioralPerceptron(FEATURES, num_heads=1),
    "softmax": lambda: BehavioralPerceptron(FEATURES, num_heads=1, normalization="softmax"),
    "centered": lambda: BehavioralPerceptron(FEATURES, num_heads=1, normalization="centered"),
}


@dataclass(frozen=True)
class Case:
    """A problem, the same one on every process."""

    model: str = "network"
    weighter: str = "losses"
    strategy: str = "Neumann"
    reduction: str = "mean"
    parallel: bool = True
    dtype: torch.dtype = torch.float64

    def wrapped(self, rank: int, size: int) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = {"network": Network, "tables": Tables}[self.model]().to(self.dtype)
        torch.manual_seed(rank)  # every process starts with other weights, as without a seed
        weighter = WEIGHTERS[self.weighter]().to(self.dtype)
        perturb = torch.Generator().manual_seed(rank)
        with torch.no_grad():
            for p in weighter.parameters():
                noise = torch.randn(p.shape, generator=perturb, dtype=torch.float64)
                p += 0.3 * noise.to(p)
        net: nn.Module = model
        if self.parallel and size > 1:
            net = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-2)
        for i, p in enumerate(model.parameters()):
            state = {"step": torch.tensor(5.0), "exp_avg": torch.zeros_like(p)}
            optimizer.state[p] = state | {"exp_avg_sq": torch.full_like(p, 0.1 + 0.1 * i)}
        functions = {"sigmoid": behaviors, "softmax": behaviors, "centered": behaviors}
        chosen = functions.get(self.weighter, losses)
        if self.strategy == "Gauss-Newton":
            chosen = outputs_only
        rw = reweight.wrap(
            net,
            weighter,
            chosen,
            dev_loss,
            optimizer,
            STRATEGIES[self.strategy],
            reduction=self.reduction,  # type: ignore[arg-type]
        )
        return rw, torch.optim.SGD(weighter.parameters(), lr=1e-2)


def outer_step(rank: int, size: int, case: Case) -> dict[str, Any]:
    """One full outer step, on this process's samples."""
    warnings.simplefilter("ignore")
    rw, optimizer = case.wrapped(rank, size)
    train = batch(own(CUTS[size], rank), SAMPLES, 1, case.dtype)
    dev = batch(own(DEV_CUTS[size], rank), DEV, 2, case.dtype)
    result = rw.outer_backward(train, dev)
    optimizer.step()
    info = result.info
    return {
        "grads": torch.cat([g.flatten() for g in result.grads.values()]),
        "influence": result.influence,
        "weighter": torch.cat([p.detach().flatten() for p in rw.weighter.parameters()]),
        "residual": info.relative_residual or 0.0,
        "verdict": (info.num_hvps, info.status.name, info.hvp_mode, info.trustworthy, info.caveat),
        "loss": rw.loss(train).detach() * len(train.y),
    }


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    group = Processes(4, tmp_path_factory.mktemp("four"))
    yield group
    group.close()


def assert_same_verdict(found: tuple[Any, ...], one: tuple[Any, ...], strategy: str) -> None:
    """The same, but that conjugate gradients may need one product more or less.

    Their residual may come to lie on either side of the tolerance by rounding, which is another
    with other processors and where sums run in another order.
    """
    assert found[1:] == one[1:]
    assert abs(found[0] - one[0]) <= (strategy == "CG")


def assert_is_one_process(group: Processes, case: Case, rtol: float) -> None:
    one = outer_step(0, 1, case)
    found = values(group.run(outer_step, case))
    for each in found:
        # Bit-equal, or weighters drift apart.
        assert torch.equal(each["grads"], found[0]["grads"])
        assert torch.equal(each["weighter"], found[0]["weighter"])
        assert_same_verdict(each["verdict"], one["verdict"], case.strategy)
        assert each["residual"] == found[0]["residual"] == pytest.approx(one["residual"], abs=rtol)

    def assert_near(got: Tensor, expected: Tensor) -> None:
        assert float((got - expected).norm()) <= rtol * float(expected.norm())

    assert_near(found[0]["grads"], one["grads"])
    assert_near(torch.cat([each["influence"] for each in found]), one["influence"])
    assert_near(found[0]["weighter"], one["weighter"])
    if case.model == "network" and case.reduction == "mean":
        # The fixed part is an average that counts once for each sample.
        total = torch.stack([each["loss"] for each in found]).sum(0)
        assert_near(total, one["loss"])


# Sums of a dozen terms in another order; products with the Hessian magnify their rounding.
EXACT, SINGLE = 1e-12, 1e-6
CONDITION = 5.0  # of the damped Hessian, by which a solution magnifies rounding
CASES = [
    *(Case(strategy=strategy) for strategy in STRATEGIES),
    *(Case(strategy=s, parallel=False) for s in ("first order", "Neumann", "CG")),
    *(Case("tables", strategy=s) for s in ("first order", "first order, scaled", "Neumann")),
    *(Case("tables", strategy=s) for s in ("Neumann, func", "CG", "CG, scaled")),
    *(Case(weighter=weighter) for weighter in WEIGHTERS if weighter != "losses"),
    Case("tables", "groups", "CG", "sum"),
    Case("network", "relative", "first order", "sum"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_are_one(two: Processes, case: Case) -> None:
    assert_is_one_process(two, case, EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], CASES[2], *CASES[4:6], *CASES[10:16]], ids=str)
def test_four_processes_are_one(four: Processes, case: Case) -> None:
    assert_is_one_process(four, case, EXACT)


@pytest.mark.parametrize("model", ["network", "tables"])
@pytest.mark.parametrize("strategy", ["first order", "Neumann", "CG"])
def test_single_precision_too(two: Processes, model: str, strategy: str) -> None:
    case = Case(model, "groups", strategy, dtype=torch.float32)
    assert_is_one_process(two, case, SINGLE * (CONDITION if strategy == "CG" else 1.0))


def loop(rank: int, size: int, compares: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A training loop as one writes it: the weighter's parameters, the model's, some weights."""
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(240, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randn(240, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    torch.manual_seed(rank)
    weighter = (LossWeighter(10) if compares else SigmoidWeights(10)).double()
    if size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-2)

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]).squeeze(-1) - batch[1]).square()

    def outer_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return losses(model, batch).mean()

    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer)
    for _ in range(3):
        for indices in torch.randperm(240, generator=generator).split(20):
            train, dev = (half[rank::size] for half in indices.chunk(2))
            optimizer.zero_grad()
            rw.loss((x[train], y[train])).backward()
            optimizer.step()
            outer_optimizer.zero_grad()
            rw.outer_backward((x[train], y[train]), (x[dev], y[dev]))
            outer_optimizer.step()
    parameters = [
        torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (weighter, model)
    ]
    return parameters[0], parameters[1], rw.weights((x, y))


@pytest.mark.parametrize("compares", [True, False])
def test_a_loop_learns_what_it_learns_in_one_process(two: Processes, compares: bool) -> None:
    found = values(two.run(loop, compares))
    one = loop(0, 1, compares)
    for first, second, expected in zip(*found, one, strict=True):
        assert torch.equal(first, second)
        # Adam divides by gradients that are nearly zero at first, which magnifies rounding.
        torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-8)
    start = 1.0
    assert float((found[0][2] - start).abs().max()) > 1e-3  # something was learned


def in_two_sizes(rank: int, size: int, rows: int) -> dict[str, int]:
    """What an outer step on a table with so many rows gives to exchanges."""
    torch.manual_seed(0)
    table = nn.Embedding(rows, 2).double()
    rw = reweight.wrap(
        table,
        GroupWeighter(2).double(),
        lambda m, b: Losses(m(b[0]).square().sum(1), inputs=b[1]),
        lambda m, b: m(b[0]).sum(1).mean(),
    )
    ids, groups = torch.arange(6) + 3 * rank, torch.arange(6) % 2
    assert rw.problem.ranks is not None
    before = asdict(rw.problem.ranks.traffic)
    rw.hypergradient((ids, groups), (ids, groups))
    return {key: value - before[key] for key, value in asdict(rw.problem.ranks.traffic).items()}


@pytest.mark.slow
def test_what_is_exchanged_does_not_grow_with_a_table(two: Processes) -> None:
    small, large = (values(two.run(in_two_sizes, rows))[0] for rows in (20, 100_000))
    assert small == large and small["summed"] > 0
