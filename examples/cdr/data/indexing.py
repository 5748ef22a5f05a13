"""Ids become indices: the rows of the common users, sorted by user and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from cdr.data.cells import shown
from cdr.data.coded import Coded, encode
from cdr.data.repeats import repeated_lines
from cdr.data.schema import OTHERS, Behaviors, Interactions, Items
from cdr.data.spellings import unicode_forms


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


@dataclass(frozen=True)
class Users:
    """The users of two domains.

    Args:
        source: Those of the source, sorted.
        target: Those of the target, sorted.
        forms: What those are read as that are written in several Unicode forms.
    """

    source: np.ndarray
    target: np.ndarray
    forms: Mapping[str, str]


@dataclass(frozen=True)
class Domain:
    """One domain with its ids as indices.

    Args:
        rows: The rows of the common users.
        items: Their items.
        repeated: How many rows were left out because they repeat another one.
        respelled: How many rows have a user or an item that is read in another Unicode form.
    """

    rows: IndexedRows
    items: Items
    repeated: int
    respelled: int


def as_long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def users_of(source: np.ndarray | Coded, target: np.ndarray | Coded) -> Users:
    """The users of two domains, given that of each row."""
    written = encode(source)[0], encode(target)[0]
    if any(users.dtype.kind in "iu" for users in written):
        return Users(*written, {})
    forms = unicode_forms(np.concatenate(written))
    if not forms:
        return Users(*written, {})
    read = [encode(_read_as(users, forms))[0] for users in written]
    return Users(read[0], read[1], forms)


def common_users(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The users that are in both domains, given those of each."""
    both = (source, target)
    numeric = [users.dtype.kind in "iu" for users in both]
    # Without this check, numpy would compare 1 and "1" as objects and fail, or find them unequal.
    common = source[_places(source, target) >= 0] if numeric[0] == numeric[1] else source[:0]
    if not len(common):
        examples = [", ".join(shown(user, 30) for user in users[:3].tolist()) for users in both]
        raise ValueError(
            f"No user is in both domains: the source has {len(source):,} users (such as "
            f"{examples[0] or 'none'}), the target {len(target):,} (such as "
            f"{examples[1] or 'none'}). Both domains must name a user by the same id, of the "
            "same type and written in the same way."
        )
    return common


def index_rows(
    rows: Interactions, user_ids: np.ndarray, forms: Mapping[str, str], merge: bool
) -> Domain:
    """The rows of some users.

    Args:
        rows: A domain.
        user_ids: The users, sorted.
        forms: What some users are read as.
        merge: Whether to leave out rows that repeat another one.
    """
    written, code = encode(rows.user)
    unique = _read_as(written, forms)
    user = _places(unique, user_ids)[code]
    respelled = (unique != written)[code][user >= 0] if forms else np.zeros((), dtype=bool)
    rows, user = rows.select(user >= 0), user[user >= 0]
    item_ids, item, item_respelled = _items(rows.item)
    respelled = respelled | item_respelled
    repeated = repeated_lines(rows, user, item) if merge else np.zeros(len(rows), dtype=bool)
    num_repeated = int(repeated.sum())
    if num_repeated:
        rows, user, item = rows.select(~repeated), user[~repeated], item[~repeated]

    first_row = np.empty(len(item_ids), dtype=np.int64)
    first_row[item[::-1]] = np.arange(len(item))[::-1]  # of the rows of an item the last one stays
    if rows.category is None:
        names, category = np.array([OTHERS]), np.zeros(len(item_ids), dtype=np.int64)
    else:
        names, category = encode(rows.category[first_row])
    items = Items(item_ids, as_long(category), tuple(str(name) for name in names))

    time = np.full(len(user), np.nan) if rows.time is None else rows.time.astype(np.float64)
    indexed = IndexedRows(user, item, rows.label.astype(bool), time, rows.relevant)
    indexed = indexed.select(_chronological(user, time, rows.order))
    return Domain(indexed, items, num_repeated, int(respelled.sum()))


def index_target(
    target: Interactions,
    extra: Interactions | None,
    user_ids: np.ndarray,
    forms: Mapping[str, str],
    merge: bool,
) -> tuple[Domain, IndexedRows | None]:
    """The same of the target, and of further test behaviours."""
    if extra is None:
        return index_rows(target, user_ids, forms, merge), None
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
    domain = index_rows(Interactions(**joined, relevant=is_extra), user_ids, forms, merge)
    is_extra = np.asarray(domain.rows.relevant)
    target_rows, extra_rows = domain.rows.select(~is_extra), domain.rows.select(is_extra)
    return replace(domain, rows=target_rows), extra_rows


def _places(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each id is among others that are sorted, all different; -1 where it is not."""
    if not len(among):
        return np.full(len(ids), -1)
    if among.dtype.kind in "iu":
        place = np.minimum(np.searchsorted(among, ids), len(among) - 1)
        return np.where(among[place] == ids, place, -1)
    found = pc.index_in(pa.array(ids, pa.string()), value_set=pa.array(among, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int64)


def _items(ids: np.ndarray | Coded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The items, sorted; the place of each row's item; which rows are read in another form."""
    written, code = encode(ids)
    forms = {} if written.dtype.kind in "iu" else unicode_forms(written)
    if not forms:
        return written, code, np.zeros(len(code), dtype=bool)
    read = _read_as(written, forms)
    unique, place = encode(read)
    return unique, place[code], (read != written)[code]


def _read_as(ids: np.ndarray, forms: Mapping[str, str]) -> np.ndarray:
    if not forms:
        return ids
    return np.array([forms.get(text, text) for text in ids], dtype=object)


def _chronological(user: np.ndarray, time: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Sorts by user, time, order; an unknown time counts as that of the behaviour before it."""
    ties = () if order is None else (order,)  # sorting is stable: else the order of the file
    if not np.isnan(time).any():
        return np.lexsort((*ties, time, user))
    index = np.lexsort((*ties, user))
    user, time = user[index], time[index]
    return index[np.lexsort((last_known_time(user, time), user))]


def last_known_time(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Each row's time, or where unknown the last one known of the user's earlier rows, or -inf."""
    unknown = np.isnan(time)
    if not unknown.any():
        return time
    known = np.maximum.accumulate(np.where(unknown, -1, np.arange(len(user))))
    return np.where(known >= np.searchsorted(user, user), time[known], -np.inf)
