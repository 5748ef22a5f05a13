"""reweight, in each of the ways that it offers for a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

import reweight
from benchmarks._peers import plain
from benchmarks._peers.cells import Case
from benchmarks._peers.method import CG, IDENTITY, STEP_SIZE, Gradient, Method, NotServed, Setting
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, Losses, Neumann

EVERY = 10  # steps between two measured verdicts, where they are sampled
# A central difference of losses has this error in float64: the root of the rounding, to the 2/3.
FIRST_ORDER_ERROR = 1e-6
# What remains of the reference's error: conjugate gradients that run until rounding stops them.
CONVERGENCE_STEPS = 60

GENERAL = "reweight"
FIRST_ORDER = "reweight, first-order"
SAMPLED = "reweight, sampled verdict"
GAUSS_NEWTON = "reweight, Gauss-Newton"
SAMPLE_SPACE = "reweight, sample space"


@dataclass(frozen=True)
class Row:
    """One way to make a step.

    Attributes:
        name: for the tables.
        strategy: gives the ``hypergradient=`` of ``wrap`` for a setting, or None where the row is
            not meant for it.
        missing: why this version of the library lacks it, or ``""``.
        gauss_newton: whether the matrix is Gauss and Newton's.
        error: see :class:`Method`.
    """

    name: str
    strategy: Callable[[Setting], ImplicitHypergradient | None]
    missing: Callable[[], str] = lambda: ""
    gauss_newton: bool = False
    error: float = 0.0


def solver(setting: Setting) -> Neumann | ConjugateGradient:
    if setting.kind == "series":
        return Neumann(setting.num, STEP_SIZE)
    return ConjugateGradient(setting.num, rtol=1e-12)  # below what ten steps reach


def _general(setting: Setting, **options: Any) -> ImplicitHypergradient:
    return ImplicitHypergradient(solver(setting), damping=setting.damping, **options)


def _first_order(setting: Setting) -> ImplicitHypergradient | None:
    return ImplicitHypergradient(Identity(STEP_SIZE)) if setting == IDENTITY else None


def _sampled(setting: Setting) -> ImplicitHypergradient | None:
    return None if setting == IDENTITY else _general(setting, verdict_every=EVERY)


def _gauss_newton(setting: Setting) -> ImplicitHypergradient | None:
    return None if setting == IDENTITY else _general(setting, curvature="gauss_newton")


def _sample_space(setting: Setting) -> ImplicitHypergradient | None:
    if setting != CG:
        return None
    exact = reweight.SampleSpace()  # type: ignore[attr-defined]
    return ImplicitHypergradient(exact, damping=setting.damping, **_if_any("curvature"))


def _if_any(option: str) -> dict[str, Any]:
    return {} if _lacks(option) else {option: "gauss_newton"}


def _lacks(option: str) -> str:
    known = {field.name for field in fields(ImplicitHypergradient)}
    return "" if option in known else f"ImplicitHypergradient has no {option}="


def _lacks_sample_space() -> str:
    return "" if hasattr(reweight, "SampleSpace") else "there is no solver SampleSpace"


def _lacks_first_order() -> str:
    """Whether ``Identity`` still measures a residual with the Hessian."""
    rw = reweight.wrap(
        nn.Linear(1, 1),
        reweight.ConstantWeighter(),
        lambda model, x: model(x).square().flatten(),
        outer_loss=lambda model, x: model(x).square().sum(),
        hypergradient=ImplicitHypergradient(Identity()),
    )
    x = torch.ones(2, 1)
    residual = rw.hypergradient(x, x).info.relative_residual
    return "" if residual is None else "Identity() goes through the Hessian's graph"


ROWS: tuple[Row, ...] = (
    Row(GENERAL, _general),
    Row(FIRST_ORDER, _first_order, _lacks_first_order, error=FIRST_ORDER_ERROR),
    Row(SAMPLED, _sampled, lambda: _lacks("verdict_every")),
    Row(GAUSS_NEWTON, _gauss_newton, lambda: _lacks("curvature"), gauss_newton=True),
    Row(SAMPLE_SPACE, _sample_space, _lacks_sample_space, gauss_newton=True),
)


def _method(row: Row) -> Method:
    def make(case: Case, setting: Setting) -> Gradient:
        strategy = row.strategy(setting)
        if strategy is None:
            raise NotServed("another setting's row")
        losses = _with_outputs(case) if row.gauss_newton else case.losses
        rw = reweight.wrap(
            case.model, case.weighter, losses, case.outer_loss, hypergradient=strategy
        )
        return lambda: list(rw.hypergradient(case.batch, case.dev_batch).grads.values())

    def reference(case: Case, setting: Setting) -> Gradient:
        converged = CONVERGENCE_STEPS if row.name == SAMPLE_SPACE else None
        return plain.gauss_newton(case, setting, converged)

    missing = row.missing()
    return Method(
        row.name,
        make,
        missing,
        reference if row.gauss_newton else None,
        error=row.error,
        ours=True,
    )


def _with_outputs(case: Case) -> Callable[[nn.Module, Any], Losses]:
    if case.outputs is None or case.of_outputs is None:
        raise NotServed("only the classifiers have outputs")
    outputs, of_outputs = case.outputs, case.of_outputs

    def losses(model: nn.Module, batch: Any) -> Losses:
        return Losses.of(  # type: ignore[attr-defined]
            outputs(model, batch), lambda out: of_outputs(out, batch)
        )

    return losses


def methods() -> list[Method]:
    return [_method(row) for row in ROWS]
