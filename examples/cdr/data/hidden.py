"""Whether batches hide the item of a candidate from the histories that they show beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cdr.data.batches import Batches, History, Windows
from cdr.data.schema import Behaviors, CrossDomainData, Histories

_ENTRIES = 1 << 20  # of histories that are looked at together


class Hidden(NamedTuple):
    """How many histories have the item of their candidate, which batches hide.

    Args:
        source: Histories of source behaviours.
        target: Histories of target behaviours.
    """

    source: int
    target: int


def audit_hidden(data: CrossDomainData) -> Hidden:
    """Look at all that batches show beside items that the user had met before.

    Args:
        data: A scenario on the CPU, whose histories hold nothing that comes later.

    Raises:
        ValueError: If an item is shown in the history of its own behaviour.
    """
    history = data.source_history
    repeats = _met_before(history, data.source, data.source)
    for rows, batches in _in_chunks(data, repeats, history.end - history.start):
        batch = batches.source_rows(rows)
        assert isinstance(batch.source_history, History) and batch.source_past is not None
        for shown in (batch.source_history, batch.source_past.source):
            _refuse_shown("source_history", shown, data.source.item[rows])
    num_target = 0
    for name, part in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        assert part.target_past is not None  # `build` gives it to every target row
        start, end = part.target_past.unbind(1)
        slots = replace(data.target_history, start=start, end=end)
        found = _met_before(slots, data.train, part)
        num_target += len(found)
        for rows, batches in _in_chunks(data, found, end - start):
            batch = batches.pairs(part.select(rows), torch.zeros(len(rows)))
            assert batch.target_past is not None
            _refuse_shown(f"{name}.target_past", batch.target_past.target, part.item[rows])
    return Hidden(len(repeats), num_target)


def _met_before(slots: Histories, holders: Behaviors, rows: Behaviors) -> Tensor:
    """The rows whose own item is in their history, long [m]."""
    num_items = int(torch.cat([slots.items, rows.item]).max()) + 1
    entry = holders.user[slots.origin] * num_items + slots.items
    ordered, place = entry.sort(stable=True)
    wanted = rows.user * num_items + rows.item
    # A history begins with the first entry of its user, so that the first one of the item decides.
    ordered = torch.cat([ordered, ordered.new_tensor([-1])])
    place = torch.cat([place, place.new_tensor([0])])
    first = torch.searchsorted(ordered[:-1], wanted)
    return ((ordered[first] == wanted) & (place[first] < slots.end)).nonzero().flatten()


def _in_chunks(
    data: CrossDomainData, rows: Tensor, lengths: Tensor
) -> Iterator[tuple[Tensor, Batches]]:
    """Some rows at a time, with batches that show their histories to the end."""
    if len(rows):
        longest = int(lengths[rows].max())
        windows = Windows(target=(0, longest), source=(longest, 0))
        batches = Batches(data, longest, 0, windows)
        for chunk in torch.split(rows, max(1, _ENTRIES // longest)):
            yield chunk, batches


def _refuse_shown(name: str, shown: History | None, item: Tensor) -> None:
    assert shown is not None  # asked for with `windows`
    seen = (shown.mask & (shown.items.item == item.unsqueeze(1))).any(1)
    if seen.any():
        raise ValueError(
            f"Leak: batches show the item of the candidate in {name}, in {int(seen.sum())} of "
            f"{len(seen)} histories of items that the user had met before. A batch has to leave "
            "the candidate's item out of the history of its domain."
        )
