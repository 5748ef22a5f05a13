"""Habits of users' code, each as an input with a reference that does not use the library."""

from _support.habits.outcome import Outcome, outcome
from _support.habits.reference import Truth, reference
from _support.habits.situation import HABITS, Habit, Inner, Situation, habit, register
from _support.habits.state import State

__all__ = [
    "HABITS",
    "Habit",
    "Inner",
    "Outcome",
    "Situation",
    "State",
    "Truth",
    "habit",
    "outcome",
    "reference",
    "register",
]
