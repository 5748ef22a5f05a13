"""How a linear solve can end."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Status(str, Enum):
    """How a solve ended. The value of a member is the sentence for the user."""

    CONVERGED = "the linear system is solved to the tolerance"
    TRUNCATED = (
        "a regularised direction and not the inverse, because the series ends before it converges"
    )
    MAX_STEPS = (
        "the step limit was reached before the tolerance; raise max_steps, or add damping to make "
        "the system better conditioned"
    )
    DIVERGING = (
        "the terms of the series grow: the step size is above 2/λmax; lower step_size or use "
        'step_size="auto"'
    )
    NEGATIVE_CURVATURE = (
        "the Hessian is not positive definite along a search direction: it is flat there, or the "
        "inner problem is not at a minimum; add damping of at least the negative curvature, or "
        "train the inner problem further"
    )
    ILL_CONDITIONED = (
        "the residual is small, but the error can be larger along directions of small curvature; "
        "solve further (a lower rtol, more steps, terms or columns), or add damping"
    )
    DISJOINT = (
        "the outer loss uses no parameter that the inner loss moves, so the hypergradient is zero; "
        "the two losses may belong to different heads or models, or the outer loss may use only "
        "rows of tables that the train batch does not read"
    )
    NOISY_PRODUCTS = (
        "the system is solved for products that carry an error of their own, as finite differences "
        "do; use float64, or layers that can be differentiated twice"
    )
    UNCONFIRMED = (
        "the solver reports a solution, but the residual measured afterwards is too large: its own "
        "test differs from the residual, or rounding errors are large; lower rtol, use float64 or "
        "add damping"
    )
    APPROXIMATED = (
        "the Hessian was replaced by a multiple of the identity: the direction is accurate only if "
        "all curvatures are similar"
    )
    LOW_RANK = (
        "the Hessian was replaced by a low-rank matrix plus damping: the direction is accurate "
        "only if the curvatures outside of the low-rank part are close to that damping; raise "
        "rank, or choose a damping near these curvatures"
    )
    NOT_FINITE = (
        "something was not finite, so the outer step was skipped, and its hypergradient is zero"
    )

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"Status.{self.name}"

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        # By name: the sentence of a member may change between versions.
        return getattr, (type(self), self.name)

    @property
    def design(self) -> str:
        """The step that the choice of the solver explains, or ``""`` if the solver aims at more."""
        return _DESIGNS.get(self, "")

    @property
    def by_design(self) -> bool:
        """Whether the choice of the solver explains that the system is not solved."""
        return bool(self.design)

    @property
    def alarming(self) -> bool:
        """Whether no choice of a solver explains the ending, so that the user is to be warned."""
        return self in (
            Status.DIVERGING,
            Status.UNCONFIRMED,
            Status.DISJOINT,
            Status.NOT_FINITE,
        )

    @property
    def final(self) -> bool:
        """Whether the solver claims that nothing is left to solve."""
        return self in (Status.CONVERGED, Status.DISJOINT)


_DESIGNS = {
    Status.TRUNCATED: "a truncated step",
    Status.LOW_RANK: "a step with a low-rank Hessian",
    Status.APPROXIMATED: "a step with a multiple of the identity as Hessian",
}
