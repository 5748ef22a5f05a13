"""How far the hypergradients of several folds agree, and what follows for a step."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from torch import Tensor


class Agreement:
    """Compares the hypergradients of models that were held out different rows.

    Their dev rows have nothing in common, so that the inner product of two of them is, on average,
    the squared length of what they share: the signal. The mean squared length of a single one is
    that of signal and noise. The inner products of single steps are the sample of a t-test: all
    steps until the folds agree, since a weak signal takes many to be seen; from then on the last
    ones, since it ends where the weighter has followed it.

    Args:
        window: The least number of steps that is looked at, and how many the last ones are.
        begin: The folds agree from where the inner products are so many standard errors above 0.
            With 3, noise alone is taken for agreement within 200 steps by one run in 50.
        end: They agree no longer from where it is fewer.

    Attributes:
        agrees: Whether they agree at present; not before `window` steps have been seen.

    Example:
        >>> agreement = Agreement(window=3)
        >>> for step in range(3):
        ...     share = agreement.add(torch.tensor([[1.0, 0.1], [1.0, -0.1 - 0.01 * step]]))
        >>> agreement.agrees, round(share, 2)
        (True, 0.99)
    """

    def __init__(self, window: int = 20, begin: float = 3.0, end: float = 1.0) -> None:
        self._window, self._begin, self._end = window, begin, end
        self._products: deque[float] = deque()
        self._lengths: deque[float] = deque()
        self.agrees = False
        self._ever = False

    def add(self, hypergradients: Tensor) -> float:
        """Take one step's hypergradients into account.

        Args:
            hypergradients: One row for each fold, [K, P], with K at least 2.

        Returns:
            The share of the signal in the mean of the K rows, from 0 to 1: what a step along it
            should be shortened by.
        """
        rows = hypergradients.double()
        num, length = len(rows), float(rows.square().sum() / len(rows))
        product = (float(rows.sum(0).square().sum()) - num * length) / (num * (num - 1))
        self._products.append(product)
        self._lengths.append(length)
        self.agrees = self.t >= (self._end if self.agrees else self._begin)
        self._ever |= self.agrees
        while self._ever and len(self._products) > self._window:
            self._products.popleft(), self._lengths.popleft()
        signal = max(0.0, _mean(self._products))
        noise = max(0.0, _mean(self._lengths) - signal) / num
        return signal / (signal + noise) if signal else 0.0

    @property
    def t(self) -> float:
        """Mean of the inner products in standard errors; 0 until the window is full."""
        n = len(self._products)
        if n < self._window:
            return 0.0
        mean = _mean(self._products)
        error = math.sqrt(sum((x - mean) ** 2 for x in self._products) / (n - 1) / n)
        if error == 0.0:
            return math.copysign(math.inf, mean) if mean else 0.0
        return mean / error

    def in_reach(self, steps: int) -> bool:
        """Whether folds that have not agreed yet may be expected to within so many steps in all.

        They may as long as they would if the mean inner product over all these steps came to be two
        standard errors above that of those so far. With 200, folds that have nothing in common are
        given up after 75 steps on average, half of them after 54, and of those that would come to
        agree one in 30 is.

        Args:
            steps: From the first one on.
        """
        seen = len(self._products)
        if seen >= steps:
            return False
        return seen < self._window or (self.t + 2.0) * math.sqrt(steps / seen) >= self._begin

    @property
    def cosine(self) -> float:
        """The mean inner product over the mean squared length, NaN before the first step."""
        length = _mean(self._lengths)
        return _mean(self._products) / length if length else math.nan

    def state_dict(self) -> dict[str, Any]:
        """What has been seen."""
        return {
            "products": list(self._products),
            "lengths": list(self._lengths),
            "agrees": self.agrees,
            "ever": self._ever,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what has been seen."""
        self._products, self._lengths = deque(state["products"]), deque(state["lengths"])
        self.agrees, self._ever = state["agrees"], state["ever"]


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if values else 0.0
