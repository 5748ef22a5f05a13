"""The textbook that benchmarks/epoch.py times the example against computes the same."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks import epoch
from cdr.data import CrossDomainData
from cdr.training import preset

# Ten outer steps; batches of 32, so that an epoch has an odd batch at its end.
TOLD = epoch.in_each_step(epoch.options(batch_size=32, history=8, interval=4))
AHEAD = epoch.options(batch_size=32, history=8, interval=4)
STEPS = 40


@pytest.mark.parametrize("name", ["tiny", "gappy"])
def test_textbook_and_example_agree_in_float64(name: str, request: pytest.FixtureRequest) -> None:
    difference = epoch.agreement(request.getfixturevalue(name), TOLD, STEPS)
    # Sums of a few hundred terms in another order; any other mathematics is off by far more.
    assert 0.0 < difference.losses < 1e-10
    assert 0.0 < difference.hypergradients < 1e-10


@pytest.mark.parametrize("change", ["step size", "weight decay", "history"])
def test_the_comparison_notices_other_mathematics(tiny: CrossDomainData, change: str) -> None:
    other = {
        "step size": replace(TOLD, outer=replace(TOLD.outer, step_size=0.11)),
        "weight decay": replace(TOLD, inner=replace(TOLD.inner, weight_decay=2e-4)),
        "history": replace(TOLD, perceptron=replace(TOLD.perceptron, history=7)),
    }[change]
    ours = epoch.example(tiny, TOLD)
    theirs = epoch.textbook(tiny, other, ours, num_steps=4)
    for runner in (ours, theirs):
        runner.steps(4)
        runner.outer()
    difference = epoch.Difference()
    difference.look(ours, theirs)
    assert difference.hypergradients > 1e-5


@pytest.mark.slow
def test_textbook_and_example_stay_together_in_float32(gappy: CrossDomainData) -> None:
    ours = epoch.example(gappy, TOLD)
    theirs = epoch.textbook(gappy, TOLD, ours, num_steps=200)
    difference = epoch.Difference()
    for _ in range(50):
        for runner in (ours, theirs):
            runner.losses.clear()
            runner.steps(4)
            runner.outer()
        difference.look(ours, theirs)
    # Rounding is 6e-8, and adds up over 200 steps and 50 outer ones; the hypergradient is a
    # difference of larger numbers. What would part them, a ReLU switched by rounding alone while
    # Adam makes full steps of small gradients, was met after some 150 steps of other data only.
    assert difference.losses < 1e-5
    assert difference.hypergradients < 1e-4


@pytest.mark.slow
def test_the_race_has_a_number_for_everyone(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(epoch, "TURN", 8)
    monkeypatch.setattr(epoch, "PROFILED", 10)
    result = epoch.race(tiny, AHEAD, num_steps=16)
    assert result["steps"] == 16 and all(len(turns) == 2 for turns in result["inner"].values())
    found = epoch.summary(result, steps_of_epoch=8, interval=4)
    for group in ("step", "least", "overhead", "epoch", "ratios"):
        assert all(math.isfinite(value) and value > 0.0 for value in found[group].values())
    for name in (epoch.EXAMPLE, epoch.EXAMPLE_EACH, epoch.TEXTBOOK):
        assert found["overhead"][name] > 1.0
        assert all(seconds > 0.0 for seconds in result["phases"][name].values())
    epoch.report(
        {
            "summary": found,
            "interval": 4,
            "first_outer": result["first_outer"],
            "ideal_overhead": 2.25,
            "phases": result["phases"],
            "differences": result["differences"],
        }
    )
    assert f"{epoch.TEXTBOOK} / {epoch.EXAMPLE}" in capsys.readouterr().out


def test_the_default_preset_is_timed_without_a_textbook(
    tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "TURN", 5)
    monkeypatch.setattr(epoch, "PROFILED", 4)
    result = epoch.race_of_default(tiny, preset("default", "conet"), num_steps=5)
    found = epoch.summary(result, steps_of_epoch=8, interval=5)
    assert found["ratios"].keys() == {
        f"{name} / {epoch.EXAMPLE_BASE}" for name in (epoch.EXAMPLE, epoch.EXAMPLE_EACH)
    }


def test_the_generated_data_has_the_counts_of_books_toys() -> None:
    statistics = epoch.books_toys().statistics
    assert statistics["users"] == 7_576
    assert (statistics["source"], statistics["target"]) == (317_646, 84_564)
    assert (statistics["source_items"], statistics["target_items"]) == (134_350, 11_567)
