"""Pairs of training rows of one user each: one for the train batch, one for the dev batch."""

from __future__ import annotations

import torch
from torch import Tensor


class SameUsers:
    """Finds another row of the user of a row.

    What a source behaviour teaches the model of its user shows in that user's own rows: dev batches
    of the same users as the train batch give by far the clearest hypergradient.

    Args:
        user: of every training row, ascending, long [n].
        num_users: how many there are, with and without rows.
        drawn: rows that can be drawn, ascending, long [m].
        seed: of the draws.
    """

    def __init__(self, user: Tensor, num_users: int, drawn: Tensor, seed: int) -> None:
        self._user, self._drawn = user, drawn
        users = torch.arange(num_users + 1, device=user.device)
        ends = torch.searchsorted(user[drawn], users)
        self._first, self._count = ends[:-1], ends.diff()
        self._generator = torch.Generator(user.device).manual_seed(seed)

    def other(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows that can be drawn, those whose user has another one, and for each such another.

        Returns:
            Rows and rows, long [k], with k at most as many as were given.
        """
        user = self._user[rows]
        enough = self._count[user] > 1
        rows, user = rows[enough], user[enough]
        first, count = self._first[user], self._count[user]
        place = torch.searchsorted(self._drawn, rows) - first
        hop = 1 + self._place(count - 1)
        return rows, self._drawn[first + (place + hop) % count]

    def beside(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows that cannot be drawn, those whose user has one that can, and for each such a one.

        Returns:
            Drawn rows and rows, long [k], with k at most as many as were given.
        """
        user = self._user[rows]
        enough = self._count[user] > 0
        rows, user = rows[enough], user[enough]
        return self._drawn[self._first[user] + self._place(self._count[user])], rows

    def _place(self, count: Tensor) -> Tensor:
        """A random number from 0 to below each count."""
        share = torch.rand(len(count), generator=self._generator, device=count.device)
        # float32 can round share·count up to count.
        return torch.minimum((share * count).long(), count - 1)
