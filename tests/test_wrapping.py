"""Models and weighters tied together: every kind of parameter and loss."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.problems import mean_squared_error, squared_errors
from _support.wrapping import DEV, SIZE, TRAIN, make, randn, shared, weighter
from benchmarks.catalogue.problems import relative_error
from reweight import (
    ConjugateGradient,
    ConstantWeighter,
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Status,
)


class Net(nn.Module):
    """A layer, read out by a linear one."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x).flatten(1))


def test_dropout_is_one_mask_throughout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 1)).double()
    rw = make(model)
    state = torch.get_rng_state()
    result = rw.hypergradient(TRAIN, DEV)
    assert torch.equal(rw.hypergradient(TRAIN, DEV).influence, result.influence)
    # Conjugate gradients reach 1e-13 only if all products are of one symmetric operator.
    assert result.info.status is Status.CONVERGED
    assert result.info.relative_residual < 1e-12
    # The mask is the one that the next training step would draw.
    torch.set_rng_state(state)
    mask = torch.dropout(torch.ones(SIZE, 20, dtype=torch.float64), 0.5, True)

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * mask

    fixed = nn.Sequential(model[0], model[1], Masked(), model[3])
    torch.testing.assert_close(make(fixed).hypergradient(TRAIN, DEV).influence, result.influence)


class Odd(nn.Module):
    """A scalar parameter, a frozen one, one that neither loss touches, one for the outer only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(4))
        self.empty = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.scale * (x @ (self.weight + self.frozen)))


def test_scalar_frozen_unused_and_empty_parameters_are_served() -> None:
    result = make(Odd().double()).hypergradient(TRAIN, DEV)
    assert result.info.trustworthy

    class Trimmed(Odd):
        def __init__(self) -> None:
            super().__init__()
            del self.unused, self.empty

    expected = make(Trimmed().double()).hypergradient(TRAIN, DEV)
    torch.testing.assert_close(result.influence, expected.influence, rtol=1e-12, atol=0.0)


def test_a_parameter_that_only_the_outer_loss_uses_does_no_harm() -> None:
    """Its row of the Hessian is zero, so it is left out of the system, which changes nothing."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 1)
            self.head = nn.Parameter(torch.tensor(0.5))

    def losses(model: Any, batch: Any) -> Tensor:
        return squared_errors(model.body, batch)

    def outer(model: Any, batch: Any) -> Tensor:
        return ((model.body(batch[0]).squeeze(-1) + model.head - batch[1]) ** 2).mean()

    torch.manual_seed(0)
    model = Headed().double()
    exact = ImplicitHypergradient(ConjugateGradient(max_steps=50, rtol=1e-12))
    rw = make(model, losses=losses, outer_loss=outer, hypergradient=exact)
    result = rw.hypergradient(TRAIN, DEV)
    assert result.info.trustworthy
    body_only = make(
        model,
        losses=losses,
        outer_loss=outer,
        hypergradient=exact,
        inner_params=lambda name: name.startswith("body"),
    ).hypergradient(TRAIN, DEV)
    assert body_only.info.trustworthy
    assert relative_error(result.influence, body_only.influence) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_parameters_than_samples_give_numbers_of_a_sensible_size(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 30), nn.Tanh(), nn.Linear(30, 1)).to(dtype)
    train, dev = ((x.to(dtype), y.to(dtype)) for x, y in (TRAIN, DEV))

    def influence(damping: float) -> Hypergradient:
        strategy = ImplicitHypergradient(ConjugateGradient(), damping=damping)
        return make(model, weighter=weighter().to(dtype), hypergradient=strategy).hypergradient(
            train, dev
        )

    plain, damped = influence(0.0), influence(0.1)
    assert bool(plain.influence.isfinite().all())
    assert float(plain.influence.norm()) < 100.0 * float(damped.influence.norm())


def test_an_empty_batch_of_weighted_samples_has_a_zero_hypergradient() -> None:
    empty = (torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))

    def constant(model: nn.Module, batch: Any) -> Losses:
        return Losses(torch.zeros(0, dtype=torch.float64), mean_squared_error(model, batch))

    for rw, batch in ((make(), empty), (make(losses=constant), TRAIN)):
        result = rw.hypergradient(batch, DEV)
        assert result.influence.shape == (0,)
        assert all(not bool(g.any()) for g in result.grads.values())
        assert result.info.trustworthy and result.info.hvp_mode == "none"
        assert bool(rw.loss(batch).isfinite())
        assert rw.weights(batch).shape == (0,)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_inner_loss_is_the_fixed_part_plus_the_weighted_losses(reduction: Any) -> None:
    rw = make(
        losses=lambda model, batch: Losses(squared_errors(model, batch), 0.25),
        reduction=reduction,
    )
    weighted = rw.weights(TRAIN) * squared_errors(rw.model, TRAIN)
    expected = 0.25 + (weighted.mean() if reduction == "mean" else weighted.sum())
    torch.testing.assert_close(rw.loss(TRAIN), expected)
    assert rw.loss(TRAIN).shape == ()


def test_wrapping_with_an_untrained_weighter_leaves_the_loss_as_it_was() -> None:
    rw = make(weighter=LossWeighter().double())
    assert torch.equal(rw.loss(TRAIN), mean_squared_error(rw.model, TRAIN))


class WithMethods(nn.Module):
    def __init__(self, outer: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        if outer:
            self.outer_loss = lambda batch: mean_squared_error(self.linear, batch)

    def losses(self, batch: Any) -> Losses:
        return Losses(squared_errors(self.linear, batch), mean_squared_error(self.linear, batch))


def test_losses_default_to_methods_and_the_outer_loss_to_the_fixed_part() -> None:
    results = []
    for outer in (True, False):
        torch.manual_seed(0)
        model = WithMethods(outer).double()
        results.append(make(model, losses=None, outer_loss=None).hypergradient(TRAIN, DEV))
    assert torch.equal(results[0].influence, results[1].influence)


def test_inner_params_leave_the_rest_of_the_model_out() -> None:
    model = nn.Linear(3, 1).double()
    bias_only = make(model, inner_params=lambda name: name == "bias").hypergradient(TRAIN, DEV)
    model.weight.requires_grad_(False)
    frozen = make(model).hypergradient(TRAIN, DEV)
    assert torch.equal(bias_only.influence, frozen.influence)


def test_a_weighter_of_another_type_than_the_model_is_served() -> None:
    single = weighter().float()
    result = make(weighter=single).hypergradient(TRAIN, DEV)
    assert {g.dtype for g in result.grads.values()} == {torch.float32}
    torch.manual_seed(0)
    double = make(weighter=weighter()).hypergradient(TRAIN, DEV)
    assert double.influence.dtype == torch.float64


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e12])
def test_tiny_and_huge_losses_of_a_single_precision_model(size: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    train, dev = ((x.float(), y.float()) for x, y in (TRAIN, DEV))

    def run(scale: float) -> Hypergradient:
        return make(
            model,
            weighter=ConstantWeighter(),
            losses=lambda m, b: squared_errors(m, b) * scale,
            outer_loss=lambda m, b: mean_squared_error(m, b) * scale,
            hypergradient=ImplicitHypergradient(ConjugateGradient()),
        ).hypergradient(train, dev)

    plain, scaled = run(1.0), run(size)
    assert scaled.info.trustworthy
    torch.testing.assert_close(scaled.influence / size, plain.influence, rtol=1e-3, atol=1e-4)


def test_a_state_comes_back() -> None:
    rw, other = make(), make(weighter=LossWeighter(4).double())
    other.load_state_dict(rw.state_dict())
    assert torch.equal(other.weighter.mlp[-1].weight, rw.weighter.mlp[-1].weight)


def test_a_state_of_another_weighter_leaves_nothing_behind() -> None:
    rw = make()
    before = {n: t.clone() for n, t in rw.weighter.state_dict().items()}
    state = rw.state_dict()["weighter"]
    spoiled = {n: t + 1.0 for n, t in state.items()} | {"mlp.2.weight": torch.zeros(1, 9)}
    with pytest.raises(RuntimeError, match=r"mlp\.2\.weight"):
        rw.load_state_dict({"version": 1, "weighter": spoiled})
    assert all(torch.equal(t, before[n]) for n, t in rw.weighter.state_dict().items())


def test_a_frozen_module_shared_with_the_weighter_is_served() -> None:
    part, rw = shared()
    part.requires_grad_(False)
    buffers = {n: b.clone() for n, b in rw.model.named_buffers()}
    result = rw.hypergradient(TRAIN, DEV)
    assert result.info.trustworthy and bool(result.grads["scale"])
    assert all(torch.equal(b, buffers[n]) for n, b in rw.model.named_buffers())
    assert rw.model[0] is rw.weighter.part is part


def test_a_penalty_on_the_weighter_in_the_outer_loss_counts() -> None:
    penalised = weighter()

    def outer(model: nn.Module, batch: Any) -> Tensor:
        return mean_squared_error(model, batch) + 3.0 * penalised.mlp[0].weight.square().sum()

    model = nn.Linear(3, 1).double()
    plain = make(model, weighter=penalised).hypergradient(TRAIN, DEV)
    result = make(model, weighter=penalised, outer_loss=outer).hypergradient(TRAIN, DEV)
    assert torch.equal(result.influence, plain.influence)
    for name, grad in result.grads.items():
        direct = 6.0 * penalised.mlp[0].weight if name == "mlp.0.weight" else 0.0
        torch.testing.assert_close(grad, plain.grads[name] + direct)


def test_gradient_hooks_change_nothing_and_stay() -> None:
    plain, hooked = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    hooked.load_state_dict(plain.state_dict())
    expected = make(plain).hypergradient(TRAIN, DEV)
    for parameter in hooked.parameters():
        parameter.register_hook(lambda g: g.clamp(-0.01, 0.01))
    hooked.register_full_backward_hook(lambda m, into, out: (None,))
    assert_same_answer(make(hooked).hypergradient(TRAIN, DEV), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own remark on hooks without differentiable inputs
        squared_errors(hooked, TRAIN).sum().backward()
    assert hooked.weight.grad is not None and hooked.weight.grad.abs().max() <= 0.01


def test_a_large_sparse_table_in_float32_is_as_exact_as_a_dense_one() -> None:
    # Differences of gradients would drown in the size of the table, which is why it is served
    # with dense gradients; the flag is the user's again afterwards.
    torch.manual_seed(0)
    model = Net(nn.Embedding(20_000, 16, sparse=True), 48).float()
    exact = copy.deepcopy(model).double()
    exact.body.sparse = False
    x = torch.randint(20_000, (SIZE, 3))
    y = randn(SIZE)
    options = {"hypergradient": ImplicitHypergradient(ConjugateGradient(20), damping=5.0)}
    got = make(model, weighter=weighter().float(), **options).hypergradient(
        (x, y.float()), (x, -y.float())
    )
    expected = make(exact, **options).hypergradient((x, y), (x, -y))
    assert got.info.hvp_mode == "autograd" and model.body.sparse
    # float32 rounding through a solve of 20 steps.
    assert relative_error(got.influence.double(), expected.influence) < 1e-4


def assert_same_answer(one: Hypergradient, two: Hypergradient) -> None:
    torch.testing.assert_close(one.influence, two.influence, rtol=1e-14, atol=0)
