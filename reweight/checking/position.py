"""Whether the parameters are at a minimum of the stated inner problem, and if not, of which one.

All other parts of a check assume that ``wrap`` was given the inner problem that the loop trains.
Where training has converged, the gradient of the loop's problem is zero. If the gradient of the
stated problem is not, but would be with other weight decay or with a factor on the weighted losses,
the two problems differ in that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from reweight._tensors import flatten
from reweight.checking.problem import Problem

# A gradient of at most this share of its terms counts as zero ...
_AT_REST = 0.05
# ... and one of this share is rounding (of float32), which needs no explanation.
_FLOAT32_ROUNDING = 1e-6
# An explanation may leave this share unexplained, and be off its number by this share.
_EXPLAINED = 0.05
# In fewer dimensions a fit with one factor explains too much.
_FEWEST = 3


@dataclass(frozen=True)
class _Terms:
    """The gradient of the inner problem, term by term, each ``[n]`` over all inner parameters.

    Attributes:
        fixed: of the fixed losses.
        weighted: of the weighted losses, reduced as stated.
        plain: the same at weights of one.
        rates: the stated weight decay of each entry.
        theta: the parameters.
        matrices: 1 for the entries of parameters of two or more dimensions, else 0.
        scatter: root of the summed squares of the samples' terms in ``weighted``, which is the norm
            of their sum if they are unrelated.
        count: the number of samples.
        reduction: as stated.
    """

    fixed: Tensor
    weighted: Tensor
    plain: Tensor
    rates: Tensor
    theta: Tensor
    matrices: Tensor
    scatter: float
    count: int
    reduction: str

    @property
    def decay(self) -> Tensor:
        return self.rates * self.theta

    @property
    def total(self) -> Tensor:
        return self.fixed + self.weighted + self.decay

    @property
    def share(self) -> float:
        """The norm of the total relative to its terms: about 1 if they are unrelated."""
        size = math.hypot(float(self.fixed.norm()), float(self.decay.norm()), self.scatter)
        return float(self.total.norm()) / size if size else 0.0

    def factor(self) -> float | None:
        """``c > 0`` with ``fixed + c·weighted + decay ≈ 0``, if there is one."""
        rest = self.fixed + self.decay
        squared = float(self.weighted @ self.weighted)
        if not squared:
            return None
        factor = -float(rest @ self.weighted) / squared
        left = rest + factor * self.weighted
        explains = _explained(left, self.total) and _explained(left, rest)
        return factor if factor > 0 and explains else None


def position(problem: Problem) -> str:
    """Describe the position of the original parameters; to be called before they are moved."""
    terms = _terms(problem)
    if terms.share > _FLOAT32_ROUNDING and terms.theta.numel() >= _FEWEST:
        found = _other_loss(terms) or _other_decay(terms, problem.optimizer) or _factor(terms)
        if found:
            return f"your loop seems to {found}"
    if terms.share <= _AT_REST:
        return (
            f"your parameters are {'at' if terms.share <= 1e-3 else 'near'} the minimum of this "
            f"problem (relative gradient {terms.share:.2g}), so it is the one your loop trains"
        )
    return (
        "your parameters are not at a minimum of the inner problem on this slice (relative "
        f"gradient {terms.share:.2g}): the slice is not the whole training set, or training is not "
        "done; the hypergradient is exact only at a minimum"
    )


def _terms(problem: Problem) -> _Terms:
    bilevel, theta = problem.bilevel, problem.theta
    losses = problem.evaluated()
    weights = problem.weigh(losses)
    alone = replace(losses, fixed=0.0)

    def slope(loss: Tensor) -> Tensor:
        return flatten(problem.gradient(loss))

    def per_entry(value: dict[str, float]) -> Tensor:
        return flatten({name: torch.full_like(p, value[name]) for name, p in theta.items()})

    # With random signs, products of different samples cancel in the mean of the squares.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (8, *weights.shape), generator=generator).to(weights) * 2 - 1
    squares = [slope(bilevel.inner_loss(alone, weights * s)).square().sum() for s in signs]
    return _Terms(
        fixed=slope(torch.as_tensor(losses.fixed).reshape(())),
        weighted=slope(bilevel.inner_loss(alone, weights)),
        plain=slope(bilevel.inner_loss(alone, torch.ones_like(weights))),
        rates=per_entry({name: problem.decay.get(name, 0.0) for name in theta}),
        theta=flatten(problem.origin),
        matrices=per_entry({name: float(p.ndim >= 2) for name, p in theta.items()}),
        scatter=math.sqrt(float(torch.stack(squares).mean())),
        count=weights.numel(),
        reduction=bilevel.reduction,
    )


def _other_loss(terms: _Terms) -> str | None:
    """Weights left out, or another reduction."""
    if _explained(terms.fixed + terms.decay + terms.plain, terms.total):
        return (
            "train on losses without their weights: its loss is to be rw.loss(batch), or made with "
            "rw.weights(batch)"
        )
    factor, count = terms.factor(), terms.count
    if factor is None or count < 2:
        return None
    if terms.reduction == "mean" and _near(factor, count):
        return (
            'sum the weighted losses, where wrap was given reduction="mean": pass reduction="sum", '
            "or train on rw.loss(batch)"
        )
    if terms.reduction == "sum" and _near(factor, 1.0 / count):
        return (
            'average the weighted losses, where wrap was given reduction="sum": pass '
            'reduction="mean", or train on rw.loss(batch)'
        )
    if terms.reduction == "mean" and _near(factor, 1.0 / count):
        return (
            f"divide the weighted losses by their number, {count}, once more than wrap was given: "
            'reduction="mean" and rw.loss(batch) divide already'
        )
    return None


def _factor(terms: _Terms) -> str | None:
    """Any other factor on the weighted losses; only a fixed part tells it from weight decay."""
    factor = terms.factor()
    if factor is None or not float(terms.fixed.norm()) > _EXPLAINED * float(terms.decay.norm()):
        return None
    return (
        f"count the weighted losses {factor:.3g} times as much relative to the fixed ones as wrap "
        "was given: train on rw.loss(batch), or put the factor into losses. (With a sum over the "
        "batch it is the size of your batches relative to this slice.)"
    )


def _other_decay(terms: _Terms, optimizer: Optimizer | None) -> str | None:
    """More or less weight decay, on all parameters or, as is common, on matrices only."""
    fits = []
    for mask in (torch.ones_like(terms.theta), terms.matrices):
        theta = mask * terms.theta
        if squared := float(theta @ theta):
            extra = -float(terms.total @ theta) / squared
            fits.append((float((terms.total + extra * theta).norm()), extra, mask))
    if not fits:
        return None
    left, extra, mask = min(fits, key=lambda fit: fit[0])
    stated = terms.rates[mask > 0]
    lowest, highest = float(stated.min()), float(stated.max())
    if left > _EXPLAINED * float(terms.total.norm()) or -extra > (1.0 + _EXPLAINED) * lowest:
        return None
    where = "" if bool(mask.all()) else " on its matrices (parameters of two or more dimensions)"
    if optimizer is None:
        return (
            f"train with weight decay of about {extra:.2g}{where}, which wrap was not given: "
            "pass optimizer=, or pass a penalty of your own as Losses(fixed=...). (Without either, "
            "the loss may have its minimum at infinity, as with separable classes.)"
        )
    rest = lowest + extra if lowest + extra > 0.01 * highest else 0.0
    numbers = f" ({rest:.2g} in place of {lowest:.2g})" if lowest == highest else ""
    said = (
        f"train with about {abs(extra):.2g} {'more' if extra > 0 else 'less'} weight decay{where} "
    )
    if extra < 0 and any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        return (
            f"{said}than {type(optimizer).__name__} says{numbers}: decoupled decay is added to "
            "adaptive steps, and is weaker the smaller the gradients are. wrap takes it for decay "
            "that is part of the gradient, as in Adam or SGD"
        )
    said += f"than the optimizer says that wrap was given{numbers}: pass the one your loop steps"
    return f"{said}, and pass a penalty of your own as Losses(fixed=...)" if extra > 0 else said


def _explained(left: Tensor, whole: Tensor) -> bool:
    return float(left.norm()) <= _EXPLAINED * float(whole.norm())


def _near(value: float, target: float) -> bool:
    return abs(value / target - 1.0) <= _EXPLAINED
