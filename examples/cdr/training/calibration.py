"""A dev loss that a model's confidence does not enter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cdr.data import PairBatch
from cdr.models import CrossDomainModel

_STEPS = 20
_RIDGE = 0.01  # of a row; keeps the slope finite where few rows can be separated


def calibrated_loss(logits: Tensor, label: Tensor) -> Tensor:
    """The logistic loss of the rows after the best slope and intercept for them, [].

    A model that is trained beyond the first epochs is far too sure of itself, so that the plain
    loss of rows held out falls by whatever makes it less sure, and rises by what makes it rank
    better. Slope and intercept are fitted to the logits by Newton's method (Platt scaling). Since
    the loss is least there, their own derivatives are zero: they count as constants, and what is
    left is the gradient of the loss that is calibrated anew at every parameter.

    Args:
        logits: Of held-out rows, [B].
        label: 0 or 1, [B].

    Example:
        >>> label = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
        >>> logits = torch.tensor([0.3, 0.1, -0.2, 0.4, -0.3, 0.2])
        >>> [round(float(calibrated_loss(scale * logits, label)), 3) for scale in (0.1, 1.0, 9.0)]
        [0.6, 0.6, 0.6]
    """
    slope, intercept = _fit(logits.detach().double(), label.double())
    scaled = slope.to(logits.dtype) * logits + intercept.to(logits.dtype)
    return binary_cross_entropy_with_logits(scaled, label)


def _fit(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the logistic regression of labels on logits, float64."""
    spread = logits.std(correction=0).clamp_min(1e-12)
    centre = logits.mean()
    x = (logits - centre) / spread
    # Of the standardized logits; begun where the regression has no slope.
    rate = label.mean().clamp(1e-6, 1 - 1e-6)
    slope, intercept = torch.zeros_like(rate), rate.logit()
    for _ in range(_STEPS):
        p = torch.sigmoid(slope * x + intercept)
        error, weight = p - label, p * (1 - p)
        g_s, g_i = (error * x).sum() + _RIDGE * slope, error.sum()
        h_ss, h_si, h_ii = (weight * x * x).sum() + _RIDGE, (weight * x).sum(), weight.sum()
        h_ii = h_ii + 1e-9
        det = h_ss * h_ii - h_si * h_si
        slope = slope - (h_ii * g_s - h_si * g_i) / det
        intercept = intercept - (h_ss * g_i - h_si * g_s) / det
    slope = slope.clamp_min(0.0)
    return slope / spread, intercept - slope * centre / spread


def calibrated_outer_loss(model: CrossDomainModel, batch: PairBatch) -> Tensor:
    """The same of a model's target logits."""
    return calibrated_loss(model.target_logits(batch), batch.target_label)
