"""What became of every row of the files that a scenario is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OTHER_DOMAINS = "of other domains"
NOT_COMMON = "of users who are not in both domains"
REPEATED = "that repeat another one"
CUT = "of the source that are not before the cut by time"
BEYOND = "of the target beyond what the protocol takes"


@dataclass(frozen=True)
class RowsRead:
    """The rows that a reader has found.

    Args:
        rows: All of them, also those that cannot be read; blank lines are none.
        left_out: How many the reader has left out, by reason.
    """

    rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Account:
    """Where all rows went: `read` is `used` and the sum of `left_out`.

    Args:
        read: Rows of the files.
        used: Those that are trained on, validated or tested.
        left_out: How many of the others there are, by reason.

    Raises:
        RuntimeError: The numbers do not add up, so that rows were lost without a reason.
    """

    read: int
    used: int
    left_out: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.read != self.used + sum(self.left_out.values()):
            raise RuntimeError(
                f"of {self.read:,} rows {self.used:,} are used and {dict(self.left_out)} are not: "
                "this is a mistake of the program. Please report it."
            )

    @property
    def sentence(self) -> str:
        """All of it, for the notes on the data."""
        told = [f"{count:,} {why}" for why, count in self.left_out.items() if count]
        if not told:
            return f"All {self.read:,} rows that were read are used."
        return f"Of {self.read:,} rows that were read {self.used:,} are used, not {_joined(told)}."


def account(found: RowsRead, used: int, left_out: Mapping[str, int]) -> Account:
    """The account of rows that a reader has found, some of which a split then leaves out.

    Example:
        >>> found = RowsRead(9, {"of other domains": 2})
        >>> account(found, 4, {"that repeat another one": 3, "of other domains": 0}).sentence
        'Of 9 rows that were read 4 are used, not 2 of other domains and 3 that repeat another one.'
    """
    reasons = dict(found.left_out)
    for why, count in left_out.items():
        reasons[why] = reasons.get(why, 0) + count
    return Account(found.rows, used, {why: count for why, count in reasons.items() if count})


def _joined(told: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))
