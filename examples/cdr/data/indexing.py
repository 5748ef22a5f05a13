"""Ids become indices: the rows of the common users, sorted by user and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cdr.data.schema import OTHERS, Behaviors, Interactions, Items


@dataclass(frozen=True)
class IndexedRows:
    """Behaviours of the common users with users and items as indices, sorted by user and time."""

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    time: np.ndarray
    relevant: np.ndarray | None

    def select(self, rows: np.ndarray) -> IndexedRows:
        columns: dict[str, Any] = {
            name: None if column is None else column[rows] for name, column in vars(self).items()
        }
        return IndexedRows(**columns)

    def behaviors(self) -> Behaviors:
        label = torch.from_numpy(self.label.astype(np.float32))
        return Behaviors(as_long(self.user), as_long(self.item), label)


def as_long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def encode(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique(values, return_inverse=True)`, an order of magnitude faster on strings."""
    encoded = pa.array(values).dictionary_encode()
    unique = encoded.dictionary.to_numpy(zero_copy_only=False)
    order = np.argsort(unique)
    rank = np.empty(len(unique), dtype=np.int64)
    rank[order] = np.arange(len(unique))
    return unique[order], rank[encoded.indices.to_numpy()]


def common_users(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    both = [encode(users)[0] for users in (source, target)]
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


def index_rows(rows: Interactions, user_ids: np.ndarray) -> tuple[IndexedRows, Items]:
    unique, code = encode(rows.user)
    place = np.searchsorted(user_ids, unique)
    place[place == len(user_ids)] = 0
    user = np.where(user_ids[place] == unique, place, -1)[code]
    rows, user = rows.select(user >= 0), user[user >= 0]
    item_ids, item = encode(rows.item)

    first_row = np.unique(item, return_index=True)[1]
    if rows.category is None:
        names, category = np.array([OTHERS]), np.zeros(len(item_ids), dtype=np.int64)
    else:
        names, category = encode(rows.category[first_row])
    items = Items(item_ids, as_long(category), tuple(str(name) for name in names))

    time = np.full(len(user), np.nan) if rows.time is None else rows.time.astype(np.float64)
    order = np.arange(len(user)) if rows.order is None else rows.order
    indexed = IndexedRows(user, item, rows.label.astype(bool), time, rows.relevant)
    return indexed.select(_chronological(user, time, order)), items


def index_target(
    target: Interactions, extra: Interactions | None, user_ids: np.ndarray
) -> tuple[IndexedRows, Items, IndexedRows | None]:
    if extra is None:
        return *index_rows(target, user_ids), None
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
    rows, items = index_rows(Interactions(**joined, relevant=is_extra), user_ids)
    is_extra = np.asarray(rows.relevant)
    return rows.select(~is_extra), items, rows.select(is_extra)


def _chronological(user: np.ndarray, time: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sorts by user, time, order; an unknown time counts as that of the behaviour before it."""
    index = np.lexsort((order, user))
    user, time = user[index], time[index]
    return index[np.lexsort((np.arange(len(user)), last_known_time(user, time), user))]


def last_known_time(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Each row's time, or where unknown the last one known of the user's earlier rows, or -inf."""
    known = np.maximum.accumulate(np.where(np.isnan(time), -1, np.arange(len(user))))
    return np.where(known >= np.searchsorted(user, user), time[known], -np.inf)
