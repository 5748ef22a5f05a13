"""The search for a minimum: where there is none, the check says so and goes on with damping."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from _support.checking import DEV, NOT_COMPARED, TRAIN, absolute_errors, make, network
from _support.problems import squared_errors
from reweight import Identity, check_hypergradient
from reweight.checking import budget


class Contrastive(nn.Module):
    """Logits with a learned temperature: the loss decreases towards an infinite one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.Linear(3, 4)
        self.t = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        z = functional.normalize(self.towers(x), dim=-1)
        return z @ z.flip(0).T * self.t.exp()


def contrasted(model: nn.Module, b: Any) -> Tensor:
    return functional.cross_entropy(model(b[0]), b[2], reduction="none")


class Uncertain(nn.Module):
    """Errors weighed by a learned log-variance: unbounded below where they can be fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network("mlp")
        self.s = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def uncertain(model: Any, b: Any) -> Tensor:
    return torch.exp(-model.s) * squared_errors(model, b) + model.s


def concave(model: nn.Module, b: Any) -> Tensor:
    return b[1] * model(b[0]).reshape(-1) - 0.1 * model(b[0]).square().reshape(-1)


@pytest.mark.parametrize(
    ("model", "losses"),
    [
        (Contrastive, contrasted),
        (Uncertain, uncertain),
        (lambda: network("mlp"), concave),
        (lambda: network("mlp"), absolute_errors),
    ],
)
def test_a_problem_without_a_minimum_is_compared_where_it_stands(model: Any, losses: Any) -> None:
    rw = make(model(), losses=losses, outer_loss=lambda m, b: losses(m, b).mean(), optimizer=None)
    report = check_hypergradient(rw, TRAIN, DEV)
    assert report.ok and report.damping > 0.0
    # The damping is little more than the negative curvature, so the Hessian matters ...
    assert report.hessian_share > 0.02
    # ... and was tested, as the agreement is much closer.
    assert report.error < 1e-3 * report.hessian_share


def test_the_share_of_the_hessian_is_that_of_a_closed_form() -> None:
    """Ridge regression, where ``H + w`` is a known matrix."""
    model, decay = nn.Linear(3, 1, bias=False, dtype=torch.float64), 0.5
    x, y, _ = (t.double() for t in TRAIN)
    xd, yd, _ = (t.double() for t in DEV)

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, losses: Tensor, inputs: Any) -> Tensor:
            return self.gamma.expand(losses.shape)

    report = check_hypergradient(make(model, decay=decay, weighter=Constant()), TRAIN, DEV)
    hessian = 2.0 * x.T @ x / len(x)
    theta = torch.linalg.solve(hessian + decay * torch.eye(3).double(), 2.0 * x.T @ y / len(x))
    inner = hessian @ theta - 2.0 * x.T @ y / len(x)
    outer = 2.0 * xd.T @ (xd @ theta - yd) / len(xd)
    exact = -inner @ torch.linalg.solve(hessian + decay * torch.eye(3).double(), outer)
    without = -inner @ outer / decay
    # Both are solved to rounding.
    assert report.hessian_share == pytest.approx(float(abs((exact - without) / exact)), rel=1e-6)


def test_agreement_that_hides_the_hessian_means_little() -> None:
    """Under damping of 1e4, a solver that never looks at the Hessian agrees."""
    blind = check_hypergradient(make(solver=Identity(1e-4), damping=1e4), TRAIN, DEV)
    assert blind.ok and blind.hessian_share < 1e-3
    assert "hessian:" in str(blind) and "little" in str(blind)
    exact = check_hypergradient(make(damping=1e4), TRAIN, DEV)
    assert exact.ok and "little" not in str(exact)  # agrees to much less than the share


def test_a_truncated_step_is_a_right_set_up() -> None:
    report = check_hypergradient(make(network("mlp"), solver=Identity(0.3)), TRAIN, DEV)
    assert report.setup_ok and not report.ok
    assert "as chosen" in report.verdict


def test_the_limit_of_time_ends_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr(budget.time, "monotonic", clock)
    rw = make(network("mlp"))
    report = check_hypergradient(rw, TRAIN, DEV, max_seconds=0.5)
    assert math.isnan(report.error) and not report.ok and not report.setup_ok
    assert NOT_COMPARED.search(report.verdict) and "0.5 s" in report.verdict
    assert "max_seconds" in report.advice
    assert all(math.isfinite(row.hypergradient) for row in report.rows)
    assert {p.dtype for p in rw.model.parameters()} == {torch.float32}
    assert check_hypergradient(rw, TRAIN, DEV, max_seconds=math.inf).ok
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_seconds"):
            check_hypergradient(rw, TRAIN, DEV, max_seconds=wrong)


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_reports_its_progress(
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    rw = make()
    with caplog.at_level(logging.INFO, "reweight"):
        check_hypergradient(rw, TRAIN, DEV)
        assert "check_hypergradient" not in caplog.text + capsys.readouterr().err
        monkeypatch.setattr(budget, "_QUIET", 0.0)
        monkeypatch.setattr(budget.sys.stderr, "isatty", lambda: terminal)
        check_hypergradient(rw, TRAIN, DEV)
    shown = capsys.readouterr().err
    assert ("solving" in shown, "solving" in caplog.text) == (terminal, not terminal)
    if terminal:
        assert "\n" not in shown and shown.endswith("\r")  # one line, empty in the end


def test_a_tolerance_below_what_differences_resolve_is_told() -> None:
    report = check_hypergradient(make(network("mlp")), TRAIN, DEV, rtol=1e-12)
    assert not report.ok and NOT_COMPARED.search(report.verdict)
    assert "rtol" in report.advice and "custom" not in report.advice
