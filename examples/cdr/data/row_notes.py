"""Sentences on ids and rows of a log that are equal, or nearly so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cdr.data.cells import shown
from cdr.data.indexing import Domain, Users
from cdr.data.protocol import Parts
from cdr.data.repeats import met_before
from cdr.data.spellings import alike


def notes_on_ids(users: Users, source: Domain, target: Domain) -> Iterator[str]:
    """Which ids were read as equal, and which may be meant to be equal.

    Args:
        users: The users of both domains.
        source: The source domain.
        target: The target domain.
    """
    if source.respelled or target.respelled:
        yield (
            f"{source.respelled:,} source and {target.respelled:,} target behaviours have a user "
            "or an item whose id is written in two Unicode forms of the same text: both forms are "
            "read as one id."
        )
    for what, ids in (
        ("user", np.concatenate([users.source, users.target])),
        ("source item", source.items.ids),
        ("target item", target.items.ids),
    ):
        count, examples = alike(ids)
        if count:
            yield (
                f"{count:,} {what} ids differ from another one only in leading zeros, a trailing "
                f'".0", blanks around them or wide digits, such as '
                f"{' and '.join(map(shown, examples))}: they are kept apart. If they mean the "
                "same, write them in the same way."
            )


def notes_on_repeats(source: Domain, target: Domain, parts: Parts) -> Iterator[str]:
    """How many lines were merged, and how many behaviours repeat an item.

    Args:
        source: The source domain.
        target: The target domain.
        parts: Which target rows are validated and tested on.
    """
    if source.repeated or target.repeated:
        yield (
            f"{source.repeated:,} source and {target.repeated:,} target lines repeat another one "
            "(user, item, label and time are equal) and are left out."
        )
    again = [met_before(domain.rows.user, domain.rows.item) for domain in (source, target)]
    num_source, num_target = (int(rows.sum()) for rows in again)
    if num_source or num_target:
        valid, test = (int(again[1][part].sum()) for part in (parts.valid, parts.test))
        yield (
            f"{num_source:,} source and {num_target:,} target behaviours ({valid:,} of validation, "
            f"{test:,} of test) are of an item that the user had met before in the domain. They "
            "count as behaviours of their own; no history that is shown beside one holds its item."
        )
