"""``check_hypergradient``: is a hypergradient right, and if not, why?"""

from __future__ import annotations

import math
from typing import Any

from reweight._tensors import norm
from reweight.checking.causes import judge
from reweight.checking.compare import Comparison, compare
from reweight.checking.descent import largest_curvature
from reweight.checking.links import broken_link
from reweight.checking.position import position
from reweight.checking.problem import Problem
from reweight.checking.report import CheckReport, CheckRow
from reweight.wrapping import Reweighted

# Damping is tried from weak to strong: as a share of the largest curvature, and at least so strong
# that the parameters move by no more than a share of their size. The first hardly changes a smooth
# problem. The others are for problems with kinks, such as ReLU networks: their minima usually lie
# at kinks, so they can only be solved between them.
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

    Works on a float64 copy; ``rw`` is not changed. On the copy the inner problem (weight decay and
    damping included) is solved to rounding on ``batch``. Each parameter of the weighter is then
    moved along a random direction to both sides, the inner problem is solved again, and the
    hypergradient has to predict the change of the outer loss on ``dev_batch``. The losses and
    inputs of the weighter are held at the solution, because they are detached. Other values that it
    reads from the model are not held.

    A truncated solver, such as the default ``Neumann(num_terms=3)``, does not agree by design. Then
    ``exact_error`` tells whether everything but the truncation is right, and the report says so.

    If no minimum of the inner problem is found, as for an untrained network without weight decay,
    damping is added on both sides of the comparison (a term ``½·damping·‖θ − θ₀‖²``). Mistakes in
    the set-up show all the same. The report then has its size in ``damping``.

    The comparison uses the inner problem that ``wrap`` was given. ``position`` tells whether your
    loop trains the same one: where training has converged on ``batch``, the inner gradient is zero,
    unless weight decay, reduction or weights differ in the loop. The *relative gradient* there is
    the norm of the inner gradient relative to the root of the summed squares of its terms: the
    fixed losses', weight decay's and each sample's. It is about 1 on a random slice of the training
    data.

    Args:
        rw: what :func:`reweight.wrap` returned.
        batch: a train batch, small enough to solve the inner problem on it many times.
        dev_batch: a dev batch.
        rtol: the relative error that counts as agreement.
        seed: seed of the random directions.
        raise_on_mismatch: whether to raise where the two disagree.

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
        problem.audit()
        comparison, fault, remark = _compared(problem, rtol, seed)
        verdict, advice = judge(problem, comparison, rtol, fault)
        if not comparison.decides(rtol):
            # The numbers are not comparable, so the report leaves them out.
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
    """Raise with the likely cause where the float64 copy can't be differentiated."""
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
    """A comparison that decides, if there is one; what is wrong with a gradient; a remark."""
    first = compare(problem, rtol, seed)
    if first.agrees(first.ours, rtol) and first.largest == first.floor:
        remark = (
            "but little was tested: every derivative is zero on this slice. The model may fit its "
            "samples exactly whatever their weights, or the dev batch may be the train batch. Take "
            "more samples, or add weight decay"
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
    # Before damping is tried: damping does not repair a wrong gradient, and a wrong gradient may be
    # why the problem could not be solved.
    fault = _fault(problem, first)
    if fault is not None or first.decides(rtol):
        return first, fault, ""
    return _damped(problem, rtol, seed) or first, None, ""


def _fault(problem: Problem, comparison: Comparison) -> str | None:
    return broken_link(problem) or comparison.exact.info.caveat or None


def _damped(problem: Problem, rtol: float, seed: int) -> Comparison | None:
    """The comparison with the least damping with which it decides."""
    problem.move_to(problem.origin)
    problem.proximal = []
    steepest = largest_curvature(problem.objective, problem.theta, problem.twice)
    pull = norm(problem.gradient()) / (norm(problem.origin) or 1.0)
    for share, move in _DAMPING:
        damping = max(share * steepest, pull / move) or share
        comparison = compare(problem, rtol, seed, float(f"{damping:.1g}"))
        if comparison.decides(rtol) and comparison.largest > comparison.floor:
            return comparison
    return None
