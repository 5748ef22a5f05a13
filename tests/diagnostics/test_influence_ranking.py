"""Samples ranked by their influence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reweight.diagnostics import rank_influence


def test_a_ranking_has_both_ends_in_order_and_leaves_out_what_does_nothing() -> None:
    ranking = rank_influence(torch.tensor([0.3, -2.0, 0.0, 5.0, -0.1]), k=2)
    assert [name for name, _ in ranking.helpful] == [1, 4]
    assert [name for name, _ in ranking.harmful] == [3, 0]
    assert (ranking.num_helpful, ranking.size) == (2, 5)
    assert ranking.helpful[0][1] == -2.0
    text = str(ranking)
    assert text.index("most helpful") < text.index("-2.000e+00") < text.index("most harmful")


@pytest.mark.parametrize("ids", [["x", "y", "z"], torch.tensor([7, 8, 9])], ids=["names", "tensor"])
def test_samples_go_by_the_ids_given(ids: Any) -> None:
    ranking = rank_influence(torch.tensor([1.0, -1.0, 2.0]), ids)
    first = ids[1] if isinstance(ids, list) else int(ids[1])
    assert ranking.helpful == ((first, -1.0),)
    assert "none" in str(rank_influence(torch.tensor([1.0])))


@pytest.mark.parametrize(
    ("influence", "changes", "words"),
    [
        (torch.ones(2, 2), {}, r"influence.*\(2, 2\)"),
        (torch.tensor([math.nan]), {}, "not finite"),
        (torch.ones(2), {"ids": ["a"]}, r"\b1 ids.*\b2\b"),
        (torch.ones(2), {"k": 0}, "k=0"),
    ],
)
def test_a_ranking_that_makes_no_sense_is_refused(
    influence: Tensor, changes: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        rank_influence(influence, **changes)
    with pytest.raises(TypeError, match=r"\blist\b"):
        rank_influence([1.0, 2.0])  # type: ignore[arg-type]
