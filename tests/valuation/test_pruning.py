"""The best share of the samples."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from reweight.valuation import SampleValues, prune


def kept_by_hand(weights: Any, strata: Any, share: float) -> list[int]:
    """The same by sorting pairs, stratum by stratum."""
    kept: list[int] = []
    for name in set(strata):
        members = sorted(
            (-weight, i)
            for i, (weight, s) in enumerate(zip(weights, strata, strict=True))
            if s == name
        )
        kept += [i for _, i in members[: max(1, int(share * len(members) + 0.5))]]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_of_each_stratum_are_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few different weights, so that many are equal.
    weights, strata = rng.integers(1, 6, 40) / 4, rng.choice(["a", "b", "c"], 40, p=[0.6, 0.3, 0.1])
    share = float(rng.uniform(0.05, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prune(SampleValues(range(40), weights), share, strata=strata)
    assert result.ids.tolist() == kept_by_hand(weights, strata, share)
    assert set(result.counts) == set(strata)
    assert sum(k for k, _ in result.counts.values()) == len(result.ids)
    for name, (k, n) in result.counts.items():
        assert (strata[result.ids] == name).sum() == k >= 1 and (strata == name).sum() == n


def test_without_strata_a_class_can_vanish_and_with_them_it_cannot() -> None:
    values = SampleValues(range(6), [1.0, 1.1, 1.2, 1.3, 0.1, 0.2])
    labels = [0, 0, 0, 0, 1, 1]
    assert prune(values, 0.5).ids.tolist() == [1, 2, 3]
    kept = prune(values, 0.5, strata=labels)
    assert kept.ids.tolist() == [2, 3, 5] and kept.counts == {0: (2, 4), 1: (1, 2)}


def test_influence_below_zero_is_kept_first() -> None:
    values = SampleValues([0, 1, 2], [1.0, 1.0, 1.0], [0.5, -0.5, 0.1])
    assert prune(values, 0.4, by="influence").ids.tolist() == [1]
    assert prune(values, 1.0, by="influence").ids.tolist() == [0, 1, 2]


def test_equal_values_at_the_cut_are_told() -> None:
    kept = prune(SampleValues(range(5), [2.0, 1.0, 1.0, 1.0, 0.0]), 0.4)
    assert kept.ids.tolist() == [0, 1] and kept.tied == 2
    assert "2 samples that were left out are as good" in str(kept)
    with pytest.warns(UserWarning, match="same weight in 1 of 1 strata \\('all'\\)"):
        prune(SampleValues(range(4), [1.0] * 4), 0.5)


def test_many_strata_are_kept_in_one_go_and_not_all_printed() -> None:
    users = np.repeat(np.arange(30_000), 3)
    values = SampleValues(range(len(users)), np.tile([1.0, 3.0, 2.0], 30_000))
    kept = prune(values, 0.3, strata=users)
    assert (kept.ids == np.arange(30_000) * 3 + 1).all()
    assert len(str(kept).splitlines()) < 30 and "and 29980 more strata" in str(kept)
    assert prune(SampleValues([], []), 0.5).counts == {}


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"share={share}"):
        prune(SampleValues([0], [1.0]), share)


def test_strata_of_other_samples_are_refused() -> None:
    values = SampleValues([0, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match="strata: there are 3 of them for 2"):
        prune(values, 0.5, strata=[0, 1, 1])
    with pytest.raises(TypeError, match="strata holds float64"):
        prune(values, 0.5, strata=[0.5, 1.0])
    with pytest.raises(ValueError, match="not gathered"):
        prune(values, 0.5, by="influence")
