"""Effective sample size, entropy and a summary of the weights of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Weights have collapsed if the effective sample size is below 1 plus this share of B - 1.
_COLLAPSED = 0.1
# Weights are alike if their standard deviation is at most this share of their mean.
_ALIKE = 1e-2
# Every weighter starts at weights of 1. Alike weights whose mean is further from 1 than this have
# been moved by outer steps.
_MOVED = 0.5


def effective_sample_size(weights: Tensor) -> float:
    """``(Σw)²/Σw²``: the number of equally weighted samples with the same variance (Kish, 1965).

    Args:
        weights: ``[B]``, not negative.

    Returns:
        Between 1 and ``B``; 0 if there is no weight above zero.

    Raises:
        TypeError: ``weights`` is not a tensor of real numbers.
        ValueError: ``weights`` are negative, not finite or not of shape ``[B]`` with B > 0.

    Example:
        >>> import torch
        >>> effective_sample_size(torch.tensor([1.0, 1.0, 0.0, 0.0]))
        2.0
    """
    w = _checked(weights)
    squares = float(w.square().sum())
    # Rounding must not make it larger than the number of samples.
    return min(float(w.sum()) ** 2 / squares, float(len(w))) if squares else 0.0


def entropy(weights: Tensor, *, normalized: bool = False) -> float:
    """The entropy ``−Σ p ln p`` of ``p = w/Σw``, in nats.

    Args:
        weights: ``[B]``, not negative.
        normalized: divide by ``ln B``, the entropy of equal weights.

    Returns:
        Between 0 (one sample has all the weight) and ``ln B``, or 1 if ``normalized``; 0 if no
        weight is above zero.

    Raises:
        TypeError: ``weights`` is not a tensor of real numbers.
        ValueError: ``weights`` are negative, not finite or not of shape ``[B]`` with B > 0.

    Example:
        >>> import torch
        >>> round(entropy(torch.tensor([2.0, 2.0, 0.0, 0.0]), normalized=True), 3)
        0.5
    """
    w = _checked(weights)
    if not bool(w.any()):
        return 0.0
    value = max(float(torch.special.entr(w / w.sum()).sum()), 0.0)
    if not normalized:
        return value
    return min(value / math.log(len(w)), 1.0) if len(w) > 1 else 1.0


@dataclass(frozen=True)
class WeightSummary:
    """A summary of the weights of a batch, for ``print``.

    Attributes:
        size: the number of samples, ``B``.
        mean: the mean weight; a weighter starts at 1.
        std: the standard deviation over the batch.
        smallest: the smallest weight.
        largest: the largest weight.
        effective_sample_size: see :func:`effective_sample_size`; NaN with negative weights.
        entropy: the normalized :func:`entropy`; NaN with negative weights.
        num_negative: the number of weights below zero.

    Example:
        >>> import torch
        >>> print(WeightSummary.of(torch.tensor([2.0, 2.0, 0.1, 0.1])))
        4 weights: mean 1.05, std 0.95, from 0.1 to 2; 2.2 effective samples (55 %), entropy 0.64
        the weights tell samples apart
    """

    size: int
    mean: float
    std: float
    smallest: float
    largest: float
    effective_sample_size: float
    entropy: float
    num_negative: int = 0

    @classmethod
    def of(cls, weights: Tensor) -> WeightSummary:
        """Summarise ``weights`` ``[B]``.

        An empty batch and negative weights raise no error, because both can occur in a training
        and recording them should not stop it.

        Raises:
            TypeError: ``weights`` is not a tensor of real numbers.
            ValueError: ``weights`` are not finite or not of shape ``[B]``.
        """
        w = _finite(weights)
        nan = math.nan
        if not len(w):
            return cls(0, nan, nan, nan, nan, 0.0, nan)
        negative = int((w < 0.0).sum())
        unit = float(w.abs().max()) or 1.0  # keeps the sum of very large weights finite
        return cls(
            len(w),
            float((w / unit).mean()) * unit,
            float((w / unit).std(correction=0)) * unit,
            float(w.min()),
            float(w.max()),
            nan if negative else effective_sample_size(w),
            nan if negative else entropy(w, normalized=True),
            negative,
        )

    @property
    def effective_share(self) -> float:
        """The effective sample size divided by the batch size; NaN for an empty batch."""
        return self.effective_sample_size / self.size if self.size else math.nan

    @property
    def collapsed(self) -> bool:
        """Whether a few samples have nearly all the weight, or all weights are zero.

        The test is an effective sample size below ``1 + 0.1·(B - 1)``: about a tenth of the samples
        of a large batch, and close to 1 for a small one.
        """
        return self.size > 1 and self.effective_sample_size < 1.0 + _COLLAPSED * (self.size - 1)

    @property
    def alike(self) -> bool:
        """Whether all samples have the same weight."""
        return self.std <= _ALIKE * self.mean

    @property
    def message(self) -> str:
        """One sentence: the state of the weights and, if there is a problem, what to do."""
        if not self.size:
            return "no weights: the batch holds no weighted sample"
        if self.num_negative:
            return (
                f"{self.num_negative} of {self.size} weights are negative, down to "
                f"{self.smallest:.3g}: training increases the losses of these samples; if this is "
                "not intended, end the weighter with a softplus or a sigmoid"
            )
        if self.largest == self.smallest == 0.0:
            return (
                "every weight is zero, so the weighted losses have no gradient: lower the outer "
                "learning rate, or check whether these samples help at all"
            )
        if self.collapsed:
            return (
                "the weights have collapsed onto a few samples, so the weighted loss is noisy: "
                "lower the outer learning rate, use larger batches, or bound the weights"
            )
        if self.size > 1 and self.alike:
            if abs(self.mean - 1.0) < _MOVED:
                return "all weights are alike: nothing has been learned from these samples yet"
            return (
                f"all weights have moved to {self.mean:.3g} and do not differ between samples: "
                "bounded weights that all reach their bound stay there, so start the outer steps "
                "later, or lower the outer learning rate"
            )
        return "the weights tell samples apart"

    def __str__(self) -> str:
        return (
            f"{self.size} weights: mean {self.mean:.3g}, std {self.std:.3g}, from "
            f"{self.smallest:.3g} to {self.largest:.3g}; {self.effective_sample_size:.1f} "
            f"effective samples ({self.effective_share:.0%}), entropy {self.entropy:.2f}\n"
            f"{self.message}"
        ).replace("%)", " %)")


def _finite(weights: Tensor) -> Tensor:
    """The weights in float64; raises unless they are ``[B]`` and finite."""
    if not isinstance(weights, Tensor) or weights.is_complex():
        kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(
            f"weights must be a tensor [B] of real numbers, got {kind}; torch.as_tensor(...) "
            "converts a list or an array"
        )
    if weights.ndim != 1:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}, expected [B]: one weight per sample, as "
            "rw.weights(batch) returns them"
        )
    w = weights.detach().double()
    if not bool(w.isfinite().all()):
        raise ValueError(
            "weights are not finite: the weighter's inputs hold NaN, or an outer step was so "
            "large that the weights overflowed"
        )
    return w


def _checked(weights: Tensor) -> Tensor:
    """The weights in float64, divided by the largest one, on which no result here depends."""
    w = _finite(weights)
    if not len(w):
        raise ValueError(
            "weights has shape (0,), expected [B] with B > 0: the batch holds no weighted sample"
        )
    if bool((w < 0.0).any()):
        raise ValueError(
            f"weights go down to {float(w.min()):.3g}: effective sample size and entropy are "
            "defined only for weights that are not negative"
        )
    largest = w.max()
    return w / largest if largest > 0.0 else w
