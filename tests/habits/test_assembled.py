"""Models with several habits at once end in one of three ways, too."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from _support.habits import outcome
from _support.habits.outcome import WRONG
from habits.assembled import Spec, assembled, specs


def check(spec: Spec) -> None:
    found = outcome(assembled(spec))
    assert found.kind != WRONG, f"{spec}: {found.text}"


@pytest.mark.filterwarnings("ignore")
# A failure is not shrunk here, which takes minutes; the slow test below does.
@settings(max_examples=15, phases=(Phase.explicit, Phase.generate))
@given(specs)
def test_an_assembled_model_is_right_or_refused_or_not_trusted(spec: Spec) -> None:
    check(spec)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
@given(specs)
def test_no_assembled_model_ends_in_a_fourth_way(spec: Spec) -> None:
    check(spec)
