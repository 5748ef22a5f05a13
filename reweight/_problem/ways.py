"""Whether a way of first-order steps gives the derivatives that gradients give."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from reweight._problem.along import Along
from reweight._problem.audit import Audit, in_double
from reweight._problem.direction import Direction
from reweight._problem.first_derivatives import differing, limits_of, mismatch, terms
from reweight._problem.inner import InnerProblem
from reweight._problem.isolation import is_compiled
from reweight._problem.second_derivatives import random_direction
from reweight._tables import GraphInputs
from reweight._tensors import Tree, dot, filled, some, stored
from reweight.verdict import Way

logger = logging.getLogger("reweight")

# Two steps of differences, in units of the estimated one.
_SHARES = (1.0, 0.25)
# With more inner parameters than this, a comparison in float64 takes more memory than the step. The
# smallest parameters, this share of all entries, are then compared in their own precision. Every
# layer has small ones.
_LARGE, _FEW = 2_000_000, 0.125


class Ways:
    """The ways of first-order steps that may be used, each compared when it is first asked for.

    Args:
        audit: keeps what was found.
        along: the losses of the train batch near θ.
        graph: evaluates a random mixture of these losses with its graph: an inner problem whose
            weights are the factors of the mixture.
    """

    def __init__(self, audit: Audit, along: Along, graph: Callable[[], InnerProblem]) -> None:
        self._audit, self._along, self._graph = audit, along, graph

    def is_known(self, way: Way) -> bool:
        """Whether the way was compared, or can't be."""
        return way in self._audit.findings.compared or way in self._audit.findings.not_compared

    def errors(self, way: Way) -> tuple[type[Exception], ...]:
        """What a way raises where it does not work; all other errors are the losses' own."""
        if way in self._audit.findings.compared:
            return RuntimeError, NotImplementedError
        return (Exception,)

    def rejection(self, way: Way, direction: Direction, *, auto: bool) -> str:
        """Why a way may not be used, or ``""``.

        Args:
            way: the way.
            direction: along which it is to be used.
            auto: whether another way may be used instead of a wrong one.
        """
        now = self._audit.findings
        if way in now.no_way:
            return now.no_way[way]
        if self.is_known(way):
            return ""
        mixture = self._graph()
        if not mixture.weights.numel():
            return ""  # there is nothing to compare
        # Now: passes may write what the graph has saved.
        hidden = not mixture.is_all_alive()
        reason = _unreachable(mixture, direction) if way == "forward" else ""
        if not reason:
            try:
                by = _disagreement(way, mixture, self._along)
            except _NotComparedError as error:
                now.not_compared[way] = str(error)
                return ""
            now.compared[way] = self._audit.step
            now.hidden = hidden
            if by is None:
                return ""
            reason = _differs(by)
            if not auto:
                now.caveats[way] = misleading(way, by)
                return ""
        now.no_way[way] = reason
        return reason


def _differs(by: float) -> str:
    return f"its derivatives differ by {by:.2g} of their size from what gradients give"


def misleading(way: Way, by: float) -> str:
    """What is wrong with a way that is used although its derivatives are off by a share."""
    return (
        f"{_differs(by)} (hvp={way!r}): is there a detach() inside the losses, or a custom "
        'gradient? Use hvp="auto", which goes on to another way'
    )


class _NotComparedError(Exception):
    """No comparison could be made."""


def _unreachable(mixture: InnerProblem, direction: Direction) -> str:
    """Why the losses do not see tensors in the place of parameters, or ``""``."""
    if is_compiled(mixture.parts):
        return "a compiled model would be compiled again"
    try:
        by_rows = mixture.functional_model().tables
    except Exception as error:  # whatever an operation raises for a tensor of another kind
        return str(error).strip() or repr(error)
    whole = {name: None for name in direction.rows if name not in by_rows}
    return f"the losses use {some(whole)} in another way than by look-ups" if whole else ""


def _disagreement(way: Way, mixture: InnerProblem, along: Along) -> float | None:
    """Compare in float64, or else in the precision that the losses have.

    Returns:
        By how much the way is off; ``None`` if it agrees.

    Raises:
        _NotComparedError: no comparison could be made.
    """
    reasons: dict[str, None] = {}
    attempts = [("float64", _in_float64), ("its own precision", _as_it_is)]
    if sum(_sizes(mixture).values()) > _LARGE:
        attempts.reverse()
    for precision, compare in attempts:
        try:
            return compare(way, mixture, along)
        except Exception as error:  # whatever an operation raises in a type it was not made for
            logger.info("%r is not compared in %s: %s", way, precision, str(error))
            said = (str(error).strip() or repr(error)).splitlines()[0]
            reasons[f"in {precision}, {said}"] = None
    raise _NotComparedError("; ".join(reasons))


def _in_float64(way: Way, mixture: InnerProblem, along: Along) -> float | None:
    if mixture.graph.is_reentrant:
        raise RuntimeError("a reentrant checkpoint gives its gradients to parameters only")
    problem = in_double(mixture, list(mixture.reached()))
    tangent = problem.tangent if way == "forward" else None
    constant = mixture.padding(problem.rows)
    return mismatch(tangent, problem.evaluate, problem.value, problem.params(), constant)


def _as_it_is(way: Way, mixture: InnerProblem, along: Along) -> float | None:
    """At θ itself, by the passes that an outer step makes."""
    gradient = _gradient(mixture, along, _some_of(mixture))
    rows = {name: entry.indices()[0] for name, entry in gradient.items() if entry.is_sparse}
    here = Direction(stored(gradient), rows).of(mixture.theta)
    limits = limits_of(here)
    direction = Direction(random_direction(here, mixture.padding(rows), 0), rows)
    expected, total = terms(stored(gradient), direction.values)
    if way == "forward":
        found, doubt = _mixed(along.forward(direction)[1], mixture), 0.0
    else:
        losses = along.here()
        wide, narrow = (_mixed(x, mixture) for x in along.differences(direction, losses, _SHARES))
        found, doubt = narrow, abs(wide - narrow)
        if doubt > 0.5 * total:
            raise TypeError("differences of the losses are too inexact")
    return differing(found, expected, total, doubt, limits.first)


def _mixed(derivatives: Tensor, mixture: InnerProblem) -> float:
    return dot(derivatives.double(), mixture.weights.detach().double())


def _sizes(mixture: InnerProblem) -> dict[str, int]:
    """The entries of each inner parameter that the losses depend on; of tables, of their rows."""
    theta, tables = mixture.theta, mixture.tables
    # The graph of a reentrant checkpoint does not show what is inside.
    names = theta if mixture.graph.is_reentrant else mixture.graph.reached(theta)
    return {
        name: len(tables[name].rows) * theta[name].shape[1]
        if name in tables
        else theta[name].numel()
        for name in names
    }


def _some_of(mixture: InnerProblem) -> Tree:
    """The inner parameters to compare: all, or the smallest ones of a large model."""
    sizes = _sizes(mixture)
    total, kept = sum(sizes.values()), 0
    chosen: Tree = {}
    for name in sorted(sizes, key=sizes.__getitem__):
        kept += sizes[name]
        if chosen and total > _LARGE and kept > _FEW * total:
            break
        chosen[name] = mixture.theta[name]
    return chosen


def _gradient(mixture: InnerProblem, along: Along, theta: Tree) -> Tree:
    """The gradient of the mixture by some of θ: sparse for tables of which it reads rows."""
    if mixture.graph.is_reentrant:
        # Such a checkpoint gives its gradients to backward() only.
        mixture.loss.backward()  # type: ignore[no-untyped-call]
        found = {name: p.grad for name, p in theta.items() if p.grad is not None}
        along.isolation.restore()
        return filled(found.values(), {name: theta[name] for name in found})
    inputs = GraphInputs(theta, mixture.tables)
    # Compiled parts can be differentiated only once.
    keep = not is_compiled(mixture.parts)
    grads = torch.autograd.grad(mixture.loss, inputs.inputs, allow_unused=True, retain_graph=keep)
    return inputs.gradient(grads)
