"""Pairs of training rows of one user each: one for the train batch, one for the dev batch."""

from __future__ import annotations

import torch
from torch import Tensor


class SameUsers:
    """Finds another row of the user of a row.

    A source behaviour changes the predictions of its own user most, so that dev batches of the
    same users as the train batch give by far the least noisy hypergradient.

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
        self._can_be = torch.zeros_like(user, dtype=torch.bool).index_fill_(0, drawn, True)
        self._generator = torch.Generator(user.device).manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the draws are."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on drawing where the state was taken."""
        self._generator.set_state(state["generator"])

    def partners(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of these rows those whose user has another one to draw, and for each such a one.

        Returns:
            Rows and partners, long [k], with k at most as many as were given.
        """
        user, own = self._user[rows], self._can_be[rows]
        choices = self._count[user] - own.long()
        enough = choices > 0
        rows, user, own, choices = (x[enough] for x in (rows, user, own, choices))
        share = torch.rand(len(rows), generator=self._generator, device=rows.device)
        # float32 can round share·choices up to choices.
        hop = torch.minimum((share * choices).long(), choices - 1)
        first = self._first[user]
        # A row that could be drawn itself is passed over: the hop starts behind it.
        start = torch.where(own, torch.searchsorted(self._drawn, rows) - first + 1, 0)
        return rows, self._drawn[first + (start + hop) % self._count[user]]
