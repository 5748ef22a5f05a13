"""Properties of the samplers: coverage, disjointness, fairness, replicas, resuming, errors."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from reweight.samplers import ReorderReuseSampler, SplitSampler

Pairs = list[tuple[list[int], list[int]]]


def epoch_of(sampler: ReorderReuseSampler | SplitSampler) -> Pairs:
    return [(train.tolist(), dev.tolist()) for train, dev in sampler]


def globally(make: Any, num_replicas: int) -> Pairs:
    """One epoch of all ranks, each pair put together from the ranks' shares."""
    shares = [epoch_of(make(num_replicas=num_replicas, rank=rank)) for rank in range(num_replicas)]
    return [
        (sum((train for train, _ in pair), []), sum((dev for _, dev in pair), []))
        for pair in zip(*shares, strict=True)
    ]


@st.composite
def reuse_settings(draw: st.DrawFn, disjoint: bool = True) -> dict[str, Any]:
    """Sizes up to the tightest that a disjoint sampler accepts."""
    num_replicas = draw(st.integers(1, 3))
    n = draw(st.integers(2 * num_replicas, 32))
    largest = n // num_replicas - 1
    batch_size = draw(st.integers(1, largest))
    same = 2 * batch_size <= n // num_replicas and draw(st.booleans())
    dev_batch_size = None if same else draw(st.integers(1, largest - batch_size + 1))
    return {
        "n": n,
        "batch_size": batch_size,
        "dev_batch_size": dev_batch_size,
        "seed": draw(st.integers(0, 2**40)),
        "disjoint": disjoint,
        "num_replicas": num_replicas,
    }


@st.composite
def split_settings(draw: st.DrawFn) -> dict[str, Any]:
    num_replicas = draw(st.integers(1, 3))
    n = draw(st.integers(2 * num_replicas, 32))
    held_out = draw(st.integers(num_replicas, n - num_replicas))
    return {
        "n": n,
        "ratio": held_out / n,
        "batch_size": draw(st.integers(1, 12)),
        "dev_batch_size": draw(st.none() | st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**40)),
        "num_replicas": num_replicas,
    }


any_sampler = st.one_of(
    st.tuples(st.just(ReorderReuseSampler), reuse_settings()),
    st.tuples(st.just(ReorderReuseSampler), reuse_settings(disjoint=False)),
    st.tuples(st.just(SplitSampler), split_settings()),
)


# --- what a pair is -------------------------------------------------------------------------


@given(any_sampler)
def test_pairs_are_int64_vectors_of_the_announced_number_and_sizes(choice: Any) -> None:
    cls, settings = choice
    sampler = cls(**settings)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) > 0
    for position, (train, dev) in enumerate(pairs):
        for indices in (train, dev):
            assert indices.dtype == torch.int64
            assert indices.ndim == 1
            assert indices.device.type == "cpu"
            assert int(indices.min()) >= 0
            assert int(indices.max()) < settings["n"]
        if position < len(pairs) - 1:
            assert len(train) == settings["batch_size"]
        assert 0 < len(train) <= settings["batch_size"]


@given(reuse_settings())
def test_dev_batches_have_their_size_and_by_default_that_of_the_train_batch(
    settings: dict[str, Any],
) -> None:
    for train, dev in ReorderReuseSampler(**settings):
        assert len(dev) == (settings["dev_batch_size"] or len(train))


def test_writing_into_a_batch_changes_no_later_batch() -> None:
    expected = epoch_of(ReorderReuseSampler(12, 3))
    seen = []
    for train, dev in ReorderReuseSampler(12, 3):
        seen.append((train.tolist(), dev.tolist()))
        train.zero_()
        dev.zero_()
    assert seen == expected


def test_a_data_loader_takes_the_pairs_as_batches() -> None:
    class Rows:
        def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
            return 10 * indices

    sampler = ReorderReuseSampler(12, 3)
    loader = DataLoader(Rows(), batch_sampler=sampler, collate_fn=tuple)
    loaded = [(train.tolist(), dev.tolist()) for train, dev in loader]
    assert loaded == [
        ([10 * i for i in train], [10 * i for i in dev])
        for train, dev in epoch_of(ReorderReuseSampler(12, 3))
    ]


# --- reorder and reuse ----------------------------------------------------------------------


@given(st.integers(2, 60), st.data())
def test_every_epoch_trains_on_every_sample_once(n: int, data: st.DataObject) -> None:
    sampler = ReorderReuseSampler(n, data.draw(st.integers(1, n // 2)))
    orders = [sum((train for train, _ in epoch_of(sampler)), []) for _ in range(3)]
    for order in orders:
        assert sorted(order) == list(range(n))


@given(st.integers(2, 60), st.booleans(), st.data())
def test_every_epoch_asks_dev_of_every_sample_once(
    n: int, disjoint: bool, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, n // 2))
    sampler = ReorderReuseSampler(n, batch_size, disjoint=disjoint)
    for _ in range(3):
        assert sorted(sum((dev for _, dev in epoch_of(sampler)), [])) == list(range(n))


@given(reuse_settings())
def test_no_sample_is_twice_in_a_pair_whatever_the_rank(settings: dict[str, Any]) -> None:
    num_replicas = settings.pop("num_replicas")
    pairs = globally(lambda **place: ReorderReuseSampler(**settings, **place), num_replicas)
    for train, dev in pairs:
        assert len({*train, *dev}) == len(train) + len(dev)


@pytest.mark.parametrize("batch_size", [1, 7, 33, 49, 50])
@pytest.mark.parametrize("dev_batch_size", [None, 1, 20, 50])
def test_no_sample_is_twice_in_a_pair_over_many_epochs(
    batch_size: int, dev_batch_size: int | None
) -> None:
    sampler = ReorderReuseSampler(100, batch_size, dev_batch_size=dev_batch_size, seed=3)
    for _ in range(10):
        for train, dev in epoch_of(sampler):
            assert len({*train, *dev}) == len(train) + len(dev)


def test_without_disjointness_batches_do_meet() -> None:
    pairs = epoch_of(ReorderReuseSampler(100, 20, disjoint=False))
    assert any(set(train) & set(dev) for train, dev in pairs)


@given(reuse_settings(disjoint=False))
def test_the_raw_dev_order_is_one_permutation_after_another(settings: dict[str, Any]) -> None:
    n, num_replicas = settings["n"], settings.pop("num_replicas")
    samplers = [
        ReorderReuseSampler(**settings, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]
    stream: list[int] = []
    while len(stream) < 3 * n:
        for pair in zip(*samplers, strict=True):
            together = np.empty(sum(len(dev) for _, dev in pair), dtype=np.int64)
            for rank, (_, dev) in enumerate(pair):
                together[rank::num_replicas] = dev
            stream += together.tolist()
    for start in range(0, 3 * n, n):
        assert sorted(stream[start : start + n]) == list(range(n))


@pytest.mark.parametrize("dev_batch_size", [4, 9, 20, 30, 64])
def test_disjoint_dev_batches_serve_every_sample_equally_often(dev_batch_size: int) -> None:
    sampler = ReorderReuseSampler(200, 10, dev_batch_size=dev_batch_size, seed=2)
    served = Counter({sample: 0 for sample in range(200)})
    for _ in range(7):
        for _, dev in epoch_of(sampler):
            served.update(dev)
        # Swaps leave the stream's counts as they are: equal, but for a pass that is under way.
        assert max(served.values()) - min(served.values()) <= 1


@pytest.mark.parametrize(("n", "batch_size"), [(6, 2), (6, 3), (7, 2)])
def test_a_dev_sample_meets_every_other_sample_equally_often(n: int, batch_size: int) -> None:
    sampler = ReorderReuseSampler(n, batch_size, seed=0)
    epochs = 1500
    met = np.zeros((n, n))
    for _ in range(epochs):
        for train, dev in epoch_of(sampler):
            met[np.ix_(dev, train)] += 1
    expected = met.sum() / (n * (n - 1))
    assert np.all(np.diag(met) == 0)
    off_diagonal = met[~np.eye(n, dtype=bool)]
    # A cell is a count of at most one event an epoch, so its deviation is below sqrt(expected);
    # five of them leave a fair sampler room in all cells.
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected)


def test_dev_order_tells_of_the_train_order_only_what_disjointness_must() -> None:
    sampler = ReorderReuseSampler(40, 4, seed=5)
    met = np.zeros((10, 10))  # pair that trains on a sample, pair that asks dev of it
    epochs = 400
    for _ in range(epochs):
        pairs = epoch_of(sampler)
        trained_in = {i: pair for pair, (train, _) in enumerate(pairs) for i in train}
        for pair, (_, dev) in enumerate(pairs):
            for sample in dev:
                met[trained_in[sample], pair] += 1
    expected = epochs * 4 / 9  # 4 samples of each train batch over the 9 other pairs
    off_diagonal = met[~np.eye(10, dtype=bool)]
    # Counts of rare events: their deviation is about sqrt(expected), five of them are plenty.
    assert np.all(np.diag(met) == 0)
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected)


@given(reuse_settings(), st.integers(0, 3))
def test_orders_depend_on_seed_and_epoch_alone(settings: dict[str, Any], epochs: int) -> None:
    first, second = ReorderReuseSampler(**settings), ReorderReuseSampler(**settings)
    for _ in range(epochs):
        next(iter(first))  # leaves the epoch early
        epoch_of(second)
    assert epoch_of(first) == epoch_of(second)


def test_epochs_and_seeds_differ() -> None:
    sampler = ReorderReuseSampler(100, 10, seed=0)
    epochs = [epoch_of(sampler), epoch_of(sampler), epoch_of(ReorderReuseSampler(100, 10, seed=1))]
    for side in (0, 1):
        orders = [tuple(sum((pair[side] for pair in pairs), [])) for pairs in epochs]
        assert len(set(orders)) == 3


def test_global_random_states_are_neither_read_nor_moved() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    numpy_state, torch_state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = epoch_of(ReorderReuseSampler(50, 8)), epoch_of(SplitSampler(50, 0.2, 8))
    assert np.random.get_state()[1].tolist() == numpy_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.random.seed(1)
    torch.manual_seed(1)
    assert first == (epoch_of(ReorderReuseSampler(50, 8)), epoch_of(SplitSampler(50, 0.2, 8)))


# --- replicas -------------------------------------------------------------------------------


@given(any_sampler)
def test_ranks_have_equal_counts_and_share_no_sample(choice: Any) -> None:
    cls, settings = choice
    num_replicas = settings["num_replicas"]
    shares = [list(cls(**settings, rank=rank)) for rank in range(num_replicas)]
    for pair in zip(*shares, strict=True):
        assert len({len(train) for train, _ in pair}) == 1
        assert len({len(dev) for _, dev in pair}) == 1
        trains = torch.cat([train for train, _ in pair]).tolist()
        assert len(set(trains)) == len(trains)
    trained = [i for share in shares for train, _ in share for i in train.tolist()]
    assert len(set(trained)) == len(trained)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(4, 12))
def test_replicas_deal_out_the_pairs_of_one_process(
    num_replicas: int, batch_size: int, batches: int
) -> None:
    n = num_replicas * (batch_size * batches - batch_size // 2)
    one = epoch_of(ReorderReuseSampler(n, batch_size * num_replicas, seed=4))
    for rank in range(num_replicas):
        dealt = ReorderReuseSampler(n, batch_size, seed=4, num_replicas=num_replicas, rank=rank)
        assert epoch_of(dealt) == [
            (train[rank::num_replicas], dev[rank::num_replicas]) for train, dev in one
        ]


def test_the_samples_left_out_of_a_ragged_tail_change_by_epoch() -> None:
    samplers = [ReorderReuseSampler(14, 2, num_replicas=3, rank=rank) for rank in range(3)]
    left_out = set()
    for _ in range(12):
        trained = {i for sampler in samplers for train, _ in epoch_of(sampler) for i in train}
        assert len(trained) == 12
        left_out |= set(range(14)) - trained
    assert len(left_out) > 7


# --- the held-out split ---------------------------------------------------------------------


@given(split_settings())
def test_held_out_samples_are_fixed_and_never_train(settings: dict[str, Any]) -> None:
    num_replicas = settings.pop("num_replicas")
    held_out = round(settings["ratio"] * settings["n"])
    trained: set[int] = set()
    asked: set[int] = set()
    samplers = [
        SplitSampler(**settings, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]
    for _ in range(3):
        for sampler in samplers:
            for train, dev in epoch_of(sampler):
                trained |= set(train)
                asked |= set(dev)
    assert not trained & asked
    assert len(asked) <= held_out
    assert len(trained) <= settings["n"] - held_out
    if num_replicas == 1:
        assert len(trained) == settings["n"] - held_out


@given(split_settings())
def test_split_dev_batches_hold_no_sample_twice_and_are_capped_by_the_split(
    settings: dict[str, Any],
) -> None:
    num_replicas = settings.pop("num_replicas")
    cap = round(settings["ratio"] * settings["n"]) // num_replicas * num_replicas
    pairs = globally(lambda **place: SplitSampler(**settings, **place), num_replicas)
    for train, dev in pairs:
        wanted = settings["dev_batch_size"]
        wanted = len(train) if wanted is None else wanted * num_replicas
        assert len(dev) == min(wanted, cap)
        assert len(set(dev)) == len(dev)


def test_split_dev_batches_cycle_through_the_held_out_samples() -> None:
    sampler = SplitSampler(120, 0.25, 9, dev_batch_size=10)
    served: Counter[int] = Counter()
    for epoch in range(1, 5):
        for _, dev in epoch_of(sampler):
            served.update(dev)
        # 90 train samples make 10 pairs of 10 dev samples: 100 of 30, three passes and a third.
        assert len(served) == 30
        assert max(served.values()) - min(served.values()) <= 1
        assert sum(served.values()) == 100 * epoch


def test_the_seed_decides_what_is_held_out() -> None:
    held_out = {
        frozenset(i for _, dev in epoch_of(SplitSampler(40, 0.25, 5, seed=seed)) for i in dev)
        for seed in (0, 0, 1)
    }
    assert len(held_out) == 2


def test_a_small_ratio_still_holds_out_one_sample() -> None:
    pairs = epoch_of(SplitSampler(10, 0.001, 3))
    assert {len(dev) for _, dev in pairs} == {1}
    assert len({dev[0] for _, dev in pairs}) == 1


# --- stop and resume ------------------------------------------------------------------------


@given(any_sampler, st.integers(0, 20), st.booleans())
def test_a_state_resumes_bit_for_bit_anywhere(choice: Any, consumed: int, fresh: bool) -> None:
    cls, settings = choice
    sampler, reference = cls(**settings), cls(**settings)
    stream: Pairs = []
    while len(stream) < consumed + 3 * len(sampler):
        stream += epoch_of(reference)

    taken = 0
    while taken < consumed:
        for _ in sampler:
            taken += 1
            if taken == consumed:
                break
    state = json.loads(json.dumps(sampler.state_dict()))

    resumed = cls(**settings)
    if not fresh:
        next(iter(resumed))  # a sampler that was used before goes back as well
    resumed.load_state_dict(state)
    rest = epoch_of(resumed) + epoch_of(resumed)
    assert rest == stream[consumed : consumed + len(rest)]
    assert len(rest) > len(sampler)


def test_a_state_is_the_same_on_all_ranks_and_serves_any() -> None:
    samplers = [ReorderReuseSampler(30, 2, num_replicas=3, rank=rank) for rank in range(3)]
    for sampler in samplers:
        next(iter(sampler))
    state = samplers[0].state_dict()
    assert all(sampler.state_dict() == state for sampler in samplers)
    resumed = ReorderReuseSampler(30, 2, num_replicas=3, rank=2)
    resumed.load_state_dict(state)
    expected = epoch_of(ReorderReuseSampler(30, 2, num_replicas=3, rank=2))[1:]
    assert epoch_of(resumed) == expected


def test_an_abandoned_epoch_is_followed_by_the_next() -> None:
    reference = ReorderReuseSampler(20, 4)
    epochs = [epoch_of(reference) for _ in range(3)]
    sampler = ReorderReuseSampler(20, 4)
    next(iter(sampler))
    iter(sampler)
    assert epoch_of(sampler) == epochs[2]


def test_an_abandoned_iterator_does_not_move_the_state() -> None:
    sampler = ReorderReuseSampler(20, 4)
    abandoned, current = iter(sampler), iter(sampler)
    next(current)
    state = sampler.state_dict()
    list(abandoned)
    assert sampler.state_dict() == state
    assert (state["epoch"], state["position"]) == (1, 1)


def test_after_the_last_pair_the_state_is_at_the_next_epoch() -> None:
    sampler = ReorderReuseSampler(20, 4)
    for _ in sampler:
        state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert sampler.state_dict() == state


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": 31}, r"\bn\b.*30.*31"),
        ({"batch_size": 5}, "batch_size.*4.*5"),
        ({"dev_batch_size": 4}, "dev_batch_size.*None.*4"),
        ({"seed": 1}, "seed.*0.*1"),
        ({"disjoint": False}, "disjoint.*True.*False"),
        ({"num_replicas": 2}, "num_replicas.*1.*2"),
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


# --- cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda n: ReorderReuseSampler(n, 256),
        lambda n: ReorderReuseSampler(n, 256, dev_batch_size=2048),
        lambda n: SplitSampler(n, 0.05, 256),
    ],
    ids=["reuse", "large dev batches", "split"],
)
def test_an_epoch_of_a_million_samples_begins_quickly(make: Any) -> None:
    sampler = make(1_000_000)
    start = time.process_time()
    next(iter(sampler))
    # Measured: 0.03 to 0.25 s. The bound is what a training loop would begin to notice.
    assert time.process_time() - start < 1.5


def test_something_else_than_a_state_is_refused() -> None:
    with pytest.raises(ValueError, match="NoneType"):
        ReorderReuseSampler(10, 2).load_state_dict(None)  # type: ignore[arg-type]
