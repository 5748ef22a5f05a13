"""Two logs of behaviours become one scenario: common users, last-two split, time cut, histories.

The protocol is that of BIAO (Chen et al., WWW'23, section 4.1): per user, the last target
behaviour is for testing and the second last for validation; source behaviours serve training
only if they are strictly earlier than the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cdr.data.schema import (
    OTHERS,
    Behaviors,
    CrossDomainData,
    Histories,
    Interactions,
    Items,
    Times,
)


def build(
    name: str,
    source: Interactions,
    target: Interactions,
    *,
    source_cut: str = "time",
    extra_test: Interactions | None = None,
) -> CrossDomainData:
    """Split two domains by time and index what the perceptron may see of each user.

    Users are those found in both domains, and items those of the common users before any cut by
    time. Behaviours are sorted by time within a user; ties are broken by `order`, or else by the
    order of the file. A behaviour of unknown time keeps its place behind the one before it in
    `order` (or in the file).

    The last target behaviour of a user goes to `test`, the second last to `valid`, the rest to
    `train`; a user with two has no training row, a user with one is in `test` only. Source
    behaviours are kept where their time < the time of the user's second last target behaviour
    (of the last, for a user with one). What the data may lack, each case said in `notes`:

    - the time of that target behaviour: the latest known time before it is the cut, which is
      never later than the true one. A user without any gets no source behaviour of known time;
    - the time of a source behaviour: it is kept, unless `order` puts it behind one that is cut,
      and sees all of the user's training positives in its target history;
    - the times of a whole domain: `source_cut` falls back on "all", and target histories hold
      all of the user's training positives;
    - the time of one training target behaviour: it is left out of the target histories.

    Args:
        name: Name of the scenario.
        source: The source domain.
        target: The target domain.
        source_cut: "time", or "all" to keep every source behaviour.
        extra_test: Further target behaviours to test on; they enter nothing else. Rows of users
            who are not common are dropped; their items count among the target's items.

    Returns:
        The scenario. Its `statistics` count: users; source, target, source_items, target_items
        (common users, before the cut); source_train (after the cut); source_uncut (kept although
        the time is unknown); train, valid, test; source_positive, train_positive; short_users
        (fewer than three target behaviours), users_with_two, users_with_one; users_without_source
        (no source behaviour left); bounded_users (cut at an earlier target behaviour's time) and
        users_without_cut (no known target time).

    Raises:
        ValueError: If no user is common, no behaviour is left to train on in one of the domains,
            or `source_cut` is unknown.
    """
    if source_cut not in ("time", "all"):
        raise ValueError(f'source_cut must be "time" or "all", not {source_cut!r}.')
    user_ids = _common_users(source.user, target.user)
    src, source_items = _index(source, user_ids)
    tgt, target_items, extra = _index_target(target, extra_test, user_ids)
    num_users = len(user_ids)

    counts = np.bincount(tgt.user, minlength=num_users)
    ends = np.cumsum(counts)
    from_end = ends[tgt.user] - np.arange(len(tgt.user))  # 1 for a user's last behaviour
    train, valid, test = (tgt.select(m) for m in (from_end > 2, from_end == 2, from_end == 1))
    if not len(train.user):
        raise ValueError(
            f"target: none of the {num_users} common users has three behaviours in the target "
            "domain, so that nothing is left to train on after the last two go to validation and "
            "test. Take a larger target domain, or more users."
        )
    statistics = {
        "users": num_users,
        "source": len(src.user),
        "target": len(tgt.user),
        "source_items": source_items.num,
        "target_items": target_items.num,
    }

    timed = not (np.isnan(src.time).all() or np.isnan(tgt.time).all())
    cut_by_time = timed and source_cut == "time"
    kept, cut_counts = _cut(src, tgt, ends, counts, cut_by_time, source.order is not None)
    if cut_by_time and not kept.any():
        raise ValueError(
            f"source: none of the {len(src.user)} source behaviours of the {num_users} common "
            "users is earlier than its user's second last target behaviour. Source times run "
            f"from {np.nanmin(src.time):g} to {np.nanmax(src.time):g}, target times from "
            f"{np.nanmin(tgt.time):g} to {np.nanmax(tgt.time):g}: give both in the same unit, or "
            'pass source_cut="all".'
        )
    src = src.select(kept)
    statistics |= {
        "source_train": len(src.user),
        **cut_counts,
        "train": len(train.user),
        "valid": len(valid.user),
        "test": len(test.user),
        "source_positive": int(src.label.sum()),
        "train_positive": int(train.label.sum()),
        "short_users": int((counts < 3).sum()),
        "users_with_two": int((counts == 2).sum()),
        "users_with_one": int((counts == 1).sum()),
        "users_without_source": num_users - len(np.unique(src.user)),
    }
    offsets = np.concatenate([[0], np.cumsum(np.bincount(src.user, minlength=num_users))])
    past = _Past(src, train, timed)
    known = _last_known(tgt.user, tgt.time)
    return CrossDomainData(
        name=name,
        user_ids=user_ids,
        source_items=source_items,
        target_items=target_items,
        source=src.behaviors(),
        source_offsets=_long(offsets),
        train=past.beside(train, known[from_end > 2], np.arange(len(train.user))),
        valid=past.beside(valid, known[from_end == 2]),
        test=past.beside(test, known[from_end == 1]),
        extra_test=None if extra is None else past.beside(extra, np.full(len(extra.user), np.inf)),
        source_history=_source_history(src),
        target_history=_target_history(src, train, timed),
        relevant=None if src.relevant is None else torch.from_numpy(src.relevant.copy()),
        times=Times(*(torch.from_numpy(rows.time.copy()) for rows in (src, train, valid, test))),
        source_cut="time" if cut_by_time else "all",
        statistics=statistics,
        notes=tuple(_notes(statistics, src, source_cut, timed)),
    )


def audit(data: CrossDomainData) -> None:
    """Check that no source row and no history shows what was not yet known.

    Everything is checked from the tensors themselves, against the times where they are known:
    the split's chronology, the cut of the source, and for each history that it holds positives
    of the same user only, none of them the candidate, later than it, or outside training.

    Args:
        data: A scenario, on any device.

    Raises:
        ValueError: Naming the rule that is broken and the first row that breaks it.
    """
    data = data.to("cpu")
    latest_train = torch.full((data.num_users,), -torch.inf, dtype=torch.float64)
    known = ~data.times.train.isnan()
    latest_train.scatter_reduce_(0, data.train.user[known], data.times.train[known], "amax")
    valid_time, test_time = (torch.full((data.num_users,), torch.nan).double() for _ in range(2))
    valid_time[data.valid.user] = data.times.valid
    test_time[data.test.user] = data.times.test
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


@dataclass(frozen=True)
class _Rows:
    """Behaviours of the common users with users and items as indices, sorted by user and time."""

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    time: np.ndarray
    relevant: np.ndarray | None

    def select(self, rows: np.ndarray) -> _Rows:
        columns: dict[str, Any] = {
            name: None if column is None else column[rows] for name, column in vars(self).items()
        }
        return _Rows(**columns)

    def behaviors(self) -> Behaviors:
        label = torch.from_numpy(self.label.astype(np.float32))
        return Behaviors(_long(self.user), _long(self.item), label)


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def _encode(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique(values, return_inverse=True)`, an order of magnitude faster on strings."""
    encoded = pa.array(values).dictionary_encode()
    unique = encoded.dictionary.to_numpy(zero_copy_only=False)
    order = np.argsort(unique)
    rank = np.empty(len(unique), dtype=np.int64)
    rank[order] = np.arange(len(unique))
    return unique[order], rank[encoded.indices.to_numpy()]


def _common_users(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    both = [_encode(users)[0] for users in (source, target)]
    numeric = [users.dtype.kind in "iu" for users in both]
    # Without this check, numpy would compare 1 and "1" as objects and fail, or find them unequal.
    common = np.intersect1d(both[0], both[1]) if numeric[0] == numeric[1] else both[0][:0]
    if not len(common):
        examples = [", ".join(repr(user) for user in users[:3].tolist()) for users in both]
        raise ValueError(
            f"No user is in both domains: the source has {len(both[0]):,} users (such as "
            f"{examples[0] or 'none'}), the target {len(both[1]):,} (such as "
            f"{examples[1] or 'none'}). Both domains must name a user by the same id, of the "
            "same type."
        )
    return common


def _index(rows: Interactions, user_ids: np.ndarray) -> tuple[_Rows, Items]:
    unique, code = _encode(rows.user)
    place = np.searchsorted(user_ids, unique)
    place[place == len(user_ids)] = 0
    user = np.where(user_ids[place] == unique, place, -1)[code]
    rows, user = rows.select(user >= 0), user[user >= 0]
    item_ids, item = _encode(rows.item)

    first_row = np.unique(item, return_index=True)[1]
    if rows.category is None:
        names, category = np.array([OTHERS]), np.zeros(len(item_ids), dtype=np.int64)
    else:
        names, category = _encode(rows.category[first_row])
    items = Items(item_ids, _long(category), tuple(str(name) for name in names))

    time = np.full(len(user), np.nan) if rows.time is None else rows.time.astype(np.float64)
    order = np.arange(len(user)) if rows.order is None else rows.order
    indexed = _Rows(user, item, rows.label.astype(bool), time, rows.relevant)
    return indexed.select(_chronological(user, time, order)), items


def _index_target(
    target: Interactions, extra: Interactions | None, user_ids: np.ndarray
) -> tuple[_Rows, Items, _Rows | None]:
    if extra is None:
        return *_index(target, user_ids), None
    # Both in one go, so that they share the index of items, and then apart again: `relevant` has
    # no meaning in a target and carries the difference. The chronology of `extra` is of no use.
    columns = {"user": extra.user, "item": extra.item, "label": extra.label}
    if target.time is not None:
        columns["time"] = np.full(len(extra), np.nan)
    if target.order is not None:
        columns["order"] = np.zeros(len(extra), dtype=np.int64)
    if target.category is not None:
        unknown = np.full(len(extra), OTHERS, dtype=object)
        columns["category"] = unknown if extra.category is None else extra.category
    joined = {k: np.concatenate([getattr(target, k), column]) for k, column in columns.items()}
    is_extra = np.repeat([False, True], [len(target), len(extra)])
    rows, items = _index(Interactions(**joined, relevant=is_extra), user_ids)
    is_extra = np.asarray(rows.relevant)
    return rows.select(~is_extra), items, rows.select(is_extra)


def _chronological(user: np.ndarray, time: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sorts by user, time, order; an unknown time counts as that of the behaviour before it."""
    index = np.lexsort((order, user))
    user, time = user[index], time[index]
    return index[np.lexsort((np.arange(len(user)), _last_known(user, time), user))]


def _last_known(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Each row's time, or where unknown the last one known of the user's earlier rows, or -inf."""
    known = np.maximum.accumulate(np.where(np.isnan(time), -1, np.arange(len(user))))
    return np.where(known >= np.searchsorted(user, user), time[known], -np.inf)


def _cut(
    src: _Rows, tgt: _Rows, ends: np.ndarray, counts: np.ndarray, by_time: bool, ordered: bool
) -> tuple[np.ndarray, dict[str, int]]:
    """Which source rows may be trained on, and how many cuts were less than exact."""
    tally = {"source_uncut": 0, "bounded_users": 0, "users_without_cut": 0}
    if not by_time:
        return np.ones(len(src.user), dtype=bool), tally
    at = ends - np.minimum(counts, 2)  # a user's second last row, or the only one
    cut = _last_known(tgt.user, tgt.time)[at]
    # A source row of unknown time is surely too late if one before it is; only `order` knows.
    earliest = _last_known(src.user, src.time) if ordered else src.time
    unknown = np.isnan(src.time)
    too_late = np.isfinite(earliest) & (earliest >= cut[src.user])
    kept = np.where(unknown, ~too_late, src.time < cut[src.user])
    tally["source_uncut"] = int((kept & unknown).sum())
    tally["bounded_users"] = int((np.isfinite(cut) & np.isnan(tgt.time[at])).sum())
    tally["users_without_cut"] = int(np.isneginf(cut).sum())
    return kept, tally


def _notes(count: dict[str, int], src: _Rows, source_cut: str, timed: bool) -> Iterator[str]:
    """What a reader of results on these data must know, from the counts and the kept rows."""
    if source_cut == "all":
        yield f"All {count['source']:,} source behaviours are kept, whatever their time."
    elif not timed:
        yield (
            f"The {'source' if np.isnan(src.time).all() else 'target'} has no times: source "
            "behaviours could not be cut at the target's validation time, and all "
            f"{count['source']:,} are kept."
        )
    if count["source_uncut"]:
        yield (
            f"{count['source_uncut']:,} of {count['source']:,} source behaviours have no time, "
            "could not be cut at the target's validation time, and are kept."
        )
    if count["bounded_users"]:
        yield (
            f"For {count['bounded_users']:,} of {count['users']:,} users the time of the "
            "validation behaviour is unknown: their source behaviours are cut at the latest known "
            "time of an earlier target behaviour, which is no later. "
            f"{count['source_train']:,} of {count['source']:,} source behaviours are left."
        )
    if count["users_without_cut"]:
        yield (
            f"{count['users_without_cut']:,} of {count['users']:,} users have no known target "
            "time up to their validation behaviour: none of their timed source behaviours is kept."
        )
    if not timed:
        yield (
            "For want of times, target histories hold all training positives of the user, those "
            "after the source behaviour included."
        )
    elif np.isnan(src.time).any():
        yield (
            f"{int(np.isnan(src.time).sum()):,} source behaviours have no time: their target "
            "histories hold all training positives of the user that have one, and their place in "
            "source histories is that of `order` or of the file."
        )
    if count["short_users"]:
        yield (
            f"{count['short_users']:,} of {count['users']:,} users have fewer than three target "
            f"behaviours and so no training row in the target: {count['users_with_two']:,} with "
            f"two (validation and test), {count['users_with_one']:,} with one (test only)."
        )
    if count["users_without_source"]:
        yield (
            f"{count['users_without_source']:,} of {count['users']:,} users have no source "
            "behaviour left to train on."
        )


class _Past:
    """What a user had liked by the time of a target behaviour."""

    def __init__(self, src: _Rows, train: _Rows, timed: bool) -> None:
        positive = np.flatnonzero(src.label)
        self._timed = timed
        self._source_user = src.user[positive]
        self._source_time = _last_known(src.user, src.time)[positive]
        self._target_row = _usable(train, timed)
        self._target_user = train.user[self._target_row]

    def beside(self, rows: _Rows, time: np.ndarray, place: np.ndarray | None = None) -> Behaviors:
        """Target rows with their past: source positives up to `time`, training positives of the
        target above their `place` in training (None: all of them)."""
        if self._timed:
            first, end = _up_to(self._source_user, self._source_time, rows.user, time)
        else:
            first, end = _slices(self._source_user, rows.user)
        source = np.stack([first, end], 1)
        first, end = _slices(self._target_user, rows.user)
        if place is not None:
            end = np.searchsorted(self._target_row, place)
        return replace(
            rows.behaviors(),
            source_past=_long(source),
            target_past=_long(np.stack([first, end], 1)),
        )


def _slices(users: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the entries of some users begin and end, given the sorted users of all entries."""
    return np.searchsorted(users, of, side="left"), np.searchsorted(users, of, side="right")


def _up_to(
    users: np.ndarray, times: np.ndarray, of: np.ndarray, until: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same up to and including a time; entries are sorted by user and time."""
    # One integer per (user, time) that sorts as the pair does, so that a single search does.
    ticks, code = np.unique(np.concatenate([times, until]), return_inverse=True)
    past, now = np.split(code, [len(times)])
    key, query = users * (len(ticks) + 1) + past, of * (len(ticks) + 1) + now
    return np.searchsorted(users, of, side="left"), np.searchsorted(key, query, side="right")


def _usable(train: _Rows, timed: bool) -> np.ndarray:
    """The training positives that a target history may show."""
    return np.flatnonzero(train.label & ~np.isnan(train.time) if timed else train.label)


def _source_history(src: _Rows) -> Histories:
    positive = np.flatnonzero(src.label)
    before = np.cumsum(src.label) - src.label  # positives in all rows above, other users' included
    start = before[np.searchsorted(src.user, src.user)]
    return Histories(_long(src.item[positive]), _long(start), _long(before), _long(positive))


def _target_history(src: _Rows, train: _Rows, timed: bool) -> Histories:
    positive = _usable(train, timed)
    user, time = train.user[positive], train.time[positive]
    start, end = _slices(user, src.user)
    if timed:
        unknown = np.isnan(src.time)
        end = np.where(unknown, end, _up_to(user, time, src.user, src.time)[1])
    return Histories(_long(train.item[positive]), _long(start), _long(end), _long(positive))


def _refuse(broken: Tensor, message: str) -> None:
    if broken.any():
        raise ValueError(
            f"Leak: {message} {int(broken.nonzero()[0])} ({int(broken.sum())} in all). The arrays "
            "do not follow the protocol; build them with cdr.data.split.build."
        )


def _audit_past(name: str, rows: Behaviors, now: Tensor, data: CrossDomainData) -> None:
    """The pasts of target rows, by the same rules, and no training row behind its candidate."""
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
    """Of rows that are behaviours of the history's own domain: all that it shows is above them."""
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
