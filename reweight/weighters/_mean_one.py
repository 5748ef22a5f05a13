"""Positive weights whose mean is 1."""

from __future__ import annotations

from torch import Tensor


def mean_one(x: Tensor, shares: Tensor | None = None) -> Tensor:
    """``exp(x)`` over its mean: positive, 1 where all of ``x`` are equal, and unchanged by a shift.

    A common shift of ``x`` has no gradient, so an optimizer does not move along it. In free weights
    it is the strongest direction in the first steps, when more of every sample helps; and under
    Adam, whose steps do not depend on the scale of the loss, it never settles.

    Args:
        x: Shape [N].
        shares: Weights of the mean, positive, shape [N]; ``None``: all equal.

    Returns:
        Shape [N], in the dtype of ``x``.
    """
    # Dividing by what the same operations give for exponentials of 1 makes an equal ``x`` exactly
    # 1 in every dtype. amax of an empty tensor is an error.
    powers = (x - x.detach().amax()).exp() if x.numel() else x.exp()
    if shares is None:
        return powers / powers.mean()
    return powers / ((powers * shares).sum() / shares.sum())
