"""Batches: a source behaviour of one's own, pads without one, histories as the schema says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cdr.data import Behaviors, CrossDomainData, Histories
from cdr.data.batches import Batches, FlatHistories, History, Windows
from cdr.data.schema import Items

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


# What a model reads beside a candidate.


def shown(history: History, row: int) -> list[int]:
    return history.items.item[row][history.mask[row]].tolist()


def recent(slots: Histories, span: list[int], length: int, exclude: int | None) -> list[int]:
    items = slots.items[span[0] : span[1]].tolist()[-length:]
    return [item for item in items if item != exclude]


def check_categories(history: History, items: Items) -> None:
    item, category = history.items.item[history.mask], history.items.category[history.mask]
    assert torch.equal(category, items.category[item])


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_the_past_of_a_target_row_is_its_span(data: CrossDomainData, part: str) -> None:
    rows: Behaviors = getattr(data, part)
    batches = Batches(data, 0, 0, Windows(target=(4, 3)))
    batch = batches.pairs(rows, torch.full((len(rows),), 0.5))
    if part == "train":
        assert batch.source_past is None
        again = batches.train_pairs(torch.arange(len(rows))).target_past
        assert torch.equal(again.source.items.item, batch.target_past.source.items.item)
        assert torch.equal(again.target.mask, batch.target_past.target.mask)
    check_categories(batch.target_past.source, data.source_items)
    check_categories(batch.target_past.target, data.target_items)
    for row in range(len(rows)):
        source, target = rows.source_past[row].tolist(), rows.target_past[row].tolist()
        assert shown(batch.target_past.source, row) == recent(data.source_history, source, 4, None)
        assert shown(batch.target_past.target, row) == recent(
            data.target_history, target, 3, int(rows.item[row])
        )


def test_the_past_of_a_source_row_is_its_history(data: CrossDomainData) -> None:
    rows = torch.arange(len(data.source))
    past = Batches(data, 2, 0, Windows(source=(4, 3))).source_rows(rows).source_past
    for row in rows.tolist():
        spans = [
            [int(slots.start[row]), int(slots.end[row])]
            for slots in (data.source_history, data.target_history)
        ]
        item = int(data.source.item[row])
        assert shown(past.source, row) == recent(data.source_history, spans[0], 4, item)
        assert shown(past.target, row) == recent(data.target_history, spans[1], 3, None)


def test_windows_of_nothing_leave_histories_out(tiny: CrossDomainData) -> None:
    rows = all_rows(tiny)
    assert Batches(tiny, 0, 0).train_pairs(rows).target_past is None
    past = Batches(tiny, 0, 0, Windows(target=(0, 3), source=(2, 0))).train_pairs(rows)
    assert past.target_past.source is None and past.target_past.target.mask.shape[1] == 3
    assert past.source_past.target is None and past.source_past.source.mask.shape[1] == 2
    assert past.source_history is None and past.target_history is None


def test_pads_have_no_past(gappy: CrossDomainData) -> None:
    windows = Windows(target=(3, 3), source=(3, 3))
    batch = Batches(gappy, 0, 0, windows).train_pairs(all_rows(gappy))
    pad = ~batch.has_source
    assert pad.any()
    for history in (batch.source_past.source, batch.source_past.target):
        assert not history.mask[pad].any() and history.mask[~pad].any()
    # The target row beside the pad has a past of its own.
    assert batch.target_past.target.mask[pad].any()


def test_the_source_row_is_that_of_the_source_behaviour(data: CrossDomainData) -> None:
    batch = Batches(data, 0, seed=0).train_pairs(all_rows(data))
    real, row = batch.has_source, batch.source_row
    assert torch.equal(data.source.item[row][real], batch.source.item[real])
    assert torch.equal(data.source.user[row][real], batch.user[real])
    assert torch.equal(batch.source_user, batch.user)
    assert (row[~real] == 0).all()


def test_flat_histories_are_the_padded_ones_without_pads(data: CrossDomainData) -> None:
    # An item that a user has met before is hidden, which leaves a gap in the padded history.
    rows = torch.cat([torch.arange(len(data.source)), torch.zeros(1, dtype=torch.long)])
    again = replace(data.source_history, items=data.source_history.items % 7)
    data = replace(
        data, source=replace(data.source, item=data.source.item % 7), source_history=again
    )
    batches = Batches(data, LENGTH, seed=0)
    padded, flat = batches.source_rows(rows), batches.source_rows(rows, flat=True)
    hidden = 0
    for shown, runs in (
        (padded.source_history, flat.source_history),
        (padded.target_history, flat.target_history),
    ):
        assert isinstance(shown, History) and isinstance(runs, FlatHistories)
        assert torch.equal(runs.length, shown.mask.sum(1))
        for row, (start, length) in enumerate(zip(runs.start, runs.length, strict=True)):
            places = slice(int(start), int(start + length))
            mask = shown.mask[row]
            assert torch.equal(runs.items.item[places], shown.items.item[row][mask])
            assert torch.equal(runs.items.category[places], shown.items.category[row][mask])
            hidden += bool(mask.any()) and not bool(mask[: int(length)].all())
    assert hidden, "no history has a gap"


def test_several_batches_at_once_draw_what_each_would(tiny: CrossDomainData) -> None:
    several = [torch.arange(20), torch.arange(40, 57), torch.arange(5)]
    together = Batches(tiny, LENGTH, seed=3).train_pairs(*several)
    batches = Batches(tiny, LENGTH, seed=3)
    alone = [batches.train_pairs(rows).source_row for rows in several]
    assert torch.equal(together.source_row, torch.cat(alone))
