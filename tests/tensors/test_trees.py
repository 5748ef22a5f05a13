"""Vectors in parameter space."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reweight import _tensors as trees


def tree() -> dict[str, Tensor]:
    return {"a": torch.tensor([[1.0, -2.0]]), "scalar": torch.tensor(2.0), "none": torch.zeros(0)}


def test_inner_product_and_norm_are_those_of_the_flattened_vector() -> None:
    x, y = tree(), trees.scale(3.0, tree())
    assert trees.dot(x, y) == 27.0
    assert trees.norm(x) == 3.0
    assert trees.max_abs(y) == 6.0


def test_arithmetic_is_out_of_place_and_keeps_names() -> None:
    x, y = tree(), tree()
    total = trees.axpy(2.0, x, y)
    assert list(total) == list(x)
    assert torch.equal(total["a"], torch.tensor([[3.0, -6.0]]))
    assert torch.equal(x["a"], y["a"]) and torch.equal(x["a"], tree()["a"])


def test_leaves_of_several_types_are_added_in_double() -> None:
    # In float32 the second leaf would vanish beside the first: 4096² = 2²⁴.
    x = {"a": torch.tensor([4096.0]), "b": torch.ones(1, dtype=torch.float64)}
    assert trees.dot(x, x) == 2.0**24 + 1.0


def test_flatten_and_back_is_the_identity() -> None:
    x = tree()
    back = trees.unflatten(trees.flatten(x), x)
    assert all(torch.equal(back[name], x[name]) for name in x)


def test_a_flat_vector_has_the_widest_type_and_back_each_leaf_has_its_own() -> None:
    x = {"half": torch.tensor([1.5], dtype=torch.bfloat16), "single": torch.tensor([0.1])}
    assert trees.flatten({"half": x["half"]}).dtype == torch.float32
    assert trees.flatten(x).dtype == torch.float32
    assert trees.flatten({**x, "double": torch.ones(1).double()}).dtype == torch.float64
    back = trees.unflatten(trees.flatten(x), x)
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in x.items())
    assert trees.rounding(x) == torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30])
def test_norms_neither_underflow_nor_overflow_in_single_precision(size: float) -> None:
    entry = float(torch.tensor(size))  # what float32 makes of it
    assert trees.norm(torch.full((4,), size)) == pytest.approx(2.0 * entry, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["denormal", "tiny", "one", "max"])
def test_dividing_by_the_power_of_two_is_exact_at_the_ends_of_every_type(
    dtype: torch.dtype, end: str
) -> None:
    info = torch.finfo(dtype)
    value = {
        "denormal": info.smallest_normal * info.eps,
        "tiny": info.tiny,
        "one": 1.0,
        "max": info.max,
    }[end]
    x = torch.tensor([value], dtype=dtype)
    unit = trees.power_of_two(x, trees.max_abs(x))
    assert math.frexp(unit)[0] == 0.5
    assert bool((x * (1.0 / unit)).isfinite().all())
    assert torch.equal(x * (1.0 / unit) * unit, x)


def test_the_largest_entry_shows_nan_and_is_zero_for_nothing() -> None:
    assert math.isnan(trees.max_abs({"a": torch.tensor([1.0, math.nan]), "b": torch.ones(2)}))
    assert trees.max_abs({"a": torch.tensor([1.0, -math.inf])}) == math.inf
    assert trees.max_abs({"a": torch.zeros(0)}) == 0.0


def test_trees_of_other_names_do_not_mix() -> None:
    with pytest.raises(KeyError):
        trees.axpy(1.0, {"a": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(ValueError, match="zip"):
        trees.dot({"a": torch.ones(1)}, {})


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_a_long_float32_norm_is_that_of_float64(size: float) -> None:
    x = size * torch.randn(50_001, generator=torch.Generator().manual_seed(0))
    x[::7] *= 1e-6
    # Seven digits within a block, and better over many of them.
    assert trees.norm(x) == pytest.approx(float(x.double().norm()), rel=1e-7)


def test_every_part_of_a_vector_can_be_seen_as_complex() -> None:
    like = {"odd": torch.zeros(3), "pairs": torch.zeros(2, 2)}
    parts = trees.unflatten(torch.arange(7.0), like)
    assert torch.view_as_complex(parts["pairs"]).tolist() == [3 + 4j, 5 + 6j]
