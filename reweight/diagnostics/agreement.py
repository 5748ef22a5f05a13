"""Whether two hypergradients have similar directions."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from reweight._tensors import cosine
from reweight.hypergradient import Hypergradient
from reweight.solvers import Identity
from reweight.wrapping import Reweighted

# Below this cosine, the hypergradients of two dev batches are called in disagreement.
_NOISE = 0.2


@dataclass(frozen=True)
class Agreement:
    """Cosines between hypergradients, for ``print``.

    Each is between -1 and 1, or NaN if one of the two vectors is zero.

    Attributes:
        other_dev: cosine of the gradients on two dev batches; ``None`` if there was only one.
        other_dev_influence: cosine of the influences ``[B]`` on two dev batches; ``None`` likewise.
        identity: cosine of the gradients with this solver and with ``Identity()``.
        identity_influence: cosine of the influences with these two solvers.
    """

    other_dev: float | None
    other_dev_influence: float | None
    identity: float
    identity_influence: float

    @property
    def message(self) -> str:
        """What the cosines mean, in one sentence."""
        parts = []
        if self.other_dev is not None:
            if math.isnan(self.other_dev):
                parts.append("the hypergradient is zero on one of the dev batches")
            elif self.other_dev < _NOISE:
                parts.append(
                    "the two dev batches disagree: an outer step follows the noise of its dev "
                    "batch, so use larger dev batches or a smaller outer learning rate"
                )
            else:
                parts.append("the two dev batches agree")
        if math.isnan(self.identity):
            parts.append("the hypergradient is zero")
        elif self.identity < 0.0:
            parts.append("the hypergradient has a negative cosine with the one without curvature")
        else:
            parts.append("the hypergradient has no negative cosine with the one without curvature")
        return "; ".join(parts)

    def __str__(self) -> str:
        lines = [f"{'cosine with':<20}  {'gradient':>8}  {'influence':>9}"]
        if self.other_dev is not None and self.other_dev_influence is not None:
            lines.append(
                f"{'another dev batch':<20}  {self.other_dev:8.3f}  {self.other_dev_influence:9.3f}"
            )
        lines.append(
            f"{'the identity solver':<20}  {self.identity:8.3f}  {self.identity_influence:9.3f}"
        )
        return "\n".join([*lines, self.message])


def agreement(rw: Reweighted, batch: Any, dev_batch: Any, other_dev_batch: Any = None) -> Agreement:
    """Compare a hypergradient with that on another dev batch, and with the one without curvature.

    ``rw`` is not changed. With several processes all have to call, and the influences that are
    compared are those of a process's own samples.

    Args:
        rw: what :func:`reweight.wrap` returned.
        batch: a train batch.
        dev_batch: a dev batch.
        other_dev_batch: another dev batch; without it only the solvers are compared.

    Example:
        >>> import torch, reweight
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     x, y = batch
        ...     return (model(x).squeeze(-1) - y).square()
        >>> rw = reweight.wrap(model, reweight.LossWeighter(), losses,
        ...                    outer_loss=lambda model, batch: losses(model, batch).mean())
        >>> train, dev = ((torch.randn(8, 3), torch.randn(8)) for _ in range(2))
        >>> round(agreement(rw, train, dev, dev).other_dev, 6)
        1.0
    """
    ours = rw.hypergradient(batch, dev_batch)
    plain = dataclasses.replace(rw.strategy, solver=Identity(), preconditioner=None, compile=False)
    identity = Reweighted(rw.problem, plain).hypergradient(batch, dev_batch)
    other: tuple[float | None, float | None] = (None, None)
    if other_dev_batch is not None:
        other = _cosines(ours, rw.hypergradient(batch, other_dev_batch))
    return Agreement(*other, *_cosines(ours, identity))


def _cosines(one: Hypergradient, two: Hypergradient) -> tuple[float, float]:
    return cosine(one.grads, two.grads), cosine(
        {"influence": one.influence}, {"influence": two.influence}
    )
