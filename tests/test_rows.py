"""Tables by the rows that a batch reads: the same numbers, and nothing of the table's size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import reweight
from benchmarks.catalogue.problems import relative_error
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, Neumann, SecondMoments
from reweight._rows import looked_up, tables_of

USERS, ITEMS, WORDS, DIM, BAG = 6, 7, 5, 2, 3
MODES = ("autograd", "func", "finite_difference")


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


def product(table: Tensor, index: Tensor, padding: int | None) -> Tensor:
    if padding is not None:
        fixed = torch.zeros(len(table), 1, dtype=torch.bool)
        fixed[padding] = True
        table = torch.where(fixed, table.detach(), table)
    return functional.one_hot(index % len(table), len(table)).to(table.dtype) @ table


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


@contextmanager
def quiet() -> Iterator[None]:
    """Without what is said of random problems away from a minimum."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*hypergradient")
        yield


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


# -- what is noticed ---------------------------------------------------------------------------


class Catalogue(nn.Module):
    """Scores items by their embedding; how the table is used is for the tests to say."""

    def __init__(self, num_items: int = 9, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(num_items, DIM, **options)
        self.out = nn.Linear(DIM, DIM)

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.items(index)).tanh()


def squares(model: nn.Module, index: Tensor) -> Tensor:
    return (model(index) - 1.0).square().mean(-1)


def over_all_items(model: nn.Module, index: Tensor) -> Tensor:
    logits = model(index) @ model.items.weight.T
    return functional.cross_entropy(logits, index, reduction="none")


def with_the_sum(model: nn.Module, index: Tensor) -> Tensor:
    return squares(model, index) + model.items.weight.square().sum()


THREE_TERMS = Neumann(3, step_size=0.1)
TRAIN, DEV = torch.tensor([1, 3, 3, 8]), torch.tensor([3, 2, 8, 0])


def catalogue(
    losses: Callable[..., Tensor] = squares,
    model: nn.Module | None = None,
    hvp: Any = "auto",
    solver: Any = THREE_TERMS,
    damping: float = 0.0,
    scaled: Any = None,
    **options: Any,
) -> reweight.Reweighted:
    model = Catalogue().double() if model is None else model
    weighter = reweight.LossWeighter().to(next(model.parameters()).dtype)
    told = ImplicitHypergradient(solver, damping, hvp, scaled)
    return reweight.wrap(
        model,
        weighter,
        losses,
        lambda m, b: losses(m, b).mean(),
        hypergradient=told,
        **options,
    )


@pytest.mark.parametrize("losses", [over_all_items, with_the_sum])
@pytest.mark.parametrize("hvp", MODES)
def test_a_table_that_is_used_as_a_whole_is_served_whole(losses: Any, hvp: str) -> None:
    model = Catalogue().double()
    assert not looked_up(
        losses(model, TRAIN).sum(), tables_of(model, dict(model.named_parameters()))
    )
    with quiet():
        got = catalogue(losses, model, hvp).hypergradient(TRAIN, DEV)
    params = dict(model.named_parameters())

    def inner(theta: dict[str, Tensor], phi: dict[str, Tensor]) -> Tensor:
        return (phi["weights"] * evaluated(theta, TRAIN)).mean()

    def evaluated(theta: dict[str, Tensor], index: Tensor) -> Tensor:
        with torch.nn.utils.parametrize.cached():
            return losses(Functional(model, theta), index)

    weights = {"weights": torch.ones(4).double()}
    strategy = ImplicitHypergradient(THREE_TERMS, hvp="autograd")
    expected, _ = strategy(inner, lambda t, p: evaluated(t, DEV).mean(), params, weights)
    tolerance = 1e-6 if hvp == "finite_difference" else 1e-12
    assert relative_error(got.influence, expected["weights"]) < tolerance


class Functional:
    """A catalogue at other parameters."""

    def __init__(self, model: nn.Module, theta: dict[str, Tensor]) -> None:
        self.model, self.theta = model, theta
        self.items = type("Table", (), {"weight": theta["items.weight"]})

    def __call__(self, index: Tensor) -> Tensor:
        return functional_call(self.model, self.theta, (index,))


def test_a_bag_whose_factors_are_learned_is_served_by_its_rows() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.bag = nn.EmbeddingBag(9, DIM, mode="sum")
            self.factors = nn.Parameter(torch.tensor([0.5, -1.0]))

        def forward(self, index: Tensor) -> Tensor:
            both = torch.stack([index, (index + 1) % 9], 1)
            return self.bag(both, per_sample_weights=self.factors.expand(len(index), 2)).tanh()

    class Plain(Weighted):
        def forward(self, index: Tensor) -> Tensor:
            both = torch.stack([index, (index + 1) % 9], 1)
            return (product(self.bag.weight, both, None) * self.factors[:, None]).sum(1).tanh()

    model, plain = Weighted().double(), Plain().double()
    with quiet():
        got = catalogue(model=model).hypergradient(TRAIN, DEV)
        expected = catalogue(model=plain).hypergradient(TRAIN, DEV)
    assert got.info.hvp_mode == "func" and expected.info.hvp_mode == "autograd"
    assert relative_error(got.influence, expected.influence) < 1e-12


def test_look_ups_inside_a_checkpoint_are_seen() -> None:
    class Checkpointed(Catalogue):
        def forward(self, index: Tensor) -> Tensor:
            return checkpoint(super().forward, index, use_reentrant=False)

    model = Checkpointed().double()
    tables = looked_up(
        squares(model, TRAIN).sum(), tables_of(model, dict(model.named_parameters()))
    )
    assert tables["items.weight"].rows.tolist() == [1, 3, 8]
    with quiet():
        got = catalogue(model=model).hypergradient(TRAIN, DEV)
        expected = catalogue().hypergradient(TRAIN, DEV)
    assert relative_error(got.influence, expected.influence) < 1e-12


def test_batches_that_share_no_row_and_nothing_else_are_told() -> None:
    class Popularity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(9, 1)

        def forward(self, index: Tensor) -> Tensor:
            return self.items(index)

    rw = catalogue(model=Popularity())
    with pytest.warns(UserWarning, match="rows.*train batch"):
        result = rw.hypergradient(torch.tensor([1, 2]), torch.tensor([3, 4]))
    assert result.info.status is reweight.Status.DISJOINT and not result.influence.any()


# -- what it costs -----------------------------------------------------------------------------

MANY = 30_000


class _Largest(TorchDispatchMode):
    """The most entries that any result of an operation has had, views of a parameter aside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.entries = 0
        self.owned = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for entry in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(entry, Tensor) or entry.layout is not torch.strided:
                continue
            if entry.untyped_storage().data_ptr() not in self.owned:
                self.entries = max(self.entries, entry.numel())
        return result


@pytest.mark.parametrize("hvp", MODES)
@pytest.mark.parametrize(
    ("sparse", "scaled"), [(False, None), (True, None), (False, SecondMoments())], ids=str
)
def test_nothing_of_the_size_of_a_table_is_made(hvp: str, sparse: bool, scaled: Any) -> None:
    model = Catalogue(MANY, sparse=sparse).double()
    if sparse:
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    squares(model, TRAIN).mean().backward()
    optimizer.step()
    rw = catalogue(model=model, hvp=hvp, optimizer=optimizer, scaled=scaled)
    with quiet(), _Largest(model) as largest:
        rw.hypergradient(TRAIN, DEV)
        rw.hypergradient(DEV, TRAIN)
    assert 0 < largest.entries < MANY


def test_second_moments_of_rows_are_rows_of_second_moments() -> None:
    model = Catalogue()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    squares(model, TRAIN).mean().backward()
    optimizer.step()
    params = dict(model.named_parameters())
    rows = {"items.weight": torch.tensor([1, 8])}
    whole = SecondMoments().diagonal(optimizer, params)
    some = SecondMoments().diagonal(optimizer, params, rows)
    assert torch.equal(some["items.weight"], whole["items.weight"][[1, 8]])
    assert torch.equal(some["out.weight"], whole["out.weight"])


def test_a_preconditioner_by_hand_is_given_for_whole_tables() -> None:
    model = Catalogue().double()
    scaled = {n: torch.rand_like(p).detach() + 0.5 for n, p in model.named_parameters()}
    options: Any = {"scaled": scaled, "solver": ConjugateGradient(200, 1e-12), "damping": 5.0}
    got = catalogue(model=model, **options).hypergradient(TRAIN, DEV)
    whole = catalogue(
        lambda m, b: squares(m, b) + 0.0 * m.items.weight.sum(), model=model, **options
    ).hypergradient(TRAIN, DEV)
    assert got.info.trustworthy and whole.info.trustworthy
    assert relative_error(got.influence, whole.influence) < 1e-10
    del scaled["items.weight"]
    with pytest.raises(ValueError, match=r"preconditioner.*items\.weight"):
        catalogue(model=model, scaled=scaled).hypergradient(TRAIN, DEV)


# -- look-ups that can't be made to read other values --------------------------------------------


@torch.jit.script
def scripted(table: Tensor, index: Tensor) -> Tensor:
    return torch.nn.functional.embedding(index, table)


UNSEEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scripted": scripted,
    "torch.embedding": lambda table, index: torch.embedding(table, index),
    "list": lambda table, index: table[index.tolist()],
    "tuple": lambda table, index: table[index, :],
}


@pytest.mark.parametrize("hvp", MODES)
@pytest.mark.parametrize("read", UNSEEN)
def test_look_ups_by_other_names_are_served_too(read: str, hvp: str) -> None:
    class Other(Catalogue):
        def forward(self, index: Tensor) -> Tensor:
            return self.out(UNSEEN[read](self.items.weight, index)).tanh()

    with quiet():
        got = catalogue(model=Other().double(), hvp=hvp).hypergradient(TRAIN, DEV)
        expected = catalogue(hvp="autograd").hypergradient(TRAIN, DEV)
    tolerance = 1e-6 if hvp == "finite_difference" else 1e-12
    assert relative_error(got.influence, expected.influence) < tolerance


def test_differences_of_a_checkpointed_look_up() -> None:
    class Checkpointed(Catalogue):
        def forward(self, index: Tensor) -> Tensor:
            return checkpoint(super().forward, index, use_reentrant=False)

    with quiet():
        got = catalogue(model=Checkpointed().double(), hvp="finite_difference")
        expected = catalogue(hvp="autograd").hypergradient(TRAIN, DEV)
        assert relative_error(got.hypergradient(TRAIN, DEV).influence, expected.influence) < 1e-6


@pytest.mark.parametrize("hvp", MODES[1:])
def test_losses_may_ask_for_their_gradient_by_a_table(hvp: str) -> None:
    def penalised(model: nn.Module, index: Tensor) -> Tensor:
        errors = squares(model, index)
        table = model.items.weight
        (gradient,) = torch.autograd.grad(errors.sum(), table, create_graph=True)
        return errors + 0.1 * gradient.square().sum()

    with quiet():
        got = catalogue(penalised, hvp=hvp).hypergradient(TRAIN, DEV)
        expected = catalogue(penalised, hvp="autograd").hypergradient(TRAIN, DEV)
    assert relative_error(got.influence, expected.influence) < 1e-6


@pytest.mark.parametrize("hvp", MODES)
@pytest.mark.parametrize("left_out", ["items.weight", "out.bias"])
def test_parameters_that_are_left_out_are_constants_in_every_mode(hvp: str, left_out: str) -> None:
    def kept(name: str) -> bool:
        return name != left_out

    model = Catalogue().double()
    with quiet():
        got = catalogue(model=model, hvp=hvp, inner_params=kept).hypergradient(TRAIN, DEV)
        dict(model.named_parameters())[left_out].requires_grad_(False)
        frozen = catalogue(model=model, hvp="autograd").hypergradient(TRAIN, DEV)
    assert not got.influence.requires_grad
    tolerance = 1e-6 if hvp == "finite_difference" else 1e-12
    assert relative_error(got.influence, frozen.influence) < tolerance


@pytest.mark.parametrize("hvp", MODES)
def test_nothing_is_made_of_a_table_that_only_the_train_loss_reads(hvp: str) -> None:
    model = Catalogue(MANY).double()
    rw = reweight.wrap(
        model,
        reweight.LossWeighter().double(),
        squares,
        lambda m, b: m.out.weight.square().sum(),
        hypergradient=ImplicitHypergradient(THREE_TERMS, hvp=hvp),
    )
    with quiet(), _Largest(model) as largest:
        rw.hypergradient(TRAIN, DEV)
    assert 0 < largest.entries < MANY


def test_second_moments_of_rows_that_no_step_has_touched_are_those_of_whole_tables() -> None:
    class Popularity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(9, DIM)

        def forward(self, index: Tensor) -> Tensor:
            return self.items(index).tanh()

    model = Popularity().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    squares(model, torch.tensor([5, 6])).mean().backward()
    optimizer.step()
    options: Any = {"model": model, "optimizer": optimizer, "scaled": SecondMoments()}
    with quiet():
        got = catalogue(**options).hypergradient(TRAIN, TRAIN)
        whole = catalogue(
            lambda m, b: squares(m, b) + 0.0 * m.items.weight.sum(), **options
        ).hypergradient(TRAIN, TRAIN)
    assert relative_error(got.influence, whole.influence) < 1e-12


def test_a_solver_that_keeps_rows_of_another_batch_is_told() -> None:
    kept: list[Any] = []

    def warm(matvec: Any, b: Any) -> reweight.Solution:
        kept.append(kept[-1] if kept else b)
        return reweight.Solution(matvec(kept[-1]), reweight.Status.APPROXIMATED)

    rw = catalogue(solver=warm)
    rw.hypergradient(TRAIN, DEV)
    with pytest.raises(ValueError, match=r"\(3, 2\).*'items\.weight'"):
        rw.hypergradient(torch.tensor([1, 2, 3, 8]), DEV)


def test_a_bag_with_entries_beyond_its_last_offset_is_served_whole() -> None:
    bag = nn.EmbeddingBag(9, DIM, mode="sum", include_last_offset=True)
    for last, seen in ((4, True), (3, False)):
        loss = bag(torch.tensor([1, 3, 3, 8]), torch.tensor([0, 2, last])).sum()
        assert bool(looked_up(loss, {"weight": bag.weight})) is seen
