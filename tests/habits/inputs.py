"""The registry, with the inputs of all kinds in it."""

from _support.habits import HABITS
from habits import kind_a, kind_b, kind_c, kind_d, kind_e

__all__ = ["HABITS", "kind_a", "kind_b", "kind_c", "kind_d", "kind_e"]
