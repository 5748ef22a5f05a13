"""What processes exchange in an outer step is what the documentation's formula says."""

from __future__ import annotations

import pytest

from benchmarks.processes import STRATEGIES, Step, larger, on_processes


@pytest.mark.slow
def test_the_formula_gives_the_bytes_that_are_counted() -> None:
    for found in on_processes(2, [60, 5000]).values():
        assert found.keys() == STRATEGIES.keys()
        for own in found.values():
            step = Step(**own["model"])
            assert (own["summed"], own["gathered"]) == (step.summed, step.gathered)
            assert 10 < own["headers"] < 40


def test_larger_runs_are_stated() -> None:
    (of_eight, *_), *_, (of_thousand, *_) = larger()
    assert of_eight.startswith("8 GPUs") and of_thousand.startswith("1,000 GPUs")
    for _, _, entries, summed, wire in larger():
        assert 4 * entries <= summed * 2**30 < wire * 2**30
