"""Numbers on weights."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reweight.diagnostics import WeightSummary, effective_sample_size, entropy

weights = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=20).filter(lambda w: max(w) > 1e-6)


@given(values=weights)
def test_the_effective_sample_size_is_its_formula_within_its_bounds(values: list[float]) -> None:
    found = effective_sample_size(torch.tensor(values, dtype=torch.float64))
    assert found == pytest.approx(sum(values) ** 2 / sum(w * w for w in values))
    assert 1.0 - 1e-9 <= found <= len(values) + 1e-9


@given(values=weights)
def test_the_entropy_is_its_formula_within_its_bounds(values: list[float]) -> None:
    w = torch.tensor(values, dtype=torch.float64)
    p = [v / sum(values) for v in values if v / sum(values) > 0]
    assert entropy(w) == pytest.approx(-sum(q * math.log(q) for q in p), abs=1e-12)
    assert 0.0 <= entropy(w) <= math.log(len(values)) + 1e-12
    assert 0.0 <= entropy(w, normalized=True) <= 1.0
    # Rényi's entropy of order 2 is at most Shannon's.
    assert math.log(effective_sample_size(w)) <= entropy(w) + 1e-9


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
def test_the_scale_of_the_weights_does_not_matter(scale: float) -> None:
    w = torch.tensor([1.0, 2.0, 3.0])
    assert effective_sample_size(scale * w) == pytest.approx(36 / 14, rel=1e-5)
    assert entropy(scale * w) == pytest.approx(entropy(w), rel=1e-5)
    assert WeightSummary.of(scale * w).mean == pytest.approx(2.0 * scale, rel=1e-5)


def test_equal_weights_are_all_effective_and_a_single_one_is_one() -> None:
    assert effective_sample_size(torch.full((7,), 0.3)) == pytest.approx(7.0)
    assert entropy(torch.full((7,), 0.3), normalized=True) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([0.0, 5.0, 0.0])) == 1.0
    assert entropy(torch.tensor([0.0, 5.0, 0.0])) == 0.0
    assert entropy(torch.tensor([2.0]), normalized=True) == 1.0
    assert effective_sample_size(torch.zeros(3)) == 0.0 == entropy(torch.zeros(3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0] * 8, "learned"),
        ([2.0] * 8, r"\b2\b.*bound.*outer"),
        ([0.0] * 8, "zero"),
        ([1.0] + [0.0] * 19, "collapsed.*outer learning rate"),
        ([2.0] + [0.0] * 7, "collapsed"),
        ([1.98, 1.99, 2.0, 1.985], r"\b1\.99\b.*bound.*outer"),
        ([1.0, -0.5, 2.0], r"1 of 3.*negative.* -0\.5"),
        ([2.0, 2.0, 0.1, 0.1], "apart"),
        ([0.7], "apart"),
    ],
)
def test_a_summary_says_what_the_weights_do(values: list[float], message: str) -> None:
    summary = WeightSummary.of(torch.tensor(values))
    assert re.search(message, summary.message)
    assert str(summary).endswith(summary.message)
    assert summary.smallest == pytest.approx(min(values))
    assert summary.largest == pytest.approx(max(values))
    assert summary.mean == pytest.approx(sum(values) / len(values))
    share = summary.effective_sample_size / len(values)
    assert summary.effective_share == pytest.approx(share, nan_ok=True)


def test_a_batch_without_weighted_samples_is_described() -> None:
    summary = WeightSummary.of(torch.ones(0))
    assert summary.size == 0 == summary.effective_sample_size
    assert math.isnan(summary.mean) and math.isnan(summary.effective_share)
    assert "no weights" in str(summary)


def test_the_largest_numbers_have_a_mean() -> None:
    assert WeightSummary.of(torch.full((4,), 1e308, dtype=torch.float64)).mean == 1e308


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (torch.ones(0), r"shape \(0,\)"),
        (torch.tensor([1.0, math.nan]), "not finite"),
        (torch.tensor([1.0, -0.5]), r"-0\.5"),
    ],
)
def test_weights_that_make_no_sense_are_refused(bad: Any, words: str) -> None:
    for function in (effective_sample_size, entropy):
        with pytest.raises(ValueError, match=words):
            function(bad)
        for other in ([1.0, 2.0], torch.ones(2, dtype=torch.complex64)):
            with pytest.raises(TypeError, match="weights.*(list|complex)"):
                function(other)
