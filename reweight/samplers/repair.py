"""Exchanges that keep the two batches of a pair disjoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

# Rounds of random partners before every partner is tried. One or two are enough unless the batches
# nearly fill the data set; then each further round settles a share of the remaining clashes.
_ROUNDS = 64


class Repair:
    """Exchanges dev samples between pairs until no pair holds a sample twice, train batch included.

    ``homes[c, v]`` is the pair that holds copy ``c`` of sample ``v``, or -1 for none: as many rows
    as a sample has copies, and a last row for the train batches. A sample clashes where two of its
    homes are equal. No exchange is made that would create a clash.

    Args:
        samples: dev samples, one batch after the other; changed in place.
        pair: the pair of each.
        train_pair: the pair whose train batch holds each sample, or -1.
        rng: draws the partners of the exchanges.
    """

    def __init__(
        self,
        samples: Ints,
        pair: Ints,
        train_pair: npt.NDArray[np.int32],
        rng: np.random.Generator,
    ) -> None:
        self.samples, self.pair, self.rng = samples, pair, rng
        self.copy = _copies(samples, len(train_pair))
        num_copies = int(self.copy.max(initial=-1)) + 1
        self.homes = np.full((num_copies + 1, len(train_pair)), -1, dtype=np.int32)
        self.homes[self.copy, samples] = pair
        self.homes[num_copies] = train_pair

    def run(self) -> None:
        """Repair ``samples`` in place."""
        clashing = self._clashing(np.arange(len(self.samples)))
        for attempt in range(_ROUNDS):
            if not len(clashing):
                return
            # Where the batches nearly fill the data, only other clashes are possible partners, and
            # a draw from all positions seldom finds them. So every second draw is among these.
            if attempt % 2:
                partner = self.rng.choice(clashing, len(clashing))
            else:
                partner = self.rng.integers(len(self.samples), size=len(clashing))
            self._exchange_allowed(clashing, partner)
            clashing = self._clashing(clashing)
        for pair in np.unique(self.pair[clashing]):
            self._settle(pair, clashing[self.pair[clashing] == pair])

    def _clashing(self, at: Ints) -> Ints:
        """Those of the positions ``at`` whose sample is in its pair twice."""
        homes = self.homes[:, self.samples[at]]
        clashing: Ints = at[(homes == self.pair[at]).sum(axis=0) > 1]
        return clashing

    def _taken(self, samples: Any, pair: Any) -> npt.NDArray[np.bool_]:
        """Whether each sample already stands in the pair it would move to."""
        taken: npt.NDArray[np.bool_] = (self.homes[:, samples] == pair).any(axis=0)
        return taken

    def _exchange_allowed(self, at: Ints, partner: Ints) -> None:
        """Carry out those of the proposed exchanges that create no clash, all at once."""
        allowed = ~self._taken(self.samples[partner], self.pair[at])
        allowed &= ~self._taken(self.samples[at], self.pair[partner])
        at, partner = at[allowed], partner[allowed]
        # Exchanges of different samples are independent of each other.
        moved = np.stack([self.samples[at], self.samples[partner]], axis=1)
        first = np.zeros(moved.size, dtype=bool)
        first[np.unique(moved, return_index=True)[1]] = True
        alone = first.reshape(moved.shape).all(axis=1)
        self._exchange(at[alone], partner[alone])

    def _exchange(self, at: Any, partner: Any) -> None:
        for content in (self.samples, self.copy):
            content[at], content[partner] = content[partner], content[at]
        for position in (at, partner):
            self.homes[self.copy[position], self.samples[position]] = self.pair[position]

    def _settle(self, pair: int, clashing: Ints) -> None:
        """Free one pair of its clashes: try every partner, else replace the sample."""
        partners = np.flatnonzero(~self._taken(self.samples, pair) & (self.pair != pair))
        vacated = []
        for at in clashing:
            if not len(self._clashing(np.array([at]))):
                continue  # the other copy was moved
            sample = self.samples[at]
            allowed = partners[~self._taken(np.array([sample]), self.pair[partners][None])]
            if len(allowed):
                partner = self.rng.choice(allowed)
                partners = partners[self.samples[partners] != self.samples[partner]]
                self._exchange(at, partner)
            else:
                self.homes[self.copy[at], sample] = -1
                vacated.append(at)
        if vacated:
            free = np.flatnonzero(~(self.homes == pair).any(axis=0))
            self.samples[vacated] = self.rng.choice(free, len(vacated), replace=False)
            self.copy[vacated] = len(self.homes)
            row = np.full((1, self.homes.shape[1]), -1, dtype=np.int32)
            row[0, self.samples[vacated]] = pair
            self.homes = np.concatenate([self.homes, row])


def _copies(samples: Ints, num_samples: int) -> Ints:
    """A number for each position, different wherever the sample is the same, counted from 0."""
    copy = np.zeros_like(samples)
    others = np.arange(len(samples))
    holder = np.empty(num_samples, dtype=np.int64)
    while len(others):
        holder[samples[others]] = others
        others = others[holder[samples[others]] != others]
        copy[others] += 1
    return copy
