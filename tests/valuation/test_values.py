"""A table of weights and influences by id."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from reweight.valuation import SampleValues


def test_rows_stay_together_whatever_the_order_of_the_ids() -> None:
    values = SampleValues(["b", "a", "c"], [2.0, 1.0, 3.0], [0.2, 0.1, 0.3], [5, 4, 6])
    assert values.ids.tolist() == ["a", "b", "c"]
    assert values.influence is not None and values.seen is not None
    columns = values.weights, values.influence, values.seen
    assert [c.tolist() for c in columns] == [[1.0, 2.0, 3.0], [0.1, 0.2, 0.3], [4, 5, 6]]
    assert values.weights_of(["c", "a", "c"]).tolist() == [3.0, 1.0, 3.0]


def test_columns_are_copies_that_cannot_be_written_to() -> None:
    weights = np.ones(2)
    values = SampleValues([0, 1], weights)
    weights[0] = 7.0
    assert values.weights.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        values.weights[0] = 2.0


def test_a_ranking_starts_with_the_most_harmful_and_breaks_ties_by_id() -> None:
    values = SampleValues([3, 2, 1, 0], [0.5, 0.5, 0.1, 2.0], [-1.0, 4.0, 4.0, 0.0])
    assert values.worst_first().tolist() == [1, 2, 0, 3]
    assert values.worst_first("weight").tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("by", ["weight", "influence"])
def test_with_strata_each_beginning_takes_the_same_share_of_each(by: Any) -> None:
    rng = np.random.default_rng(0)
    strata, goodness = rng.choice(["a", "b", "c"], 200, p=[0.7, 0.25, 0.05]), rng.random(200)
    # The classes do not overlap: without strata, all of "a" would come first.
    goodness += np.where(strata == "a", 0.0, 5.0)
    values = SampleValues(range(200), goodness, -goodness)
    order = values.worst_first(by, strata=strata)
    assert sorted(order.tolist()) == list(range(200))
    for name in "abc":
        own = order[strata[order] == name]
        assert (np.diff(goodness[own]) >= 0).all()
        for removed in range(200):
            taken = (strata[order[:removed]] == name).sum()
            # Three strata, each at most half a sample away from its exact share.
            assert abs(taken - removed * len(own) / 200) <= 1.5
    assert values.worst_first(by, strata=["all"] * 200).tolist() == values.worst_first(by).tolist()
    with pytest.raises(ValueError, match="strata: there are 1 of them for 200"):
        values.worst_first(by, strata=["a"])


def test_influence_of_a_search_joins_weights_of_its_end() -> None:
    end = SampleValues([0, 1], [0.5, 1.5])
    search = SampleValues([2, 1, 0], [1.0, 1.0, 1.0], [0.2, 0.1, 0.0], [9, 8, 7])
    both = end.with_influence_of(search)
    assert both.influence is not None and both.seen is not None
    assert both.weights.tolist() == [0.5, 1.5]
    assert both.influence.tolist() == [0.0, 0.1] and both.seen.tolist() == [7, 8]
    with pytest.raises(ValueError, match="not gathered"):
        end.with_influence_of(end)
    with pytest.raises(ValueError, match="no values: 2"):
        search.with_influence_of(SampleValues([0, 1], [1.0, 1.0], [0.0, 0.0]))


@pytest.mark.parametrize(
    "ids", [torch.tensor([4, 2]), [4, 2], range(4, 2, -1), np.array([4, 2], np.uint8)], ids=repr
)
def test_integers_of_any_kind_are_ids(ids: Any) -> None:
    assert SampleValues(ids, [0.5, 1.5]).weights_of([4]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([0, 0], [1.0, 2.0]), ValueError, r"more than once: 0\b"),
        (([0, 1], [1.0]), ValueError, r"weights.*\(1,\).*2 ids"),
        (([0, 1], [1.0, math.nan]), ValueError, r"weights is nan.*: 1"),
        (([0, 1], [1.0, 1.0], [0.0, math.inf]), ValueError, r"influence is inf.*: 1"),
        (([0.5, 1.0], [1.0, 1.0]), TypeError, "float64"),
        (([True, False], [1.0, 1.0]), TypeError, "bool"),
        ((np.array([0, "a"], object), [1.0, 1.0]), TypeError, "strings and int"),
        ((np.array([0.5, None], object), [1.0, 1.0]), TypeError, "object"),
        (([0, "a"], [1.0, 1.0]), TypeError, "strings and int"),
        (("ab", [1.0, 1.0]), TypeError, "one id for each"),
        (([[0], [1]], [1.0, 1.0]), ValueError, r"\(2, 1\)"),
        ((["a", "a\0"], [1.0, 1.0]), ValueError, "NUL"),
        ((np.array([2**64 - 1], np.uint64), [1.0]), ValueError, "int64"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(
    arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        SampleValues(*arguments)


def test_a_sample_without_values_is_named() -> None:
    values = SampleValues([0, 2], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"2 of 3 have no values: 1, 3\b.*drop_last"):
        values.weights_of([0, 1, 3])
    with pytest.raises(ValueError, match="no values: 7"):
        SampleValues([], []).weights_of([7])
    with pytest.raises(TypeError, match="got '0', but the table holds 0"):
        values.weights_of(["0"])
    with pytest.raises(ValueError, match="by='loss'"):
        values.worst_first("loss")  # type: ignore[arg-type]
    assert len(values.weights_of([])) == 0
    assert str(SampleValues([], [])) == "no samples"
    assert "3 samples" in repr(SampleValues([0, 1, 2], [1.0] * 3))
