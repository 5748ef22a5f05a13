"""The check agrees where it should, and says which part is wrong where it should not."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.problems import mean_squared_error, ridge, squared_errors
from reweight import (
    CheckRow,
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    Reweighted,
    SampleWeighter,
    SecondMoments,
    Solution,
    Status,
    TableWeighter,
    check_hypergradient,
    wrap,
)
from reweight.checking import check as flow
from reweight.checking import descent

SIZE = 8
EXACT = ConjugateGradient(max_steps=100, rtol=1e-10)

# What a verdict says, in whichever words.
SET_UP = re.compile("set-?up is right")
NOT_COMPARED = re.compile("not be compared", re.IGNORECASE)


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


def test_a_truncated_solver_is_told_from_a_wrong_set_up() -> None:
    report = check_hypergradient(make(network("mlp"), solver=Neumann(1)), TRAIN, DEV)
    assert not report.ok
    assert report.exact_error < 1e-5 < report.error
    assert SET_UP.search(report.verdict) and "num_terms" in report.advice


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
    assert "SideChannel" in report.advice and "inputs=" in report.advice


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
    assert "exact" in report.advice and "custom" in report.advice


def test_a_singular_inner_problem_is_told() -> None:
    def outer(model: Any, b: Any) -> Tensor:
        return mean_squared_error(model, b)

    few = tuple(t[:2] for t in TRAIN)  # two samples for four parameters
    report = check_hypergradient(make(decay=0.0, outer_loss=outer), few, DEV)
    # Two samples are fitted exactly whatever their weights, so there is nothing to learn.
    assert report.ok and all(abs(row.finite_difference) < 1e-6 for row in report.rows)
    assert "tested" in report.advice


def test_a_mismatch_raises_with_the_report_when_asked_to() -> None:
    rw = make(network("mlp"), solver=Neumann(1))
    report = check_hypergradient(rw, TRAIN, DEV)
    with pytest.raises(RuntimeError) as caught:
        check_hypergradient(rw, TRAIN, DEV, raise_on_mismatch=True)
    assert str(caught.value) == str(report)
    # A looser question gets a kinder answer.
    assert check_hypergradient(rw, TRAIN, DEV, rtol=2.0 * report.error, raise_on_mismatch=True).ok


def test_the_report_is_a_table_that_a_person_can_read() -> None:
    report = check_hypergradient(make(), TRAIN, DEV)
    lines = str(report).splitlines()
    assert "agrees" in lines[0] and f"{report.error:.2g}" in lines[0]
    assert re.search("parameter.*hypergradient.*exact.*finite.*error", lines[1])
    table = lines[1:6]
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0] for line in table[1:]] == [
        n for n, _ in trained_weighter().named_parameters()
    ]
    assert lines[6].startswith("advice:") and lines[6].endswith(report.advice)
    assert lines[7].startswith("position:")
    assert all(len(line) <= 110 for line in lines)


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
        with pytest.raises(RuntimeError, match="float64 copy"):
            check_hypergradient(rw, TRAIN, DEV)


# -- the report ----------------------------------------------------------------------------------


def test_each_row_has_its_error_and_the_largest_is_the_reports() -> None:
    report = check_hypergradient(make(network("mlp"), solver=Neumann(1)), TRAIN, DEV)
    largest = max(abs(row.finite_difference) for row in report.rows)
    for row in report.rows:
        apart = abs(row.hypergradient - row.finite_difference)
        assert row.error == pytest.approx(apart / largest)
    assert report.error == max(row.error for row in report.rows)
    worst = max(report.rows, key=lambda row: row.error)
    marked = [line for line in str(report).splitlines() if line.endswith("<- worst")]
    assert [line.split()[0] for line in marked] == [worst.name]
    assert f"{worst.error:.1e}" in marked[0]


def test_long_names_lose_their_middle_and_not_the_table() -> None:
    report = check_hypergradient(make(solver=Neumann(1)), TRAIN, DEV)
    name = "encoder.layers.11.attention.self.query.lora_A.default.parametrizations.weight"
    rows = (CheckRow(name, -1.0, -1.0, -1.0, 2.0), CheckRow("b", 1.0, 1.0, 1.0, 1.0))
    lines = str(dataclasses.replace(report, rows=rows)).splitlines()
    assert all(len(line) <= 110 for line in lines)
    head, tail = lines[2].split()[0].split("…")
    assert name.startswith(head) and name.endswith(tail) and min(len(head), len(tail)) > 15
    assert lines[2].endswith("<- worst")
    assert lines[2].index("1.000000e+00") == lines[3].index("1.000000e+00")


# -- problems that need help to be compared ------------------------------------------------------


def absolute_errors(model: nn.Module, b: Any) -> Tensor:
    return (model(b[0]).reshape(-1) - b[1]).abs()


def cross_entropies(model: nn.Module, b: Any) -> Tensor:
    labels = (b[1] > 0).to(b[1])
    return nn.functional.binary_cross_entropy_with_logits(
        model(b[0]).reshape(-1), labels, reduction="none"
    )


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


def test_a_wrong_gradient_is_found_where_damping_is_needed_too() -> None:
    rw = make(optimizer=None, losses=cross_entropies, outer_loss=scaled(2.0))
    report = check_hypergradient(rw, TRAIN, DEV)
    assert not report.ok
    assert re.search(r"outer loss\b.*\b2\b", report.advice)


def test_what_a_perfect_fit_hides_is_looked_at_with_damping() -> None:
    few = tuple(t[:2] for t in TRAIN)
    right = check_hypergradient(make(decay=0.0), few, DEV)
    assert right.ok and right.damping == 0.0
    assert "damping" in right.advice and "exact" in right.advice
    wrong = check_hypergradient(make(decay=0.0, outer_loss=scaled(3.0)), few, DEV)
    assert not wrong.ok and wrong.damping > 0.0
    assert re.search(r"outer loss\b.*\b3\b", wrong.advice)


def test_a_model_trained_on_its_dev_batch_is_no_mismatch() -> None:
    """Its outer gradient is zero where training has come to rest."""
    train = ridge().train
    model = at_rest(lambda model: mean_squared_error(model, train))
    rw = make(model, optimizer=None, weighter=TableWeighter(SIZE).double(), losses=with_ids)
    report = check_hypergradient(rw, train, train)
    assert report.ok
    assert "tested" in report.advice and "train batch" in report.advice


def test_what_could_not_be_compared_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_DAMPING", ())
    report = check_hypergradient(make(optimizer=None, losses=absolute_errors), TRAIN, DEV)
    assert not report.ok and math.isnan(report.error)
    assert all(math.isnan(row.finite_difference) and math.isnan(row.error) for row in report.rows)
    assert all(math.isfinite(row.hypergradient) for row in report.rows)
    assert NOT_COMPARED.search(report.verdict)
    lines = str(report).splitlines()
    assert lines[2].split()[3:] == ["-", "-"]
    assert f"{report.inner_gradient:.2g}" in report.advice and "train" in report.advice


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


# -- what a mismatch comes from ------------------------------------------------------------------


class Scaled(torch.autograd.Function):
    """Passes values through and multiplies gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


def scaled(factor: float) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, b: Scaled.apply(mean_squared_error(model, b), factor)  # type: ignore


@pytest.mark.parametrize(
    ("factor", "reasons"),
    [
        (2.0, {"twice"}),
        (0.5, {"half"}),
        (-1.0, {"reversal"}),
        (float(SIZE), {"mean", "sum", f"{SIZE} samples"}),
        (1.0 / SIZE, {"mean", "twice", f"{SIZE} samples"}),
        (3.0, set()),
    ],
)
def test_a_common_factor_is_named(factor: float, reasons: set[str]) -> None:
    report = check_hypergradient(make(outer_loss=scaled(factor)), TRAIN, DEV)
    assert not report.ok
    assert f"factor {factor:.3g}" in report.advice
    assert re.search(rf"outer loss\b.* {factor:.3g}\b", report.advice)
    words = ("twice", "half", "reversal", "mean", "sum", f"{SIZE} samples")
    assert {w for w in words if re.search(rf"\b{w}\b", report.advice)} == reasons


def test_a_wrong_gradient_of_the_weights_is_told() -> None:
    class Weighter(LossWeighter):
        def forward(self, losses: Tensor, inputs: Any) -> Tensor:
            weights: Tensor = Scaled.apply(super().forward(losses, inputs), 2.0)
            return weights

    torch.manual_seed(3)
    weighter = Weighter(4)
    nn.init.normal_(weighter.mlp[-1].weight, std=0.3)
    report = check_hypergradient(make(weighter=weighter), TRAIN, DEV)
    assert not report.ok and re.search(r"weights of Weighter\b.*\b2\b", report.advice)


def test_a_detach_inside_is_told() -> None:
    def outer(model: Any, b: Any) -> Tensor:
        return (b[0] @ model.weight[0] + model.bias.detach() - b[1]).square().mean()

    report = check_hypergradient(make(outer_loss=outer), TRAIN, DEV)
    assert not report.ok
    assert "outer loss" in report.advice and "detach()" in report.advice


def test_straight_through_gradients_are_told() -> None:
    """Where they vanish nothing is smallest, so there is nothing to compare with."""

    def rounded(model: nn.Module, b: Any) -> Tensor:
        predicted = model(b[0]).reshape(-1)
        steps = predicted + ((4.0 * predicted).round() / 4.0 - predicted).detach()
        return (steps - b[1]).square()

    def fixed(model: nn.Module, b: Any) -> Losses:
        return Losses(squared_errors(model, b), rounded(model, b).mean())

    for losses, what in ((rounded, "weight(s|ed)"), (fixed, "fixed")):
        report = check_hypergradient(make(losses=losses), TRAIN, DEV)
        assert not report.ok and NOT_COMPARED.search(report.verdict)
        assert re.search(rf"gradient of the .*\b{what}\b", report.advice)


def test_noise_of_ones_own_is_told() -> None:
    generator = torch.Generator().manual_seed(0)

    def losses(model: nn.Module, b: Any) -> Tensor:
        return squared_errors(model, b) * (1.0 + 0.1 * torch.rand(SIZE, generator=generator))

    report = check_hypergradient(make(losses=losses), TRAIN, DEV)
    assert not report.ok
    assert re.search(r"weight(s|ed)\b.*every call", report.advice)


def test_a_cast_to_single_precision_is_told() -> None:
    def losses(model: nn.Module, b: Any) -> Tensor:
        return squared_errors(model, b).float()

    report = check_hypergradient(make(losses=losses), TRAIN, DEV, rtol=1e-8)
    assert not report.ok
    assert "float32" in report.advice and ".float()" in report.advice


def test_wrong_second_derivatives_are_told() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2.0 * ctx.saved_tensors[0].detach() * grad

    def losses(model: nn.Module, b: Any) -> Tensor:
        return Square.apply(model(b[0]).reshape(-1) - b[1])  # type: ignore[no-any-return]

    forced = check_hypergradient(make(network("mlp"), losses=losses, hvp="autograd"), TRAIN, DEV)
    assert not forced.ok
    assert re.search("second derivatives.*'autograd'", forced.advice)
    assert 'hvp="auto"' in forced.advice
    other = make(network("mlp"), losses=losses, hvp="finite_difference")
    assert check_hypergradient(other, TRAIN, DEV).ok


# -- what a solver does ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Own:
    """Solves exactly, but another system."""

    factor: float = 1.0
    shift: float = 0.0

    def __call__(self, matvec: Any, b: Any) -> Solution:
        def shifted(v: Any) -> Any:
            return {n: x - self.shift * v[n] for n, x in matvec(v).items()}

        u = ConjugateGradient(200, rtol=1e-13)(shifted, b).value
        return Solution({n: self.factor * x for n, x in u.items()}, Status.CONVERGED)


@pytest.mark.parametrize(
    ("decay", "damping", "what"), [(0.2, 0.0, "weight decay"), (0.2, 0.1, "damping")]
)
def test_a_solver_that_leaves_a_part_out_is_told(decay: float, damping: float, what: str) -> None:
    solver = Own(shift=decay if what == "weight decay" else damping)
    rw = make(network("mlp"), solver, decay, damping)
    report = check_hypergradient(rw, TRAIN, DEV)
    assert not report.ok and report.exact_error < 1e-6
    assert SET_UP.search(report.verdict) and "Own(factor=1.0, shift=" in report.verdict
    assert f"without {what}" in report.advice and "matvec" in report.advice


def test_a_solver_that_loses_a_factor_is_told() -> None:
    report = check_hypergradient(make(solver=Own(factor=0.1)), TRAIN, DEV)
    assert "Own(factor=0.1)" in report.verdict
    assert "factor 0.1" in report.advice


@pytest.mark.parametrize(
    ("solver", "verdict"),
    [
        (Neumann(), r"Neumann\(num_terms=3\).*truncated"),
        (Identity(0.3), r"Identity\(step_size=0\.3\).*multiple of the identity"),
        (ConjugateGradient(2), r"ConjugateGradient\(max_steps=2\).*not solve"),
        (Own(1.0 + 1e-4), r"Own\(factor=1\.0001\).*residual.*0\.0001.*1e-06"),
    ],
)
def test_the_verdict_says_what_kind_of_solver_it_is(solver: Any, verdict: str) -> None:
    report = check_hypergradient(make(network("mlp"), solver), TRAIN, DEV, rtol=1e-6)
    assert SET_UP.search(report.verdict) and re.search(verdict, report.verdict)
    assert "disagrees" not in str(report).lower()
    assert f"{report.exact_error:.1g}" in report.advice
    assert len(str(report).splitlines()[0]) <= 110


# -- where training stands -----------------------------------------------------------------------

TRAIN_DOUBLE, DEV_DOUBLE = (
    tuple(t.double() if t.is_floating_point() else t for t in b) for b in (TRAIN, DEV)
)
RAW = torch.randn(SIZE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
WEIGHTS = torch.nn.functional.softplus(RAW) / math.log(2.0)


def at_rest(loss: Callable[[nn.Module], Tensor], size: int = 3) -> nn.Module:
    """A linear model where a smooth loss is smallest."""
    torch.manual_seed(0)
    model = nn.Linear(size, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()
    return model


def with_ids(model: nn.Module, b: Any) -> Losses:
    return Losses(squared_errors(model, b), inputs=b[2])


def with_fixed(model: nn.Module, b: Any) -> Losses:
    return Losses(squared_errors(model, b), mean_squared_error(model, DEV_DOUBLE), b[2])


def weighted(model: nn.Module) -> Tensor:
    return WEIGHTS * squared_errors(model, TRAIN_DOUBLE)


def decay(model: nn.Module, rate: float, matrices_only: bool = False) -> Tensor:
    chosen = [p for p in model.parameters() if p.ndim > 1 or not matrices_only]
    return 0.5 * rate * sum((p.square().sum() for p in chosen), torch.zeros(()).double())


def position(
    loop: Callable[[nn.Module], Tensor],
    told: float | None = None,
    losses: Any = with_ids,
    reduction: Any = "mean",
    optimizer: Any = torch.optim.SGD,
) -> str:
    """What is said of a model that a loop has trained with a loss of its own."""
    model = at_rest(loop)
    weighter = TableWeighter(SIZE).double()
    with torch.no_grad():
        weighter.raw.copy_(RAW)
    known = None
    if told is not None:
        known = optimizer(model.parameters(), lr=0.1, weight_decay=told)
    rw = make(model, weighter=weighter, losses=losses, reduction=reduction, optimizer=known)
    report = check_hypergradient(rw, TRAIN_DOUBLE, DEV_DOUBLE, rtol=1e-6)
    assert report.ok  # the comparison takes wrap's word for it
    assert "".join(report.position.split()) in "".join(str(report).split())
    return report.position


@pytest.mark.parametrize("told", [None, 0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loop_that_trains_what_wrap_was_told_is_confirmed(told: Any, reduction: Any) -> None:
    def loop(model: nn.Module) -> Tensor:
        total: Tensor = getattr(weighted(model), reduction)()
        return total + decay(model, told or 0.0)

    said = position(loop, told, reduction=reduction)
    assert re.search("(?<!not )at (the|a) minimum", said)


def test_weight_decay_that_wrap_was_not_told_of_is_told() -> None:
    said = position(lambda m: weighted(m).mean() + decay(m, 0.3))
    assert re.search(r"weight decay\b.* 0\.3\b", said) and "matrices" not in said
    assert "optimizer=" in said and "fixed=" in said
    said = position(lambda m: weighted(m).mean() + decay(m, 0.3, matrices_only=True))
    assert re.search(r"weight decay\b.* 0\.3\b.*matrices", said)
    # Seen long before it matters.
    said = position(lambda m: weighted(m).mean() + decay(m, 1e-2))
    assert re.search(r"weight decay\b.* 0\.01\b", said)


def test_other_weight_decay_than_the_optimizers_is_told() -> None:
    def loop(rate: float) -> Callable[[nn.Module], Tensor]:
        return lambda m: weighted(m).mean() + decay(m, rate)

    said = position(loop(0.3), told=0.1)
    assert re.search(r"\b0\.2 more weight decay\b.*optimizer", said)
    assert re.search(r"\b0\.3\b.*\b0\.1\b", said)
    said = position(loop(0.1), told=0.3)
    assert re.search(r"\b0\.2 less weight decay\b.*optimizer", said)
    said = position(loop(0.0), told=0.3, optimizer=torch.optim.AdamW)
    assert re.search(r"\b0\.3 less weight decay\b.*AdamW", said) and "decoupled" in said


@pytest.mark.parametrize("losses", [with_ids, with_fixed])
def test_another_reduction_is_told(losses: Any) -> None:
    """With a fixed part, or with weight decay, which a factor is measured against."""

    def loop(factor: float) -> Callable[[nn.Module], Tensor]:
        def value(model: nn.Module) -> Tensor:
            fixed = mean_squared_error(model, DEV_DOUBLE) if losses is with_fixed else 0.0
            return factor * weighted(model).mean() + fixed + decay(model, 0.3)

        return value

    said = position(loop(SIZE), 0.3, losses)
    assert re.search('reduction="mean".*reduction="sum"', said)
    said = position(loop(1.0), 0.3, losses, "sum")
    assert re.search('reduction="sum".*reduction="mean"', said)
    said = position(loop(1.0 / SIZE), 0.3, losses)
    assert re.search(rf"divide\b.*\b{SIZE}\b", said)


def test_another_factor_is_told_beside_fixed_losses() -> None:
    said = position(
        lambda m: 0.4 * weighted(m).mean() + mean_squared_error(m, DEV_DOUBLE), losses=with_fixed
    )
    assert re.search(r"\b0\.4\b.*\bfixed\b", said)


def test_a_loop_without_weights_is_told() -> None:
    said = position(lambda m: squared_errors(m, TRAIN_DOUBLE).mean() + decay(m, 0.3), 0.3)
    assert re.search(r"without\b.*\bweights\b", said) and "rw.loss(batch)" in said


def test_a_model_that_is_not_at_a_minimum_is_told() -> None:
    said = check_hypergradient(make(), TRAIN, DEV).position
    assert "not at a minimum" in said and "only at a minimum" in said


def test_two_parameters_prove_nothing() -> None:
    """A multiple of the parameters comes near any gradient of two dimensions."""
    one, dev = (tuple(t[:, :1] if t.ndim > 1 else t for t in b) for b in (TRAIN_DOUBLE, DEV_DOUBLE))
    model = at_rest(lambda m: mean_squared_error(m, one) + decay(m, 0.3), size=1)
    report = check_hypergradient(make(model, optimizer=None), one, dev)
    assert "not at a minimum" in report.position
