"""A warning is given once for each cause, where the user's code is."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import Tensor, nn

from _support.problems import SigmoidWeights
from reweight import (
    ConjugateGradient,
    ConstantWeighter,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    Reweighted,
    SampleWeighter,
    wrap,
)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]).squeeze(-1) - batch[1]).square()


def make(
    solver: object, model: nn.Module | None = None, weighter: SampleWeighter | None = None
) -> Reweighted:
    torch.manual_seed(0)
    return wrap(
        nn.Linear(3, 1) if model is None else model,
        LossWeighter(4) if weighter is None else weighter,
        losses,
        lambda model, batch: losses(model, batch).mean(),
        hypergradient=ImplicitHypergradient(solver),  # type: ignore[arg-type]
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, generator=generator), torch.randn(6, generator=generator)


TRAIN, DEV = batch(0), batch(1)


def test_a_cause_is_said_once_and_points_at_the_users_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rw = make(Neumann(10, step_size=5.0))
    with pytest.warns(UserWarning, match="grow.*once") as caught:
        rw.hypergradient(TRAIN, DEV)
    assert caught[0].filename == __file__
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, "reweight"):
        warnings.simplefilter("error")
        rw.outer_backward(TRAIN, DEV)
    assert "grow" in caplog.text
    # Another wrapped model has not been told yet.
    with pytest.warns(UserWarning, match="grow"):
        make(Neumann(10, step_size=5.0)).outer_backward(TRAIN, DEV)


def test_nothing_is_printed_where_no_one_asked_for_the_log(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rw = make(Neumann(10, step_size=5.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            rw.hypergradient(TRAIN, DEV)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("solver", [Neumann(), ConjugateGradient(2)], ids=repr)
def test_a_solver_that_stops_as_it_was_told_to_is_not_warned_of(solver: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = make(solver).hypergradient(TRAIN, DEV).info
    assert not info.trustworthy  # it says so itself
    assert f"{info.relative_residual:.2g}" in info.message


def test_weights_at_their_bound_are_told() -> None:
    weighter = SigmoidWeights(4)
    with torch.no_grad():
        weighter.mlp[-1].bias += 40.0  # every weight has run to its maximum
    rw = make(Neumann(), weighter=weighter)
    with pytest.warns(UserWarning, match="weights of SigmoidWeights.*bound"):
        rw.hypergradient(TRAIN, DEV)


def test_influences_that_cancel_are_no_weights_at_their_bound() -> None:
    """As at an optimum of a weight that all samples share."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

    def opposed(model: nn.Module, b: Tensor) -> Tensor:
        return model.w.square() + model.w * b

    rw = wrap(Slope(), ConstantWeighter(), opposed, lambda model, b: 3.0 * model.w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = rw.hypergradient(torch.tensor([1.0, -1.0]), DEV)
    assert result.influence[0] == -result.influence[1] != 0.0
    assert not any(bool(g.any()) for g in result.grads.values())


def test_heads_that_do_not_meet_are_told() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.train_head, self.dev_head = nn.Linear(3, 1), nn.Linear(3, 1)

    torch.manual_seed(0)
    rw = wrap(
        Heads(),
        LossWeighter(4),
        lambda model, b: Losses(losses(model.train_head, b)),  # type: ignore[arg-type]
        lambda model, b: losses(model.dev_head, b).mean(),  # type: ignore[arg-type]
    )
    with pytest.warns(UserWarning, match="no parameter.*inner loss"):
        result = rw.hypergradient(TRAIN, DEV)
    assert not bool(result.influence.any())
    assert all(not bool(g.any()) for g in result.grads.values())
