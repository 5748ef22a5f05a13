"""``curvature="gauss_newton"`` under ``wrap``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _support.problems import ridge, squared_errors
from _support.wrapping import DEV, EXACT, SIZE, TRAIN, make, randn
from benchmarks.catalogue.gauss_newton import PROBLEMS
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    Neumann,
    SampleSpace,
    Solution,
    Status,
    check_hypergradient,
    wrap,
)

GAUSS_NEWTON = ImplicitHypergradient(EXACT, damping=0.1, curvature="gauss_newton")


def squares(model: nn.Module, batch: Any) -> Losses:
    x, y = batch[:2]
    return Losses.of(model(x), lambda out: (out.squeeze(1) - y).square())


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def gauss_newton(**changes: Any) -> Any:
    return make(**{"losses": squares, "hypergradient": GAUSS_NEWTON, **changes})


# -- the formula -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [ConjugateGradient(50, 1e-13), SampleSpace()], ids=repr)
def test_of_a_linear_model_it_is_the_hessian(solver: Any) -> None:
    """Ridge regression, with its closed form."""
    problem = ridge(decay=(0.3, 0.7))
    groups = [
        {"params": [problem.model.weight], "weight_decay": 0.3},
        {"params": [problem.model.bias], "weight_decay": 0.7},
    ]
    rw = wrap(
        problem.model,
        problem.weighter,
        lambda model, batch: Losses.of(
            model(batch[0]), lambda out: (out.squeeze(1) - batch[1]).square(), inputs=batch[2]
        ),
        lambda model, batch: squared_errors(model, batch).mean(),
        torch.optim.SGD(groups, lr=0.1),
        ImplicitHypergradient(solver, curvature="gauss_newton"),
    )
    found = rw.hypergradient(problem.train, problem.dev)
    # Rounding; the condition number is below 100.
    torch.testing.assert_close(found.influence, problem.influence, rtol=1e-11, atol=1e-14)


def test_losses_with_outputs_have_the_same_hessian_as_without() -> None:
    plain = make(deep())
    stated = make(deep(), losses=squares)
    expected, found = (rw.hypergradient(TRAIN, DEV) for rw in (plain, stated))
    torch.testing.assert_close(found.influence, expected.influence, rtol=1e-10, atol=0.0)
    assert found.info.matrix == expected.info.matrix == "hessian"


def test_no_negative_curvature_is_met_where_the_hessian_has_one() -> None:
    hessian = make(deep(), hypergradient=ImplicitHypergradient(EXACT, damping=0.1))
    assert hessian.hypergradient(TRAIN, DEV).info.curves_down
    info = gauss_newton(model=deep()).hypergradient(TRAIN, DEV).info
    assert info.trustworthy and not info.curves_down
    assert info.smallest_curvature is not None and info.smallest_curvature > 0.1 * (1 - 1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_a_step_has_no_side_effects(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model.double().train(training)
    rw = gauss_newton(model=model)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (rw.hypergradient(TRAIN, DEV) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.influence, second.influence)  # the same dropout mask
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_of_a_table_only_the_rows_of_the_batch_are_solved_for() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return torch.tanh(self.table(ids)).sum(1, keepdim=True)

    seen: dict[str, torch.Size] = {}

    def solver(matvec: Any, b: dict[str, Tensor]) -> Solution:
        seen.update({name: x.shape for name, x in matvec(b).items()})
        return Solution(b, Status.APPROXIMATED)

    ids = torch.tensor([3, 5, 3, 900, 5, 3])
    rw = gauss_newton(
        model=Tower().double(),
        hypergradient=ImplicitHypergradient(solver, curvature="gauss_newton"),
        outer_loss=lambda m, b: squares(m, b).weighted.mean(),
    )
    rw.hypergradient((ids, TRAIN[1]), (ids, DEV[1]))
    assert seen == {"table.weight": (3, 2)}


def test_an_empty_batch_has_a_hypergradient_of_zero() -> None:
    rw = gauss_newton(model=deep())
    found = rw.hypergradient((TRAIN[0][:0], TRAIN[1][:0]), DEV)
    assert found.influence.shape == (0,) and found.info.hvp_mode == "none"


# -- the modes -------------------------------------------------------------------------------------


class HalfWrong(torch.autograd.Function):
    """The identity with a right gradient, whose derivative by the gradient is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.detach()


class Detaching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = HalfWrong.apply(x)
        return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_wrong_jacobian_is_found_by_differences_of_outputs() -> None:
    """The first layers seem to have no part in J v, and no operation raises."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Detaching(), nn.Linear(4, 1)).double()
    found = gauss_newton(model=model).hypergradient(TRAIN, DEV)
    assert found.info.hvp_mode == "finite_difference" and found.info.trustworthy
    del model[2]
    expected = gauss_newton(model=model).hypergradient(TRAIN, DEV)
    assert expected.info.hvp_mode == "autograd"
    # Central differences in float64: the cube root of rounding, squared.
    torch.testing.assert_close(found.influence, expected.influence, rtol=1e-7, atol=1e-9)


def test_without_forward_mode_two_backward_passes_serve() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.lstm(x.unsqueeze(1))[0][:, 0])
            return out

    torch.manual_seed(0)
    model = Sequence().double()
    results = [
        gauss_newton(
            model=model,
            hypergradient=ImplicitHypergradient(EXACT, 0.1, hvp, curvature="gauss_newton"),
        ).hypergradient(TRAIN, DEV)
        for hvp in ("autograd", "func")
    ]
    assert [r.info.hvp_mode for r in results] == ["autograd", "func"]
    torch.testing.assert_close(results[0].influence, results[1].influence, rtol=1e-9, atol=1e-12)


# -- the verdict -----------------------------------------------------------------------------------


def test_the_verdict_says_with_which_matrix() -> None:
    info = gauss_newton(model=deep()).hypergradient(TRAIN, DEV).info
    assert info.matrix == "gauss_newton" and "Gauss-Newton" in info.message
    assert info.comparison is not None and info.comparison.age == 0
    truncated = ImplicitHypergradient(Neumann(3), curvature="gauss_newton")
    info = gauss_newton(model=deep(), hypergradient=truncated).hypergradient(TRAIN, DEV).info
    assert "as chosen" in info.message and "Gauss-Newton" in info.message
    assert "Gauss-Newton" not in make(deep()).hypergradient(TRAIN, DEV).info.message


def test_a_first_order_step_has_no_matrix() -> None:
    strategy = ImplicitHypergradient(Identity(), curvature="gauss_newton")
    found = gauss_newton(model=deep(), hypergradient=strategy).hypergradient(TRAIN, DEV)
    plain = make(deep(), hypergradient=ImplicitHypergradient(Identity()))
    assert found.info.first_order and "Gauss-Newton" not in found.info.message
    expected = plain.hypergradient(TRAIN, DEV)
    torch.testing.assert_close(found.influence, expected.influence, rtol=1e-12, atol=0.0)


def test_the_check_finds_the_set_up_right_and_names_the_matrix() -> None:
    rw, batch, dev_batch = PROBLEMS["squares, two outputs"].wrapped(SampleSpace())
    report = check_hypergradient(rw, batch, dev_batch)
    assert "set-up is right" in report.verdict and "Gauss-Newton" in report.verdict


# -- what is refused -------------------------------------------------------------------------------


def test_losses_without_outputs_are_refused_with_what_to_return() -> None:
    rw = gauss_newton(model=deep(), losses=squared_errors)
    with pytest.raises(ValueError, match=r"Losses\.of\(outputs, loss_fn\)"):
        rw.hypergradient(TRAIN, DEV)


def penalised(model: Any, batch: Any) -> Losses:
    penalty = model[0].weight.square().sum()
    return Losses.of(
        model(batch[0]), lambda out: (out.squeeze(1) - batch[1]).square(), fixed=penalty
    )


def with_a_scale(model: Any, batch: Any) -> Losses:
    scale = model[0].weight.square().mean()
    return Losses.of(model(batch[0]), lambda out: scale * (out.squeeze(1) - batch[1]).square())


@pytest.mark.parametrize("losses", [penalised, with_a_scale])
def test_a_way_to_the_loss_beside_the_outputs_is_refused(losses: Any) -> None:
    rw = gauss_newton(model=deep(), losses=losses)
    with pytest.raises(ValueError, match=r"0\.weight in another way.*one more output"):
        rw.hypergradient(TRAIN, DEV)
    make(deep(), losses=losses).hypergradient(TRAIN, DEV)  # the Hessian serves it


def test_what_a_penalty_is_computed_from_may_be_an_output() -> None:
    """As the message advises; the penalty's own Hessian is then part of the matrix."""

    def losses(model: Any, batch: Any) -> Losses:
        def loss_fn(out: Any) -> Losses:
            errors = (out[0].squeeze(1) - batch[1]).square()
            return Losses(errors, fixed=0.5 * out[1].square().sum())

        return Losses.of((model(batch[0]), model[0].weight), loss_fn)

    found = gauss_newton(model=deep(), losses=losses).hypergradient(TRAIN, DEV)
    model = deep()
    groups = [
        {"params": [model[0].weight], "weight_decay": 1.0},
        {"params": [model[0].bias, *model[2].parameters()]},
    ]
    decayed = gauss_newton(model=model, optimizer=torch.optim.SGD(groups, lr=0.1))
    expected = decayed.hypergradient(TRAIN, DEV)
    torch.testing.assert_close(found.influence, expected.influence, rtol=1e-10, atol=1e-13)


def test_outputs_that_depend_on_no_parameter_are_refused() -> None:
    def losses(model: Any, batch: Any) -> Losses:
        return Losses.of(model(batch[0]).detach(), lambda out: (out.squeeze(1) - batch[1]) ** 2)

    with pytest.raises(ValueError, match="do not depend on any inner parameter"):
        gauss_newton(model=deep(), losses=losses).hypergradient(TRAIN, DEV)


def test_a_loss_without_a_second_derivative_is_refused() -> None:
    def losses(model: Any, batch: Any) -> Losses:
        def loss_fn(out: Tensor) -> Tensor:
            log_probs = F.log_softmax(out, 2)
            ones = torch.ones(SIZE, dtype=torch.long)
            return F.ctc_loss(log_probs, ones[:, None], 2 * ones, ones, reduction="none")

        steps = batch[0] @ model[0].weight.T
        return Losses.of(torch.stack([steps, 2.0 * steps]), loss_fn)

    rw = gauss_newton(model=deep(), losses=losses, outer_loss=lambda m, b: m(b[0]).mean())
    with pytest.raises(Exception, match="ctc"):
        rw.hypergradient(TRAIN, DEV)


def test_the_functional_core_refuses_it() -> None:
    zero = {"w": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"reweight\.wrap"):
        GAUSS_NEWTON(lambda p, h: p["w"].sum(), lambda p, h: p["w"].sum(), zero, zero)


def test_another_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="'fisher'.*'gauss_newton'"):
        ImplicitHypergradient(curvature="fisher")  # type: ignore[arg-type]


def test_outputs_of_ragged_batches_are_served() -> None:
    rw = gauss_newton(model=deep())
    for size in (6, 2, 4):
        batch = randn(size, 3), randn(size, seed=1)
        assert rw.hypergradient(batch, DEV).info.trustworthy
