"""Sentences on what a split could not do with the data, for every table of results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cdr.data.indexing import IndexedRows


def notes_on(
    count: dict[str, int], src: IndexedRows, source_cut: str, timed: bool
) -> Iterator[str]:
    """What a reader of results on these data must know.

    Args:
        count: The statistics.
        src: The source rows that are kept.
        source_cut: "time" or "all", as asked for.
        timed: Whether both domains have times.
    """
    yield from _notes_on_the_cut(count, src, source_cut, timed)
    yield from _notes_on_histories(src, timed)
    yield from _notes_on_users(count)


def _notes_on_the_cut(
    count: dict[str, int], src: IndexedRows, source_cut: str, timed: bool
) -> Iterator[str]:
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


def _notes_on_histories(src: IndexedRows, timed: bool) -> Iterator[str]:
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


def _notes_on_users(count: dict[str, int]) -> Iterator[str]:
    if count["short_users"]:
        yield (
            f"{count['short_users']:,} of {count['users']:,} users have too few target "
            f"behaviours and so no training row in the target: {count['users_with_two']:,} have "
            f"two (validation and test), {count['users_with_one']:,} one (test only)."
        )
    if count["users_without_source"]:
        yield (
            f"{count['users_without_source']:,} of {count['users']:,} users have no source "
            "behaviour left to train on."
        )
