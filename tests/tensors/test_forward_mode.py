"""Tensors that carry their derivative along one direction."""

from __future__ import annotations

import torch

from reweight._tensors import moving, velocity


def test_what_is_computed_carries_the_derivative_and_no_graph() -> None:
    x = {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor(3.0)}
    v = {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor(2.0)}
    with moving({name: entry.detach() for name, entry in x.items()}, v) as values:
        y = values["a"].square() * values["b"]
        found, constant = velocity(y), velocity(x["a"])
    # d(a²b) = 2ab·da + a²·db.
    assert found.tolist() == [2.0 * 3.0 + 2.0, -4.0 * 3.0 + 8.0]
    assert constant.tolist() == [0.0, 0.0]
    assert not y.requires_grad and not found.requires_grad


def test_a_derivative_outlives_its_context() -> None:
    with moving({"a": torch.ones(2)}, {"a": torch.ones(2)}) as values:
        total = torch.zeros(2).add_(values["a"])
        found = velocity(total)
        total.mul_(5.0)
    assert found.tolist() == [1.0, 1.0]
