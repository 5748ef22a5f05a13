"""The implicit hypergradient against closed forms."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from _support.implicit import EXACT, Tree, hypergradient, losses
from _support.problems import mean_squared_error, ridge, squared_errors
from benchmarks.catalogue.problems import relative_error
from reweight import ConjugateGradient, ImplicitHypergradient, Losses, Neumann, Status, wrap

MODES = ("autograd", "func", "finite_difference")
REDUCTIONS: tuple[Literal["mean", "sum"], ...] = ("mean", "sum")


def groups(model: nn.Linear) -> list[dict[str, Any]]:
    """Weight decay 0.3 on the weights and 0.05 on the bias."""
    return [
        {"params": [model.weight], "weight_decay": 0.3},
        {"params": [model.bias], "weight_decay": 0.05},
    ]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("hvp", ["auto", "autograd", "func"])
def test_ridge_regression_has_its_closed_form(
    hvp: Any, damping: float, reduction: Literal["mean", "sum"]
) -> None:
    problem = ridge(reduction=reduction, damping=damping)
    result = hypergradient(problem, ImplicitHypergradient(EXACT, damping, hvp), reduction)
    assert relative_error(result.influence, problem.influence) < 1e-10
    assert relative_error(result.grads["raw"], problem.hypergradient) < 1e-10
    assert result.info.trustworthy
    assert result.info.relative_residual < 1e-12


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_the_weight_decay_of_each_group_is_part_of_the_inner_problem(
    damping: float,
    reduction: Literal["mean", "sum"],
    kind: type[torch.optim.Optimizer],
) -> None:
    problem = ridge(reduction=reduction, damping=damping, decay=(0.3, 0.05))
    optimizer = kind(groups(problem.model), lr=0.1)  # type: ignore[call-arg]
    strategy = ImplicitHypergradient(EXACT, damping)
    result = hypergradient(problem, strategy, reduction, optimizer)
    assert relative_error(result.influence, problem.influence) < 1e-10
    assert relative_error(result.grads["raw"], problem.hypergradient) < 1e-10
    # Without the optimizer it is another number altogether.
    blind = hypergradient(problem, strategy, reduction)
    assert relative_error(blind.influence, problem.influence) > 1e-3


def test_weight_decay_is_read_anew_at_every_step() -> None:
    problem = ridge(decay=(0.3, 0.05))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    rw = wrap(
        problem.model,
        problem.weighter,
        losses,
        mean_squared_error,
        optimizer,
        ImplicitHypergradient(EXACT),
    )
    rw.hypergradient(problem.train, problem.dev)
    optimizer.param_groups.clear()
    for group in groups(problem.model):
        optimizer.add_param_group(group)
    influence = rw.hypergradient(problem.train, problem.dev).influence
    assert relative_error(influence, problem.influence) < 1e-10


def test_an_explicit_penalty_is_the_same_as_weight_decay() -> None:
    problem = ridge(decay=(0.3, 0.3))

    def penalised(model: nn.Linear, batch: Any) -> Losses:
        penalty = 0.15 * sum(p.square().sum() for p in model.parameters())
        return Losses(squared_errors(model, batch), penalty, batch[2])

    rw = wrap(
        problem.model,
        problem.weighter,
        penalised,
        mean_squared_error,
        hypergradient=ImplicitHypergradient(EXACT),
    )
    result = rw.hypergradient(problem.train, problem.dev)
    assert relative_error(result.influence, problem.influence) < 1e-10


@pytest.mark.parametrize("step_size", ["auto", "fixed"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_long_neumann_series_reaches_the_closed_form(
    reduction: Literal["mean", "sum"], step_size: str
) -> None:
    problem = ridge(reduction=reduction)
    values = torch.linalg.eigvalsh(problem.hessian)
    num_terms = int(40.0 * values[-1] / values[0])  # (1 - 1/κ)^(40κ) = e⁻⁴⁰
    chosen: Any = "auto" if step_size == "auto" else 1.0 / float(values[-1])
    solver = Neumann(num_terms, chosen)
    result = hypergradient(problem, ImplicitHypergradient(solver), reduction)
    assert relative_error(result.influence, problem.influence) < 1e-10
    assert result.info.status is Status.CONVERGED


@pytest.mark.parametrize("num_terms", [0, 1, 3, 7])
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_a_short_neumann_series_is_its_formula(num_terms: int, damping: float) -> None:
    problem = ridge(decay=(0.3, 0.05))
    operator = problem.hessian + damping * torch.eye(len(problem.hessian), dtype=torch.float64)
    alpha = 0.8 / float(torch.linalg.eigvalsh(operator)[-1])
    v = problem.outer_gradient
    factor = torch.eye(len(v), dtype=torch.float64) - alpha * operator
    u = alpha * sum(torch.linalg.matrix_power(factor, n) @ v for n in range(num_terms + 1))
    result = hypergradient(
        problem,
        ImplicitHypergradient(Neumann(num_terms, alpha), damping),
        optimizer=torch.optim.SGD(groups(problem.model), lr=0.1),
    )
    x, y, ids = problem.train
    residual = (problem.model(x).reshape(-1) - y).detach()
    a = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    expected = -2.0 / len(x) * residual * (a @ u)
    assert relative_error(result.influence, expected) < 1e-12
    assert result.info.num_hvps == num_terms
    # The reported residual is the true one, recomputed.
    true = float((v - operator @ u).norm() / v.norm())
    assert result.info.relative_residual == pytest.approx(true, rel=1e-10)


def test_finite_difference_products_are_close() -> None:
    problem = ridge()
    strategy = ImplicitHypergradient(EXACT, hvp="finite_difference")
    result = hypergradient(problem, strategy)
    assert result.info.hvp_mode == "finite_difference"
    # The gradient is linear in θ here, so only rounding remains: eps^⅔ of the step's balance.
    assert relative_error(result.influence, problem.influence) < 1e-6


def test_below_zero_means_that_more_of_the_sample_helps() -> None:
    problem = ridge()
    result = hypergradient(problem, ImplicitHypergradient(EXACT))
    helpful = int(result.influence.argmin())
    assert float(result.influence[helpful]) < 0.0
    x, y, _ = problem.train
    a = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    gamma = torch.log1p(problem.weighter.raw.detach().exp()) / math.log(2.0)

    def outer(weights: Tensor) -> float:
        theta = torch.linalg.solve(a.T @ (weights[:, None] * a), a.T @ (weights * y))
        errors = problem.dev[0] @ theta[:-1] + theta[-1] - problem.dev[1]
        return float(errors.square().mean())

    more = gamma.clone()
    more[helpful] += 0.01
    assert outer(more) < outer(gamma)


def quadratic() -> tuple[Tree, Tree]:
    """inner = ½ p·Σa² - h·a has a* = h/p; outer = Σ a³/3 + p·Σh."""
    h = torch.tensor([1.0, -2.0], dtype=torch.float64)
    p = torch.tensor(2.0, dtype=torch.float64)
    return {"a": h / p}, {"h": h, "p": p}


def quadratic_inner(params: Tree, hparams: Tree) -> Tensor:
    return 0.5 * hparams["p"] * params["a"].square().sum() - (hparams["h"] * params["a"]).sum()


def quadratic_outer(params: Tree, hparams: Tree) -> Tensor:
    return params["a"].pow(3).sum() / 3.0 + hparams["p"] * hparams["h"].sum()


@pytest.mark.parametrize("hvp", MODES)
def test_general_hyperparameters_with_a_direct_term(hvp: Any) -> None:
    params, hparams = quadratic()
    grads, info = ImplicitHypergradient(EXACT, hvp=hvp)(
        quadratic_inner, quadratic_outer, params, hparams
    )
    h, p, a = hparams["h"], hparams["p"], params["a"]
    expected_h = a.square() / p + p
    expected_p = (a.square() * (-h / p**2)).sum() + h.sum()
    atol = 1e-6 if hvp == "finite_difference" else 1e-13
    torch.testing.assert_close(grads["h"], expected_h, rtol=0.0, atol=atol)
    torch.testing.assert_close(grads["p"], expected_p, rtol=0.0, atol=atol)
    assert info.hvp_mode == hvp
    assert info.curvature == pytest.approx(2.0, rel=1e-6)


def test_the_core_leaves_its_arguments_alone_and_works_under_no_grad() -> None:
    params, hparams = quadratic()
    params["a"].requires_grad_(True)
    strategy = ImplicitHypergradient(EXACT)
    with torch.no_grad():
        inside, _ = strategy(quadratic_inner, quadratic_outer, params, hparams)
    outside, _ = strategy(quadratic_inner, quadratic_outer, params, hparams)
    assert all(torch.equal(inside[n], outside[n]) for n in inside)
    assert all(not g.requires_grad for g in inside.values())
    assert params["a"].grad is None and not hparams["h"].requires_grad


def test_a_zero_outer_gradient_needs_no_solve() -> None:
    params, hparams = quadratic()
    grads, info = ImplicitHypergradient()(
        quadratic_inner, lambda p, h: 0.0 * p["a"].sum() + h["p"], params, hparams
    )
    assert float(grads["p"]) == 1.0 and not bool(grads["h"].any())
    assert (info.num_hvps, info.hvp_mode, info.trustworthy) == (0, "none", True)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("solver", [EXACT, ConjugateGradient(), Neumann()], ids=repr)
def test_tiny_and_huge_outer_losses_scale_the_answer_in_single_precision(
    solver: Any, size: float
) -> None:
    params, hparams = ({n: t.float() for n, t in tree.items()} for tree in quadratic())
    strategy = ImplicitHypergradient(solver)
    plain, info = strategy(quadratic_inner, lambda p, h: p["a"].sum(), params, hparams)
    scaled, scaled_info = strategy(
        quadratic_inner, lambda p, h: p["a"].sum() * size, params, hparams
    )
    for name in plain:
        # 1e-40 is denormal: five of seven digits are left.
        torch.testing.assert_close(scaled[name] / size, plain[name], rtol=1e-4, atol=0.0)
    assert scaled_info.relative_residual == pytest.approx(info.relative_residual, abs=1e-4)
    assert scaled_info.trustworthy == info.trustworthy


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_tiny_and_huge_inner_losses_leave_the_answer_as_it_is(size: float) -> None:
    params, hparams = ({n: t.float() for n, t in tree.items()} for tree in quadratic())
    for solver in (EXACT, Neumann()):
        strategy = ImplicitHypergradient(solver)
        plain, _ = strategy(quadratic_inner, lambda p, h: p["a"].sum(), params, hparams)
        scaled, info = strategy(
            lambda p, h: quadratic_inner(p, h) * size,
            lambda p, h: p["a"].sum(),
            params,
            hparams,
        )
        for name in plain:
            torch.testing.assert_close(scaled[name], plain[name], rtol=1e-5, atol=1e-6)
        assert info.trustworthy


def test_parameters_of_several_types_are_served() -> None:
    params, hparams = quadratic()
    expected, _ = ImplicitHypergradient(EXACT)(quadratic_inner, quadratic_outer, params, hparams)
    split = {"single": params["a"][:1].float(), "double": params["a"][1:]}

    def joined(fn: Any) -> Any:
        return lambda p, h: fn({"a": torch.cat([p["single"].double(), p["double"]])}, h)

    for hvp in ("autograd", "func"):
        grads, info = ImplicitHypergradient(EXACT, hvp=hvp)(  # type: ignore[arg-type]
            joined(quadratic_inner), joined(quadratic_outer), split, hparams
        )
        assert info.trustworthy
        for name in expected:
            torch.testing.assert_close(grads[name], expected[name], rtol=1e-6, atol=0.0)


ONE = torch.ones(2, dtype=torch.float64)
GOOD = {"inner": quadratic_inner, "outer": quadratic_outer}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": {}}, ValueError, r"\bparams\b.*empty"),
        ({"hparams": {}}, ValueError, "hparams.*empty"),
        ({"params": [ONE]}, TypeError, r"\bparams\b.*dict.*list"),
        ({"params": {"a": ONE.long()}}, TypeError, r"\bparams\['a'\].*int64"),
        ({"params": {"a": 1.0}}, TypeError, r"\bparams\['a'\].*float"),
        ({"outer": lambda p, h: h["p"]}, ValueError, "outer loss.*params.*detach"),
        ({"outer": lambda p, h: p["a"].detach().sum()}, ValueError, "outer loss.*params.*detach"),
        ({"outer": lambda p, h: p["a"]}, ValueError, r"outer loss.*\(2,\)"),
        ({"outer": lambda p, h: 1.0}, TypeError, "outer loss.*float"),
        ({"outer": lambda p, h: p["a"].sum() * math.nan}, ValueError, r"outer loss.*\bnan\b"),
        ({"inner": lambda p, h: p["a"]}, ValueError, r"inner loss.*\(2,\)"),
        ({"inner": lambda p, h: p["a"].sum() / 0.0}, ValueError, r"inner loss.*\binf\b"),
        (
            {"inner": lambda p, h: p["a"].square().sum(), "outer": lambda p, h: p["a"].sum()},
            ValueError,
            "hparams 'h', 'p'",
        ),
        (
            {"outer": lambda p, h: (p["a"] - p["a"].detach()).abs().sqrt().sum()},
            FloatingPointError,
            r"outer loss.*not finite.*\ba\b",
        ),
        (
            {"inner": lambda p, h: (h["p"] * (p["a"] - p["a"].detach()).abs().pow(1.5)).sum()},
            FloatingPointError,
            "Hessian-vector.*not finite",
        ),
    ],
)
def test_what_can_not_be_differentiated_is_told(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    params, hparams = quadratic()
    arguments: dict[str, Any] = {**GOOD, "params": params, "hparams": hparams, **change}
    with pytest.raises(error, match=message):
        ImplicitHypergradient()(**arguments)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"solver": "cg"}, TypeError, "solver='cg'.*Neumann"),
        ({"damping": -1.0}, ValueError, "damping=-1.0"),
        ({"damping": math.nan}, ValueError, "damping=nan"),
        ({"hvp": "fast"}, ValueError, "hvp='fast'.*'auto'"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ImplicitHypergradient(**fields)


def test_an_error_of_the_users_own_comes_through_as_it_is() -> None:
    params, hparams = quadratic()

    def inner(p: Tree, h: Tree) -> Tensor:
        raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="^my own mistake$"):
        ImplicitHypergradient()(inner, quadratic_outer, params, hparams)


def test_when_no_mode_works_each_one_says_why() -> None:
    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no gradient at all")

    params, hparams = quadratic()
    with pytest.raises(RuntimeError, match="(?s)autograd.*func.*difference"):
        ImplicitHypergradient()(
            lambda p, h: quadratic_inner({"a": Stubborn.apply(p["a"])}, h),
            quadratic_outer,
            params,
            hparams,
        )


@pytest.mark.parametrize("hvp", ["auto", "autograd", "func", "finite_difference"])
def test_a_hyperparameter_of_the_outer_loss_alone_has_its_direct_gradient(hvp: str) -> None:
    grads, _ = ImplicitHypergradient(ConjugateGradient(50), hvp=hvp)(  # type: ignore[arg-type]
        lambda p, h: (p["w"] - 1).square().sum(),
        lambda p, h: p["w"].sum() + 3 * h["a"],
        {"w": torch.tensor([0.5])},
        {"a": torch.tensor(2.0)},
    )
    assert float(grads["a"]) == 3.0


def test_an_infinite_direct_term_is_told() -> None:
    with pytest.raises(FloatingPointError, match=r"not finite.*\ba\b"):
        ImplicitHypergradient()(
            lambda p, h: (p["w"] - h["a"]).square().sum(),
            lambda p, h: p["w"].sum() + h["a"].sqrt(),
            {"w": torch.tensor([0.5])},
            {"a": torch.tensor(0.0)},
        )


@pytest.mark.parametrize("hvp", ["auto", *MODES])
def test_an_inner_loss_is_not_evaluated_where_nothing_is_solved(hvp: Any) -> None:
    def never(params: Tree, hparams: Tree) -> Tensor:
        raise AssertionError("evaluated")

    params, hparams = quadratic()
    strategy = ImplicitHypergradient(EXACT, hvp=hvp)
    grads, info = strategy(never, lambda p, h: 0.0 * p["a"].sum(), params, hparams)
    assert info.num_hvps == 0 and not any(bool(g.any()) for g in grads.values())


def test_a_loss_that_eager_mode_can_not_evaluate_is_differentiated_by_func() -> None:
    params, hparams = quadratic()

    def inner(p: Tree, h: Tree) -> Tensor:
        if not torch._C._functorch.is_functorch_wrapped_tensor(p["a"]):
            raise RuntimeError("not in eager mode")
        return quadratic_inner(p, h)

    grads, info = ImplicitHypergradient(EXACT)(inner, quadratic_outer, params, hparams)
    expected, _ = ImplicitHypergradient(EXACT)(quadratic_inner, quadratic_outer, params, hparams)
    assert info.hvp_mode == "func"
    for name, entry in expected.items():
        torch.testing.assert_close(grads[name], entry)


def test_a_difference_that_leaves_the_domain_of_the_loss_names_the_loss() -> None:
    params = {"w": torch.tensor([1e-4, 1.0])}  # the step of a difference is larger than 1e-4
    with pytest.raises(ValueError, match="inner loss"):
        ImplicitHypergradient(ConjugateGradient(), hvp="finite_difference")(
            lambda p, h: (p["w"].log() * h["a"]).sum() + p["w"].square().sum(),
            lambda p, h: p["w"].sum(),
            params,
            {"a": torch.ones(2)},
        )
