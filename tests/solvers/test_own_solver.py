"""A solver of the user's own: what it may do, and what is told of its mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.wrapping import DEV, TRAIN, make
from reweight import ConjugateGradient, ImplicitHypergradient, Solution, Status


def test_a_solver_that_works_in_place_gets_a_true_verdict() -> None:
    def careless(matvec: Callable[[Any], Any], b: Any) -> Solution:
        for entry in b.values():
            entry.mul_(0.5)
        return Solution(b, Status.APPROXIMATED)

    def careful(matvec: Callable[[Any], Any], b: Any) -> Solution:
        return Solution({k: 0.5 * v for k, v in b.items()}, Status.APPROXIMATED)

    model = nn.Linear(3, 1).double()
    residuals = [
        make(model, hypergradient=ImplicitHypergradient(solver))
        .hypergradient(TRAIN, DEV)
        .info.relative_residual
        for solver in (careless, careful)
    ]
    assert residuals[0] == residuals[1]


Tree = dict[str, Tensor]


def flat(b: Any) -> Tensor:
    return torch.cat([entry.flatten() for entry in b.values()])


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda b: b, TypeError, r"\bdict\b.*Solution"),
        (lambda b: Solution(flat(b), Status.CONVERGED), ValueError, "Tensor.*'weight'"),
        (lambda b: Solution({"bias": b["bias"]}, Status.CONVERGED), ValueError, "'bias'.*'weight'"),
        (
            lambda b: Solution({k: v.sum() for k, v in b.items()}, Status.CONVERGED),
            ValueError,
            r"\(\).*'weight'.*\(1, 3\)",
        ),
    ],
)
def test_what_a_solver_of_ones_own_gets_wrong_is_told(
    answer: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    rw = make(hypergradient=ImplicitHypergradient(lambda matvec, b: answer(b)))
    with pytest.raises(error, match=message):
        rw.hypergradient(TRAIN, DEV)


@pytest.mark.parametrize("error", [RuntimeError("my own mistake"), torch.OutOfMemoryError("full")])
def test_an_error_of_the_solver_comes_through_at_once(error: Exception) -> None:
    calls = []

    def solver(matvec: Callable[[Any], Any], b: Any) -> Solution:
        calls.append(b)
        raise error

    with pytest.raises(type(error), match=str(error)):
        make(hypergradient=ImplicitHypergradient(solver)).hypergradient(TRAIN, DEV)
    assert len(calls) == 1


def test_a_solver_class_is_not_a_solver() -> None:
    with pytest.raises(TypeError, match="solver=.*ConjugateGradient"):
        ImplicitHypergradient(ConjugateGradient)  # type: ignore[arg-type]


def test_a_solution_in_another_order_of_names_is_the_same_solution() -> None:
    def inner(params: Tree, hparams: Tree) -> Tensor:
        target = hparams["target"]
        return 0.5 * (params["a"] - target).square().sum() + (params["b"] + target).square().sum()

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return params["a"].sum() + 3.0 * params["b"].sum()

    def backwards(matvec: Any, b: Tree) -> Solution:
        exact = {"b": 0.5 * b["b"], "a": b["a"]}  # H is 1 for a and 2 for b
        return Solution(exact, Status.CONVERGED)

    params = {name: torch.zeros(2, dtype=torch.float64) for name in "ab"}
    hparams = {"target": torch.tensor(0.0, dtype=torch.float64)}
    grads, info = ImplicitHypergradient(backwards)(inner, outer, params, hparams)
    # θ* = (target, -target): d outer/d target = 2·1 - 2·3
    assert float(grads["target"]) == pytest.approx(-4.0, abs=1e-14)
    assert info.trustworthy
