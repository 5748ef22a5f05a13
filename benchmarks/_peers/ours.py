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
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, Losses, Neumann, Reweighted

# Steps between two measured verdicts, where they are sampled. The median is a step without one.
EVERY = 10
# The error of a central difference: a root of the rounding, in float64 and in float32.
FIRST_ORDER_ERRORS = 1e-6, 1e-2

GENERAL = "reweight"
FIRST_ORDER = "reweight, first-order"
SAMPLED = "reweight, sampled verdict"
GAUSS_NEWTON = "reweight, Gauss-Newton"
SAMPLE_SPACE = "reweight, sample space"

Strategy = ImplicitHypergradient


@dataclass(frozen=True)
class Row:
    """One way to make a step.

    Attributes:
        name: for the tables.
        strategy: gives the ``hypergradient=`` of ``wrap`` for a setting and a damping, or None
            where the row is not meant for the setting.
        missing: why this version of the library lacks it, or ``""``.
        gauss_newton: whether the matrix is Gauss and Newton's.
        errors: those of the method in float64 and in float32.
    """

    name: str
    strategy: Callable[[Setting, float], Strategy | None]
    missing: Callable[[], str] = lambda: ""
    gauss_newton: bool = False
    errors: tuple[float, float] = (0.0, 0.0)


def _solver(setting: Setting) -> Neumann | ConjugateGradient:
    if setting.kind == "series":
        return Neumann(setting.num, STEP_SIZE)
    return ConjugateGradient(setting.num, rtol=1e-15)  # below what ten steps reach


def _general(setting: Setting, damping: float, **options: Any) -> Strategy:
    return Strategy(_solver(setting), damping=damping, **options)


def _first_order(setting: Setting, _: float) -> Strategy | None:
    return Strategy(Identity(STEP_SIZE)) if setting == IDENTITY else None


def _sampled(setting: Setting, damping: float) -> Strategy | None:
    return None if setting == IDENTITY else _general(setting, damping, verdict_every=EVERY)


def _gauss_newton(setting: Setting, damping: float) -> Strategy | None:
    return None if setting == IDENTITY else _general(setting, damping, curvature="gauss_newton")


def _sample_space(setting: Setting, damping: float) -> Strategy | None:
    if setting != CG:
        return None
    solver: Any = reweight.SampleSpace()
    options: dict[str, Any] = {} if _lacks("curvature") else {"curvature": "gauss_newton"}
    return Strategy(solver, damping=damping, **options)


def _lacks(option: str) -> str:
    known = {field.name for field in fields(Strategy)}
    return "" if option in known else f"ImplicitHypergradient has no {option}="


def _lacks_sample_space() -> str:
    return "" if hasattr(reweight, "SampleSpace") else "there is no solver SampleSpace"


def _lacks_first_order() -> str:
    """Whether ``Identity`` still measures a residual, for which it needs the Hessian."""
    rw = reweight.wrap(
        nn.Linear(1, 1),
        reweight.ConstantWeighter(),
        lambda model, x: model(x).square().flatten(),
        outer_loss=lambda model, x: model(x).square().sum(),
        hypergradient=Strategy(Identity()),
    )
    x = torch.ones(2, 1)
    residual: float | None = rw.hypergradient(x, x).info.relative_residual
    return "" if residual is None else "Identity() still takes the Hessian's way"


ROWS: tuple[Row, ...] = (
    Row(GENERAL, _general),
    Row(FIRST_ORDER, _first_order, _lacks_first_order, errors=FIRST_ORDER_ERRORS),
    Row(SAMPLED, _sampled, lambda: _lacks("verdict_every")),
    Row(GAUSS_NEWTON, _gauss_newton, lambda: _lacks("curvature"), gauss_newton=True),
    Row(SAMPLE_SPACE, _sample_space, _lacks_sample_space, gauss_newton=True),
)


def wrapped(row: Row, case: Case, setting: Setting) -> Reweighted:
    strategy = row.strategy(setting, setting.damping(case))
    if strategy is None:
        raise NotServed("it is meant for another setting")
    losses = _with_outputs(case) if row.gauss_newton else case.losses
    return reweight.wrap(case.model, case.weighter, losses, case.outer_loss, hypergradient=strategy)


def _with_outputs(case: Case) -> Callable[[nn.Module, Any], Losses]:
    if case.outputs is None or case.of_outputs is None:
        raise NotServed("only the classifiers have outputs")
    outputs, of_outputs = case.outputs, case.of_outputs

    def losses(model: nn.Module, batch: Any) -> Losses:
        return Losses.of(outputs(model, batch), lambda out: of_outputs(out, batch))

    return losses


def _method(row: Row) -> Method:
    def make(case: Case, setting: Setting) -> Gradient:
        rw = wrapped(row, case, setting)
        return lambda: list(rw.hypergradient(case.batch, case.dev_batch).grads.values())

    def reference(case: Case, setting: Setting) -> Gradient:
        return plain.gauss_newton(case, setting, converged=row.name == SAMPLE_SPACE)

    return Method(
        row.name,
        make,
        row.missing(),
        reference if row.gauss_newton else None,
        *row.errors,
        ours=True,
    )


def methods() -> list[Method]:
    return [_method(row) for row in ROWS]
