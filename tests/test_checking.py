"""The check agrees where it should, and says which part is wrong where it should not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import mean_squared_error, squared_errors
from torch import Tensor, nn

from reweight import (
    ConjugateGradient,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    Reweighted,
    SampleWeighter,
    TableWeighter,
    check_hypergradient,
    wrap,
)

SIZE = 8
EXACT = ConjugateGradient(max_steps=100, rtol=1e-10)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, 3, generator=generator)
    return x, torch.randn(SIZE, generator=generator), torch.arange(SIZE)


TRAIN, DEV = batch(0), batch(1)


def trained_weighter() -> LossWeighter:
    torch.manual_seed(3)
    weighter = LossWeighter(4)
    nn.init.normal_(weighter.mlp[-1].weight, std=0.3)
    return weighter


def network(kind: str = "linear") -> nn.Module:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(3, 1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def make(
    model: nn.Module | None = None,
    solver: Any = EXACT,
    decay: float = 0.2,
    damping: float = 0.0,
    hvp: Any = "auto",
    **changes: Any,
) -> Reweighted:
    model = network() if model is None else model
    arguments: dict[str, Any] = {
        "model": model,
        "weighter": trained_weighter(),
        "losses": squared_errors,
        "outer_loss": mean_squared_error,
        "optimizer": torch.optim.AdamW(model.parameters(), weight_decay=decay),
        "hypergradient": ImplicitHypergradient(solver, damping, hvp),
        **changes,
    }
    return wrap(**arguments)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_an_exact_solver_agrees(kind: str, reduction: Any, damping: float) -> None:
    rw = make(network(kind), damping=damping, reduction=reduction)
    report = check_hypergradient(rw, TRAIN, DEV, rtol=1e-5, raise_on_mismatch=True)
    assert report.ok and report.error < 1e-5
    assert report.inner_gradient < 1e-8
    assert report.advice == "nothing to mend"
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


def test_a_truncated_solver_is_told_from_a_wrong_set_up() -> None:
    report = check_hypergradient(make(network("mlp"), solver=Neumann(1)), TRAIN, DEV)
    assert not report.ok
    assert report.exact_error < 1e-5 < report.error
    assert "the set-up is right" in report.advice
    assert "the series was cut" in report.advice and "raise num_terms" in report.advice


class SideChannel(SampleWeighter):
    """Reads the model behind the wrapper's back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.hidden = [model]  # a list, so that its parameters are not this module's

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return torch.exp(self.slope * self.hidden[0].weight.sum()).expand(losses.shape)


def test_a_weighter_that_reads_the_model_by_a_side_channel_is_told() -> None:
    model = network()
    rw = make(model, weighter=SideChannel(model))
    report = check_hypergradient(rw, TRAIN, DEV)
    assert not report.ok and report.exact_error > 1e-3
    assert "SideChannel reads inner parameters by a side channel" in report.advice
    assert "Losses(inputs=...)" in report.advice


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


def test_a_gradient_that_is_not_of_the_loss_is_told() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2.0 * grad

    def outer(model: nn.Module, b: Any) -> Tensor:
        return Doubled.apply(mean_squared_error(model, b))  # type: ignore[no-any-return]

    report = check_hypergradient(make(outer_loss=outer), TRAIN, DEV)
    assert report.error == pytest.approx(1.0, rel=1e-3)
    assert "also an exact solve disagrees" in report.advice
    assert "custom gradients" in report.advice


def test_a_singular_inner_problem_is_told() -> None:
    def outer(model: Any, b: Any) -> Tensor:
        return mean_squared_error(model, b)

    few = tuple(t[:2] for t in TRAIN)  # two samples for four parameters
    report = check_hypergradient(make(decay=0.0, outer_loss=outer), few, DEV)
    # Two samples are fitted exactly whatever their weights, so there is nothing to learn.
    assert report.ok and all(abs(row.finite_difference) < 1e-6 for row in report.rows)
    assert "little was tested" in str(report)


def test_a_mismatch_raises_with_the_report_when_asked_to() -> None:
    rw = make(network("mlp"), solver=Neumann(1))
    report = check_hypergradient(rw, TRAIN, DEV)
    with pytest.raises(RuntimeError) as caught:
        check_hypergradient(rw, TRAIN, DEV, raise_on_mismatch=True)
    assert str(caught.value) == str(report)
    # A looser question gets a kinder answer.
    assert check_hypergradient(rw, TRAIN, DEV, rtol=2.0 * report.error, raise_on_mismatch=True).ok


def test_the_report_is_a_table_that_a_person_can_read() -> None:
    lines = str(check_hypergradient(make(), TRAIN, DEV)).splitlines()
    assert lines[0].startswith("hypergradient agrees with finite differences: relative error")
    assert lines[1].split() == ["parameter", "hypergradient", "exact", "solve", "finite", "diff."]
    table = lines[1:6]
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0] for line in table[1:]] == [
        n for n, _ in trained_weighter().named_parameters()
    ]
    assert lines[-1] == "nothing to mend"
    assert all(len(line) <= 120 for line in lines)


def test_the_directions_follow_the_seed() -> None:
    rw = make()
    one, same, other = (
        [row.exact for row in check_hypergradient(rw, TRAIN, DEV, seed=seed).rows]
        for seed in (0, 0, 1)
    )
    assert one == same and one != other


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


def test_losses_that_do_not_follow_the_copy_are_explained() -> None:
    other = network()
    remembered = make(
        losses=lambda model, b: squared_errors(other, b),
        outer_loss=lambda model, b: mean_squared_error(other, b),
    )
    single = make(losses=lambda model, b: squared_errors(model, b) @ torch.eye(SIZE))
    for rw in (remembered, single):
        with pytest.raises(RuntimeError, match="float64 copy.*not the one they are given"):
            check_hypergradient(rw, TRAIN, DEV)
