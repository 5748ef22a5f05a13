"""Checks that a split shows nothing that was not known at the time of a behaviour."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cdr.data.hidden import Hidden, audit_hidden
from cdr.data.schema import Behaviors, CrossDomainData, Histories


def audit(data: CrossDomainData) -> Hidden:
    """Check that no source row and no history holds anything later than its candidate.

    Everything is checked from the tensors themselves, against the times where they are known:
    the split's chronology, the cut of the source, and for each history that it holds positives
    of the same user only, none of them the candidate, later than it, or outside training. Where a
    user meets an item again, the item stands in the history beside it: there, batches are made and
    must hide it.

    Args:
        data: A scenario, on any device.

    Returns:
        How many histories have the item of their candidate, hidden.

    Raises:
        ValueError: Naming the rule that is broken and the first row that breaks it.
    """
    data = data.to("cpu")
    latest_train = torch.full((data.num_users,), -torch.inf, dtype=torch.float64)
    known = ~data.times.train.isnan()
    latest_train.scatter_reduce_(0, data.train.user[known], data.times.train[known], "amax")
    valid_time, test_time = (torch.full((data.num_users,), torch.nan).double() for _ in range(2))
    valid_time[data.valid.user] = data.times.valid
    # The first of the user's test rows whose time is known.
    test_time.scatter_reduce_(
        0, data.test.user, data.times.test.nan_to_num(nan=torch.inf), "amin", include_self=False
    )
    test_time[test_time.isinf()] = torch.nan
    _refuse(latest_train > valid_time, "a training behaviour is later than the validation, user")
    _refuse(latest_train > test_time, "a training behaviour is later than the test, user")
    _refuse(valid_time > test_time, "the validation behaviour is later than the test, user")

    if data.source_cut == "time":
        cut = torch.where(valid_time.isnan(), latest_train, valid_time)
        has_valid = torch.zeros(data.num_users, dtype=torch.bool)
        has_valid[data.valid.user] = True
        cut = torch.where(has_valid | test_time.isnan(), cut, test_time)
        _refuse(
            data.times.source >= cut[data.source.user],
            "a source behaviour is not earlier than the cut of its user, source row",
        )

    past, now = data.times, data.times.source
    _audit_history(
        "source_history", data.source_history, data.source, past.source, data.source, now
    )
    _audit_history("target_history", data.target_history, data.train, past.train, data.source, now)
    _audit_order("source_history", data.source_history, "source row")
    for name, rows, now in (
        ("train", data.train, past.train),
        ("valid", data.valid, past.valid),
        ("test", data.test, past.test),
    ):
        _audit_past(name, rows, now, data)
    return audit_hidden(data)


def _refuse(broken: Tensor, message: str) -> None:
    if broken.any():
        raise ValueError(
            f"Leak: {message} {int(broken.nonzero()[0])} ({int(broken.sum())} in all). The arrays "
            "do not follow the protocol; build them with cdr.data.split.build."
        )


def _audit_past(name: str, rows: Behaviors, now: Tensor, data: CrossDomainData) -> None:
    """The histories of target rows; none of a training row may show a later row."""
    past = data.times
    for domain, lists, span, holders, times in (
        ("source", data.source_history, rows.source_past, data.source, past.source),
        ("target", data.target_history, rows.target_past, data.train, past.train),
    ):
        assert span is not None  # `build` gives them to every target row
        slots = replace(lists, start=span[:, 0], end=span[:, 1])
        _audit_history(f"{name}.{domain}_past", slots, holders, times, rows, now, f"{name} row")
        if domain == "target" and name == "train":
            _audit_order("train.target_past", slots, "train row")


def _audit_order(name: str, slots: Histories, row: str) -> None:
    """For rows of the history's own domain: the history holds earlier rows only."""
    place = torch.arange(len(slots.start))
    last = torch.full_like(place, -1)
    filled = slots.end > slots.start
    last[filled] = slots.origin[slots.end[filled] - 1]
    _refuse(last >= place, f"{name} holds the candidate or a later behaviour, {row}")


def _audit_history(
    name: str,
    slots: Histories,
    holders: Behaviors,
    past: Tensor,
    rows: Behaviors,
    now: Tensor,
    row: str = "source row",
) -> None:
    out_of_range = (slots.start < 0) | (slots.end > len(slots.items)) | (slots.start > slots.end)
    _refuse(out_of_range, f"{name} reaches outside its list, {row}")
    outside = (slots.origin < 0) | (slots.origin >= len(holders))
    _refuse(outside, f"{name} holds a behaviour that is not one of training, entry")
    _refuse(slots.origin.diff() <= 0, f"{name} is not in the order of the behaviours, entry")
    _refuse(holders.item[slots.origin] != slots.items, f"{name} shows another item, entry")
    _refuse(holders.label[slots.origin] != 1, f"{name} holds a negative behaviour, entry")
    user = holders.user[slots.origin]
    _refuse(user.diff() < 0, f"{name} is not sorted by user, entry")
    filled = slots.end > slots.start
    begin = torch.searchsorted(user, rows.user)
    _refuse(filled & (slots.start != begin), f"{name} begins with another user's, {row}")
    last = user[slots.end[filled] - 1]
    other = torch.zeros_like(filled).masked_scatter(filled, last != rows.user[filled])
    _refuse(other, f"{name} holds another user's behaviour, {row}")

    # Times, where they are known: the latest of a slice is a maximum that runs over the entries
    # of one user, taken on ranks so that a user's later entries stay below the next user's.
    times, rank = torch.unique(past[slots.origin].nan_to_num(nan=-torch.inf), return_inverse=True)
    offset = user * (len(times) + 1)
    running = torch.cummax(rank + offset, 0).values - offset
    latest = times[running[slots.end[filled] - 1]]
    later = torch.zeros_like(filled).masked_scatter(filled, latest > now[filled])
    _refuse(later, f"{name} holds a behaviour later than the candidate, {row}")
