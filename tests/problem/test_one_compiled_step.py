"""A step still compiles: the quick one of the tests in ``test_compiled.py``, which are slow."""

from __future__ import annotations

import pytest

from _support.compiling import assert_same, backend, batches, is_compiled, pair, steps
from reweight import Identity
from reweight._tensors import no_compiling


@pytest.mark.skipif(bool(no_compiling()), reason=no_compiling())
def test_a_step_is_compiled() -> None:
    one, two = pair(Identity(0.3))
    same = [batches(6, seed) for seed in (0, 10)]
    with backend("eager"):
        found, _ = steps(one, same)
    assert [is_compiled(each) for each in found] == [False, True]
    expected, _ = steps(two, same)
    assert_same(found[-1], expected[-1])
