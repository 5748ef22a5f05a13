"""Batches: a source behaviour of one's own, pads without one, histories as the schema says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cdr.batches import Batches
from cdr.data import Behaviors, CrossDomainData, Histories

LENGTH = 6


@pytest.fixture(params=["tiny", "gappy"])
def data(request: pytest.FixtureRequest) -> CrossDomainData:
    return request.getfixturevalue(request.param)


def all_rows(data: CrossDomainData) -> torch.Tensor:
    return torch.arange(len(data.train))


def test_the_source_behaviour_is_one_of_the_users_own(data: CrossDomainData) -> None:
    own = set(
        zip(
            data.source.user.tolist(),
            data.source.item.tolist(),
            data.source.label.tolist(),
            strict=True,
        )
    )
    batches = Batches(data, 0, seed=1)
    for _ in range(5):
        batch = batches.train_pairs(all_rows(data))
        drawn = zip(
            batch.user.tolist(),
            batch.source.item.tolist(),
            batch.source_label.tolist(),
            strict=True,
        )
        real = batch.has_source.tolist()
        assert all(row in own for row, has in zip(drawn, real, strict=True) if has)


def test_every_source_behaviour_of_a_user_is_drawn(tiny: CrossDomainData) -> None:
    row = int(tiny.source_offsets.diff()[tiny.train.user].argmin())
    user = tiny.train.user[row]
    first, end = tiny.source_offsets[user], tiny.source_offsets[user + 1]
    # 200 draws from at most a dozen: missing one has a probability below 1e-6.
    batch = Batches(tiny, 0, seed=0).train_pairs(torch.full((200,), row))
    assert end - first <= 12
    assert set(batch.source.item.tolist()) == set(tiny.source.item[first:end].tolist())


def test_users_without_source_behaviours_get_the_pad(gappy: CrossDomainData) -> None:
    batch = Batches(gappy, LENGTH, seed=0).train_pairs(all_rows(gappy))
    pad = ~batch.has_source
    assert 0 < pad.sum() < len(batch)
    without = gappy.source_offsets.diff()[batch.user] == 0
    assert torch.equal(pad, without)
    assert (batch.source.item[pad] == gappy.source_items.num).all()
    assert (batch.source.category[pad] == gappy.source_items.num_categories).all()
    assert (batch.source_label[pad] == 0).all()
    assert (batch.source.item[~pad] < gappy.source_items.num).all()


def test_pads_have_no_history(gappy: CrossDomainData) -> None:
    # Whatever row stands in for a pad: here each source row shows a positive in either domain.
    def full(slots: Histories) -> Histories:
        return replace(slots, start=slots.start * 0, end=slots.end * 0 + 1)

    data = replace(
        gappy,
        source_history=full(gappy.source_history),
        target_history=full(gappy.target_history),
    )
    batch = Batches(data, LENGTH, seed=0).train_pairs(all_rows(data))
    assert torch.equal(batch.target_history.mask.any(1), batch.has_source)
    assert not batch.source_history.mask[~batch.has_source].any()


def test_the_target_side_is_the_training_row(data: CrossDomainData) -> None:
    rows = all_rows(data).flip(0)
    batch = Batches(data, 0, seed=0).train_pairs(rows)
    assert torch.equal(batch.user, data.train.user[rows])
    assert torch.equal(batch.target.item, data.train.item[rows])
    assert torch.equal(batch.target_label, data.train.label[rows])
    assert torch.equal(batch.target.category, data.target_items.category[batch.target.item])
    assert batch.source_history is None and batch.target_history is None


def test_draws_depend_on_the_seed_alone(tiny: CrossDomainData) -> None:
    def items(seed: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        return Batches(tiny, 0, seed).train_pairs(all_rows(tiny)).source.item

    assert torch.equal(items(3, 0), items(3, 1))
    assert not torch.equal(items(3, 0), items(4, 0))


def test_draws_leave_the_global_random_state_alone(tiny: CrossDomainData) -> None:
    before = torch.get_rng_state()
    Batches(tiny, LENGTH, 0).train_pairs(all_rows(tiny))
    assert torch.equal(before, torch.get_rng_state())


def test_a_share_picks_the_place_among_the_users_own(tiny: CrossDomainData) -> None:
    batches = Batches(tiny, 0, seed=0)
    first, count = tiny.source_offsets[:-1], tiny.source_offsets.diff()
    everyone = torch.arange(tiny.num_users)
    target = Behaviors(everyone, torch.zeros_like(everyone), torch.zeros(tiny.num_users))
    below_one = float(torch.tensor(1.0).nextafter(torch.tensor(0.0)))
    for share in (0.0, 0.5, below_one):
        place = torch.minimum((share * count.double()).floor().long(), count - 1)
        found = batches.pairs(target, torch.full((tiny.num_users,), share)).source.item
        assert torch.equal(found, tiny.source.item[first + place])


def test_histories_are_those_of_the_source_behaviour(tiny: CrossDomainData) -> None:
    rows = torch.arange(len(tiny.source))
    batch = Batches(tiny, LENGTH, seed=0).source_rows(rows)
    assert torch.equal(batch.user, tiny.source.user) and batch.has_source.all()
    assert torch.equal(batch.source.item, tiny.source.item)
    assert torch.equal(batch.source_label, tiny.source.label)
    assert torch.equal(batch.source_row, rows)
    assert torch.equal(batch.source_user, tiny.source.user)
    for history, slots, items, holders in (
        (batch.source_history, tiny.source_history, tiny.source_items, tiny.source),
        (batch.target_history, tiny.target_history, tiny.target_items, tiny.train),
    ):
        assert history.mask.shape == (len(rows), LENGTH) and history.mask.any()
        for row in range(0, len(rows), 7):
            seen = range(int(slots.start[row]), int(slots.end[row]))[-LENGTH:]
            expected = [int(slots.items[place]) for place in seen]
            assert all(holders.user[slots.origin[place]] == batch.user[row] for place in seen)
            assert all(holders.label[slots.origin[place]] == 1 for place in seen)
            if history is batch.source_history:
                expected = [item for item in expected if item != batch.source.item[row]]
            mask = history.mask[row]
            assert history.items.item[row][mask].tolist() == expected
            assert torch.equal(
                history.items.category[row][mask], items.category[history.items.item[row][mask]]
            )


@pytest.mark.parametrize("length", [1, LENGTH, 200])
def test_histories_are_those_the_schema_gathers(tiny: CrossDomainData, length: int) -> None:
    rows = torch.arange(len(tiny.source)).flip(0)
    batch = Batches(tiny, length, seed=0).source_rows(rows)
    for history, slots, items, exclude in (
        (batch.source_history, tiny.source_history, tiny.source_items, batch.source.item),
        (batch.target_history, tiny.target_history, tiny.target_items, None),
    ):
        item, mask = slots.gather(rows, length, exclude)
        assert torch.equal(history.mask, mask) and torch.equal(history.items.item, item)
        assert torch.equal(history.items.category, items.category[item])  # those of pads too
