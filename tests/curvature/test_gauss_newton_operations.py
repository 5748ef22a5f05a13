"""Gauss-Newton products of every layer and operation, in the first mode that works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.catalogue.operations import OPERATIONS, SEED, SIZE, Batch, Operation, squared
from benchmarks.catalogue.problems import relative_error
from reweight import ConjugateGradient, ImplicitHypergradient, Losses, TableWeighter, wrap

# Outputs of these are one number per sample, so that the losses are squares of them.
NAMES = [n for n, o in OPERATIONS.items() if o.losses is squared and not o.refused]
DAMPING = 0.5
# Backward passes in float64, and conjugate gradients to 1e-12 on condition numbers below 1e3.
EXACT = 1e-9
# Central differences: the cube root of rounding, squared, times third derivatives of the outputs.
DIFFERENCES = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore")  # what is warned of is pinned elsewhere


def losses(model: nn.Module, batch: Batch) -> Losses:
    x, y, ids = batch
    return Losses.of(model(x), lambda out: (out - y).square(), inputs=ids)


def result(operation: Operation, hvp: Any = "auto") -> Any:
    rw = wrap(
        operation.model(),
        TableWeighter(SIZE).double(),
        losses,
        lambda model, batch: losses(model, batch).weighted.mean(),
        hypergradient=ImplicitHypergradient(
            ConjugateGradient(300, 1e-12), DAMPING, hvp, curvature="gauss_newton"
        ),
    )
    train, dev = operation.batches()
    torch.manual_seed(SEED)
    with operation.around():
        return rw.hypergradient(train, dev)


def expected(operation: Operation) -> Tensor:
    """By the Jacobian, one backward pass per output, and a dense solve."""
    model = operation.model()
    if operation.like is not None:
        model = operation.like(model)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def rows(of: Tensor) -> Tensor:
        grads = [
            torch.autograd.grad(z, parameters, retain_graph=True, allow_unused=True) for z in of
        ]
        return torch.stack(
            [
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g.to_dense()).reshape(-1)
                        for p, g in zip(parameters, row, strict=True)
                    ]
                )
                for row in grads
            ]
        )

    train, dev = operation.batches()
    buffers = [(b, b.clone()) for b in model.buffers()]
    torch.manual_seed(SEED)
    (v,) = rows(losses(model, dev).weighted.mean()[None])
    for buffer, value in buffers:
        buffer.data.copy_(value)
    torch.manual_seed(SEED)
    out = model(train[0])
    jacobian, error = rows(out), (out - train[1]).detach()
    matrix = 2.0 / SIZE * jacobian.T @ jacobian
    u = torch.linalg.solve(matrix + DAMPING * torch.eye(len(matrix), dtype=v.dtype), v)
    return -2.0 / SIZE * error * (jacobian @ u)


@pytest.mark.parametrize("name", NAMES)
def test_the_influence_is_that_of_a_dense_gauss_newton_matrix(name: str) -> None:
    found = result(OPERATIONS[name])
    assert found.info.trustworthy, found.info.message
    assert found.info.matrix == "gauss_newton"
    tolerance = DIFFERENCES if found.info.hvp_mode == "finite_difference" else EXACT
    assert relative_error(found.influence, expected(OPERATIONS[name])) < tolerance


@pytest.mark.parametrize("name", [n for n in NAMES if n != "compiled module"])
def test_finite_differences_of_outputs_serve_everything(name: str) -> None:
    found = result(OPERATIONS[name], "finite_difference")
    assert found.info.hvp_mode == "finite_difference"
    assert relative_error(found.influence, expected(OPERATIONS[name])) < DIFFERENCES


def test_of_a_compiled_module_differences_are_right_or_the_error_says_what_may_be() -> None:
    """Newer compilers allow one backward pass only, of which differences of outputs need more."""
    operation = OPERATIONS["compiled module"]
    try:
        found = result(operation, "finite_difference")
    except RuntimeError as error:
        assert 'hvp="auto" may' in str(error)
    else:
        assert relative_error(found.influence, expected(operation)) < DIFFERENCES
