"""Objects that a pass may change are put back; what the whole process shares is left alone."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from reweight._problem.objects import Objects, inside, of_modules


class Holder(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


def test_a_namespace_of_a_module_is_put_back() -> None:
    held = SimpleNamespace(log=[1, 2])
    objects = Objects(of_modules([Holder(held)]))
    held.log.append(3)
    objects.restore()
    assert held.log == [1, 2]


def test_the_loggers_of_the_process_stay() -> None:
    """A logger refers to all others; one that is made in a pass is not lost."""
    name = f"{__name__}.{random.random()}"
    objects = Objects(of_modules([Holder(logging.getLogger(__name__))]))
    made = logging.getLogger(name)
    objects.restore()
    assert logging.getLogger(name) is made


@pytest.mark.parametrize("shared", [np, random, nn.Module, logging.getLogger("x"), logging.info])
def test_nothing_is_sought_in_modules_classes_and_functions(shared: Any) -> None:
    assert list(inside(shared)) == []


def test_a_large_array_is_not_copied() -> None:
    small, large = np.zeros(10), np.zeros(1_000_001)
    objects = Objects([small, large])
    small[0] = large[0] = 1.0
    objects.restore()
    assert small[0] == 0.0 and large[0] == 1.0
