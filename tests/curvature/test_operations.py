"""Every layer and operation is served right, or refused with a sentence."""

from __future__ import annotations

import functools
import logging
import re
import warnings

import pytest
import torch
from torch import Tensor

from benchmarks.catalogue.operations import NOT_ITS_OWN, OPERATIONS
from benchmarks.catalogue.problems import relative_error

SERVED = [name for name, operation in OPERATIONS.items() if not operation.refused]
REFUSED = [name for name in OPERATIONS if name not in SERVED]
# The compiler takes seconds.
COMPILED = "compiled module"
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n == COMPILED else n for n in SERVED]
# By fourth-order differences at a step of 1e-3, of losses whose derivatives are of order one.
REFERENCE = 1e-8
# Central differences in float64: the cube root of the rounding error, squared, times third
# derivatives, which small groups of a normalisation make large.
DIFFERENCES = 1e-5
# Seven digits, conjugate gradients to 1e-5, and condition numbers of some ten.
SINGLE = {"autograd": 1e-4, "func": 1e-4, "finite_difference": 3e-2}

pytestmark = pytest.mark.filterwarnings("ignore")  # what is warned of is pinned below


@functools.cache
def reference(name: str) -> tuple[Tensor, float]:
    return OPERATIONS[name].reference()


def test_the_table_is_long_enough_to_be_worth_its_name() -> None:
    assert len(OPERATIONS) >= 24


@pytest.mark.parametrize("name", NAMES)
def test_the_influence_is_that_of_a_dense_hessian(name: str) -> None:
    operation = OPERATIONS[name]
    expected, damping = reference(name)
    result = operation.hypergradient(damping=damping)
    assert result.info.hvp_mode == operation.expected
    assert result.info.trustworthy, result.info.message
    tolerance = DIFFERENCES if operation.expected == "finite_difference" else REFERENCE
    assert relative_error(result.influence, expected) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_has_as_many_digits_as_its_mode_allows(name: str) -> None:
    operation = OPERATIONS[name]
    expected, damping = reference(name)
    result = operation.hypergradient(torch.float32, damping)
    assert result.info.hvp_mode == operation.expected
    assert relative_error(result.influence.double(), expected) < SINGLE[operation.expected]


@pytest.mark.parametrize("name", NAMES)
def test_finite_differences_serve_everything(name: str) -> None:
    expected, damping = reference(name)
    result = OPERATIONS[name].hypergradient(damping=damping, hvp="finite_difference")
    assert result.info.hvp_mode == "finite_difference"
    assert relative_error(result.influence, expected) < DIFFERENCES


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_served_is_refused_with_a_sentence(name: str) -> None:
    operation = OPERATIONS[name]
    if operation.expected == NOT_ITS_OWN:
        info = operation.hypergradient().info
        assert not info.trustworthy
        assert re.search(operation.expected, info.message) and info.caveat in info.message
    else:
        with pytest.raises(ValueError, match=operation.expected):
            operation.hypergradient()


@pytest.mark.parametrize("name", ["weight_norm", "autograd.Function that detaches"])
@pytest.mark.parametrize("hvp", ["autograd", "func"])
def test_a_wrong_second_derivative_that_was_asked_for_is_not_trusted(name: str, hvp: str) -> None:
    if hvp == "func" and name != "weight_norm":
        pytest.skip("torch.func refuses functions of the old style")
    with pytest.warns(UserWarning, match='hvp="auto"'):
        info = OPERATIONS[name].hypergradient(hvp=hvp).info
    assert info.hvp_mode == hvp and not info.trustworthy
    assert "differences" in info.message


def test_falling_back_to_differences_is_said_and_why() -> None:
    with pytest.warns(UserWarning, match="finite differences.*_ctc_loss"):
        OPERATIONS["ctc_loss"].hypergradient()
    with pytest.warns(UserWarning, match="second derivatives.*body"):
        OPERATIONS["weight_norm"].hypergradient()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_warned_of_where_nothing_is_lost(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    operation = OPERATIONS[name]
    if operation.expected == "finite_difference":
        pytest.skip("digits are")
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "reweight"):
        warnings.simplefilter("error", UserWarning)
        # torch's own, of a module that is cast to float64 for the test.
        warnings.filterwarnings("ignore", "Casting complex values to real")
        operation.hypergradient(damping=reference(name)[1])
    assert not [r for r in caplog.records if "not be compared" in r.message]
