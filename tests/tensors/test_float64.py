"""Computations that ask for float32, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reweight._tensors import InFloat64, widened_in_place

CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.bfloat16),
    "softmax": lambda x: torch.softmax(x, 0, dtype=torch.float32),
    "zeros of a type": lambda x: torch.zeros(3, dtype=torch.float32) + x,
    "a float32 constant": lambda x: x * CONSTANT,
    "of an integer": lambda x: (x > 0).float() * x,
    "into a new tensor": lambda x: torch.empty(3).copy_(x),
    "stacked": lambda x: torch.stack([x, CONSTANT]),
}
CONSTANT = torch.full((3,), 0.1)


@pytest.mark.parametrize("cast", CASTS)
def test_nothing_is_rounded(cast: str) -> None:
    x = torch.tensor([1.0, 2.0, 1e-12], dtype=torch.float64, requires_grad=True)
    with InFloat64() as mode:
        y = CASTS[cast](x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == gradient.dtype == torch.float64 and mode.rounded_to is None


def test_what_is_written_into_a_smaller_type_is_noticed() -> None:
    kept = torch.zeros(3)
    with InFloat64() as mode:
        kept.copy_(torch.ones(3, dtype=torch.float64))
    assert mode.rounded_to == torch.float32 and kept.dtype == torch.float32


def test_views_share_memory_as_before() -> None:
    base = torch.zeros(4)
    with InFloat64():
        base.view(2, 2)[0] += 1.0
    assert base.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_the_default_type_comes_back_after_an_error() -> None:
    before = torch.get_default_dtype()
    with pytest.raises(KeyError), InFloat64():
        assert torch.zeros(1).dtype == torch.float64
        raise KeyError("no")
    assert torch.get_default_dtype() == before


def test_widened_tensors_are_the_same_objects_and_get_their_memory_back() -> None:
    model = nn.Linear(3, 2)
    values = {name: (p, p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with pytest.raises(KeyError), widened_in_place(model.parameters()):
        for name, p in model.named_parameters():
            assert p is values[name][0] and p.dtype == torch.float64
            p.data += 1.0
        raise KeyError("no")
    for p, address, value in values.values():
        assert p.data_ptr() == address and torch.equal(p, value)
