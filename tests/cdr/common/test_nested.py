"""Tensors are found in every nesting, and put back in the same order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdr.common import flattened, map_tensors, tensors_in, with_tensors


class Pair(NamedTuple):
    left: Tensor
    right: Any


@dataclass(frozen=True)
class Batch:
    rows: Tensor
    pair: Pair
    more: dict[str, Any]
    name: str = "batch"


def batch(start: int) -> Batch:
    a, b, c, d = (torch.tensor([start + i]) for i in range(4))
    return Batch(a, Pair(b, None), {"list": [c, 3], "dict": OrderedDict(x=d)})


def test_tensors_are_mapped_and_all_else_is_kept() -> None:
    value = batch(0)
    doubled = map_tensors(lambda x: 2 * x, value)
    assert [int(x) for x in tensors_in(doubled)] == [0, 2, 4, 6]
    assert doubled.pair.right is None and doubled.more["list"][1] == 3 and doubled.name == "batch"
    assert isinstance(doubled.pair, Pair) and isinstance(doubled.more["dict"], OrderedDict)
    assert [int(x) for x in tensors_in(value)] == [0, 1, 2, 3]


def test_tensors_are_put_back_in_the_same_order() -> None:
    again = with_tensors(batch(10), tensors_in(batch(0)))
    assert [int(x) for x in tensors_in(again)] == [0, 1, 2, 3]


def test_attributes_of_a_mapping_are_kept() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert map_tensors(torch.clone, state)._metadata == state._metadata  # type: ignore[attr-defined]


def test_structures_are_told_apart() -> None:
    def structure(value: Any) -> list[Any]:
        return [x for x in flattened(value) if not isinstance(x, Tensor)]

    x = torch.zeros(1)
    assert structure(batch(0)) == structure(batch(5))
    assert structure([x]) != structure((x,)) != structure([x, x])
    assert structure({"a": x}) != structure({"b": x})
