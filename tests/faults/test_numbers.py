"""What is not finite is told before it is used, or skipped and counted, as the user chooses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reweight
from _support.processes import Processes
from _support.wrapping import DEV, TRAIN, make
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    LossWeighter,
    Neumann,
    RankError,
    Reweighted,
    Status,
)


def rooted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Finite losses, whose gradient is infinite where a prediction is right."""
    x, y = batch
    return (model(x).squeeze(-1) - y).square().sqrt().sqrt()


def at_a_root() -> tuple[Reweighted, Any]:
    model = nn.Linear(3, 1).double()
    x = torch.ones(4, 3, dtype=torch.float64)
    return make(model, losses=rooted), (x, model(x).detach().squeeze(-1))


def test_a_finite_loss_with_an_infinite_gradient_is_told_by_its_parameter() -> None:
    rw, batch = at_a_root()
    loss = rw.loss(batch)
    assert bool(loss.isfinite())
    loss.backward()
    with pytest.raises(FloatingPointError, match=r"gradient of the inner loss.*weight"):
        rw.check_gradients()


def test_usable_gradients_pass_and_cost_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    rw = make()
    rw.loss(TRAIN).backward()
    reads: list[int] = []
    monkeypatch.setattr(Tensor, "tolist", lambda x, own=Tensor.tolist: (reads.append(1), own(x))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rw.check_gradients()
    assert len(reads) == 1


def test_gradients_of_sparse_tables_are_looked_at() -> None:
    model = nn.Embedding(5, 1, sparse=True)
    rw = reweight.wrap(
        model,
        LossWeighter(),
        lambda m, ids: m(ids).squeeze(-1).abs().sqrt(),
        lambda m, ids: m(ids).mean(),
    )
    with torch.no_grad():
        model.weight[2] = 0.0
    rw.loss(torch.tensor([1, 3])).backward()
    rw.check_gradients()
    rw.loss(torch.tensor([2])).backward()
    with pytest.raises(FloatingPointError, match="weight"):
        rw.check_gradients()


def test_gradients_that_underflow_are_told_once() -> None:
    model = nn.Linear(3, 1)
    rw = make(
        model,
        weighter=LossWeighter(),
        losses=lambda m, b: 1e-30 * (1e-10 * m(b[0])).square().squeeze(-1),
    )
    rw.loss((torch.randn(4, 3), torch.zeros(4))).backward()
    assert model.weight.grad is not None and not model.weight.grad.any()
    with pytest.warns(UserWarning, match="exactly zero.*underflow"):
        rw.check_gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rw.check_gradients()


@pytest.mark.parametrize("solver", [ConjugateGradient(), Neumann(), Identity()])
def test_an_outer_gradient_that_underflows_is_not_trusted(solver: Any) -> None:
    def tiny(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 1e-44 * (1e-6 * model(batch[0])).abs().mean()

    model = nn.Linear(3, 1)
    batch, dev_batch = ((torch.randn(8, 3), torch.randn(8)) for _ in range(2))
    strategy = ImplicitHypergradient(solver, damping=1.0)
    how: Any = {"weighter": LossWeighter(), "hypergradient": strategy}
    with pytest.warns(UserWarning, match="outer loss underflows"):
        info = make(model, outer_loss=tiny, **how).hypergradient(batch, dev_batch).info
    assert not info.trustworthy and "underflows" in info.message
    # A gradient that is zero for another reason is what it is.
    flat = make(model, outer_loss=lambda m, b: (0.0 * m(b[0])).mean(), **how)
    assert flat.hypergradient(batch, dev_batch).info.trustworthy


NAN = TRAIN[0] * float("nan"), TRAIN[1]


@pytest.mark.parametrize("which", ["batch", "dev batch", "derivative"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(which: str) -> None:
    rw, batch = at_a_root() if which == "derivative" else (make(), TRAIN)
    rw.not_finite = "skip"
    rw.outer_backward(TRAIN, DEV)
    before = {n: p.grad.clone() for n, p in rw.weighter.named_parameters() if p.grad is not None}
    given = {"batch": (NAN, DEV), "dev batch": (batch, NAN), "derivative": (batch, DEV)}[which]
    with pytest.warns(UserWarning, match="1 of 2 outer steps so far were skipped"):
        result = rw.outer_backward(*given)
    assert rw.skipped == 1 and rw.problem.progress.steps == 1
    for name, parameter in rw.weighter.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, before[name])
    assert result.info.status is Status.NOT_FINITE and not result.info.trustworthy
    assert not any(grad.any() for grad in result.grads.values())
    assert "skipped" in str(result) and "skipped" in repr(rw)
    rw.outer_backward(TRAIN, DEV)
    assert (rw.skipped, rw.problem.progress.steps) == (1, 2)


def test_by_default_it_raises_and_the_choice_is_checked() -> None:
    with pytest.raises(ValueError, match="nan"):
        make().outer_backward(NAN, DEV)
    with pytest.raises(ValueError, match="not_finite='ignore'"):
        make(not_finite="ignore")


def test_other_errors_are_not_skipped() -> None:
    rw = make(not_finite="skip")
    with pytest.raises(TypeError):
        rw.outer_backward(None, DEV)
    assert not rw.skipped


def test_many_skipped_steps_are_told_again() -> None:
    rw = make(not_finite="skip")
    with pytest.warns(UserWarning) as told:
        for _ in range(12):
            rw.outer_backward(NAN, DEV)
    counts = [str(w.message).split()[0] for w in told if "skipped" in str(w.message)]
    assert counts == ["1", "10"]


def test_the_count_is_part_of_the_state() -> None:
    rw, other = make(not_finite="skip"), make()
    with pytest.warns(UserWarning):
        rw.outer_backward(NAN, DEV)
    other.load_state_dict(rw.state_dict())
    assert other.skipped == 1


def skipping(rank: int, size: int, where: str) -> Any:
    torch.manual_seed(0)
    rw = make(not_finite="skip")
    warnings.simplefilter("ignore")
    found = []
    for step in range(3):
        bad = step == 1 and rank == 1
        batch, dev_batch = TRAIN, DEV
        if bad and where == "batch":
            batch = NAN
        if bad and where == "dev batch":
            dev_batch = NAN
        if bad and where == "other":
            batch = None  # type: ignore[assignment]
        try:
            result = rw.outer_backward(batch, dev_batch)
        except Exception as error:
            return type(error).__name__
        found.append(result.info.status.name)
    return found, rw.skipped, [p.grad.tolist() for p in rw.weighter.parameters()]  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["batch", "dev batch"])
def test_all_processes_skip_what_is_not_finite_on_one(two: Processes, where: str) -> None:
    one, other = two.run(skipping, where)
    assert one == other
    statuses, skipped, _ = one
    assert skipped == 1 and statuses[1] == "NOT_FINITE" and "NOT_FINITE" not in statuses[::2]


def test_another_error_of_one_process_stops_all(two: Processes) -> None:
    assert two.run(skipping, "other") == [RankError.__name__, "TypeError"]


def alone(rank: int, size: int) -> str:
    rw = make()
    rw.loss(TRAIN).backward()
    if rank == 1:
        parameter = next(rw.model.parameters())
        assert parameter.grad is not None
        parameter.grad.fill_(float("inf"))
    try:
        rw.check_gradients()
    except (FloatingPointError, RankError) as error:
        return type(error).__name__
    return "nothing"


def test_gradients_that_one_process_cannot_use_are_told_to_all(two: Processes) -> None:
    assert two.run(alone) == ["RankError", "FloatingPointError"]
