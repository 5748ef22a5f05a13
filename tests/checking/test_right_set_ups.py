"""The check agrees with every set-up that is right, and leaves it as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.checking import (
    DEV,
    EXACT,
    SIZE,
    TRAIN,
    absolute_errors,
    at_rest,
    cross_entropies,
    make,
    network,
    with_ids,
)
from _support.problems import mean_squared_error, ridge, squared_errors
from reweight import (
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    SampleWeighter,
    SecondMoments,
    Solution,
    TableWeighter,
    check_hypergradient,
)
from reweight.checking import descent


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_an_exact_solver_agrees(kind: str, reduction: Any, damping: float) -> None:
    rw = make(network(kind), damping=damping, reduction=reduction)
    report = check_hypergradient(rw, TRAIN, DEV, rtol=1e-5, raise_on_mismatch=True)
    assert report.ok and report.error < 1e-5
    assert report.inner_gradient < 1e-8
    assert "nothing" in report.advice
    assert [row.name for row in report.rows] == [n for n, _ in rw.weighter.named_parameters()]
    assert any(abs(row.finite_difference) > 1e-4 for row in report.rows)


def test_the_forced_modes_agree_too() -> None:
    for hvp in ("func", "finite_difference"):
        report = check_hypergradient(make(network("mlp"), hvp=hvp), TRAIN, DEV)
        assert report.ok
        assert report.info.hvp_mode == hvp


def test_checkpointed_and_recurrent_models_are_solved_again_too() -> None:
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
            self.recurrent = nn.RNN(1, 2, batch_first=True)
            self.out = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            steps = self.recurrent(x[..., None])[0][:, -1]
            return self.out(torch.cat([checkpoint(self.body, x, use_reentrant=False), steps], 1))

    torch.manual_seed(0)
    assert check_hypergradient(make(Net()), TRAIN, DEV).ok


def test_a_parameter_per_sample_agrees() -> None:
    rw = make(
        weighter=TableWeighter(SIZE),
        losses=lambda model, b: Losses(squared_errors(model, b), inputs=b[2]),
    )
    assert check_hypergradient(rw, TRAIN, DEV, rtol=1e-6).ok


def test_weight_decay_that_is_not_told_is_not_checked_against() -> None:
    """Without the optimizer the inner problem has no decay, in the solve and in the check."""
    assert check_hypergradient(make(optimizer=None), TRAIN, DEV, rtol=1e-6).ok


def test_the_same_weighter_agrees_when_it_is_handed_what_it_needs() -> None:
    class Handed(SampleWeighter):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5))

        def forward(self, losses: Tensor, inputs: Tensor) -> Tensor:
            return torch.exp(self.slope * inputs).expand(losses.shape)

    def losses(model: Any, b: Any) -> Losses:
        return Losses(squared_errors(model, b), inputs=model.weight.sum())

    assert check_hypergradient(make(weighter=Handed(), losses=losses), TRAIN, DEV).ok


def test_a_singular_inner_problem_is_told() -> None:
    def outer(model: Any, b: Any) -> Tensor:
        return mean_squared_error(model, b)

    few = tuple(t[:2] for t in TRAIN)  # two samples for four parameters
    report = check_hypergradient(make(decay=0.0, outer_loss=outer), few, DEV)
    # Two samples are fitted exactly whatever their weights, so there is nothing to learn.
    assert report.ok and all(abs(row.finite_difference) < 1e-6 for row in report.rows)
    assert "tested" in report.advice


def test_the_wrapped_object_is_left_as_it_is() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.dropout(self.norm(x), 0.1, True))

    torch.manual_seed(0)
    rw = make(Noisy(), damping=1.0)
    before = vars(rw).copy()
    state = {n: t.clone() for n, t in rw.model.state_dict().items()}
    weights = {n: t.clone() for n, t in rw.weighter.state_dict().items()}
    random_state = torch.get_rng_state()
    check_hypergradient(rw, TRAIN, DEV)
    assert vars(rw) == before
    assert all(torch.equal(t, state[n]) for n, t in rw.model.state_dict().items())
    assert all(torch.equal(t, weights[n]) for n, t in rw.weighter.state_dict().items())
    assert all(p.grad is None for p in (*rw.model.parameters(), *rw.weighter.parameters()))
    assert {p.dtype for p in rw.model.parameters()} == {torch.float32}
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("losses", [absolute_errors, cross_entropies])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_a_problem_without_a_minimum_is_compared_with_damping(losses: Any, act: Any) -> None:
    """Kinks, separable classes and an untrained network: still a set-up can be checked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), act(), nn.Linear(8, 1))
    rw = make(model, optimizer=None, losses=losses)
    report = check_hypergradient(rw, TRAIN, DEV)
    assert report.damping > 0.0
    assert report.ok and report.exact_error < 1e-3
    assert f"damping {report.damping:g}" in report.verdict
    assert any(
        line.startswith("damping:") and f"{report.damping:g}" in line
        for line in str(report).splitlines()
    )


def test_a_model_trained_on_its_dev_batch_is_no_mismatch() -> None:
    """Its outer gradient is zero where training has come to rest."""
    train = ridge().train
    model = at_rest(lambda model: mean_squared_error(model, train))
    rw = make(model, optimizer=None, weighter=TableWeighter(SIZE).double(), losses=with_ids)
    report = check_hypergradient(rw, train, train)
    assert report.ok
    assert "tested" in report.advice and "train batch" in report.advice


@pytest.mark.parametrize("dense", [True, False])
def test_large_problems_are_solved_without_writing_the_hessian_out(
    dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "_DENSE", 1000 if dense else 0)
    report = check_hypergradient(make(network("mlp")), TRAIN, DEV, rtol=1e-5)
    assert report.ok and report.damping == 0.0
    assert report.inner_gradient < 1e-8


def test_losses_without_second_derivatives_are_solved_again_too() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2.0 * ctx.saved_tensors[0] * grad

    def losses(model: nn.Module, b: Any) -> Tensor:
        return Once.apply(model(b[0]).reshape(-1) - b[1])  # type: ignore[no-any-return]

    report = check_hypergradient(make(losses=losses), TRAIN, DEV)
    assert report.ok and report.inner_gradient < 1e-8
    assert report.info.hvp_mode == "finite_difference"


def test_dropout_is_one_and_the_same_throughout() -> None:
    """In the model and in the weighter, which draws after the model does."""

    class Noisy(LossWeighter):
        def forward(self, losses: Tensor, inputs: Any) -> Tensor:
            return super().forward(torch.dropout(losses, 0.5, True), inputs)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    torch.manual_seed(3)
    weighter = Noisy(4)
    nn.init.normal_(weighter.mlp[-1].weight, std=0.3)
    assert check_hypergradient(make(model, weighter=weighter), TRAIN, DEV, rtol=1e-5).ok


class Counting:
    """Solves exactly, and remembers that it did."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, matvec: Any, b: Any) -> Solution:
        self.calls += 1
        return EXACT(matvec, b)


def test_what_an_optimizer_or_a_solver_remembers_is_taken_along() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.2)
    mean_squared_error(model, TRAIN).backward()
    optimizer.step()
    optimizer.zero_grad()
    solver = Counting()
    strategy = ImplicitHypergradient(solver, preconditioner=SecondMoments())
    rw = make(model, optimizer=optimizer, hypergradient=strategy)
    assert check_hypergradient(rw, TRAIN, DEV).ok
    assert solver.calls == 0
    rw.hypergradient(TRAIN, DEV)
    assert solver.calls == 1


class _Newton:
    """A solver that holds the model, as K-FAC or Gauss-Newton solvers do, and reads its type."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: set[torch.dtype] = set()

    def __call__(self, matvec: Any, b: Any) -> Solution:
        self.seen |= {p.dtype for p in self.model.parameters()}
        assert self.seen == {entry.dtype for entry in b.values()}
        return EXACT(matvec, b)


def test_a_solver_that_holds_the_model_sees_it_in_the_type_of_the_check() -> None:
    model = network("mlp").float()
    train, dev = (tuple(t.float() for t in batch) for batch in (TRAIN, DEV))
    solver = _Newton(model)
    rw = make(model, hypergradient=ImplicitHypergradient(solver))
    assert check_hypergradient(rw, train, dev).ok
    assert not solver.seen  # a copy of the solver saw it, with the same model
