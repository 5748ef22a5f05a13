"""What the optimizers hold and move is inner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reweight import ConstantWeighter, LossWeighter, Reweighted, wrap

SGD = torch.optim.SGD


def losses(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).squeeze(-1) - batch[1]).square()


def inner(model: nn.Module, optimizer: Any, **options: Any) -> list[str]:
    rw = wrap(
        model, LossWeighter(4), losses, lambda m, b: losses(m, b).mean(), optimizer, **options
    )
    return sorted(rw.problem.theta())


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_group_at_rest_is_constant(rate: Any) -> None:
    model = nn.Linear(3, 1)
    groups = [{"params": [model.bias], "lr": rate}, {"params": [model.weight]}]
    assert inner(model, SGD(groups, lr=0.1)) == ["weight"]


def test_all_groups_at_rest_are_at_the_start_of_a_warm_up() -> None:
    model = nn.Linear(3, 1)
    assert inner(model, SGD(model.parameters(), lr=0.0)) == ["bias", "weight"]


def test_several_optimizers_hold_the_model_together() -> None:
    model = nn.Linear(3, 1)
    matrices, others = SGD([model.weight], lr=0.1, weight_decay=0.1), SGD([model.bias], lr=0.1)
    assert inner(model, [matrices, others]) == ["bias", "weight"]
    rw = wrap(model, LossWeighter(4), losses, None, (matrices, others))
    assert rw.problem.weight_decay(rw.problem.theta()) == {"weight": 0.1, "bias": 0.0}


def test_tensors_elsewhere_have_the_best_name_there_is() -> None:
    model, criterion, scale = nn.Linear(3, 1), nn.PReLU(), torch.ones(2, requires_grad=True)
    model.register_buffer("learned", torch.zeros(1, requires_grad=True))

    def with_criterion(model: nn.Module, batch: Any) -> Tensor:
        return criterion(losses(model, batch))

    held = [*model.parameters(), model.learned, *criterion.parameters(), scale]
    rw = wrap(model, LossWeighter(4), with_criterion, None, SGD(held, lr=0.1))
    place = "optimizer.param_groups[0]['params'][4]"
    assert rw.problem.theta().keys() == {"weight", "bias", "learned", "criterion.weight", place}


def test_a_name_that_stands_twice_loses_nothing() -> None:
    model, head = nn.Sequential(), nn.Linear(3, 1)
    model.add_module("head", nn.Linear(3, 3))

    def through_both(model: nn.Module, batch: Any) -> Tensor:
        return losses(head, (model(batch[0]), batch[1]))

    optimizer = SGD([*model.parameters(), *head.parameters()], lr=0.1)
    rw = wrap(model, LossWeighter(4), through_both, None, optimizer)
    assert len(rw.problem.theta()) == 4


def test_a_weighter_inside_the_model_is_left_out() -> None:
    class Lit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.weighter = nn.Linear(3, 1), ConstantWeighter()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    lit = Lit()
    for optimizer in (None, SGD(lit.parameters(), lr=0.1)):
        rw = wrap(lit, lit.weighter, losses, lambda m, b: losses(m, b).mean(), optimizer)
        assert sorted(rw.problem.theta()) == ["net.bias", "net.weight"]


def leaf_outside() -> tuple[Reweighted, Tensor]:
    torch.manual_seed(0)
    model, scale = nn.Linear(3, 1), torch.ones(1, requires_grad=True)

    def scaled(model: nn.Module, batch: Any) -> Tensor:
        return losses(model, batch) * scale

    optimizer = SGD(model.parameters(), lr=0.1)
    rw = wrap(model, LossWeighter(4), scaled, lambda m, b: losses(m, b).mean(), optimizer)
    return rw, scale


def test_a_leaf_that_no_optimizer_holds_is_named_once_and_not_trusted() -> None:
    rw, scale = leaf_outside()
    batch = torch.randn(8, 3), torch.randn(8)
    with pytest.warns(UserWarning, match=r"a tensor of shape \(1,\) requires a gradient"):
        first = rw.hypergradient(batch, batch)
    second = rw.hypergradient(batch, batch)
    assert "no optimizer" in first.info.message and not second.info.trustworthy
    scale.requires_grad_(False)
    assert not rw.hypergradient(batch, batch).info.caveat


def test_a_leaf_that_losses_make_for_themselves_is_no_stranger() -> None:
    model = nn.Linear(3, 1)

    def forces(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].detach().requires_grad_(True)
        energy = model(x).squeeze(-1).square()
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy + force.square().sum(1)

    rw = wrap(
        model,
        LossWeighter(4),
        forces,
        lambda m, b: losses(m, b).mean(),
        SGD(model.parameters(), 0.1),
    )
    batch = torch.randn(8, 3), torch.randn(8)
    assert not rw.hypergradient(batch, batch).info.caveat


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (lambda g: g.clamp(-1.0, 1.0), ""),
        (lambda g: 0.1 * g, ""),
        (lambda g: -g, "turns the sign"),
        (lambda g: g - g.mean(), "turns the sign"),
        (lambda g: g / 0.0, "not finite"),
        (lambda g: g[0], "shape"),
    ],
    ids=["clips", "scales", "reverses", "projects", "spoils", "another shape"],
)
def test_hooks_that_move_the_end_of_training_are_named(hook: Any, said: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    model.weight.register_hook(hook)
    rw = wrap(model, LossWeighter(4), losses, lambda m, b: losses(m, b).mean())
    batch = torch.randn(8, 3), torch.randn(8)
    if said:
        with pytest.warns(UserWarning, match=f"hook on weight.*{said}"):
            rw.hypergradient(batch, batch)
    assert said in rw.hypergradient(batch, batch).info.caveat
    assert bool(rw.hypergradient(batch, batch).info.caveat) is bool(said)
