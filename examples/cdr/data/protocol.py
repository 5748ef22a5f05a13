"""Which target behaviours of a user are trained on, validated on and tested on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from cdr.common import at_least, refuse, share


class Parts(NamedTuple):
    """Masks over target behaviours, bool [n] each; a row may be in none of them.

    Args:
        train: Those to train on.
        valid: At most one a user, before the tested ones.
        test: One or more a user, the last ones.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Protocol:
    """How the target behaviours of each user are divided, in the order of time.

    Raises:
        ValueError: If an option is out of its range, or a share is given that is not read.

    Example:
        >>> user = np.array([0] * 11 + [1] * 2)
        >>> parts = Protocol(test="last-share", max_target_history=3).parts(user)
        >>> [np.flatnonzero(part).tolist() for part in parts]
        [[5, 6, 7], [8, 11], [9, 10, 12]]
    """

    test: Literal["last-one", "last-share"] = "last-one"
    """Test on the last target behaviour of each user, or on the last share of them, at least one;
    the one before them is the validation."""
    test_share: float = 0.2
    """With --data.test last-share: the share, rounded down."""
    max_target_history: int | None = None
    """Train on at most so many target behaviours of a user, the latest ones; None: on all."""

    def __post_init__(self) -> None:
        share("data", self, "test_share")
        if self.test == "last-one" and self.test_share != Protocol.test_share:
            refuse("data", "test_share", self.test_share, "it goes with --data.test last-share")
        at_least(1, "data", self, "max_target_history")

    def parts(self, user: np.ndarray) -> Parts:
        """Divide target behaviours.

        Args:
            user: User index of each behaviour, [n], sorted by user and time.
        """
        counts = np.bincount(user)
        from_end = np.cumsum(counts)[user] - np.arange(len(user))  # 1 for a user's last behaviour
        tested = self.num_tested(counts)[user]
        train = from_end > tested + 1
        if self.max_target_history is not None:
            train &= from_end <= tested + 1 + self.max_target_history
        return Parts(train, from_end == tested + 1, from_end <= tested)

    def num_tested(self, counts: np.ndarray) -> np.ndarray:
        """The number of test rows of users with so many target behaviours, [users]."""
        if self.test == "last-one":
            return np.ones_like(counts)
        # The product of a share and a count may lie below a whole number by rounding.
        tested = np.floor(self.test_share * counts + 1e-9).astype(counts.dtype)
        return np.asarray(np.maximum(1, tested))

    def __str__(self) -> str:
        """For titles; "" where nothing is set."""
        parts = []
        if self.test == "last-share":
            parts.append(f"test last {100 * self.test_share:g} %")
        if self.max_target_history is not None:
            parts.append(f"at most {self.max_target_history} target rows a user")
        return ", ".join(parts)

    def short(self) -> tuple[str, ...]:
        """Of each option that is set a word for the names of folders."""
        share = (f"last-{self.test_share:g}",) if self.test == "last-share" else ()
        most = self.max_target_history
        return share if most is None else (*share, f"max-{most}")

    def notes(self, parts: Parts) -> Iterator[str]:
        """What differs from BIAO's protocol, for every table of results."""
        if self.test == "last-share":
            yield (
                f"Tested on the last {100 * self.test_share:g} % of each user's target behaviours, "
                f"at least one (--data.test): {int(parts.test.sum()):,} rows. The one before them "
                "is the validation."
            )
        if self.max_target_history is not None:
            left_out = int((~np.any(parts, axis=0)).sum())
            yield (
                f"At most {self.max_target_history:,} target behaviours of a user are trained on, "
                f"the latest before the validation (--data.max-target-history): {left_out:,} "
                "earlier ones are left out of training and of histories."
            )


LAST_ONE = Protocol()
"""That of BIAO (WWW'23)."""
