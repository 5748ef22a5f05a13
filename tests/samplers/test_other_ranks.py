"""An epoch that goes on with another number of ranks uses what is left of it, each sample once."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from _support.samplers import Pairs, all_ranks, epoch_of, globally
from reweight.samplers import PairLoader, ReorderReuseSampler, SplitSampler

RANKS = st.sampled_from([1, 2, 3, 4, 7])


class Stage(NamedTuple):
    """The sizes that a training has for a number of steps, before it goes on with others."""

    batch_size: int
    dev_batch_size: int | None
    num_replicas: int
    steps: int

    def of(self, cls: Any, samples: dict[str, Any]) -> list[Any]:
        sizes = self._asdict()
        del sizes["steps"]
        return all_ranks(cls, {**samples, **sizes})


@st.composite
def plans(draw: st.DrawFn, most: int = 4, with_dev: bool = False) -> list[Stage]:
    """Numbers of ranks, each different from the one before."""
    found: list[Stage] = []
    for _ in range(draw(st.integers(2, most))):
        dev_batch_size = draw(st.integers(1, 6)) if with_dev else None
        stage = Stage(draw(st.integers(1, 6)), dev_batch_size, draw(RANKS), draw(st.integers(0, 5)))
        if found:
            assume(stage.num_replicas != found[-1].num_replicas)
        found.append(stage)
    return found


@st.composite
def reuse(draw: st.DrawFn, plan: list[Stage]) -> dict[str, Any]:
    """Samples of a ReorderReuseSampler, few or many, but enough for all stages of a plan."""
    fewest = max(
        (stage.batch_size + (stage.dev_batch_size or stage.batch_size)) * stage.num_replicas
        for stage in plan
    )
    n = fewest + draw(st.integers(0, 7) | st.integers(0, 150))
    return {"n": n, "seed": draw(st.integers(0, 99)), "disjoint": draw(st.booleans())}


def step(ranks: list[Any], steps: int) -> Pairs:
    """The first global pairs of an epoch, at most ``steps`` and not to its end."""
    iterators = [iter(rank) for rank in ranks]
    pairs = []
    for _ in range(steps):
        shares = [next(iterator) for iterator in iterators]
        pairs.append(tuple(sum((share[side].tolist() for share in shares), []) for side in (0, 1)))
        if not ranks[0].state_dict()["position"]:
            break
    return pairs  # type: ignore[return-value]


def move(ranks: list[Any], others: list[Any]) -> None:
    """Load the state of some ranks, which is the same on all, into others."""
    states = [json.loads(json.dumps(rank.state_dict())) for rank in ranks]
    assert all(state == states[0] for state in states)
    for other in others:
        other.load_state_dict(states[0])


def trained(cls: Any, samples: dict[str, Any], plan: list[Stage]) -> tuple[list[Pairs], list[Any]]:
    """The global pairs of the first epoch by stage, and the ranks of the last stage after it."""
    ranks = plan[0].of(cls, samples)
    seen = []
    for stage, following in pairwise(plan):
        seen.append(step(ranks, stage.steps))
        others = following.of(cls, samples)
        move(ranks, others)
        ranks = others
        if ranks[0].state_dict()["epoch"]:
            return seen, ranks
    return [*seen, globally(ranks)], ranks


def joined(pairs: Pairs, side: int) -> list[int]:
    return sum((pair[side] for pair in pairs), [])


def check_pairs(pairs: Pairs, disjoint: bool) -> None:
    for train, dev in pairs:
        assert len(set(train)) == len(train)
        if disjoint:
            assert len({*train, *dev}) == len(train) + len(dev)


@given(plans(), st.data())
def test_an_epoch_trains_on_every_sample_once_whatever_ranks_go_on_with_it(
    plan: list[Stage], data: st.DataObject
) -> None:
    samples = data.draw(reuse(plan))
    seen, ranks = trained(ReorderReuseSampler, samples, plan)
    pairs = sum(seen, [])
    check_pairs(pairs, samples["disjoint"])
    train = joined(pairs, 0)
    assert len(set(train)) == len(train)
    left_out = samples["n"] - len(train)
    assert left_out < max(stage.num_replicas for stage in plan)
    alone = any(stage.batch_size == 1 for stage in plan)
    too_few = len(seen) < len(plan)  # no step of the epoch was left for the ranks of a stage
    assert not left_out or alone or too_few
    dev = joined(pairs, 1)
    assert len(dev) == len(train)
    if not samples["disjoint"]:
        assert len(set(dev)) == len(dev)
    following = globally(ranks)
    if ranks[0].batch_size > 1:
        assert sorted(joined(following, 0)) == list(range(samples["n"]))


@given(plans(most=2), st.data())
def test_a_dev_sample_is_replaced_only_where_no_pair_left_can_take_it(
    plan: list[Stage], data: st.DataObject
) -> None:
    samples = {**data.draw(reuse(plan)), "disjoint": True}
    seen, _ = trained(ReorderReuseSampler, samples, plan)
    pairs = sum(seen, [])
    assume(len(joined(pairs, 0)) == samples["n"])
    everything = set(range(samples["n"]))
    open_ = everything - set(joined(seen[0], 1))
    # The open samples that are in the train batch of a pair have to go to the other pairs, which
    # have as many places as there are open samples, less the places of this pair.
    homeless = sum(
        max(0, len(open_ & set(train)) + len(dev) - len(open_)) for train, dev in sum(seen[1:], [])
    )
    assert len(everything - set(joined(pairs, 1))) <= homeless


@pytest.mark.slow
@given(plans(with_dev=True), st.data())
def test_dev_batches_of_a_given_size_keep_it_and_stay_disjoint(
    plan: list[Stage], data: st.DataObject
) -> None:
    samples = data.draw(reuse(plan))
    seen, ranks = trained(ReorderReuseSampler, samples, plan)
    for stage, pairs in zip(plan, seen, strict=False):  # the epoch may end before the plan
        check_pairs(pairs, samples["disjoint"])
        assert {len(dev) for _, dev in pairs} <= {stage.dev_batch_size * stage.num_replicas}
    check_pairs(globally(ranks), samples["disjoint"])


@given(plans(with_dev=True), st.data())
def test_the_dev_order_goes_on_through_an_epoch_and_is_not_drawn_again_in_the_next(
    plan: list[Stage], data: st.DataObject
) -> None:
    samples = {**data.draw(reuse(plan)), "disjoint": False}
    seen, ranks = trained(ReorderReuseSampler, samples, plan)
    epochs = [joined(sum(seen, []), 1), joined(globally(ranks), 1)]
    in_order = ReorderReuseSampler(**samples, batch_size=1, dev_batch_size=1)
    order: list[int] = []
    while len(order) < 3 * (len(epochs[0]) + len(epochs[1])):
        order += joined(epoch_of(in_order), 1)
    assert epochs[0] == order[: len(epochs[0])]
    # What was drawn for pairs that never came is passed over.
    start = ranks[0].state_dict()["dev_start"] - len(epochs[1])
    assert start >= len(epochs[0])
    assert epochs[1] == order[start : start + len(epochs[1])]


@pytest.mark.parametrize(
    ("plan", "drawn"),
    [
        # 5 pairs draw 40 dev samples. 2 are used, and 8 pairs of 4 train samples are left of 40.
        ([Stage(4, 8, 1, 2), Stage(2, 2, 2, 0)], 40 + 8 * 4 - 24),
        ([Stage(4, 8, 1, 2), Stage(2, 1, 2, 0)], 40),  # they need 16 of the 24
        # After 3 more, 18 of the 24 are left, and 20 train samples: 6 pairs of 3.
        ([Stage(4, 8, 1, 2), Stage(2, 1, 2, 3), Stage(1, 2, 3, 0)], 40 + 6 * 6 - 18),
    ],
)
def test_dev_samples_that_were_drawn_ahead_come_first(plan: list[Stage], drawn: int) -> None:
    _, ranks = trained(ReorderReuseSampler, {"n": 40}, plan)
    assert (ranks[0].state_dict()["epoch"], ranks[0].state_dict()["dev_start"]) == (1, drawn)


@given(plans(), st.booleans(), st.data())
def test_a_split_trains_on_the_rest_once_and_keeps_what_it_holds_out(
    plan: list[Stage], with_dev: bool, data: st.DataObject
) -> None:
    fewest = max(stage.num_replicas for stage in plan)
    rest, held_out = (fewest + data.draw(st.integers(0, 60)) for _ in range(2))
    n = rest + held_out
    samples = {"n": n, "ratio": held_out / n, "seed": data.draw(st.integers(0, 99))}
    seen, _ = trained(SplitSampler, samples, plan)
    pairs = sum(seen, [])
    check_pairs(pairs, disjoint=True)
    train, dev = joined(pairs, 0), set(joined(pairs, 1))
    assert len(set(train)) == len(train) <= rest
    assert rest - len(train) < fewest
    whole = set(joined(epoch_of(SplitSampler(n, held_out / n, 5, seed=samples["seed"])), 0))
    assert set(train) <= whole and not dev & whole


@pytest.mark.slow
@pytest.mark.parametrize("dev", [None, 24])
@given(data=st.data())
def test_with_the_same_global_sizes_the_global_batches_stay_the_same(
    dev: int | None, data: st.DataObject
) -> None:
    # 12 train samples per pair; a last batch, if there is one, has a sample for each of 6 ranks.
    n = 36 + 12 * data.draw(st.integers(0, 4)) + data.draw(st.sampled_from([0, 6, 7, 11]))
    samples = {"n": n, "seed": data.draw(st.integers(0, 99))}
    reference = ReorderReuseSampler(**samples, batch_size=12, dev_batch_size=dev)
    expected = [pair for _ in range(4) for pair in epoch_of(reference)]
    seen: Pairs = []
    ranks: list[Any] = []
    for num_replicas in data.draw(st.permutations([1, 2, 3, 4, 6]))[:4]:
        size = dev and dev // num_replicas
        stage = Stage(12 // num_replicas, size, num_replicas, data.draw(st.integers(0, 4)))
        others = stage.of(ReorderReuseSampler, samples)
        if ranks:
            move(ranks, others)
        ranks = others
        seen += step(ranks, stage.steps)
    assert seen == expected[: len(seen)]


def test_a_last_batch_that_is_too_small_for_the_ranks_changes_with_them() -> None:
    plan = [Stage(2, None, 4, 1), Stage(4, None, 2, 0), Stage(1, None, 8, 0)]
    samples = {"n": 49}  # the last batch of 8 would have one sample
    four, two, eight = (stage.of(ReorderReuseSampler, samples) for stage in plan)
    expected = globally(plan[0].of(ReorderReuseSampler, samples))
    assert [len(train) for train, _ in expected] == [8, 8, 8, 8, 8, 5, 4]
    assert step(four, 1) == expected[:1]
    move(four, two)
    move(four, eight)
    assert globally(two) == expected[1:]
    assert [len(train) for train, _ in globally(eight)] == [8, 8, 8, 8, 8]
    assert [len(train) for train, _ in globally(two)] == [8, 8, 8, 8, 8, 7, 2]


@given(plans(), st.data())
def test_ranks_that_went_on_with_an_epoch_resume_bit_for_bit(
    plan: list[Stage], data: st.DataObject
) -> None:
    samples = data.draw(reuse(plan))
    *before, last = plan
    ranks = before[0].of(ReorderReuseSampler, samples)
    for stage, following in pairwise(plan):
        step(ranks, stage.steps)
        others = following.of(ReorderReuseSampler, samples)
        move(ranks, others)
        ranks = others
    again, whole = (last.of(ReorderReuseSampler, samples) for _ in range(2))
    move(ranks, whole)
    seen = step(ranks, last.steps)
    move(ranks, again)
    seen += globally(again)
    assert seen == (globally(whole) + globally(whole))[: len(seen)]


def test_fewer_samples_than_ranks_are_left_to_the_next_epoch() -> None:
    one, four = (
        Stage(b, None, r, 0).of(ReorderReuseSampler, {"n": 23}) for b, r in ((4, 1), (2, 4))
    )
    step(one, 5)
    move(one, four)
    state = four[0].state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert sorted(joined(globally(four), 0)) == list(range(23))


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_state_of_version_0_1_0_goes_on(num_replicas: int) -> None:
    sampler = ReorderReuseSampler(30, 4, dev_batch_size=8, seed=2)
    epochs = [epoch_of(sampler) for _ in range(3)]
    names = ("sampler", "n", "batch_size", "dev_batch_size", "seed", "num_replicas", "disjoint")
    state = {name: sampler.state_dict()[name] for name in names}
    stage = Stage(4 // num_replicas, 8 // num_replicas, num_replicas, 0)
    ranks = stage.of(ReorderReuseSampler, {"n": 30, "seed": 2})
    for rank in ranks:
        rank.load_state_dict({**state, "epoch": 1, "position": 5})
    assert globally(ranks) + globally(ranks) == epochs[1][5:] + epochs[2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_goes_on_with_another_number_of_ranks(num_workers: int) -> None:
    def loader(batch_size: int, num_replicas: int, rank: int) -> PairLoader:
        sampler = ReorderReuseSampler(20, batch_size, num_replicas=num_replicas, rank=rank)
        return PairLoader(list(range(20)), sampler, num_workers=num_workers)  # type: ignore[arg-type]

    first, last = (loader(3, 2, rank) for rank in range(2)), loader(5, 1, 0)
    seen = []
    for rank in first:
        iterator = iter(rank)
        seen += [next(iterator)[0].tolist() for _ in range(2)]
        state = rank.state_dict()
    last.load_state_dict(state)
    assert last.state_dict()["position"] == 0
    seen += [train.tolist() for train, _ in last]
    assert sorted(sum(seen, [])) == list(range(20))
    assert (last.state_dict()["epoch"], last.state_dict()["position"]) == (1, 0)
