"""Probabilities from weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from reweight.valuation import SampleValues, group_probabilities, sampling_probabilities

WEIGHTS = np.random.default_rng(0).random(50)
GROUPS = np.arange(50) % 3


def test_probabilities_are_proportional_to_the_weights() -> None:
    p = sampling_probabilities(SampleValues(range(50), WEIGHTS))
    # One division each, and a sum of fifty terms in float64.
    np.testing.assert_allclose(p.numpy(), WEIGHTS / math.fsum(WEIGHTS), rtol=1e-14)
    assert math.isclose(float(p.sum()), 1.0, rel_tol=1e-14) and p.dtype == torch.float64


def test_a_sampler_draws_what_has_weight_as_often_as_it_says() -> None:
    values = SampleValues([0, 1, 2, 3], [0.0, 1.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    drawn = list(WeightedRandomSampler(sampling_probabilities(values), 4000, generator=generator))
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == 0
    # Binomial: a standard deviation of at most sqrt(4000)/2 = 32; five of them.
    assert abs(counts - [0, 1000, 1000, 2000]).max() < 160


def test_groups_share_their_weight_evenly() -> None:
    values = SampleValues(range(50), WEIGHTS)
    p = sampling_probabilities(values, groups=GROUPS).numpy()
    shares = group_probabilities(values, GROUPS)
    assert list(shares) == [0, 1, 2] and math.isclose(sum(shares.values()), 1.0, rel_tol=1e-14)
    for group, share in shares.items():
        own = p[group == GROUPS]
        assert np.ptp(own) == 0.0 and math.isclose(own.sum(), share, rel_tol=1e-12)
        expected = math.fsum(WEIGHTS[group == GROUPS]) / math.fsum(WEIGHTS)
        assert math.isclose(share, expected, rel_tol=1e-12)


def test_the_order_is_that_of_the_data_set() -> None:
    values = SampleValues(["b", "a"], [3.0, 1.0])
    assert sampling_probabilities(values, ids=["b", "a"]).tolist() == [0.75, 0.25]
    assert group_probabilities(values, [1, 0], ids=["b", "a"]) == {0: 0.25, 1: 0.75}
    with pytest.raises(ValueError, match="ids: pass the ids.*'a', 'b'"):
        sampling_probabilities(values)
    with pytest.raises(ValueError, match=r"not the positions 0 to 1.*1, 2"):
        sampling_probabilities(SampleValues([1, 2], [1.0, 1.0]))


def test_weights_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"below 0 \(1\)"):
        sampling_probabilities(SampleValues([0, 1], [1.0, -0.5]))
    with pytest.raises(ValueError, match="no weight is above 0"):
        sampling_probabilities(SampleValues([0, 1], [0.0, 0.0]))
    with pytest.raises(ValueError, match="groups: there are 1 of them for 2"):
        sampling_probabilities(SampleValues([0, 1], [1.0, 1.0]), groups=[0])
