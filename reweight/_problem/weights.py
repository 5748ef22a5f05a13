"""The weights of a batch, and the chain rule through them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reweight._curvature import Partial
from reweight._problem.notices import Notices
from reweight._problem.progress import Progress
from reweight._tensors import (
    NotFiniteError,
    Pending,
    Tree,
    ends,
    filled,
    map_tensors,
    norm,
    norms_of,
    now_or_later,
    shared,
    tensors_in,
)
from reweight.losses import Losses
from reweight.weighters import SampleWeighter, stated_bounds

# A hypergradient below this share of the influences means that the weights do not respond.
SATURATED = 1e-6


def weigh(weighter: SampleWeighter, losses: Losses, pending: Pending | None = None) -> Tensor:
    """The weights ``[B]`` for detached losses and inputs, checked; values with ``pending``."""
    weighted = losses.weighted.detach()
    name = type(weighter).__name__
    weights = weighter(weighted, _detached(losses.inputs, name))
    if not isinstance(weights, Tensor) or weights.shape != weighted.shape:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(
            f"the weighter {name} returned {got} for losses of shape {tuple(weighted.shape)}: "
            "it must return one weight per sample (.squeeze(-1) removes a trailing dimension of 1)"
        )
    if not weights.is_floating_point():
        raise TypeError(
            f"the weighter {name} returned weights of {weights.dtype}: they need a "
            "floating-point type to have a gradient; a comparison or .long() in its forward "
            "has none"
        )

    def look(found: list[float]) -> None:
        if not all(map(math.isfinite, found)):
            raise NotFiniteError(
                f"the weighter {name} returned weights that are not finite: its inputs hold NaN, "
                "or an outer step was so large that it overflowed; lower the outer learning rate "
                "or clip the gradient"
            )

    now_or_later(ends(weights), look, pending)
    return weights


def _detached(inputs: Any, weighter: str) -> Any:
    """The inputs of a weighter without their graph."""
    uncopied: list[Any] = []
    detached = map_tensors(Tensor.detach, inputs, uncopied)
    for value in uncopied:
        if any(x.requires_grad for x in tensors_in(value)):
            kind = type(value).__name__
            raise ValueError(
                f"losses.inputs holds a {kind} whose tensors require a gradient and can't be "
                f"detached: no copy of a {kind} can be made, because it owns a resource or a base "
                "class of it is written in C. Detach its tensors yourself, or pass those that "
                f"{weighter} reads in a tuple or a dict"
            )
    return detached


def through_weighter(
    weighter: SampleWeighter,
    phi: Tree,
    weights: Tensor,
    influence: Tensor,
    direct: Partial,
    notices: Notices,
    progress: Progress,
    pending: Pending,
) -> Partial:
    """``Σ_i influence_i · ∂weights_i/∂φ`` by one backward pass of the weighter.

    Args:
        weighter: for its name.
        phi: its parameters.
        weights: ``[B]``, with their graph.
        influence: ``[B]``.
        direct: ``∂outer/∂φ``; a parameter that only the outer loss uses is not worth a warning.
        notices: takes the warnings about parameters without influence and about saturated weights.
        progress: notes the weights.
        pending: whether weights are saturated is looked at when this is read.

    Raises:
        ValueError: the weights depend on no parameter of the weighter.
    """
    name = type(weighter).__name__
    parameters = list(phi.values())

    def pulled(v: Tensor) -> tuple[Tensor | None, ...]:
        if not weights.requires_grad:
            return (None,) * len(parameters)
        return torch.autograd.grad(
            weights, parameters, v.to(weights.dtype), allow_unused=True, retain_graph=True
        )

    grads = pulled(influence)
    unused = [name for name, g in zip(phi, grads, strict=True) if g is None]
    if len(unused) == len(phi) and len(weights):  # else the samples are on other processes
        raise ValueError(
            f"the weights of {name} do not depend on any of its parameters: is there a detach() or "
            "no_grad() in its forward?"
        )
    if unused := [name for name in unused if direct.get(name) is None]:
        notices.warn(
            "unused",
            f"{name}: {', '.join(unused[:3])} took no part in the weights of this batch, so their "
            "hypergradient is zero.",
        )
    level = progress.level_of(weights)
    # A second backward pass of a graph that exchanges would need all processes.
    looks = (group := shared()) is None or not group.has_joined
    dense = filled(grads, phi)
    sizes = norms_of(influence, *dense.values())

    def look(found: list[float]) -> None:
        values, (size, *responses) = found[: len(level)], found[len(level) :]
        at_bound = progress.meet(name, values, stated_bounds(weighter))
        if not at_bound and looks and math.hypot(*responses) < SATURATED * size:
            _warn_if_saturated(name, phi, pulled, influence, notices)

    pending.add(torch.cat((level.to(sizes), sizes)), look)
    return dict(zip(phi, grads, strict=True))


def _warn_if_saturated(
    name: str,
    phi: Tree,
    pulled: Callable[[Tensor], tuple[Tensor | None, ...]],
    influence: Tensor,
    notices: Notices,
) -> None:
    """Warn if all terms of a small hypergradient are small, and do not just cancel."""
    # Terms cancel at an optimum. With random positive factors they do not.
    factors = torch.rand(len(influence), generator=torch.Generator().manual_seed(0))
    apart = pulled(influence.abs() * (0.5 + factors.to(influence)))
    if norm(filled(apart, phi)) < SATURATED * norm(influence):
        notices.warn(
            "saturated",
            f"the weights of {name} hardly respond to its parameters: they are at a bound, or few "
            "samples hold all the weight, and an outer step changes nothing. Lower the outer "
            "learning rate, or start outer steps later.",
        )
