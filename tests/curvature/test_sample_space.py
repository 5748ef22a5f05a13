"""The damped Gauss-Newton system, solved in the space of the samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.wrapping import DEV, TRAIN, make
from benchmarks.catalogue.gauss_newton import PROBLEMS, WithOutputs, logistic, mlp
from benchmarks.catalogue.problems import relative_error
from reweight import (
    ConjugateGradient,
    ImplicitHypergradient,
    Losses,
    Neumann,
    SampleSpace,
    SecondMoments,
    Status,
)

SERVED = [name for name, problem in PROBLEMS.items() if not problem.refused]
REFUSED = [name for name, problem in PROBLEMS.items() if problem.refused]

# Dense Jacobians of a bag, in the reference.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.mark.parametrize("name", SERVED)
def test_the_answer_is_that_of_a_dense_solve(name: str) -> None:
    result = PROBLEMS[name].hypergradient(SampleSpace())
    assert result.info.trustworthy and result.info.status is Status.CONVERGED
    assert result.info.num_hvps == 0
    # Rounding, times a condition number of up to 1e4 where damping is 1e-4.
    assert relative_error(result.influence, PROBLEMS[name].dense()[1]) < 1e-10


@pytest.mark.parametrize("name", SERVED)
def test_single_precision_is_as_good_as_converged_conjugate_gradients(name: str) -> None:
    problem = PROBLEMS[name]
    expected = problem.dense()[1]
    errors = [
        relative_error(problem.hypergradient(solver, torch.float32).influence.double(), expected)
        for solver in (SampleSpace(), ConjugateGradient(300, 1e-7))
    ]
    # The inputs of both are rounded to seven digits, which no solver can undo: the condition
    # number of the problem magnifies that, and conjugate gradients show by how much.
    assert errors[0] < max(3.0 * errors[1], 1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_refused_with_the_cause(name: str) -> None:
    with pytest.raises(ValueError, match=PROBLEMS[name].refused):
        PROBLEMS[name].hypergradient(SampleSpace())


@pytest.mark.parametrize("rows", [1, 7, 1_000_000])
def test_the_block_size_of_kernels_does_not_matter(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reweight._curvature.layers._BLOCK", rows * 4)
    problem = PROBLEMS["sequences"]
    found = problem.hypergradient(SampleSpace()).influence
    assert relative_error(found, problem.dense()[1]) < 1e-10


def test_an_infinite_second_derivative_of_the_loss_is_named() -> None:
    def root(out: Tensor, batch: Any) -> Tensor:
        return (out - out.detach()).pow(1.5).sum(1) + out.square().sum(1)

    with pytest.raises(FloatingPointError, match="model's outputs is not finite"):
        WithOutputs(lambda: mlp(1), root).hypergradient(SampleSpace())


class Blocked(torch.autograd.Function):
    """The identity, through which no gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:  # type: ignore[override]
        return None


class Half(nn.Module):
    """A head on a body that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, batch: Any) -> Tensor:
        out: Tensor = self.head(Blocked.apply(torch.tanh(self.body(batch[0]))))
        return out


@pytest.mark.filterwarnings("ignore::UserWarning")  # the losses are not what the gradients say
def test_layers_without_a_gradient_have_no_part() -> None:
    problem = WithOutputs(Half, logistic)
    by_layers, by_products = (
        problem.hypergradient(solver) for solver in (SampleSpace(), ConjugateGradient(50, 1e-13))
    )
    assert relative_error(by_layers.influence, by_products.influence) < 1e-10


def test_weights_below_zero_are_refused() -> None:
    rw, batch, dev_batch = PROBLEMS["logistic"].wrapped(SampleSpace())
    forward = rw.weighter.forward
    rw.weighter.forward = lambda *inputs: -forward(*inputs)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="negative weight"):
        rw.hypergradient(batch, dev_batch)


def test_a_gradient_hook_that_holds_entries_constant_is_refused() -> None:
    rw, batch, dev_batch = PROBLEMS["logistic"].wrapped(SampleSpace())
    parameter = next(rw.model.parameters())
    mask = torch.ones_like(parameter)
    mask[0] = 0.0
    parameter.register_hook(lambda grad: grad * mask)
    with pytest.raises(ValueError, match=r"constant.*ConjugateGradient"):
        rw.hypergradient(batch, dev_batch)


def test_a_table_that_is_also_an_output_layer_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, batch: Any) -> Tensor:
            return self.table(batch[2][:, 0]) @ self.table.weight.T

    problem = WithOutputs(Tied, PROBLEMS["cross entropy"].loss_fn)
    with pytest.raises(ValueError, match=r"table\.weight"):
        problem.hypergradient(SampleSpace())


def test_outputs_without_one_row_per_sample_are_refused() -> None:
    def losses(model: nn.Module, batch: Any) -> Losses:
        out = {"each": model(batch[0]), "all": model(batch[0]).mean().reshape(1)}
        return Losses.of(out, lambda o: (o["each"].squeeze(1) - batch[1] - o["all"]).square())

    strategy = ImplicitHypergradient(SampleSpace(), 0.1, curvature="gauss_newton")
    with pytest.raises(ValueError, match=r"one row per sample.*\(6, 1\), \(1,\)"):
        make(losses=losses, hypergradient=strategy).hypergradient(TRAIN, DEV)


def test_several_outputs_are_joined() -> None:
    def apart(model: nn.Module, batch: Any) -> Losses:
        out = model(batch)
        return Losses.of(
            {"a": out[:, 0], "b": out[:, 1:]},
            lambda o: logistic(o["a"] + 2.0 * o["b"].squeeze(1), batch),
            inputs=torch.arange(len(out)),
        )

    def together(out: Tensor, batch: Any) -> Tensor:
        return logistic(out[:, 0] + 2.0 * out[:, 1], batch)

    problem = WithOutputs(lambda: mlp(2), together)
    rw, batch, dev_batch = problem.wrapped(SampleSpace())
    again = make(
        rw.model,
        weighter=rw.weighter,
        losses=apart,
        outer_loss=lambda m, b: apart(m, b).weighted.mean(),
        hypergradient=rw.strategy,
    )
    found = again.hypergradient(batch, dev_batch).influence
    assert relative_error(found, problem.dense()[1]) < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curvature": "hessian"}, "gauss_newton"),
        ({"hvp": "func"}, "hvp='func'"),
        ({"preconditioner": SecondMoments()}, "preconditioner"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitHypergradient(SampleSpace(), 0.1, **{"curvature": "gauss_newton", **changes})


def test_it_is_no_solver_of_products_alone() -> None:
    with pytest.raises(TypeError, match=r"ConjugateGradient\(\)"):
        SampleSpace()(lambda v: v, torch.ones(2))


def test_fresh_batches_need_another_solver() -> None:
    rw, batch, dev_batch = PROBLEMS["logistic"].wrapped(SampleSpace())
    with pytest.raises(ValueError, match="use Neumann"):
        rw.hypergradient(batch, dev_batch, batches=[batch])
    again, batch, dev_batch = PROBLEMS["logistic"].wrapped(Neumann(3, 0.1))
    fresh = again.hypergradient(batch, dev_batch, batches=[batch] * 3)
    plain = again.hypergradient(batch, dev_batch)
    # The same batch each time is the same matrix.
    torch.testing.assert_close(fresh.influence, plain.influence, rtol=1e-12, atol=0.0)
