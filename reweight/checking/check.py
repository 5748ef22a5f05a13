"""``check_hypergradient``: is a hypergradient right, and if not, why?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from reweight._problem import alone_on_a_plain_model, hypergradient
from reweight._tensors import dot, doubled, uninterrupted
from reweight.checking.borrowed import Borrowed
from reweight.checking.budget import Budget, OutOfTime
from reweight.checking.causes import NotMade, judge, not_in_float64, out_of_time, why_not
from reweight.checking.compare import Comparison, Unsolved, compare, directions_of
from reweight.checking.descent import extreme_curvatures
from reweight.checking.links import broken_link
from reweight.checking.position import position
from reweight.checking.problem import Problem
from reweight.checking.report import CheckReport, CheckRow
from reweight.wrapping import Reweighted

# Damping beyond the negative curvature, as shares of the largest curvature, from weak to strong.
_DAMPING = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
# Of many parameters: the weaker the damping, the more products every solve takes.
_MANY, _DAMPING_OF_MANY = 1000, (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
# The share of the time in which a minimum is looked for without damping.
_UNDAMPED = 0.4


@uninterrupted
def check_hypergradient(
    rw: Reweighted,
    batch: Any,
    dev_batch: Any,
    *,
    rtol: float = 1e-3,
    seed: int = 0,
    raise_on_mismatch: bool = False,
    max_seconds: float = 60.0,
) -> CheckReport:
    """Compare ``rw.hypergradient`` with finite differences on a small slice of your data.

    Works in float64, on the modules themselves, and puts everything back: values, types, ``.grad``,
    buffers, attributes, random state. Other threads must not use them meanwhile, and graphs that
    were recorded before can't be differentiated afterwards. The inner problem (weight decay and
    damping included) is solved to rounding on ``batch``. Each parameter of the weighter is then
    moved along a random direction to both sides, the inner problem is solved again, and the
    hypergradient has to predict the change of the outer loss on ``dev_batch``. The losses and
    inputs of the weighter are held at the solution, because they are detached. Other values that it
    reads from the model are not held.

    With several processes, each compares what its own samples give. Of a sharded model, every
    process has to call this, and has to have the memory for the parameters in float64.

    A truncated solver, such as the default ``Neumann(num_terms=3)``, does not agree by design. Then
    ``setup_ok`` tells whether everything but the truncation is right, and the report says so.

    If no minimum of the inner problem is found, as for an untrained network without weight decay, a
    term ``½·damping·‖θ − c‖²`` is added on both sides of the comparison. Its centre ``c`` is where
    it makes your parameters the minimum, and ``damping`` is little more than the negative curvature
    there. Mistakes in the set-up show all the same.

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
        max_seconds: a limit of time, above 0. Where it is used up, the report says so; it can be
            exceeded by one evaluation, or by one solve of your own solver. Work of more than five
            seconds reports its progress: on one line of the terminal, or in the log ``"reweight"``
            at level INFO.

    Returns:
        The report.

    Raises:
        RuntimeError: if asked for, where the two disagree; the message is the report.
        ValueError: losses, weights or an outer loss that are not what
            :meth:`Reweighted.hypergradient` takes, or ``max_seconds`` not above 0.

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
    budget = Budget(max_seconds)
    with alone_on_a_plain_model(rw.problem, batch, dev_batch) as plain:
        rw = Reweighted(plain, rw.strategy)
        problem = Problem(rw, batch, dev_batch, budget)
        try:
            with budget.reported(), problem.opened():
                report = _report(problem, rtol, seed)
        except (NotMade, OutOfTime) as reason:
            if isinstance(reason, OutOfTime):
                reason = out_of_time(max_seconds)
            report = _empty_report(rw, problem, batch, dev_batch, reason, rtol, seed)
    if raise_on_mismatch and not report.ok:
        raise RuntimeError(str(report))
    return report


def _report(problem: Problem, rtol: float, seed: int) -> CheckReport:
    try:
        problem.begin()
    except Exception as error:
        raise not_in_float64(error) from error
    problem.where = position(problem)
    comparison, fault, remark = _compared(problem, rtol, seed)
    if not comparison.decides(rtol):
        raise why_not(problem, fault, comparison)
    verdict, advice = judge(problem, comparison, rtol, fault)
    errors = comparison.errors(comparison.ours)
    rows = zip(
        comparison.slopes,
        comparison.along(comparison.ours),
        comparison.along(comparison.exact),
        comparison.slopes.values(),
        errors,
        strict=True,
    )
    return CheckReport(
        rows=tuple(CheckRow(*row) for row in rows),
        error=max(errors),
        exact_error=max(comparison.errors(comparison.exact)),
        rtol=rtol,
        inner_gradient=comparison.left,
        info=comparison.ours.info,
        verdict=verdict,
        advice=remark or advice,
        position=problem.where,
        damping=comparison.damping,
        hessian_share=comparison.hessian_share if comparison.tested else math.nan,
        unlisted=tuple(problem.strangers),
    )


def _empty_report(
    rw: Reweighted,
    problem: Problem,
    batch: Any,
    dev_batch: Any,
    reason: NotMade,
    rtol: float,
    seed: int,
) -> CheckReport:
    """The hypergradient at the user's own parameters, in their own type, beside nothing.

    Raises:
        Exception: what :meth:`Reweighted.hypergradient` raises on the same batches.
    """
    solver = Borrowed(rw.problem.parts()).copied(rw.strategy.solver)
    strategy = dataclasses.replace(rw.strategy, solver=solver)
    found = hypergradient(rw.problem.apart(), batch, dev_batch, strategy)
    directions = directions_of(rw.problem.phi(), seed)
    return CheckReport(
        rows=tuple(
            CheckRow(name, dot(doubled(found.grads[name]), d), math.nan, math.nan, math.nan)
            for name, d in directions.items()
        ),
        error=math.nan,
        exact_error=math.nan,
        rtol=rtol,
        inner_gradient=reason.left,
        info=found.info,
        verdict=f"hypergradient COULD NOT BE COMPARED {reason.how}",
        advice=reason.advice,
        position=problem.where,
        unlisted=tuple(problem.strangers),
    )


def _compared(problem: Problem, rtol: float, seed: int) -> tuple[Comparison, str | None, str]:
    """A comparison; what is wrong with a gradient; a remark.

    Raises:
        NotMade: there is nothing to compare with.
    """
    first, left = _undamped(problem, rtol, seed)
    if first and first.agrees(first.ours, rtol) and not first.tested:
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
            return again, _fault(problem), ""
        remark += (
            f". With damping {again.damping:g} added they are not, and an exact solve "
            f"agrees to {error:.1g}"
        )
        return first, None, remark
    if first and (first.agrees(first.exact, rtol) or first.unresolved or first.side_channel):
        return first, None, ""
    # Before damping is tried: damping does not repair a wrong gradient, and a wrong gradient may be
    # why the problem could not be solved.
    fault = _fault(problem)
    if first and (fault is not None or first.decides(rtol)):
        return first, fault, ""
    found = None if fault else _damped(problem, rtol, seed) or first
    if found is None:
        raise why_not(problem, fault, left=left)
    return found, None, ""


def _undamped(problem: Problem, rtol: float, seed: int) -> tuple[Comparison | None, float]:
    """The comparison at a minimum, or what is left of the gradient where none was found."""
    try:
        with problem.budget.at_most(_UNDAMPED):
            return compare(problem, rtol, seed), 0.0
    except Unsolved as unsolved:
        return None, unsolved.left
    except (OutOfTime, ValueError, FloatingPointError):  # or something there is not finite
        return None, math.nan


def _damped(problem: Problem, rtol: float, seed: int) -> Comparison | None:
    """The comparison with the least damping with which it decides."""
    problem.move_to(problem.origin)
    problem.proximal = []
    lowest, highest = extreme_curvatures(problem, problem.objective)
    steepest = max(abs(lowest), abs(highest)) or 1.0
    # A fifth more than needed, since the damping is rounded and the curvature an estimate.
    needed = max(-1.2 * lowest - problem.strategy.damping, 0.0)
    for share in _DAMPING_OF_MANY if problem.size > _MANY else _DAMPING:
        try:
            found = compare(problem, rtol, seed, float(f"{needed + share * steepest:.2g}"))
        except (Unsolved, ValueError, FloatingPointError):
            continue
        if found.decides(rtol) and found.tested:
            return found
    return None


def _fault(problem: Problem) -> str | None:
    found = problem.bilevel.audit.findings
    known = (*found.caveats.values(), *found.remarks, *problem.hooked.faults)
    return broken_link(problem) or next(iter(known), None)
