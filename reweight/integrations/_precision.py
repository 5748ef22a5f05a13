"""Parameters in half precision, in which outer steps are inexact."""

from __future__ import annotations

import warnings

import torch

from reweight.wrapping import Reweighted


def warn_of_half_precision(reweighted: Reweighted) -> None:
    """Warn where inner parameters themselves have half precision; no autocast shows it."""
    eps = torch.finfo(torch.float32).eps
    theta = reweighted.problem.theta().values()
    half = {p.dtype for p in theta if torch.finfo(p.dtype).eps > eps}
    if half:
        warnings.warn(
            f"parameters of the model are {', '.join(map(str, half))}, and outer steps are "
            "computed in their precision: products with the Hessian have errors of percents. Keep "
            'the parameters in float32 and train in mixed precision ("bf16-mixed" in Lightning, '
            'mixed_precision="bf16" in Accelerate)',
            stacklevel=3,
        )
