"""A scenario whose source behaviours show other items and labels, with histories built anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from cdr.data.histories import PastFinder, source_histories
from cdr.data.indexing import IndexedRows, last_known_time
from cdr.data.schema import Behaviors, CrossDomainData, Items


def with_source(
    data: CrossDomainData,
    item: np.ndarray,
    label: np.ndarray,
    items: Items,
    relevant: np.ndarray,
) -> CrossDomainData:
    """The scenario with other items and labels in its source rows.

    Users and times of the rows stay, so that offsets, cuts and target histories stay valid. What
    is made of the source's positives is made anew: the source histories, and what target rows see
    of the source.

    Args:
        data: A scenario on the CPU, as :func:`cdr.data.split.build` makes it.
        item: Item index of each source row in `items`, [n].
        label: Whether each is positive, bool [n].
        items: The items of the source.
        relevant: The flag of each source row, bool [n].

    Returns:
        A further scenario; tensors that did not change are shared.
    """
    times = data.times
    source = IndexedRows(data.source.user.numpy(), item, label, times.source.numpy(), None)
    train = _rows(data.train, times.train.numpy())
    target_times = np.concatenate([t.numpy() for t in (times.train, times.valid, times.test)])
    timed = not (np.isnan(source.time).all() or np.isnan(target_times).all())
    past = PastFinder(source, train, timed)

    def seen(rows: Behaviors, known: np.ndarray) -> Behaviors:
        found = past.beside(_rows(rows, known), known)
        return replace(rows, source_past=found.source_past)

    targets = (data.train, data.valid, data.test)
    parts = [seen(*pair) for pair in zip(targets, _known_times(data, target_times), strict=True)]
    extra = data.extra_test
    return replace(
        data,
        source_items=items,
        source=source.behaviors(),
        train=parts[0],
        valid=parts[1],
        test=parts[2],
        extra_test=None if extra is None else seen(extra, np.full(len(extra), np.inf)),
        source_history=source_histories(source),
        relevant=torch.from_numpy(relevant.copy()),
        statistics={
            **data.statistics,
            "source_items": items.num,
            "source_positive": int(label.sum()),
        },
    )


def _rows(rows: Behaviors, time: np.ndarray) -> IndexedRows:
    return IndexedRows(
        rows.user.numpy(), rows.item.numpy(), rows.label.numpy().astype(bool), time, None
    )


def _known_times(data: CrossDomainData, times: np.ndarray) -> Iterator[np.ndarray]:
    """The last time known up to each row of train, valid and test."""
    parts = [part.user.numpy() for part in (data.train, data.valid, data.test)]
    user = np.concatenate(parts)
    # Within a user, train comes before valid and valid before test, each in order of time.
    order = np.argsort(user, kind="stable")
    known = np.empty(len(user))
    known[order] = last_known_time(user[order], times[order])
    yield from np.split(known, np.cumsum([len(part) for part in parts])[:-1])
