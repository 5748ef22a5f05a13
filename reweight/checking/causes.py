"""The outcome of a comparison, and the most likely cause of a mismatch."""

from __future__ import annotations

import dataclasses
import math

from reweight._tensors import dot, norm
from reweight.checking.compare import RESOLVED, SOLVED, Comparison, exact_solver
from reweight.checking.links import common_factor, reason, rounding
from reweight.checking.problem import Problem
from reweight.checking.report import shortened


class NotMade(Exception):
    """There is nothing to compare the hypergradient with.

    Attributes:
        how: the end of the verdict "could not be compared …".
        advice: why, and what to do.
        left: norm of the inner gradient at the best point, relative to the outer gradient's.
    """

    def __init__(self, how: str, advice: str, left: float = math.nan) -> None:
        super().__init__(how, advice)
        self.how, self.advice, self.left = how, advice, left


def out_of_time(seconds: float) -> NotMade:
    """Nothing was compared within a limit of time."""
    advice = "the time was used up: take fewer samples or parameters, or raise max_seconds"
    return NotMade(f"within {seconds:g} s", advice)


def not_in_float64(error: Exception) -> NotMade:
    """An evaluation in float64 raised an error."""
    return NotMade(
        "with finite differences",
        "the check could not be made: it computes in float64, in which the losses or their "
        f"derivatives raise {type(error).__name__}: {error}. That says nothing about the "
        "hypergradient. An operation may have no float64 kernel, or a tensor that the check can't "
        "convert stays in another type: make tensors in the type of the batch or the parameters",
    )


def why_not(
    problem: Problem,
    fault: str | None,
    comparison: Comparison | None = None,
    left: float = math.nan,
) -> NotMade:
    """The reason why nothing can be compared.

    Args:
        problem: whose evaluations may have been rounded.
        fault: a gradient or a value that is wrong by itself, in words.
        comparison: the numbers that are of no use, if there are any.
        left: the inner gradient that is left where no minimum was found.
    """
    if rounded := rounding(problem):
        advice = (
            f"the check needs float64, but {rounded}. That says nothing about the hypergradient"
        )
    elif fault:
        advice = fault
    elif comparison is not None and comparison.unresolved:
        left = comparison.left
        advice = (
            f"an exact solve agrees to {max(comparison.errors(comparison.exact)):.1g}, and finite "
            f"differences of solutions resolve no more: ask for rtol={RESOLVED:g} or above"
        )
    elif comparison is not None:
        left = comparison.left
        advice = (
            "the linear system itself has no good answer here, also not with damping added: "
            f"{comparison.exact.info.message}"
        )
    else:
        known = f": its gradient is still {left:.2g} of the outer gradient" * math.isfinite(left)
        advice = (
            f"the check found no minimum of the inner problem on this batch{known}, where finite "
            f"differences need {SOLVED:.0e}, and damping did not help. That says nothing about the "
            "hypergradient. Use a smaller or smoother slice (losses with kinks are smallest at "
            "the kinks), add weight decay, or train further first"
        )
    return NotMade("with finite differences", advice, left)


def judge(
    problem: Problem, comparison: Comparison, rtol: float, fault: str | None
) -> tuple[str, str]:
    """The verdict in one line, and the advice.

    Args:
        problem: at the solution that was compared.
        comparison: the numbers.
        rtol: the relative error that counts as agreement.
        fault: a gradient or a value that is wrong by itself, in words.

    Raises:
        NotMade: the two disagree because of rounding.
    """
    ours, exact = (max(comparison.errors(h)) for h in (comparison.ours, comparison.exact))
    damped = f", damping {comparison.damping:g}" if comparison.damping else ""
    numbers = (
        f"with finite differences: relative error {ours:.2g} "
        f"(asked {rtol:.2g}, exact solve {exact:.2g}{damped})"
    )
    if problem.strangers and min(ours, exact) <= rtol:
        others = shortened(", ".join(problem.strangers), 60)
        return (
            f"hypergradient INCOMPLETE: the losses also depend on {others}",
            f"the comparison holds these tensors, and agrees like this {numbers}",
        )
    if ours <= rtol:
        return f"hypergradient agrees {numbers}", "nothing to do"
    disagrees = f"hypergradient DISAGREES {numbers}"
    if comparison.side_channel:
        return disagrees, (
            f"{type(problem.bilevel.weighter).__name__} reads inner parameters by a side channel: "
            "with its losses and inputs held, its weights still moved with the inner parameters, "
            "which the hypergradient leaves out. Pass what it needs of the model as "
            "Losses(inputs=...)"
        )
    if exact <= rtol:
        return _solver(problem, comparison, rtol)
    if rounding(problem):
        raise why_not(problem, fault)
    pairs = comparison.along(comparison.exact), list(comparison.slopes.values())
    factor = common_factor(*pairs, rtol)
    said = "also an exact solve disagrees"
    if factor is not None:
        said += f", all parameters by the same factor {factor:.3g}"
        said += "" if fault else reason(factor, comparison.ours.influence.numel())
    return disagrees, f"{said}: " + (
        fault
        or "likely causes are losses that are not a function of parameters and batch alone, custom "
        "gradients that are not the gradients of the loss, or a detach() inside the model"
    )


def _solver(problem: Problem, comparison: Comparison, rtol: float) -> tuple[str, str]:
    """The outcome where the set-up is right and the solver is not exact."""
    ours, exact = comparison.ours, comparison.exact
    info, name = ours.info, _named(problem.strategy.solver)
    error, right = max(comparison.errors(ours)), max(comparison.errors(exact))
    advice = (
        f"the set-up is right: with the linear system solved exactly the two agree to {right:.1g}. "
    )
    lengths = norm(ours.grads) * norm(exact.grads)
    cosine = dot(ours.grads, exact.grads) / lengths if lengths else 0.0
    beside = f"off by {error:.2g} here, at a cosine of {cosine:.4f} with the exact hypergradient"
    if info.status.by_design:
        return (
            f"the set-up is right; {name}: {info.status.design}, as chosen",
            f"{advice}{name} is {beside}. Its verdict: {info.message}",
        )
    if info.matrix == "gauss_newton":
        return (
            "the set-up is right; the Gauss-Newton matrix in the place of the Hessian, as chosen",
            f"{advice}With the Gauss-Newton matrix, {name} is {beside}. Its verdict: "
            f"{info.message}",
        )
    if info.trustworthy:
        return (
            f"the set-up is right; {name} solves to a residual of {info.relative_residual:.1g}, "
            f"not to the {rtol:.1g} asked",
            f"{advice}{name} is {beside}. Lower its tolerance, or raise rtol",
        )
    verdict = f"the set-up is right, but {name} does not solve the linear system well enough"
    if (ignored := _ignored(problem, comparison, rtol)) is not None:
        return verdict, (
            f"{advice}What {name} gives is the hypergradient without {ignored}: it solves with a "
            "matrix of its own, where it should multiply by the matvec it is given"
        )
    factor = common_factor(comparison.along(ours), comparison.along(exact), rtol)
    if factor is not None:
        beside = (
            f"off by the same factor {factor:.3g} for all parameters, as where a factor of the "
            "solution (a step size, a norm) is left out"
        )
    return verdict, f"{advice}{name} is {beside}. Its verdict: {info.message}"


def _ignored(problem: Problem, comparison: Comparison, rtol: float) -> str | None:
    """The part of the linear system that the solver leaves out, if an exact solve shows one."""
    ours = comparison.along(comparison.ours)
    parts = {
        "weight decay": (any(problem.decay.values()), {"decay": False}),
        "damping": (problem.strategy.damping > 0.0, {"damping": False}),
    }
    for part, (present, left_out) in parts.items():
        if not present:
            continue
        other = comparison.along(
            problem.hypergradient(comparison.damping, exact_solver(problem), **left_out)
        )
        largest = max(abs(x) for x in other)
        if all(abs(a - b) <= rtol * largest for a, b in zip(ours, other, strict=True)):
            return part
    return None


def _named(solver: object) -> str:
    """A solver as the user would write it."""
    if dataclasses.is_dataclass(solver) and not isinstance(solver, type):
        fields = [
            f"{field.name}={getattr(solver, field.name)!r}"
            for index, field in enumerate(f for f in dataclasses.fields(solver) if f.repr)
            if index == 0 or getattr(solver, field.name) != field.default
        ]
        return shortened(f"{type(solver).__name__}({', '.join(fields)})", 50)
    return shortened(getattr(solver, "__name__", type(solver).__name__), 50)
