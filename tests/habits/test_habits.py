"""Every habit of users' code ends in one of three ways: right, refused in words, or not trusted.

``python -m tests.habits`` prints what happens to each input.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from _support.habits import Habit, outcome
from _support.habits.outcome import WRONG, outcome_after_exceptions
from habits.inputs import HABITS

# At these evaluations a loss raises an error: in the outer loss, in the losses, and later, where
# gradients are compared or products are differences.
EVALUATIONS = (1, 4)


def parameters(kinds: str, every: int = 1) -> list[Any]:
    """The inputs of some kinds, those marked that the quick tests leave out."""
    chosen = [habit for habit in HABITS if habit.kind in kinds]
    return [
        pytest.param(habit, id=str(habit), marks=[pytest.mark.long] * bool(habit.slow or i % every))
        for i, habit in enumerate(chosen)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("habit", parameters("ABCDE", every=3))
def test_an_input_is_right_or_refused_or_not_trusted(habit: Habit) -> None:
    found = outcome(habit)
    assert found.kind != WRONG, found.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("habit", parameters("D", every=9))
def test_an_error_in_a_loss_leaves_everything_as_it_was(habit: Habit) -> None:
    found = outcome_after_exceptions(habit, EVALUATIONS)
    assert found.kind != WRONG, found.text


def test_each_kind_has_at_least_ten_inputs() -> None:
    counts = Counter(habit.kind for habit in HABITS)
    assert sorted(counts) == list("ABCDE") and min(counts.values()) >= 10
