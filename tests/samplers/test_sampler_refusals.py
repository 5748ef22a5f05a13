"""States and arguments that make no sense are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from _support.samplers import epoch_of
from reweight.samplers import ReorderReuseSampler, SplitSampler


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": 31}, r"\bn\b.*30.*31"),
        ({"batch_size": 5}, "batch_size.*4.*5"),
        ({"dev_batch_size": 4}, "dev_batch_size.*None.*4"),
        ({"seed": 1}, "seed.*0.*1"),
        ({"disjoint": False}, "disjoint.*True.*False"),
        ({"n": 31, "num_replicas": 2}, r"\bn\b.*30.*31"),
        ({"seed": 1, "num_replicas": 2}, "seed.*0.*1"),
    ],
)
def test_a_state_of_another_configuration_is_refused(change: dict[str, Any], named: str) -> None:
    settings: dict[str, Any] = {"n": 30, "batch_size": 4}
    other = ReorderReuseSampler(**settings | change)
    with pytest.raises(ValueError, match=named):
        other.load_state_dict(ReorderReuseSampler(**settings).state_dict())
    assert epoch_of(other) == epoch_of(ReorderReuseSampler(**settings | change))


def test_a_state_of_another_kind_is_refused() -> None:
    split = SplitSampler(30, 0.1, 4)
    with pytest.raises(ValueError, match="disjoint"):
        ReorderReuseSampler(30, 4).load_state_dict(split.state_dict())
    with pytest.raises(ValueError, match="ratio"):
        split.load_state_dict(ReorderReuseSampler(30, 4).state_dict())
    with pytest.raises(ValueError, match=r"ratio.*0\.1.*0\.2"):
        SplitSampler(30, 0.2, 4).load_state_dict(split.state_dict())
    with pytest.raises(ValueError, match="entry"):
        split.load_state_dict({})


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ({"position": 8}, ValueError),
        ({"position": -1}, ValueError),
        ({"epoch": -1}, ValueError),
        ({"epoch": "0"}, TypeError),
        ({"dev_start": -1}, ValueError),
        ({"sizes": [[4, None]]}, ValueError),
        ({"used": [1]}, ValueError),
        ({"used": [8], "sizes": [[4, None, 1], [4, None, 1]]}, ValueError),
        ({"used": ["1"], "sizes": [[4, None, 1], [4, None, 1]]}, TypeError),
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any], error: type[Exception]) -> None:
    sampler = ReorderReuseSampler(30, 4)
    with pytest.raises(error, match=rf"state\['{next(iter(damage))}'\]"):
        sampler.load_state_dict({**sampler.state_dict(), **damage})


def test_batches_too_large_to_be_disjoint_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"\b6\b.*dev_batch_size ?= ?5\b.*\b11\b.*\b10\b"):
        ReorderReuseSampler(10, 6, dev_batch_size=5)
    with pytest.raises(ValueError, match=r"\b3 replicas.*\b12\b.*disjoint=False"):
        ReorderReuseSampler(10, 2, num_replicas=3)
    assert len(ReorderReuseSampler(10, 5)) == 2
    assert len(ReorderReuseSampler(10, 6, dev_batch_size=5, disjoint=False)) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, r"\bn ?= ?0"),
        ({"n": 1.5}, TypeError, r"\bn\b.*integer.*1\.5"),
        ({"batch_size": 0}, ValueError, r"\bbatch_size ?= ?0"),
        ({"batch_size": True}, TypeError, "batch_size.*integer.*True"),
        ({"dev_batch_size": 0}, ValueError, "dev_batch_size ?= ?0"),
        ({"seed": -1}, ValueError, "seed ?= ?-1"),
        ({"num_replicas": 0}, ValueError, "num_replicas ?= ?0"),
        ({"rank": 1}, ValueError, "rank ?= ?1.*num_replicas ?= ?1"),
        ({"rank": -1}, ValueError, "rank ?= ?-1"),
    ],
)
@pytest.mark.parametrize("cls", [ReorderReuseSampler, SplitSampler])
def test_bad_arguments_are_named(
    cls: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = {"n": 30, "batch_size": 4} | ({"ratio": 0.2} if cls is SplitSampler else {})
    with pytest.raises(error, match=message):
        cls(**settings | arguments)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, 10, float("nan")])
def test_a_ratio_outside_zero_and_one_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        SplitSampler(30, ratio, 4)


def test_a_split_that_leaves_a_side_too_small_is_refused() -> None:
    with pytest.raises(TypeError, match="ratio.*'0.1'"):
        SplitSampler(30, "0.1", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\b3\b.*\b27\b.*num_replicas ?= ?4"):
        SplitSampler(30, 0.1, 4, num_replicas=4)
    with pytest.raises(ValueError, match=r"\b0\b.*\btrain"):
        SplitSampler(3, 0.9, 1)
    with pytest.raises(ValueError, match=r"\bn ?= ?2\b.*num_replicas ?= ?3"):
        ReorderReuseSampler(2, 1, num_replicas=3, disjoint=False)


def test_something_else_than_a_state_is_refused() -> None:
    with pytest.raises(ValueError, match="NoneType"):
        ReorderReuseSampler(10, 2).load_state_dict(None)  # type: ignore[arg-type]
