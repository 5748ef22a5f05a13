"""Second derivatives by three ways, against dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reweight._curvature import (
    MODES,
    Function,
    Linearisation,
    Mode,
    Objective,
    Slope,
    System,
    from_graph,
    gradients_of,
    with_finite_difference,
)
from reweight._tensors import flatten, new_leaves, unflatten

Tree = dict[str, Tensor]
# Exact up to rounding; the step of the central difference is eps^⅓.
TOLERANCE = {"autograd": 1e-13, "func": 1e-13, "finite_difference": 1e-8}

every_mode = pytest.mark.parametrize("mode", MODES)


def linearised(mode: Mode, inner: Objective, params: Tree, hparams: Tree) -> Linearisation:
    params, hparams = new_leaves(params), new_leaves(hparams)
    loss = inner(params, hparams)
    system = System(
        params,
        hparams,
        loss=lambda: loss,
        function=lambda: Function(inner, params),
        slope=lambda: Slope(gradients_of(inner), params),
    )
    return system.linearise(mode)


def point() -> tuple[Tree, Tree]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return (
        {"w": randn(3, 2), "scalar": randn(), "linear": randn(2)},
        {"w": randn(4), "penalty": randn()},  # one name stands in both
    )


X = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).view(4, 3)


def inner(params: Tree, hparams: Tree) -> Tensor:
    hidden = torch.tanh(X @ params["w"]) * params["scalar"]
    losses = (hidden.sum(1) - 1.0).square()
    penalty = hparams["penalty"].exp() * params["w"].square().sum()
    return (hparams["w"] * losses).sum() + penalty + params["linear"].sum()


def dense() -> tuple[Tensor, Tensor]:
    """∂²inner/∂θ² and ∂²inner/∂φ∂θ as matrices."""
    params, hparams = point()

    def objective(theta: Tensor, phi: Tensor) -> Tensor:
        return inner(unflatten(theta, params), unflatten(phi, hparams))

    theta, phi = flatten(params), flatten(hparams)
    hessian = torch.func.hessian(objective)(theta, phi)
    mixed = torch.func.jacrev(torch.func.grad(objective), argnums=1)(theta, phi)
    return hessian, mixed


def direction() -> Tree:
    params, _ = point()
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in params.items()
    }


@every_mode
def test_products_are_those_of_the_dense_second_derivatives(mode: Mode) -> None:
    hessian, mixed = dense()
    v = direction()
    linearisation = linearised(mode, inner, *point())
    product, crossed = linearisation.cross(v)
    atol = TOLERANCE[mode] * float(hessian.norm())
    for found in (linearisation.hvp(v), product):
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in v.items()}
        torch.testing.assert_close(flatten(found), hessian @ flatten(v), rtol=0.0, atol=atol)
    torch.testing.assert_close(flatten(crossed), flatten(v) @ mixed, rtol=0.0, atol=atol)


@every_mode
def test_a_linear_parameter_has_no_curvature(mode: Mode) -> None:
    product = linearised(mode, inner, *point()).hvp(direction())
    assert float(product["linear"].abs().max()) <= 1e-9


@pytest.mark.parametrize("mode", ["autograd", "func"])
def test_products_of_a_loss_with_dropout_are_linear(mode: Mode) -> None:
    def noisy(params: Tree, hparams: Tree) -> Tensor:
        return inner({**params, "w": torch.nn.functional.dropout(params["w"], 0.5)}, hparams)

    torch.manual_seed(0)
    hvp = linearised(mode, noisy, *point()).hvp
    v = direction()
    once, again = hvp(v), hvp(v)
    assert all(torch.equal(once[name], again[name]) for name in v)
    twice = hvp({name: 2.0 * entry for name, entry in v.items()})
    torch.testing.assert_close(flatten(twice), 2.0 * flatten(once))


@every_mode
def test_the_given_tensors_are_left_alone(mode: Mode) -> None:
    params, hparams = point()
    leaf = params["w"].requires_grad_(True)
    linearised(mode, inner, params, hparams).cross(direction())
    assert leaf.grad is None
    expected_params, expected_hparams = point()
    assert all(torch.equal(params[n], t) for n, t in expected_params.items())
    assert all(torch.equal(hparams[n], t) for n, t in expected_hparams.items())
    assert not hparams["w"].requires_grad


@pytest.mark.parametrize("mode", ["autograd", "finite_difference"])
def test_hyperparameters_without_a_path_to_the_gradient_have_none(mode: str) -> None:
    params, hparams = point()
    linearisation = linearised(mode, lambda p, h: p["w"].square().sum(), params, hparams)
    assert linearisation.cross(direction())[1] == {"w": None, "penalty": None}


def test_a_loss_that_is_linear_in_everything_has_zero_products() -> None:
    params, hparams = point()
    params = {n: p.requires_grad_(True) for n, p in params.items()}
    linear = sum(p.sum() for p in params.values())
    product = from_graph(linear, params, hparams).hvp(direction())
    assert all(not bool(entry.any()) for entry in product.values())


def test_a_zero_direction_has_a_zero_difference() -> None:
    params, hparams = point()
    zero = {n: torch.zeros_like(p) for n, p in params.items()}
    product, crossed = with_finite_difference(gradients_of(inner), params, hparams).cross(zero)
    assert not any(bool(t.any()) for t in (*product.values(), *crossed.values()))
