"""Look-ups in all their ways are served by their rows, or the table is served whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import reweight
from _support.tables import (
    DEV,
    DIM,
    MODES,
    THREE_TERMS,
    TRAIN,
    Catalogue,
    catalogue,
    product,
    quiet,
    squares,
)
from benchmarks.catalogue.problems import relative_error
from reweight import ImplicitHypergradient
from reweight._tables import Graph, looked_up, tables_of


def over_all_items(model: nn.Module, index: Tensor) -> Tensor:
    logits = model(index) @ model.items.weight.T
    return functional.cross_entropy(logits, index, reduction="none")


def with_the_sum(model: nn.Module, index: Tensor) -> Tensor:
    return squares(model, index) + model.items.weight.square().sum()


@pytest.mark.parametrize("losses", [over_all_items, with_the_sum])
@pytest.mark.parametrize("hvp", MODES)
def test_a_table_that_is_used_as_a_whole_is_served_whole(losses: Any, hvp: str) -> None:
    model = Catalogue().double()
    tables = tables_of(model.modules(), dict(model.named_parameters()))
    assert not looked_up(Graph(losses(model, TRAIN).sum()), tables)
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
        Graph(squares(model, TRAIN).sum()),
        tables_of(model.modules(), dict(model.named_parameters())),
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


@torch.jit.script
def scripted(table: Tensor, index: Tensor) -> Tensor:
    return torch.nn.functional.embedding(index, table)


UNSEEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scripted": scripted,
    "torch.embedding": lambda table, index: torch.embedding(table, index),
    "list": lambda table, index: table[index.tolist()],
    "tuple": lambda table, index: table[index, :],
}


def is_read_in_func() -> bool:
    """Whether this torch reads the numbers of a tensor inside of torch.func."""
    try:
        torch.func.grad(lambda x: x * torch.tensor([2]).tolist()[0])(torch.ones(()))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("hvp", MODES)
@pytest.mark.parametrize("read", UNSEEN)
def test_look_ups_by_other_names_are_served_too(read: str, hvp: str) -> None:
    class Other(Catalogue):
        def forward(self, index: Tensor) -> Tensor:
            return self.out(UNSEEN[read](self.items.weight, index)).tanh()

    if read == "list" and hvp == "func" and not is_read_in_func():
        with pytest.raises(RuntimeError, match='hvp="auto" may'):
            catalogue(model=Other().double(), hvp=hvp).hypergradient(TRAIN, DEV)
        return
    with quiet():
        got = catalogue(model=Other().double(), hvp=hvp).hypergradient(TRAIN, DEV)
        expected = catalogue(hvp="autograd").hypergradient(TRAIN, DEV)
    tolerance = 1e-6 if hvp == "finite_difference" else 1e-12
    assert relative_error(got.influence, expected.influence) < tolerance


@pytest.mark.parametrize("checked", ["default", "none"])
def test_differences_of_a_checkpointed_look_up(checked: str) -> None:
    class Checkpointed(Catalogue):
        def forward(self, index: Tensor) -> Tensor:
            found: Tensor = checkpoint(
                super().forward, index, use_reentrant=False, determinism_check=checked
            )
            return found

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
        assert bool(looked_up(Graph(loss), {"weight": bag.weight})) is seen
