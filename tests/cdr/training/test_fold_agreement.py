"""Whether hypergradients of several folds agree, and how far."""

from __future__ import annotations

import pytest
import torch

from cdr.training.agreement import Agreement


def hypergradients(steps: int, signal: float, seed: int, folds: int = 4, size: int = 50):
    """Of each step one row per fold: a common direction of a length, and noise of length 1."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, generator=generator, dtype=torch.float64)
    common *= signal / common.norm()
    for _ in range(steps):
        noise = torch.randn(folds, size, generator=generator, dtype=torch.float64) / size**0.5
        yield common + noise


def test_nothing_is_said_before_the_window_is_full() -> None:
    agreement = Agreement(window=5)
    for number, rows in enumerate(hypergradients(6, signal=3.0, seed=0), 1):
        agreement.add(rows)
        assert agreement.agrees == (number >= 5)


@pytest.mark.parametrize("signal", [0.5, 1.0, 3.0])
def test_the_share_of_a_common_direction_is_told(signal: float) -> None:
    agreement = Agreement(window=200)
    for rows in hypergradients(200, signal, seed=1):
        share = agreement.add(rows)
    assert agreement.agrees
    # Of the mean of four, whose noise has a quarter of the squared length of one's. The spread of
    # 200 products of 50 numbers leaves some hundredths.
    assert share == pytest.approx(signal**2 / (signal**2 + 1 / 4), abs=0.03)
    assert agreement.cosine == pytest.approx(signal**2 / (signal**2 + 1), abs=0.03)


def steps_in_reach(agreement: Agreement, signal: float, seed: int, within: int) -> int:
    """How many steps it takes until the folds agree, or are not to be expected to."""
    rows = hypergradients(within, signal, seed, folds=3, size=20)
    while agreement.in_reach(within) and not agreement.agrees:
        agreement.add(next(rows))
    return len(agreement.state_dict()["products"])


def ever_agree(signal: float, runs: int, steps: int) -> float:
    """The share of runs in which the folds agree at some step."""
    found = 0
    for seed in range(runs):
        agreement = Agreement()
        for rows in hypergradients(steps, signal, seed, folds=3, size=20):
            agreement.add(rows)
            if agreement.agrees:
                found += 1
                break
    return found / runs


def test_noise_alone_is_hardly_ever_taken_for_agreement() -> None:
    # A mean that is looked at in every step from the 20th to the 200th passes three standard errors
    # by chance in 2 % of 4,000 runs of normal numbers; of 100 runs, more than six would do so once
    # in 200 times. The last 20 steps alone would pass them in 17 %.
    assert ever_agree(signal=0.0, runs=100, steps=200) <= 0.06


def test_a_weak_signal_is_seen_in_the_end() -> None:
    # A cosine of .06 among 20 numbers, whose own spread is a quarter.
    assert ever_agree(signal=0.25, runs=20, steps=200) >= 0.9


def test_folds_with_nothing_in_common_are_given_up_early() -> None:
    seen = [steps_in_reach(Agreement(), 0.0, seed, within=200) for seed in range(40)]
    # Of normal numbers, 75 on average with a spread of 62: the mean of 40 is less than 100 but for
    # one time in 200.
    assert min(seen) >= 20 and sum(seen) / len(seen) < 100


def test_folds_that_will_agree_are_waited_for() -> None:
    # As above, where more than nine in ten agree in the end.
    agreeing = 0
    for seed in range(20):
        agreement = Agreement()
        assert steps_in_reach(agreement, 0.25, seed, within=200) <= 200
        agreeing += agreement.agrees
    assert agreeing >= 17


def test_folds_are_not_waited_for_beyond_the_steps_given() -> None:
    agreement = Agreement(window=5)
    for number, product in enumerate((1.0, -1.0, 1.0, -0.5, 1.0)):
        assert agreement.in_reach(5) == agreement.in_reach(100) == (number < 5)
        agreement.add(torch.tensor([[1.0, 0.0], [product, 1.0]]))
    assert not agreement.agrees and not agreement.in_reach(5) and agreement.in_reach(100)


def test_folds_that_agreed_agree_no_longer_when_the_signal_has_gone() -> None:
    agreement = Agreement()
    for rows in hypergradients(100, signal=1.0, seed=4):
        agreement.add(rows)
    assert agreement.agrees
    agreeing = 0
    for rows in hypergradients(30, signal=0.0, seed=5):
        agreement.add(rows)
        agreeing += agreement.agrees
    assert 0 < agreeing < 30


def test_opposite_folds_do_not_agree() -> None:
    agreement = Agreement(window=3)
    for _ in range(5):
        assert agreement.add(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 0.0
    assert not agreement.agrees and agreement.cosine == -1.0


def test_rows_of_zeros_say_nothing() -> None:
    agreement = Agreement(window=2)
    for _ in range(3):
        assert agreement.add(torch.zeros(3, 4)) == 0.0
    assert not agreement.agrees


def test_a_state_goes_on_as_if_nothing_had_happened() -> None:
    one, other = Agreement(window=4), Agreement(window=4)
    rows = list(hypergradients(12, signal=1.0, seed=3))
    for each in rows[:7]:
        one.add(each)
    other.load_state_dict(one.state_dict())
    assert [one.add(each) for each in rows[7:]] == [other.add(each) for each in rows[7:]]
    assert one.agrees == other.agrees and one.t == other.t
