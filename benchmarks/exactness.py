"""Every solver on every problem, compared with dense linear algebra; also for TorchOpt.

    python benchmarks/exactness.py [--json FILE]

A cell shows the relative error of the hypergradient and an outcome. "right": the error is within
what the verdict allows, 1e-2 at most. WRONG: the verdict trusts a result with a larger error.
Otherwise: why the verdict does not trust the result, or "refused" where an error says so. A second
table has Gauss-Newton matrices in the place of the Hessian. First-order steps solve nothing, so
their table compares them with the same step by dense linear algebra. TorchOpt gives no verdict, so
a cell of its table is right or WRONG. If the Hessian is singular, there is no answer and the error
is infinite. TorchOpt's table needs the extra [bench].
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.catalogue import first_order, gauss_newton
from benchmarks.catalogue.problems import PROBLEMS, Bilevel, relative_error
from benchmarks.catalogue.solvers import SOLVERS, allowed_error, strategy
from reweight import SolveInfo
from reweight.verdict import TRUSTED_ERROR


def ours(problem: Bilevel, name: str) -> dict[str, Any]:
    grads, info = strategy(name, problem)(
        problem.inner, problem.outer, problem.params, problem.hparams
    )
    error = problem.error(grads)
    return {"error": error, **_outcome(info, error)}


def _outcome(info: SolveInfo, error: float) -> dict[str, Any]:
    outcome = "negative curvature" if info.curves_down else info.status.name
    outcome = outcome.lower().replace("_", " ")
    if info.trustworthy:
        outcome = "right" if error <= allowed_error(info) else "WRONG"
    return {
        "outcome": outcome,
        "residual": info.relative_residual,
        "num_hvps": info.num_hvps,
        "status": info.status.name,
    }


def with_gauss_newton(problem: gauss_newton.WithOutputs, name: str) -> dict[str, Any]:
    """The same for the influence, with the Gauss-Newton matrix in the place of the Hessian."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = problem.hypergradient(gauss_newton.SOLVERS[name])
            error = gauss_newton.error(problem, found.influence)
    except ValueError as refusal:
        return {"error": math.nan, "outcome": "refused", "reason": str(refusal)}
    return {"error": error, **_outcome(found.info, error)}


def without_hessian(problem: Bilevel, name: str) -> dict[str, Any]:
    found, expected = first_order.hypergradient(problem, name)
    error = relative_error(found.grads["weights"], expected)
    # Of central differences: eps^⅔ times third derivatives of order ten.
    right = error <= 1e-8 and not found.info.trustworthy
    return {"error": error, "outcome": "right" if right else "WRONG"}


def torchopt_solvers() -> dict[str, Callable[..., Any]]:
    """TorchOpt's linear solvers by their settings; each takes the damping as ``ridge``."""
    from torchopt.linear_solve import solve_cg, solve_inv, solve_normal_cg

    def neumann(**options: Any) -> Callable[..., Any]:
        return lambda ridge: solve_inv(ns=True, ridge=ridge, **options)

    def gradients(solve: Any, **options: Any) -> Callable[..., Any]:
        return lambda ridge: solve(ridge=ridge, **options)

    return {
        "solve_inv(ns, 3)": neumann(maxiter=3),
        "solve_inv(ns, 3, alpha=0.1)": neumann(maxiter=3, alpha=0.1),
        "solve_inv(ns, 500)": neumann(maxiter=500),
        "solve_inv(ns, 500, alpha=0.1)": neumann(maxiter=500, alpha=0.1),
        "solve_cg()": gradients(solve_cg),
        "solve_cg(maxiter=10)": gradients(solve_cg, maxiter=10),
        "solve_cg(maxiter=200, rtol=1e-10)": gradients(solve_cg, maxiter=200, rtol=1e-10),
        "solve_normal_cg(maxiter=200)": gradients(solve_normal_cg, maxiter=200),
        "solve_inv() (dense)": gradients(solve_inv),
    }


def theirs(problem: Bilevel, make: Callable[..., Any]) -> dict[str, Any]:
    """The hypergradient by ``torchopt.diff.implicit.custom_root``."""
    from torchopt.diff.implicit import custom_root

    def inner(theta: Tensor, phi: Tensor) -> Tensor:
        return problem.inner(
            problem.parted(theta, problem.params), problem.parted(phi, problem.hparams)
        )

    theta = problem.joined(problem.params)
    phi = problem.joined(problem.hparams).requires_grad_(True)
    ridge = problem.damping or None

    @custom_root(torch.func.grad(inner, argnums=0), argnums=1, solve=make(ridge))
    def solution(start: Tensor, phi: Tensor) -> Tensor:
        return start.clone()

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimum = solution(theta, phi)
            loss = problem.outer(
                problem.parted(optimum, problem.params), problem.parted(phi, problem.hparams)
            )
            grads = problem.parted(torch.autograd.grad(loss, phi)[0], problem.hparams)
    except Exception as error:
        return {"error": math.nan, "outcome": f"raises {type(error).__name__}"}
    error = problem.error(grads)
    return {"error": error, "outcome": "right" if error <= TRUSTED_ERROR else "WRONG"}


def show(title: str, table: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print one row per solver and one column per problem."""
    width = max(map(len, table))
    columns = list(next(iter(table.values())))
    print(f"\n{title}\n")
    for start in range(0, len(columns), 2):
        part = columns[start : start + 2]
        print(f"{'':{width}}" + "".join(f"   {name:<25}" for name in part))
        for solver, row in table.items():
            cells = [f"{row[name]['error']:6.0e} {row[name]['outcome']}" for name in part]
            print(f"{solver:{width}}" + "".join(f"   {cell:<25}" for cell in cells).rstrip())
        print()
    print("\n".join(summary(table)))


def summary(table: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A Markdown table with one row per solver, and all of them together in the last one."""
    lines = [
        "| | right | largest error of these | told or refused | WRONG |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    everything = [cell for row in table.values() for cell in row.values()]
    for name, cells in [*((n, list(row.values())) for n, row in table.items()), ("", everything)]:
        outcomes = Counter(cell["outcome"] for cell in cells)
        right, wrong = outcomes.pop("right", 0), outcomes.pop("WRONG", 0)
        errors = [cell["error"] for cell in cells if cell["outcome"] == "right"]
        largest = f"{max(errors):.0e}" if errors else "–"
        told = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
        label = f"`{name}`" if name else "**all**"
        lines.append(f"| {label} | {right} | {largest} | {told or '–'} | {wrong} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = {name: make() for name, make in PROBLEMS.items()}
    tables: dict[str, Any] = {
        "reweight": {
            name: {problem: ours(p, name) for problem, p in problems.items()} for name in SOLVERS
        }
    }
    show("reweight: relative error of the hypergradient, float64", tables["reweight"])
    tables["reweight, Gauss-Newton"] = {
        name: {problem: with_gauss_newton(p, name) for problem, p in gauss_newton.PROBLEMS.items()}
        for name in gauss_newton.SOLVERS
    }
    show(
        "reweight: relative error of the influence, with Gauss-Newton matrices, float64",
        tables["reweight, Gauss-Newton"],
    )
    tables["first-order"] = {
        name: {problem: without_hessian(p, name) for problem, p in problems.items()}
        for name in first_order.STEPS
    }
    show("first-order steps: relative error of the step itself", tables["first-order"])
    try:
        import torchopt
    except ImportError:
        print("\nTorchOpt is not installed: pip install torchopt for its table")
    else:
        name = f"TorchOpt {torchopt.__version__}"
        tables[name] = {
            solver: {problem: theirs(p, make) for problem, p in problems.items()}
            for solver, make in torchopt_solvers().items()
        }
        show(f"{name}: relative error of the hypergradient, float64", tables[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
