"""One call that tells whether a hypergradient is right, and if not, why."""

from __future__ import annotations

import math
from typing import Any

from reweight._tensors import norm
from reweight.checking.causes import judge
from reweight.checking.compare import Comparison, compare
from reweight.checking.descent import curvature
from reweight.checking.links import broken_link
from reweight.checking.position import position
from reweight.checking.problem import Problem
from reweight.checking.report import CheckReport, CheckRow
from reweight.wrapping import Reweighted

# Damping is tried from weak to strong: in shares of the largest curvature, and at least so strong
# that the parameters move by no more than such a share of their size. The first leaves a smooth
# problem nearly as it is; the others are for problems with kinks, such as those of ReLU networks,
# whose minima lie at kinks as a rule and which can only be solved between them.
_DAMPING = ((0.01, math.inf), (0.1, 1e-2), (1.0, 1e-3), (100.0, 1e-5))


def check_hypergradient(
    rw: Reweighted,
    batch: Any,
    dev_batch: Any,
    *,
    rtol: float = 1e-3,
    seed: int = 0,
    raise_on_mismatch: bool = False,
) -> CheckReport:
    """Compare ``rw.hypergradient`` with finite differences on a small slice of your data.

    Works on a float64 copy; ``rw`` is left as it is. On the copy the inner problem (weight decay
    and damping included) is solved to rounding on ``batch``. Each parameter of the weighter is then
    moved a little along a random direction to both sides, the inner problem is solved again, and
    the change of the outer loss on ``dev_batch`` is what the hypergradient has to predict. The
    losses and inputs that the weighter looks at are held at the solution, as they are detached;
    whatever else it reads of the model is not.

    A truncated solver, such as the default ``Neumann(num_terms=3)``, is not meant to agree: then
    ``exact_error`` tells whether everything but the truncation is right, and the report says so.

    An inner problem that has no minimum to be found, such as an untrained network's without weight
    decay, is compared with damping added (a term ``½·damping·‖θ − θ₀‖²`` that ties the parameters
    to where they are, the same on both sides): mistakes in the set-up show all the same. The report
    then has its size in ``damping``.

    All this takes the inner problem as ``wrap`` was told of it. Whether it is also the one that
    your loop trains is looked at apart from the comparison, in ``position``: where training has
    come to rest on ``batch``, the inner gradient vanishes, unless weight decay, reduction or
    weights are others in the loop. The *relative gradient* named there is the norm of the inner
    gradient beside the root of the summed squares of its parts: the fixed losses', weight decay's
    and each sample's. It is about 1 on a random slice of the data that a model was trained on.

    Args:
        rw: what :func:`reweight.wrap` returned.
        batch: a train batch, small enough to solve the inner problem on it many times.
        dev_batch: a dev batch.
        rtol: the relative error that counts as agreement.
        seed: of the random directions.
        raise_on_mismatch: raise instead of only reporting.

    Returns:
        The report.

    Raises:
        RuntimeError: if asked for, where the two disagree; the message is the report. Also where
            the losses of the float64 copy can't be differentiated.
        ValueError: losses, weights or an outer loss that are not what
            :meth:`Reweighted.hypergradient` takes.

    Example:
        >>> import torch, reweight
        >>> from reweight import ConjugateGradient, ImplicitHypergradient
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     x, y = batch
        ...     return (model(x).squeeze(-1) - y).square()
        >>> rw = reweight.wrap(model, reweight.LossWeighter(hidden=4), losses,
        ...                    outer_loss=lambda model, batch: losses(model, batch).mean(),
        ...                    hypergradient=ImplicitHypergradient(ConjugateGradient()))
        >>> train, dev = ((torch.randn(8, 3), torch.randn(8)) for _ in range(2))
        >>> report = reweight.check_hypergradient(rw, train, dev)
        >>> report.ok
        True
        >>> print(report.position)
        your parameters are not at a minimum of the inner problem on this slice ...
    """
    problem = Problem(rw, batch, dev_batch)
    with problem.opened():
        _evaluated_once(problem)
        where = position(problem)
        problem.look_beside()
        comparison, fault, remark = _compared(problem, rtol, seed)
        verdict, advice = judge(problem, comparison, rtol, fault)
        if not comparison.decides(rtol):
            # Numbers that say nothing had better not be looked at.
            comparison = comparison.undecided()
    errors = comparison.errors(comparison.ours)
    rows = zip(
        comparison.slopes,
        comparison.along(comparison.ours),
        comparison.along(comparison.exact),
        comparison.slopes.values(),
        errors,
        strict=True,
    )
    report = CheckReport(
        rows=tuple(CheckRow(*row) for row in rows),
        error=max(errors),
        exact_error=max(comparison.errors(comparison.exact)),
        rtol=rtol,
        inner_gradient=comparison.left,
        info=comparison.ours.info,
        verdict=verdict,
        advice=remark or advice,
        position=where,
        damping=comparison.damping,
    )
    if raise_on_mismatch and not report.ok:
        raise RuntimeError(str(report))
    return report


def _evaluated_once(problem: Problem) -> None:
    """Tell what a float64 copy may stumble over."""
    try:
        problem.losses()
        problem.outer_gradient()
    except (RuntimeError, ValueError) as error:
        raise type(error)(
            "on the float64 copy of the model that is checked, the losses can't be "
            f"differentiated: {error}. If training runs, then losses or outer_loss make "
            "float32 tensors of their own, or use a model that they remember and not the one "
            "they are given"
        ) from error


def _compared(problem: Problem, rtol: float, seed: int) -> tuple[Comparison, str | None, str]:
    """A comparison that says something if there is one; what is wrong with a gradient; a remark."""
    first = compare(problem, rtol, seed)
    if first.agrees(first.ours, rtol) and first.largest == first.floor:
        remark = (
            "but little was tested: every derivative is zero on this slice, as where the model "
            "fits its samples exactly whatever their weights, or has the train batch for its dev "
            "batch. Take more samples, or add weight decay"
        )
        again = _damped(problem, rtol, seed)
        if again is None:
            return first, None, remark
        error = max(again.errors(again.exact))
        if error > rtol:
            return again, _fault(problem, again), ""
        remark += (
            f". With damping {again.damping:g} added they are not, and an exact solve "
            f"agrees to {error:.1g}"
        )
        return first, None, remark
    if first.agrees(first.exact, rtol) or first.side_channel:
        return first, None, ""
    # Before damping is tried: no damping mends a wrong gradient, and a wrong one may be what kept
    # the problem from being solved.
    fault = _fault(problem, first)
    if fault is not None or first.decides(rtol):
        return first, fault, ""
    return _damped(problem, rtol, seed) or first, None, ""


def _fault(problem: Problem, comparison: Comparison) -> str | None:
    return broken_link(problem) or comparison.exact.info.caveat or None


def _damped(problem: Problem, rtol: float, seed: int) -> Comparison | None:
    """The comparison with the least damping that makes it one."""
    problem.move_to(problem.origin)
    problem.springs = []
    steepest = curvature(problem.objective, problem.theta, problem.twice)
    pull = norm(problem.gradient()) / (norm(problem.origin) or 1.0)
    for share, move in _DAMPING:
        damping = max(share * steepest, pull / move) or share
        comparison = compare(problem, rtol, seed, float(f"{damping:.1g}"))
        if comparison.decides(rtol) and comparison.largest > comparison.floor:
            return comparison
    return None
