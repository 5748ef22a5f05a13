"""Every mistake in what is wrapped is refused, by the name of the argument."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.problems import mean_squared_error, squared_errors
from _support.wrapping import DEV, EXACT, SIZE, TRAIN, make, shared, weighter
from reweight import (
    GroupWeighter,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    SampleWeighter,
)


@pytest.mark.parametrize("state", [{}, {"version": 2, "weighter": {}}, weighter().state_dict(), 3])
def test_what_is_no_state_of_this_kind_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="state"):
        make().load_state_dict(state)


class Scaled(SampleWeighter):
    """``function(scale, losses)``, whatever that may be."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.function = function

    def forward(self, losses: Tensor, inputs: Any) -> Any:
        return self.function(self.scale, losses)


def spoiled(model: nn.Module, batch: Any) -> Tensor:
    factor = torch.ones(SIZE, dtype=torch.float64)
    factor[[2, 4]] = math.nan
    return squared_errors(model, batch) * factor


class Borrowing(SampleWeighter):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.borrowed = model

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return self.borrowed.weight.sum().expand(losses.shape)


def linear() -> nn.Linear:
    return nn.Linear(3, 1).double()


def frozen() -> nn.Linear:
    return linear().requires_grad_(False)  # type: ignore[return-value]


def foreign_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(linear().parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": linear().parameters()}, TypeError, "model .*generator"),
        ({"weighter": lambda losses, inputs: losses}, TypeError, "weighter .*function"),
        ({"losses": 3}, TypeError, r"losses .*\bint\b"),
        (
            {"losses": None},
            TypeError,
            "losses .*Linear",
        ),
        ({"outer_loss": "mse"}, TypeError, "outer_loss.*str"),
        ({"inner_params": "weight"}, TypeError, "inner_params.*str"),
        ({"optimizer": 0.1}, TypeError, "optimizer.*float"),
        ({"hypergradient": EXACT}, TypeError, "ConjugateGradient.*solver="),
        ({"reduction": "none"}, ValueError, "reduction='none'"),
        ({"model": frozen()}, ValueError, "inner parameters.*frozen"),
        ({"model": nn.Identity()}, ValueError, "inner parameters"),
        (
            {"inner_params": lambda name: name == "wieght"},
            ValueError,
            "inner_params.*'weight', 'bias'",
        ),
        (
            {"weighter": Scaled(lambda s, x: x).requires_grad_(False)},
            ValueError,
            "Scaled.*trainable",
        ),
        ({"optimizer": foreign_optimizer()}, ValueError, "optimizer.*weight, bias"),
    ],
)
def test_what_can_not_be_wrapped_is_refused_at_once(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**changes)


def stepped() -> Any:
    return torch.optim.lr_scheduler.StepLR(foreign_optimizer(), 1)


@pytest.mark.parametrize(
    ("changes", "mistake", "line"),
    [
        ({"weighter": LossWeighter}, "weighter is the class", r"LossWeighter\(\)"),
        (
            {"weighter": GroupWeighter},
            "weighter is the class",
            r"GroupWeighter\(num_groups=\.\.\.\)",
        ),
        (
            {"model": nn.Linear},
            "model is the class",
            r"Linear\(in_features=\.\.\., out_features=\.\.\.",
        ),
        ({"weighter": squared_errors}, "weighter .*function", r"SampleWeighter.*LossWeighter\(\)"),
        (
            {"model": weighter(), "weighter": linear()},
            "model is a weighter, LossWeighter, and weighter is a Linear",
            r"wrap\(model, weighter, losses",
        ),
        ({"losses": torch.ones(6)}, r"losses is a tensor of shape \(6,\)", "losses=losses"),
        ({"losses": Losses(torch.ones(6))}, "losses is a Losses", "losses=losses"),
        ({"losses": Losses}, r"losses is Losses\b", "lambda model, batch"),
        ({"losses": nn.MSELoss(reduction="none")}, "losses is MSELoss", "lambda model, batch"),
        ({"losses": nn.functional.mse_loss}, "losses is mse_loss", "lambda model, batch"),
        (
            {"outer_loss": torch.ones(())},
            r"outer_loss is a tensor of shape \(\)",
            "outer_loss=outer",
        ),
        ({"outer_loss": nn.MSELoss()}, "outer_loss is MSELoss", "lambda model, batch"),
        ({"inner_params": ["weight"]}, "inner_params.*list", "lambda name"),
        (
            {"optimizer": torch.optim.Adam},
            "optimizer is the class Adam",
            r"Adam\(model\.parameters",
        ),
        ({"optimizer": stepped()}, "optimizer is a StepLR", r"scheduler\.optimizer"),
        ({"optimizer": linear().parameters()}, "optimizer .*generator", "your loop steps"),
        ({"hypergradient": weighter()}, "weighter LossWeighter.*second argument", "solver="),
        ({"hypergradient": ImplicitHypergradient}, "class ImplicitHyper", "=ImplicitHypergradient"),
        ({"hypergradient": Neumann}, "class Neumann", r"ImplicitHypergradient\(solver=Neumann\("),
    ],
)
def test_a_slip_is_refused_with_the_line_to_write(
    changes: dict[str, Any], mistake: str, line: str
) -> None:
    with pytest.raises(TypeError, match=rf"{mistake}.*{line}"):
        make(**changes)


def test_torchscript_is_refused_at_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that it is going away
        scripted = torch.jit.script(nn.Linear(3, 1))
    with pytest.raises(TypeError, match="TorchScript"):
        make(nn.Sequential(scripted))


def test_an_optimizer_that_maximises_is_refused() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="maximize=True"):
        make(model, optimizer=optimizer)


def test_an_optimizer_of_another_model_is_refused() -> None:
    optimizer = torch.optim.SGD(linear().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="does not hold.*weight, bias.*another model"):
        make(linear(), optimizer=optimizer)


def test_parameters_that_were_replaced_after_wrap_are_named() -> None:
    model = linear()
    rw = make(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    values = {name: p.clone() for name, p in model.state_dict().items()}
    model.load_state_dict(values, assign=True)
    with pytest.raises(ValueError, match="does not hold.*weight, bias.*were replaced"):
        rw.hypergradient(TRAIN, DEV)


def test_a_weighter_that_shares_parameters_with_the_model_is_refused() -> None:
    model = linear()
    with pytest.raises(ValueError, match=r"borrowed\.weight.*inputs="):
        make(model, weighter=Borrowing(model))


SPOILED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"losses": mean_squared_error}, ValueError, 'reduction="none"'),
    ({"losses": lambda m, b: m(b[0]) ** 2}, ValueError, r"\(6, 1\).*\[B\]"),
    ({"losses": lambda m, b: (1, 2)}, TypeError, "Losses.*tuple"),
    ({"losses": spoiled}, ValueError, r"nan\b.*\b2, 4\b"),
    (
        {"losses": spoiled, "weighter": Scaled(lambda s, x: s * 0.0 * torch.ones_like(x))},
        ValueError,
        r"nan\b.*\b2, 4\b",
    ),
    (
        {"losses": lambda m, b: Losses(squared_errors(m, b), math.nan)},
        ValueError,
        r"losses\.fixed.*nan",
    ),
    (
        {"weighter": Scaled(lambda s, x: s * x[:, None])},
        ValueError,
        r"Scaled.*\(6, 1\).*\(6,\)",
    ),
    ({"weighter": Scaled(lambda s, x: s)}, ValueError, r"Scaled.*\(\).*\(6,\)"),
    ({"weighter": Scaled(lambda s, x: None)}, ValueError, "Scaled.*NoneType"),
    ({"weighter": Scaled(lambda s, x: s * x / 0.0)}, ValueError, "Scaled.*not finite"),
    ({"weighter": Scaled(lambda s, x: (s * x > 0).long())}, TypeError, "weights.*int64"),
]


SPOILED_OUTER: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"outer_loss": None}, ValueError, "outer_loss="),
    (
        {"outer_loss": lambda m, b: mean_squared_error(m, b).detach()},
        ValueError,
        "outer loss.*detach",
    ),
    ({"outer_loss": squared_errors}, ValueError, r"outer loss.*\(6,\)"),
    ({"outer_loss": lambda m, b: 1.0}, TypeError, "outer loss.*float"),
    (
        {"outer_loss": lambda m, b: mean_squared_error(m, b) * math.nan},
        ValueError,
        r"outer loss.*\bnan\b",
    ),
    (
        {"inner_params": lambda n: n == "bias", "outer_loss": lambda m, b: m.weight.sum()},
        ValueError,
        "outer loss.*inner_params",
    ),
    (
        {"losses": lambda m, b: squared_errors(m, b).detach()},
        ValueError,
        r"losses\b(?!\().*inner parameter.*detach",
    ),
    (
        {"weighter": Scaled(lambda s, x: (s * x).detach())},
        ValueError,
        r"Scaled.*detach\(\)",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), SPOILED + SPOILED_OUTER)
def test_an_outer_step_that_makes_no_sense_is_refused_and_does_nothing(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    rw = make(**changes)
    with pytest.raises(error, match=message):
        rw.outer_backward(TRAIN, DEV)
    assert all(p.grad is None for p in (*rw.model.parameters(), *rw.weighter.parameters()))


@pytest.mark.parametrize(("changes", "error", "message"), SPOILED)
def test_an_inner_loss_that_makes_no_sense_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    rw = make(**changes)
    for call in (rw.loss, rw.weights):
        with pytest.raises(error, match=message):
            call(TRAIN)


def test_losses_that_depend_on_the_weighter_beside_the_weights_are_refused() -> None:
    """The derivative would be of a part only: of the weights, and not of the losses themselves."""
    _, rw = shared()
    with pytest.raises(ValueError, match=r"part\.0"):
        rw.hypergradient(TRAIN, DEV)
    penalised = weighter()
    rw = make(
        weighter=penalised,
        losses=lambda m, b: Losses(squared_errors(m, b), penalised.mlp[0].weight.square().sum()),
    )
    with pytest.raises(ValueError, match=r"mlp\.0\.weight.*outer_loss"):
        rw.hypergradient(TRAIN, DEV)


def test_complex_parameters_are_refused_with_a_way_out() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spectrum = nn.Parameter(torch.ones(3, dtype=torch.complex128))

    with pytest.raises(TypeError, match="spectrum.*complex"):
        make(Complex())


def test_parameters_frozen_after_wrapping_are_told_apart() -> None:
    rw = make()
    rw.model.requires_grad_(False)
    with pytest.raises(ValueError, match="inner parameters.*frozen"):
        rw.hypergradient(TRAIN, DEV)
    rw = make()
    rw.weighter.requires_grad_(False)
    with pytest.raises(ValueError, match="LossWeighter.*trainable"):
        rw.hypergradient(TRAIN, DEV)


def test_a_part_of_the_weighter_that_took_no_part_is_said_once_and_zero() -> None:
    class Idle(Scaled):
        def __init__(self) -> None:
            super().__init__(lambda s, x: s * x)
            self.idle = nn.Parameter(torch.ones(2))

    rw = make(weighter=Idle())
    with pytest.warns(UserWarning, match="Idle.*idle"):
        result = rw.hypergradient(TRAIN, DEV)
    assert not bool(result.grads["idle"].any()) and bool(result.grads["scale"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rw.hypergradient(TRAIN, DEV)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_tables_whose_gradient_is_not_that_of_the_loss_are_refused(
    kind: type[nn.Module], option: dict[str, Any]
) -> None:
    model = nn.Sequential(kind(5, 2, **option), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=rf"^0 = {kind.__name__}\({next(iter(option))}="):
        make(model)


class Rooted(SampleWeighter):
    """Has an infinite derivative at its start."""

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return (1.0 + self.root.abs().sqrt()) * torch.ones_like(losses)


def test_a_hypergradient_that_is_not_finite_is_never_written() -> None:
    rw = make(weighter=Rooted())
    with pytest.raises(FloatingPointError, match=r"not finite.*\broot\b.*Rooted"):
        rw.outer_backward(TRAIN, DEV)
    assert rw.weighter.root.grad is None
