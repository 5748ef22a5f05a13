"""Two logs of behaviours become one scenario: common users, split, time cut, histories.

The protocol is that of BIAO (Chen et al., WWW'23, section 4.1), unless another one is given: per
user, the last target behaviour is for testing and the second last for validation; source
behaviours are training data only if they are strictly earlier than the latter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cdr.data.accounts import BEYOND, CUT, NOT_COMMON, REPEATED, RowsRead, account
from cdr.data.clock import on_one_clock
from cdr.data.histories import PastFinder, source_histories, target_histories
from cdr.data.indexing import (
    Domain,
    IndexedRows,
    as_long,
    common_users,
    index_rows,
    index_target,
    last_known_time,
    users_of,
)
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.row_notes import notes_on_ids, notes_on_repeats
from cdr.data.schema import CrossDomainData, Interactions, Times
from cdr.data.split_notes import notes_on


def build(
    name: str,
    source: Interactions,
    target: Interactions,
    *,
    source_cut: str = "time",
    protocol: Protocol = LAST_ONE,
    extra_test: Interactions | None = None,
    merge_lines: bool = False,
    notes: Sequence[str] = (),
    found: RowsRead | None = None,
) -> CrossDomainData:
    """Split two domains by time and index what the perceptron may see of each user.

    Users are those found in both domains, and items those of the common users before any cut by
    time. Behaviours are sorted by time within a user; ties are broken by `order`, or else by the
    order of the file. A behaviour of unknown time keeps its place behind the one before it in
    `order` (or in the file).

    The last target behaviour of a user goes to `test` (or several, see `protocol`), the one before
    to `valid`, the rest to `train`; a user with two has no training row, a user with one is in
    `test` only. Source behaviours are kept where their time < the time of the user's validation
    behaviour (of the test behaviour, for a user with one). What the data may lack, each case said
    in `notes`:

    - the time of that target behaviour: the latest known time before it is the cut, which is
      never later than the true one. A user without any gets no source behaviour of known time;
    - the time of a source behaviour: it is kept, unless `order` puts it behind one that is cut,
      and sees all of the user's training positives in its target history;
    - the times of a whole domain: `source_cut` falls back on "all", and target histories hold
      all of the user's training positives;
    - the time of one training target behaviour: it is left out of the target histories.

    What else `notes` count: times that were converted to one unit (:mod:`cdr.data.clock`), ids that
    were read as equal because Unicode calls them so, lines that were merged, and behaviours that
    repeat an item. The latter stay: a user may rate an item again. The item is hidden from the
    histories that batches show beside it, and :func:`cdr.data.leaks.audit` counts where it is.

    Args:
        name: Name of the scenario.
        source: The source domain.
        target: The target domain.
        source_cut: "time", or "all" to keep every source behaviour.
        protocol: Which target behaviours are trained on and tested on. Histories hold training
            behaviours only, and a later test row does not see an earlier one.
        extra_test: Further target behaviours to test on; they enter nothing else. Rows of users
            who are not common are dropped; their items count among the target's items.
        merge_lines: Leave out rows that repeat an earlier one, as readers of files do: of a domain,
            with equal user, item, label and time, and `order` where there is one. Not together
            with `extra_test`.
        notes: What a reader has to say on the files, to stand behind the others.
        found: The rows of the files, of which `source` and `target` are those that the reader has
            not left out.

    Returns:
        The scenario. Its `statistics` count: users; source, target, source_items, target_items
        (common users, before the cut); source_train (after the cut); source_uncut (kept although
        the time is unknown); train, valid, test; source_positive, train_positive; short_users
        (without a training row in the target), users_with_two, users_with_one; users_without_source
        (no source behaviour left); bounded_users (cut at an earlier target behaviour's time) and
        users_without_cut (no known target time).

    Raises:
        ValueError: If no user is common, no behaviour is left to train on in one of the domains,
            times cannot be compared, or `source_cut` is unknown.
    """
    if source_cut not in ("time", "all"):
        raise ValueError(f'source_cut must be "time" or "all", not {source_cut!r}.')
    if merge_lines and extra_test is not None:
        raise ValueError(
            "merge_lines=True does not go with extra_test, which has no times that tell a repeated "
            "line from a repeated behaviour; leave one of them out."
        )
    clock = on_one_clock(source, target)
    users = users_of(clock.source.user, clock.target.user)
    user_ids = common_users(users.source, users.target)
    from_source = index_rows(clock.source, user_ids, users.forms, merge_lines)
    from_target, extra = index_target(clock.target, extra_test, user_ids, users.forms, merge_lines)
    all_src, tgt = from_source.rows, from_target.rows

    parts = protocol.parts(tgt.user)
    train, valid, test = map(tgt.select, parts)
    _check_trainable(train, len(user_ids))
    counts = np.bincount(tgt.user)  # every common user has one
    # A user's validation row, or the only one.
    bounds = np.cumsum(counts) - np.minimum(counts, protocol.num_tested(counts) + 1)

    timed = not (np.isnan(all_src.time).all() or np.isnan(tgt.time).all())
    cut_by_time = timed and source_cut == "time"
    kept, cut_counts = _cut(all_src, tgt, bounds, cut_by_time, source.order is not None)
    if cut_by_time and not kept.any():
        raise _nothing_before_the_cut(all_src, tgt, len(user_ids))
    src = all_src.select(kept)
    statistics = {
        **_sizes(len(user_ids), from_source, from_target),
        "source_train": len(src.user),
        **cut_counts,
        **_training_sizes(src, train, valid, test, counts),
    }
    offsets = np.concatenate([[0], np.cumsum(np.bincount(src.user, minlength=len(user_ids)))])
    repaired = {
        **clock.repaired,
        "repeated lines": from_source.repeated + from_target.repeated,
        "ids in another Unicode form": from_source.respelled + from_target.respelled,
    }
    counted = None
    if found is not None:
        repeated = from_source.repeated + from_target.repeated
        common = len(all_src.user) + len(tgt.user) + repeated
        left_out = {
            NOT_COMMON: len(source) + len(target) - common,
            REPEATED: repeated,
            CUT: len(all_src.user) - len(src.user),
            BEYOND: len(tgt.user) - len(train.user) - len(valid.user) - len(test.user),
        }
        used = len(src.user) + len(train.user) + len(valid.user) + len(test.user)
        counted = account(found, used, left_out)
        notes = (*notes, counted.sentence)
    past = PastFinder(src, train, timed)
    known = last_known_time(tgt.user, tgt.time)
    return CrossDomainData(
        name=name,
        user_ids=user_ids,
        source_items=from_source.items,
        target_items=from_target.items,
        source=src.behaviors(),
        source_offsets=as_long(offsets),
        train=past.beside(train, known[parts.train], np.arange(len(train.user))),
        valid=past.beside(valid, known[parts.valid]),
        test=past.beside(test, known[parts.test]),
        extra_test=None if extra is None else past.beside(extra, np.full(len(extra.user), np.inf)),
        source_history=source_histories(src),
        target_history=target_histories(src, train, timed),
        relevant=None if src.relevant is None else torch.from_numpy(src.relevant.copy()),
        times=Times(*(torch.from_numpy(rows.time.copy()) for rows in (src, train, valid, test))),
        source_cut="time" if cut_by_time else "all",
        protocol=protocol,
        statistics=statistics,
        notes=(
            *protocol.notes(parts),
            *notes_on(statistics, src, source_cut, timed),
            *clock.notes,
            *notes_on_ids(users, from_source, from_target),
            *notes_on_repeats(from_source, from_target, parts),
            *notes,
        ),
        repaired={what: count for what, count in repaired.items() if count},
        reader_notes=tuple(notes),
        account=counted,
    )


def _check_trainable(train: IndexedRows, num_users: int) -> None:
    if not len(train.user):
        raise ValueError(
            f"target: none of the {num_users} common users has three behaviours in the target "
            "domain, or more than validation and test take, so that nothing is left to train on. "
            "Take a larger target domain, more users, or a smaller --data.test-share."
        )


def _nothing_before_the_cut(src: IndexedRows, tgt: IndexedRows, num_users: int) -> ValueError:
    return ValueError(
        f"source: none of the {len(src.user)} source behaviours of the {num_users} common "
        "users is earlier than its user's validation behaviour. Source times run "
        f"from {np.nanmin(src.time):g} to {np.nanmax(src.time):g}, target times from "
        f"{np.nanmin(tgt.time):g} to {np.nanmax(tgt.time):g}: give both in the same unit, or "
        'pass source_cut="all".'
    )


def _sizes(num_users: int, source: Domain, target: Domain) -> dict[str, int]:
    """Statistics of the common users before any cut by time."""
    return {
        "users": num_users,
        "source": len(source.rows.user),
        "target": len(target.rows.user),
        "source_items": source.items.num,
        "target_items": target.items.num,
    }


def _training_sizes(
    src: IndexedRows,
    train: IndexedRows,
    valid: IndexedRows,
    test: IndexedRows,
    counts: np.ndarray,
) -> dict[str, int]:
    """Statistics after the split; `counts` [num_users] are the target behaviours of each user."""
    return {
        "train": len(train.user),
        "valid": len(valid.user),
        "test": len(test.user),
        "source_positive": int(src.label.sum()),
        "train_positive": int(train.label.sum()),
        "short_users": len(counts) - len(np.unique(train.user)),
        "users_with_two": int((counts == 2).sum()),
        "users_with_one": int((counts == 1).sum()),
        "users_without_source": int((np.bincount(src.user, minlength=len(counts)) == 0).sum()),
    }


def _cut(
    src: IndexedRows,
    tgt: IndexedRows,
    bounds: np.ndarray,
    by_time: bool,
    ordered: bool,
) -> tuple[np.ndarray, dict[str, int]]:
    """Which source rows may be trained on, and how many cuts were less than exact.

    `bounds` [num_users] are the target rows whose time is the cut of their user.
    """
    tally = {"source_uncut": 0, "bounded_users": 0, "users_without_cut": 0}
    if not by_time:
        return np.ones(len(src.user), dtype=bool), tally
    cut = last_known_time(tgt.user, tgt.time)[bounds]
    # A source row of unknown time is surely too late if one before it is; only `order` knows.
    earliest = last_known_time(src.user, src.time) if ordered else src.time
    unknown = np.isnan(src.time)
    too_late = np.isfinite(earliest) & (earliest >= cut[src.user])
    kept = np.where(unknown, ~too_late, src.time < cut[src.user])
    tally["source_uncut"] = int((kept & unknown).sum())
    tally["bounded_users"] = int((np.isfinite(cut) & np.isnan(tgt.time[bounds])).sum())
    tally["users_without_cut"] = int(np.isneginf(cut).sum())
    return kept, tally
