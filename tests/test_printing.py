"""What is printed is a few lines with norms and counts; no tensor is written out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from _support.wrapping import DEV, TRAIN, make
from reweight import (
    BehavioralPerceptron,
    ConstantWeighter,
    GroupWeighter,
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    SolveInfo,
    Status,
    TableWeighter,
)

INFO = SolveInfo(0.31, 3, Status.TRUNCATED, 4.0, "autograd", 0.1, "step size 0.25")
INFLUENCE = torch.tensor([0.1, -0.5, 0.3, -0.01, 0.0, 0.2])


def test_a_result_names_norms_the_strongest_samples_and_the_verdict() -> None:
    grads = {"a.weight": torch.full((3, 4), 0.5), "b": torch.full((4,), 0.5)}
    printed = str(Hypergradient(grads, INFO, INFLUENCE))
    lines = printed.splitlines()
    assert lines[0] == "hypergradient of norm 2"  # sixteen entries of 0.5
    assert lines[1].split() == ["a.weight", "1.73e+00", "[3,", "4]"]
    assert lines[2].split() == ["b", "1.00e+00", "[4]"]
    assert "2 of 6 samples help" in lines[3]
    strongest = ["-5.00e-01 (sample 1)", "+3.00e-01 (sample 2)", "+2.00e-01 (sample 5)"]
    assert lines[3].endswith(", ".join(strongest))
    assert printed.endswith(str(INFO)) and "tensor(" not in printed


def test_a_result_with_many_parameters_or_no_samples_is_a_few_lines() -> None:
    grads = {f"layers.{i}": torch.ones(1) for i in range(40)}
    printed = str(Hypergradient(grads, INFO, torch.zeros(0)))
    assert len(printed.splitlines()) < 12 and "and 35 more" in printed
    assert "sample" not in printed


def test_the_repr_of_a_result_has_shapes_and_the_verdict() -> None:
    written = repr(Hypergradient({"w": torch.ones(2, 3)}, INFO, INFLUENCE))
    assert written == f"Hypergradient(grads={{w: [2, 3]}}, info={INFO!r}, influence=[6])"
    assert "Status.TRUNCATED" in written and "\n" not in written


@dataclasses.dataclass
class Sides:
    left: torch.Tensor
    right: Any = None


@pytest.mark.parametrize(
    ("inputs", "described"),
    [
        (None, "None"),
        (torch.ones(3, 2), "[3, 2]"),
        ({"x": torch.ones(3), "k": (torch.ones(1), 7, "name")}, "{x: [3], k: ([1], 7, str)}"),
        (Sides(torch.ones(3)), "Sides(left=[3], right=None)"),
        ([torch.ones(1)] * 7, "([1], [1], [1], [1], [1], ...)"),
    ],
)
def test_losses_are_described(inputs: Any, described: str) -> None:
    losses = Losses(torch.tensor([0.5, 1.0, 4.5]), torch.tensor(0.25), inputs)
    assert repr(losses) == f"Losses(weighted=[3], fixed=[], inputs={described})"
    assert str(losses).splitlines() == [
        "3 weighted losses: mean 2, from 0.5 to 4.5",
        f"fixed: 0.25; inputs: {described}",
    ]


def test_losses_without_readable_values_are_described_too() -> None:
    """A print in a losses function also runs inside of transforms, where no value can be read."""
    assert str(Losses(torch.ones(0), 1.5)).splitlines()[0] == "0 weighted losses"
    assert "3 weighted losses\n" in str(Losses(torch.ones(3, device="meta")))
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(str(Losses(x, x.sum())))
        return x.sum()

    torch.func.grad(function)(torch.ones(3))
    torch.func.vmap(function)(torch.ones(2, 3))
    assert all(text.startswith("3 weighted losses") for text in seen) and len(seen) == 2


@pytest.mark.parametrize(
    ("weighter", "printed"),
    [
        (LossWeighter(4), "LossWeighter(hidden=4), 12 parameters"),
        (ConstantWeighter(0.5), "ConstantWeighter(), 1 parameter, 1 weight: 0.5"),
        (GroupWeighter(3), "GroupWeighter(num_groups=3), 3 parameters, 3 weights: mean 1, from 1"),
        (TableWeighter(9), "TableWeighter(num_samples=9), 9 parameters, 9 weights: mean 1"),
        (
            BehavioralPerceptron(4, use_local=False),
            "BehavioralPerceptron(dim=4, normalization='sigmoid'), 194 parameters, weights between",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_weighter_is_one_line_and_its_repr_shows_its_modules(
    weighter: nn.Module, printed: str
) -> None:
    assert str(weighter).startswith(printed) and "\n" not in str(weighter)
    for name, _ in weighter.named_children():
        assert f"({name}): " in repr(weighter)


def test_a_wrapped_model_says_what_is_wrapped() -> None:
    model = nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.03)
    rw = make(model, optimizer=optimizer, hypergradient=ImplicitHypergradient(Neumann(2), 60.0))
    rw.outer_backward(TRAIN, DEV)
    written = repr(rw)
    for part in (
        "model: Linear, 4 of 4 parameters are inner",
        f"weighter: {rw.weighter!s}",
        "optimizer: SGD, weight decay 0.03",
        f"hypergradient: {rw.strategy!r}",
        "outer steps so far: 1",
    ):
        assert f"\n  {part}" in written
    assert "tensor(" not in written
    assert "optimizer: none" in repr(make())
    some = make(model, inner_params=lambda name: name == "bias")
    assert "1 of 4 parameters are inner" in repr(some)
