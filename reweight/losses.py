"""The losses of one batch, as a model returns them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweight._tensors import Pending, described, ends, now_or_later, spread


@dataclass(frozen=True)
class Losses:
    """The losses of one batch, before reduction.

    Args:
        weighted: ``[B]``, one loss per sample that gets a weight. ``B`` may differ from batch to
            batch, and may be 0.
        fixed: a scalar that is not reweighted: the loss of the domain or task that counts,
            an explicit penalty.
        inputs: what the weighter reads besides the losses, in any structure of tensors:
            embeddings, ids, groups. ``wrap`` detaches them.

    Raises:
        TypeError: ``weighted`` is not a floating-point tensor.
        ValueError: ``weighted`` is not one loss per sample, or ``fixed`` is not a scalar.

    Example:
        >>> import torch
        >>> Losses(torch.tensor([0.3, 0.9]), fixed=torch.tensor(0.5)).weighted.shape
        torch.Size([2])
    """

    weighted: Tensor
    fixed: Tensor | float = 0.0
    inputs: Any = None

    def __post_init__(self) -> None:
        weighted, fixed = self.weighted, self.fixed
        if not isinstance(weighted, Tensor) or not weighted.is_floating_point():
            kind = weighted.dtype if isinstance(weighted, Tensor) else type(weighted).__name__
            raise TypeError(f"losses.weighted must be a floating-point tensor [B], got {kind}")
        if weighted.ndim == 0:
            raise ValueError(
                "losses.weighted is a scalar: the loss was reduced already, so no weights per "
                'sample can be applied. Compute it with reduction="none" to keep one loss per '
                "sample"
            )
        if weighted.ndim > 1:
            raise ValueError(
                f"losses.weighted has shape {tuple(weighted.shape)}, expected [B]: one loss per "
                "sample. Average over the other dimensions, e.g. losses.flatten(1).mean(1)"
            )
        if isinstance(fixed, Tensor) and fixed.numel() != 1:
            raise ValueError(
                f"losses.fixed has shape {tuple(fixed.shape)}, expected a scalar: reduce it with "
                ".mean() or .sum(), or put losses that get weights into losses.weighted"
            )

    def __repr__(self) -> str:
        parts = (
            f"{name}={described(getattr(self, name))}" for name in ("weighted", "fixed", "inputs")
        )
        return f"Losses({', '.join(parts)})"

    def __str__(self) -> str:
        fixed = spread(torch.as_tensor(self.fixed)) or described(self.fixed)
        weighted = ": ".join(
            filter(None, (f"{self.weighted.numel()} weighted losses", spread(self.weighted)))
        )
        return f"{weighted}\nfixed: {fixed}; inputs: {described(self.inputs)}"

    def check_finite(self, pending: Pending | None = None) -> None:
        """Raise on a NaN or infinite loss. A weight of zero would not mask it: 0·NaN is NaN.

        Args:
            pending: look when this is read, and not now.
        """
        fixed = self.fixed
        scalars = [fixed.detach().reshape(())] if isinstance(fixed, Tensor) else []
        known = [] if scalars else [float(fixed)]

        def look(found: list[float]) -> None:
            if not all(map(math.isfinite, (*found, *known))):
                self._refuse()

        now_or_later(ends(self.weighted, *scalars), look, pending)

    def _refuse(self) -> None:
        """Raise with the samples whose loss is not finite."""
        fixed = torch.as_tensor(self.fixed)
        next_move = (
            "; look for NaN in the batch, a learning rate that made the parameters overflow, or "
            "a logarithm of zero in the loss"
        )
        if not bool(fixed.isfinite().all()):
            raise ValueError(f"losses.fixed is {fixed.item()}{next_move}")
        bad = (~self.weighted.isfinite()).nonzero().flatten().tolist()
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"losses.weighted is {self.weighted[bad[0]].item()} for sample "
            f"{', '.join(map(str, bad[:5]))}{more} of {len(self.weighted)}{next_move}"
        )
