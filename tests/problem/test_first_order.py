"""First-order steps: without the Hessian, the influence is a derivative of losses along ``u``."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from _support.memory import peak_bytes
from _support.wrapping import DEV, TRAIN, make, randn, weighter
from benchmarks.catalogue.operations import NOT_ITS_OWN, OPERATIONS
from benchmarks.catalogue.problems import relative_error
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    SecondMoments,
    Status,
    TableWeighter,
    check_hypergradient,
    wrap,
)
from reweight._tensors import reducing
from reweight.verdict import WAYS

Batch = tuple[Tensor, Tensor]
# Rounding; and of central differences in float64, eps^⅔ times third derivatives of order ten.
EXACT = {"forward": 1e-13, "differences": 1e-8}
# Of central differences in float32: eps^⅔ is 2e-5, and third derivatives are of order ten.
SINGLE = 2e-3

every_way = pytest.mark.parametrize("way", WAYS)


def first_order(hvp: Any = "auto", step_size: float = 1.0, **changes: Any) -> ImplicitHypergradient:
    return ImplicitHypergradient(Identity(step_size), hvp=hvp, **changes)


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).reshape(-1) - batch[1]).square()


def mean_squared(model: nn.Module, batch: Any) -> Tensor:
    return squared(model, batch).mean()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def influence(
    model: nn.Module,
    diagonal: dict[str, Tensor] | None = None,
    train: Any = TRAIN,
    dev: Any = DEV,
    losses: Callable[[Any, Any], Tensor] = squared,
    seed: int | None = None,
) -> Tensor:
    """``−⟨∇ℓ_i, D v⟩/B`` by one gradient for each sample."""
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def gradient(index: int | None, batch: Any) -> list[Tensor]:
        if seed is not None:
            torch.manual_seed(seed)
        each = losses(model, batch)
        loss = each.mean() if index is None else each[index]
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g.to_dense()
            for g, p in zip(grads, params.values(), strict=True)
        ]

    v = gradient(None, dev)
    u = [x if diagonal is None else x * diagonal[n] for n, x in zip(params, v, strict=True)]
    count = len(losses(model, train))
    return (
        -torch.stack(
            [
                sum((g * x).sum() for g, x in zip(gradient(i, train), u, strict=True))
                for i in range(count)
            ]
        )
        / count
    )


# -- what it computes ------------------------------------------------------------------------------


@every_way
def test_the_influence_and_the_hypergradient_are_those_of_dense_gradients(way: Any) -> None:
    model = network()
    rw = make(model, losses=squared, outer_loss=mean_squared, hypergradient=first_order(way, 0.5))
    result = rw.hypergradient(TRAIN, DEV)
    expected = 0.5 * influence(model)
    assert relative_error(result.influence, expected) < EXACT[way]
    # The weights at θ, differentiated by the weighter's parameters, and the influence.
    weights = rw.weighter(squared(model, TRAIN).detach(), None)
    names, phi = zip(*rw.weighter.named_parameters(), strict=True)
    for name, grad in zip(names, torch.autograd.grad(weights, phi, expected), strict=True):
        assert relative_error(result.grads[name], grad) < 10 * EXACT[way]
    assert result.info.hvp_mode == way and result.info.num_hvps == 0


@every_way
def test_second_moments_give_the_rule_of_sama(way: Any) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        mean_squared(model, TRAIN).backward()
        optimizer.step()
    strategy = first_order(way, preconditioner=SecondMoments())
    rw = make(
        model, losses=squared, outer_loss=mean_squared, optimizer=optimizer, hypergradient=strategy
    )
    diagonal = SecondMoments().diagonal(optimizer, dict(model.named_parameters()))
    assert (
        relative_error(rw.hypergradient(TRAIN, DEV).influence, influence(model, diagonal))
        < (EXACT[way])
    )


@every_way
def test_a_sum_of_losses_is_not_divided(way: Any) -> None:
    model = network()
    rw = make(
        model,
        losses=squared,
        outer_loss=mean_squared,
        reduction="sum",
        hypergradient=first_order(way),
    )
    expected = len(TRAIN[1]) * influence(model)
    assert relative_error(rw.hypergradient(TRAIN, DEV).influence, expected) < EXACT[way]


@every_way
@pytest.mark.parametrize("size", [1e-12, 1e9])
def test_the_size_of_the_losses_does_not_matter(way: Any, size: float) -> None:
    model = network()
    rw = make(
        model,
        losses=squared,
        outer_loss=lambda model, batch: size * mean_squared(model, batch),
        hypergradient=first_order(way),
    )
    expected = size * influence(model)
    assert relative_error(rw.hypergradient(TRAIN, DEV).influence, expected) < EXACT[way]


# Layers that forward mode does not serve, or not in these modes, so that differences are used.
BY_DIFFERENCES = {
    "TransformerEncoderLayer, eval",  # a fused kernel runs where no gradient is asked for
    "weight_norm",
    "weight_norm, the old one",
    "checkpoint(use_reentrant=True)",
    "autograd.Function, once differentiable",
    "autograd.Function that detaches",
    "cdist",
    "ctc_loss",
    "compiled module",
}
OTHERS = {
    n for n, o in OPERATIONS.items() if "norm=" in n or "freq" in n or o.expected == NOT_ITS_OWN
}


def plain(model: Any) -> nn.Module:
    model.body.reentrant = False
    return model


def operation(name: str) -> Any:
    found = OPERATIONS[name]
    if name == "checkpoint(use_reentrant=True)":
        # Its own gradients can't be had by torch.autograd.grad.
        found = type(found)(**{**vars(found), "like": plain})
    return found


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, which takes seconds
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n == "compiled module" else n
        for n in OPERATIONS
        if n not in OTHERS
    ],
)
def test_every_operation_is_served(name: str) -> None:
    """Also those without a second derivative, and reentrant checkpoints."""
    found = operation(name)
    expected = found.first_order(0.5)
    auto = found.hypergradient(solver=Identity(0.5))
    way = "differences" if name in BY_DIFFERENCES else "forward"
    assert auto.info.hvp_mode == way and not auto.info.caveat
    assert auto.info.comparison is not None and auto.info.comparison.age == 0
    assert relative_error(auto.influence, expected) < EXACT[way]
    by_differences = found.hypergradient(hvp="differences", solver=Identity(0.5))
    assert relative_error(by_differences.influence, expected) < EXACT["differences"]
    single = found.hypergradient(torch.float32, hvp="differences", solver=Identity(0.5))
    assert relative_error(single.influence.double(), expected) < SINGLE


@pytest.mark.parametrize("name", ["Embedding(max_norm=1)", "Embedding(scale_grad_by_freq)"])
def test_what_has_no_gradient_of_its_own_is_refused_as_ever(name: str) -> None:
    with pytest.raises(ValueError, match=OPERATIONS[name].expected):
        OPERATIONS[name].hypergradient(solver=Identity())


@pytest.mark.filterwarnings("ignore")  # the same sentence, once
@pytest.mark.parametrize("name", ["straight-through estimator", "spectral_norm, train"])
def test_gradients_that_are_not_those_of_the_loss_are_told(name: str) -> None:
    """The training follows the gradients, so differences of the losses are of no use."""
    auto = OPERATIONS[name].hypergradient(solver=Identity())
    assert "gradients" in auto.info.caveat and auto.info.message.startswith("not a hypergradient")
    assert not auto.info.first_order
    assert relative_error(auto.influence, OPERATIONS[name].first_order()) < 1e-12  # rounding
    told = OPERATIONS[name].hypergradient(hvp="differences", solver=Identity())
    assert "differ" in told.info.caveat and told.info.message.startswith("not a hypergradient")


# -- tables ----------------------------------------------------------------------------------------


class Pair(nn.Module):
    """Two look-ups in one table, which other terms may also use."""

    def __init__(self, use: str = "rows", rows: int = 9, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(rows, 3, **options)
        self.head = nn.Linear(3, 1)
        self.use = use

    def forward(self, ids: Tensor) -> Tensor:
        left, right = self.table(ids[:, 0]), self.table(ids[:, 1])
        out = self.head(torch.tanh(left * right)).squeeze(-1)
        if self.use == "whole":
            out = out + (left @ self.table.weight.T).logsumexp(1)
        if self.use == "index":
            out = out + self.table.weight[ids[:, 0]].sum(1)
        return out


def ids(seed: int, count: int = 6, rows: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, rows, (count, 2), generator=generator)
    return drawn, torch.randn(count, generator=generator, dtype=torch.float64)


@every_way
@pytest.mark.parametrize("use", ["rows", "whole", "index"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"sparse": True}], ids=str)
def test_tables_move_where_the_dev_batch_reads(way: Any, use: str, options: Any) -> None:
    if "sparse" in options and use == "whole":
        options = {}  # torch can't add sparse and dense gradients in place
    model = Pair(use, **options).double()
    rw = make(model, losses=squared, outer_loss=mean_squared, hypergradient=first_order(way))
    train, dev = ids(1), ids(2)
    before = model.table.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = rw.hypergradient(train, dev)
        except RuntimeError as error:
            pytest.fail(str(error))
    expected = influence(model, train=train, dev=dev)
    # A padding row that is also read otherwise is a constant to some of the loss only.
    if result.info.hvp_mode == way:
        assert relative_error(result.influence, expected) < EXACT[way]
    else:
        assert "padding_idx" in options and use != "rows"
        assert relative_error(result.influence, expected) < 1e-12  # rounding
    assert torch.equal(model.table.weight, before)


@every_way
def test_a_large_table_is_not_copied(way: Any) -> None:
    rows, width = 300_000, 8
    model = Pair(rows=rows)
    model.table = nn.Embedding(rows, width, sparse=True)
    model.head = nn.Linear(width, 1)
    rw = wrap(model, weighter().float(), squared, mean_squared, hypergradient=first_order(way))
    train, dev = ((x, y.float()) for x, y in (ids(1, rows=rows), ids(2, rows=rows)))
    dev[0][:3] = train[0][:3]
    rw.hypergradient(train, dev)  # which compares
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profiler:
        result = rw.hypergradient(train, dev)
    largest = max(event.self_device_memory_usage or 0 for event in profiler.events())
    largest = max([largest, *(event.cpu_memory_usage for event in profiler.events())])
    assert result.info.hvp_mode == way
    assert largest < rows  # bytes; the table has 32 times as many


@every_way
def test_disjoint_rows_are_told_as_ever(way: Any) -> None:
    """No sample reads what the outer loss moves; the head is frozen."""
    model = Pair(rows=12).double()
    model.head.requires_grad_(False)
    rw = make(model, losses=squared, outer_loss=mean_squared, hypergradient=first_order(way))
    train, dev = ids(1, rows=6), ids(2, rows=6)
    dev = (dev[0] + 6, dev[1])
    with pytest.warns(UserWarning, match="hypergradient is zero"):
        result = rw.hypergradient(train, dev)
    assert result.info.status is Status.DISJOINT
    assert not result.influence.any()


# -- what a pass must not change -------------------------------------------------------------------


class Restless(nn.Module):
    """Dropout, batch normalization, and a buffer that every pass moves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 1)
        )
        self.register_buffer("passes", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.mean.lerp_(x.mean(0), 0.1)
        return self.body(x).squeeze(-1) + 0.1 * self.passes + self.mean.sum()


@every_way
def test_a_step_changes_nothing_and_draws_the_same_masks(way: Any) -> None:
    model = Restless().double()
    rw = make(model, losses=squared, outer_loss=mean_squared, hypergradient=first_order(way))
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    grads = [p.grad for p in model.parameters()]
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    for step in range(2):  # the first one also compares
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        start = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        result = rw.hypergradient(TRAIN, DEV)
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(start[0], after[0]) and start[1:] == after[1:], step
        assert all(torch.equal(model.state_dict()[name], x) for name, x in state.items())
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        assert all(bool((p.grad == 7.0).all()) for p in model.parameters())
        # A model whose passes start where this one's do.
        fresh = Restless().double()

        def losses(fresh: Any, batch: Any, state: Any = state) -> Tensor:
            fresh.load_state_dict(state)
            return squared(fresh, batch)

        expected = influence(fresh, losses=losses, seed=5)
        assert result.info.hvp_mode == way
        assert relative_error(result.influence, expected) < EXACT[way]


@every_way
def test_parameters_come_back_after_an_error(way: Any) -> None:
    """In the fourth of the passes of the second step, or in the second one."""
    model = network()
    passes: list[int] = []
    last = [10**9]

    def losses(model: Any, batch: Any) -> Tensor:
        passes.append(1)
        if len(passes) >= last[0]:
            raise ValueError("the loader is gone")
        return squared(model, batch)

    rw = make(model, losses=losses, outer_loss=mean_squared, hypergradient=first_order(way))
    rw.hypergradient(TRAIN, DEV)
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    last[0] = len(passes) + (1 if way == "forward" else 2)
    with pytest.raises(ValueError, match="the loader is gone"):
        rw.hypergradient(TRAIN, DEV)
    assert all(torch.equal(model.state_dict()[name], x) for name, x in state.items())


def test_a_graph_that_was_recorded_before_stays_valid() -> None:
    """Differences move the parameters themselves, and put them back bit for bit."""
    model = network()
    rw = make(
        model, losses=squared, outer_loss=mean_squared, hypergradient=first_order("differences")
    )
    loss = mean_squared(model, TRAIN)
    expected = torch.autograd.grad(mean_squared(model, TRAIN), model.parameters())
    rw.hypergradient(TRAIN, DEV)
    found = torch.autograd.grad(loss, model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# -- the parameters of other libraries' layers -----------------------------------------------------


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter; the frozen weight may be stored in eight bits."""

    def __init__(self, inside: int, out: int, *, quantised: bool) -> None:
        super().__init__()
        weight = torch.randn(out, inside, dtype=torch.float64)
        self.scale = float(weight.abs().max()) / 127.0
        frozen = (weight / self.scale).round().to(torch.int8) if quantised else weight
        self.register_buffer("frozen", frozen)
        self.down = nn.Parameter(torch.randn(2, inside, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(out, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.frozen.dtype == torch.int8:
            base = Dequantised.apply(x, self.frozen, self.scale)
        else:
            base = x @ self.frozen.T
        return base + x @ self.down.T @ self.up.T


class Dequantised(torch.autograd.Function):
    """A product with a weight in eight bits: no forward mode, no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.scale = scale
        return x @ (weight.to(x.dtype) * scale).T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return grad @ (weight.to(grad.dtype) * ctx.scale), None, None


@pytest.mark.parametrize("quantised", [False, True])
def test_adapters_of_frozen_layers(quantised: bool) -> None:
    torch.manual_seed(0)
    layers = (Adapted(3, 4, quantised=quantised), nn.Tanh(), Adapted(4, 1, quantised=quantised))
    model = nn.Sequential(*layers)
    rw = make(model, losses=squared, outer_loss=mean_squared, hypergradient=first_order())
    result = rw.hypergradient(TRAIN, DEV)
    way = "differences" if quantised else "forward"
    assert result.info.hvp_mode == way
    assert relative_error(result.influence, influence(model)) < EXACT[way]


def test_a_parameter_in_a_list_follows_by_differences() -> None:
    """Forward mode can't put another tensor in its place."""
    model = network()
    kept = [model[0].weight]

    def losses(model: Any, batch: Any) -> Tensor:
        hidden = torch.tanh(F.linear(batch[0], kept[0], model[0].bias))
        return (model[2](hidden).squeeze(-1) - batch[1]).square()

    rw = make(model, losses=losses, outer_loss=mean_squared, hypergradient=first_order())
    result = rw.hypergradient(TRAIN, DEV)
    assert result.info.hvp_mode == "differences"
    assert relative_error(result.influence, influence(model, losses=losses)) < EXACT["differences"]


@every_way
def test_entries_that_a_hook_freezes_do_not_move(way: Any) -> None:
    model = network()
    mask = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    handle = model[0].weight.register_hook(lambda grad: grad * mask)
    rw = make(model, losses=squared, outer_loss=mean_squared, hypergradient=first_order(way))
    found = rw.hypergradient(TRAIN, DEV).influence
    handle.remove()
    ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    ones["0.weight"] = mask.expand(5, 3)
    assert relative_error(found, influence(model, ones)) < EXACT[way]


@every_way
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_batch_without_losses_has_no_influence(way: Any, first: bool) -> None:
    rw = make(network(), losses=squared, outer_loss=mean_squared, hypergradient=first_order(way))
    if not first:
        rw.hypergradient(TRAIN, DEV)
    result = rw.hypergradient((randn(0, 3), randn(0)), DEV)
    assert result.influence.shape == (0,) and result.info.hvp_mode == "none"
    assert not any(grad.any() for grad in result.grads.values())
    # And nothing was learned from it.
    assert rw.hypergradient(TRAIN, DEV).info.hvp_mode == way


@every_way
def test_outer_gradients_that_are_zero_or_infinite_are_told_as_ever(way: Any) -> None:
    def outer(model: Any, batch: Any) -> Tensor:
        return mean_squared(model, batch) * 0.0

    rw = make(network(), losses=squared, outer_loss=outer, hypergradient=first_order(way))
    assert "gradient of the outer loss is zero" in rw.hypergradient(TRAIN, DEV).info.message

    def steep(model: Any, batch: Any) -> Tensor:
        return (mean_squared(model, batch) * 0.0).sqrt()

    rw = make(network(), losses=squared, outer_loss=steep, hypergradient=first_order(way))
    with pytest.raises(FloatingPointError, match="gradient of the outer loss is not finite"):
        rw.hypergradient(TRAIN, DEV)


@every_way
def test_errors_of_a_batch_are_the_losses_own_and_rule_nothing_out(way: Any) -> None:
    rw = make(network(), losses=squared, outer_loss=mean_squared, hypergradient=first_order())
    rw.strategy = first_order(way)
    wrong = randn(6, 5), randn(6)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            rw.hypergradient(wrong, DEV)
        assert rw.hypergradient(TRAIN, DEV).info.hvp_mode == way
    broken = TRAIN[0], torch.full_like(TRAIN[1], torch.nan)
    with pytest.raises(ValueError, match="losses.weighted is nan"):
        rw.hypergradient(broken, DEV)
    assert rw.hypergradient(TRAIN, DEV).info.hvp_mode == way


def test_losses_that_differentiate_inside_take_the_path_with_a_graph() -> None:
    """A force is a gradient of an energy, which passes without gradients do not have."""
    model = network()

    def losses(model: Any, batch: Any) -> Tensor:
        x = batch[0].detach().requires_grad_(True)
        (force,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (force.sum(1) - batch[1]).square()

    rw = make(
        model,
        losses=losses,
        outer_loss=lambda model, batch: losses(model, batch).mean(),
        hypergradient=first_order(),
    )
    result = rw.hypergradient(TRAIN, DEV)
    assert not result.info.first_order
    assert relative_error(result.influence, influence(model, losses=losses)) < 1e-12  # rounding


def test_a_checkpoint_without_a_graph_of_its_own_in_both_losses() -> None:
    """``torch.autograd.grad`` can't differentiate by what a reentrant checkpoint holds."""
    model = network()

    def forward(reentrant: bool) -> Callable[[Any, Any], Tensor]:
        def losses(model: Any, batch: Any) -> Tensor:
            x = batch[0].detach().requires_grad_(True)
            hidden = checkpoint(model[:2], x, use_reentrant=reentrant)
            return (model[2](hidden).squeeze(-1) - batch[1]).square()

        return losses

    rw = make(
        model,
        losses=forward(True),
        outer_loss=lambda model, batch: forward(True)(model, batch).mean(),
        hypergradient=first_order(),
    )
    result = rw.hypergradient(TRAIN, DEV)
    assert result.info.hvp_mode == "differences" and not result.info.caveat
    assert relative_error(result.influence, influence(model, losses=forward(False))) < 1e-8
    assert all(p.grad is None for p in model.parameters())


# -- the verdict -----------------------------------------------------------------------------------


@every_way
def test_the_verdict_says_what_the_step_is(way: Any) -> None:
    info = make(network(), hypergradient=first_order(way)).hypergradient(TRAIN, DEV).info
    assert info.first_order and info.message.startswith("first-order, by choice")
    assert info.relative_residual is None and info.curvature is None and info.num_hvps == 0
    assert info.status is Status.APPROXIMATED and str(info.status) in info.message
    # No system is solved, so nothing is trusted, and nothing is alarming either.
    assert not info.trustworthy and not info.alarming and not info.caveat


def test_rounding_that_drowns_the_differences_is_told() -> None:
    """In bfloat16, losses of about 30 are multiples of 1/8."""
    model = network().bfloat16()
    train, dev = (tuple(x.bfloat16() for x in batch) for batch in (TRAIN, DEV))

    def losses(model: Any, batch: Any) -> Tensor:
        return squared(model, batch) + 30.0

    def found(hvp: str) -> Any:
        strategy = first_order(hvp)
        rw = wrap(model, LossWeighter(), losses, mean_squared, hypergradient=strategy)
        return rw.hypergradient(train, dev)

    with pytest.warns(UserWarning, match="rounding drowns the differences"):
        drowned = found("differences").info
    assert "rounding drowns" in drowned.caveat
    assert drowned.message.startswith("not a hypergradient")
    result = found("auto")
    assert result.info.hvp_mode == "forward" and not result.info.caveat
    train, dev = (tuple(x.double() for x in batch) for batch in (train, dev))
    # Two digits.
    assert (
        relative_error(result.influence.double(), influence(model.double(), None, train, dev))
        < 0.05
    )


@every_way
def test_float32_has_as_many_digits_as_its_way_allows(way: Any) -> None:
    """Also where the parameters are many, so that they are long and the gradient is steep."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)
    )
    train, dev = ((randn(32, 64, seed=s), randn(32, seed=s + 1)) for s in (0, 2))
    single = [tuple(x.float() for x in batch) for batch in (train, dev)]
    rw = wrap(
        model,
        TableWeighter(32),
        lambda m, b: Losses(squared(m, b), inputs=torch.arange(32)),
        mean_squared,
        hypergradient=first_order(way),
    )
    found = rw.hypergradient(*single)
    expected = influence(model.double(), train=train, dev=dev)
    assert found.info.hvp_mode == way
    # Forward mode rounds like a gradient.
    assert relative_error(found.influence.double(), expected) < (
        1e-5 if way == "forward" else SINGLE
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_way_that_is_not_for_the_solver_is_refused(way: Any) -> None:
    with pytest.raises(ValueError, match=rf"hvp='{way}'.*Neumann.*Identity"):
        ImplicitHypergradient(Neumann(), hvp=way)
    theta, phi = {"w": randn(3)}, {"h": randn(3)}
    with pytest.raises(ValueError, match=rf"hvp='{way}'.*wrap"):
        first_order(way)(
            lambda p, h: (p["w"] * h["h"]).sum(), lambda p, h: p["w"].sum(), theta, phi
        )


def test_forward_mode_that_was_asked_for_and_does_not_work_is_an_error() -> None:
    with pytest.raises(RuntimeError, match='hvp="auto" may'):
        OPERATIONS["ctc_loss"].hypergradient(hvp="forward", solver=Identity())


def test_functions_of_dicts_keep_their_way() -> None:
    def inner(params: Any, hparams: Any) -> Tensor:
        return (hparams["h"] * params["w"].square()).sum()

    theta, phi = {"w": randn(3)}, {"h": randn(3, seed=1)}
    grads, info = first_order()(inner, lambda p, h: p["w"].sum(), theta, phi)
    assert info.hvp_mode == "autograd" and info.relative_residual is not None
    assert relative_error(grads["h"], -2.0 * theta["w"]) < 1e-15


@every_way
def test_the_check_explains_a_first_order_step(way: Any) -> None:
    report = check_hypergradient(make(hypergradient=first_order(way, 0.1)), TRAIN, DEV)
    assert not report.ok and "multiple of the identity" in str(report)
    assert report.exact_error < 1e-3


@pytest.mark.parametrize("large", [False, True])
def test_an_unusual_term_that_joins_later_is_compared_again(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences of the losses are no derivatives of what gradients pass through unchanged."""
    if large:  # then by the smallest parameters, here the last bias
        monkeypatch.setattr("reweight._problem.ways._LARGE", 1)
    model, late = network(), [False]

    def losses(model: Any, batch: Any) -> Tensor:
        out = model(batch[0]).squeeze(-1)
        if late[0]:
            out = out + (torch.sin(3.0 * out) - out).detach()
        return (out - batch[1]).square()

    rw = make(
        model,
        losses=losses,
        outer_loss=lambda model, batch: losses(model, batch).mean(),
        hypergradient=first_order("differences"),
    )
    assert not rw.hypergradient(TRAIN, DEV).info.caveat
    late[0] = True
    with pytest.warns(UserWarning, match="differ"):
        info = rw.hypergradient(TRAIN, DEV).info
    assert "detach" in info.caveat


# -- what it costs ---------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Calls of a model's forward pass and of backward passes."""
    counts = {"forward": 0, "backward": 0}
    grad = torch.autograd.grad

    def counting(*arguments: Any, **options: Any) -> Any:
        counts["backward"] += 1
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    yield counts


@pytest.mark.parametrize(("way", "passes"), [("forward", 2), ("differences", 4)])
def test_passes_are_counted(counted: dict[str, int], way: Any, passes: int) -> None:
    """One pass and its backward pass for the dev batch, and one or three for the train batch.

    The second backward pass is the weighter's. No pass over the train batch has a graph.
    """
    model, graphs = network(), []

    def losses(model: Any, batch: Any) -> Tensor:
        counted["forward"] += 1
        found = squared(model, batch)
        graphs.append(found.requires_grad)
        return found

    rw = make(
        model,
        losses=losses,
        outer_loss=lambda model, batch: losses(model, batch).mean(),
        hypergradient=first_order(way),
    )
    rw.hypergradient(TRAIN, DEV)
    counted.update(forward=0, backward=0)
    graphs.clear()
    rw.hypergradient(TRAIN, DEV)
    assert counted == {"forward": passes, "backward": 2}
    assert graphs == [True] + [False] * (passes - 1)


@every_way
def test_matrix_products_cost_two_passes_with_their_backward_passes(way: Any) -> None:
    """A gradient, and a pass in forward mode that doubles the products, or three passes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 1)).double()
    rw = make(model, losses=squared, outer_loss=mean_squared, hypergradient=first_order(way))
    rw.weighter.requires_grad_(True)
    rw.hypergradient(TRAIN, DEV)

    def products(call: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    weighters = products(lambda: rw.weighter(squared(model, TRAIN).detach(), None).sum().backward())
    weighters -= products(lambda: squared(model, TRAIN))
    step = products(lambda: rw.hypergradient(TRAIN, DEV)) - weighters
    assert step <= 2.1 * products(lambda: mean_squared(model, TRAIN).backward())


@every_way
def test_memory_is_that_of_a_training_step(way: Any) -> None:
    """The graph of the dev loss takes the most; nothing like it is kept of the train batch."""
    torch.manual_seed(0)
    # In evaluation mode no dropout hides a part of the losses, which would be looked at again.
    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(layer, nn.Flatten(1), nn.Linear(32 * 20, 1))
    train, dev = (
        (randn(16, 20, 32, seed=s).float(), randn(16, seed=s + 1).float()) for s in (0, 2)
    )
    optimizer = torch.optim.Adam(model.parameters())

    def training() -> None:
        optimizer.zero_grad()
        mean_squared(model, train).backward()
        optimizer.step()

    training()
    optimizer.zero_grad()
    usual = peak_bytes(training)
    optimizer.zero_grad()
    rw = wrap(model, weighter().float(), squared, mean_squared, hypergradient=first_order(way))
    rw.hypergradient(train, dev)
    assert peak_bytes(lambda: rw.hypergradient(train, dev)) <= 1.3 * usual


def test_gradients_of_several_processes_are_summed() -> None:
    rw = make(network(), hypergradient=first_order())
    alone = rw.hypergradient(TRAIN, DEV).influence
    with reducing(samples=lambda x: 3.0 * x):
        assert relative_error(rw.hypergradient(TRAIN, DEV).influence, 3.0 * alone) < 1e-14


def test_a_first_order_step_and_an_exact_one_share_a_problem() -> None:
    """What one of them finds out of the problem does not mislead the other."""
    model = network()
    strategies = first_order(), ImplicitHypergradient(ConjugateGradient(), damping=60.0)
    rw = make(model, losses=squared, outer_loss=mean_squared)
    for strategy in (*strategies, *strategies):
        rw.strategy = strategy
        result = rw.hypergradient(TRAIN, DEV)
        assert result.info.first_order is bool(strategy.ways)
        assert result.info.comparison is not None and result.info.comparison.age is not None
