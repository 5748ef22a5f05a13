"""How far weights differ from each other, apart from their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WEIGHT_SPREAD = 1.0
"""Standard deviation, with a mean of 1, of weights of which half are 0 and half are 2."""

# A thousand times the rounding error of weights around 1; below it their order is that of errors.
_EQUAL = 1e-4


def spread(weights: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Weights in the same order with a mean of 1 and a standard deviation of :data:`WEIGHT_SPREAD`.

    Each is raised to a common power, so that none gets a sign or changes places. Where most weights
    are equally large, and the standard deviation of 1 for them and 0 for the rest is smaller, the
    result comes close to that.

    Args:
        weights: Positive or zero, with a mean of 1.

    Returns:
        The new weights, or None where those given differ as much already, or not at all.

    Example:
        >>> spread(np.array([0.99, 1.0, 1.01], np.float32)).round(1)
        array([0.1, 0.5, 2.4], dtype=float32)
        >>> spread(np.array([0.0, 0.0, 3.0], np.float32)) is None
        True
    """
    if not _EQUAL < weights.std() < WEIGHT_SPREAD:
        return None
    logs = np.log(np.maximum(weights, np.finfo(np.float32).tiny), dtype=np.float64)

    def raised(power: float) -> NDArray[np.float64]:
        result = np.exp(power * (logs - logs.max()))
        return np.asarray(result / result.mean())

    low, high = 1.0, 2.0
    while raised(high).std() < WEIGHT_SPREAD and high < 2.0 / _EQUAL:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if raised(middle).std() < WEIGHT_SPREAD else (low, middle)
    return raised(high).astype(np.float32)
