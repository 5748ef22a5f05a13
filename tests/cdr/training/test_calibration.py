"""The dev loss of calibrated predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from cdr.training.calibration import calibrated_loss


def rows(num: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that rank, and labels drawn from a sixth of them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(num, generator=generator, dtype=torch.float64)
    chance = torch.sigmoid(logits / 6 + 0.5)
    return logits, (torch.rand(num, generator=generator, dtype=torch.float64) < chance).double()


def test_it_is_the_loss_of_a_logistic_regression_on_the_logits() -> None:
    from scipy.optimize import minimize

    logits, label = rows()
    z, y = logits.numpy(), label.numpy()
    best = minimize(
        lambda p: np.logaddexp(0, p[0] * z + p[1]).mean() - (y * (p[0] * z + p[1])).mean(), [1, 0]
    )
    # The ridge moves the loss of 400 rows in the seventh decimal.
    assert float(calibrated_loss(logits, label)) == pytest.approx(best.fun, abs=1e-6)
    assert float(calibrated_loss(logits, label)) < float(cross_entropy(logits, label)) / 1.5


@pytest.mark.parametrize(("scale", "shift"), [(0.01, 0.0), (5.0, -3.0), (1.0, 40.0)])
def test_scale_and_shift_of_the_logits_do_not_enter(scale: float, shift: float) -> None:
    logits, label = rows()
    one, other = calibrated_loss(logits, label), calibrated_loss(scale * logits + shift, label)
    assert float(other) == pytest.approx(float(one), abs=1e-9)


def test_its_gradient_is_that_of_the_loss_calibrated_anew() -> None:
    logits, label = rows(60)
    direction = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(calibrated_loss(at, label), at)
    step = 1e-4
    ahead, behind = (calibrated_loss(logits + s * direction, label) for s in (step, -step))
    # The ridge, a hundredth of one of 60 rows, keeps the slope from being the very best.
    assert float(gradient @ direction) == pytest.approx(
        float(ahead - behind) / (2 * step), rel=0.005
    )


def test_more_confidence_alone_changes_nothing_and_better_ranks_do() -> None:
    logits, label = rows()
    at = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(calibrated_loss(at, label), at)
    centred = logits - logits.mean()
    plain = torch.autograd.grad(cross_entropy(at, label), at)[0]
    assert abs(float(gradient @ centred)) < 0.02 * abs(float(plain @ centred))
    assert float(gradient @ (label - label.mean())) < 0


def test_logits_that_rank_backwards_get_the_slope_zero() -> None:
    logits, label = rows()
    at = (-logits).requires_grad_()
    loss = calibrated_loss(at, label)
    rate = float(label.mean())
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert float(loss.detach()) >= entropy - 1e-12
    assert not torch.autograd.grad(loss, at)[0].any()


@pytest.mark.parametrize("label", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0]])
def test_few_rows_give_finite_numbers(label: list[float]) -> None:
    at = torch.arange(float(len(label))).requires_grad_()
    loss = calibrated_loss(at, torch.tensor(label))
    assert torch.isfinite(loss) and torch.isfinite(torch.autograd.grad(loss, at)[0]).all()


def test_equal_logits_give_finite_numbers() -> None:
    at = torch.full((8,), 2.0).requires_grad_()
    loss = calibrated_loss(at, torch.tensor([0.0, 1.0] * 4))
    assert float(loss.detach()) == pytest.approx(np.log(2))
    assert torch.isfinite(torch.autograd.grad(loss, at)[0]).all()
