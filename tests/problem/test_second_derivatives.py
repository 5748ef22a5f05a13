"""Wrong second derivatives are found out, and right ones are not suspected."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.catalogue.operations import Bag, Detaching
from reweight import (
    ConjugateGradient,
    ImplicitHypergradient,
    LossWeighter,
    Neumann,
    Reweighted,
    Solution,
    Status,
    wrap,
)
from reweight._problem import disagreement
from reweight.verdict import Comparison

Tree = dict[str, Tensor]


def point() -> Tree:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, generator=generator, dtype=torch.float64),
        "b": torch.randn(2, 2, generator=generator, dtype=torch.float64),
    }


def loss(params: Tree) -> Tensor:
    return (params["a"].sum() * params["b"].sin().sum()).exp() + params["a"].pow(4).sum()


def evaluate(params: Tree) -> tuple[float, Tree]:
    value = loss(params)
    grads = torch.autograd.grad(value, list(params.values()))
    return float(value.detach()), dict(zip(params, grads, strict=True))


def product(params: Tree, v: Tree) -> Tree:
    grads = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
    pulled = torch.autograd.grad(grads, list(params.values()), list(v.values()))
    return dict(zip(params, pulled, strict=True))


def test_right_products_agree() -> None:
    assert disagreement(product, evaluate, point(), {}) is None


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_wrong_block_is_named_and_measured(name: str, share: float) -> None:
    def wrong(params: Tree, v: Tree) -> Tree:
        right = product(params, v)
        return {**right, name: right[name] * (1.0 + share)}

    found = disagreement(wrong, evaluate, point(), {})
    assert found is not None and found.name == name and found.of_the_loss
    assert found.share == pytest.approx(share, rel=1e-3)


def test_gradients_that_are_not_derivatives_are_told_apart() -> None:
    def bent(params: Tree) -> tuple[float, Tree]:
        value, grads = evaluate(params)
        return value, {**grads, "a": grads["a"] * (1.0 + params["b"].detach().sum() ** 2)}

    found = disagreement(product, bent, point(), {})
    assert found is not None and not found.of_the_loss


def test_gradients_with_an_error_of_their_own_prove_nothing() -> None:
    """As where a part of the loss is computed in float32."""

    def rounded(params: Tree) -> tuple[float, Tree]:
        value, grads = evaluate(params)
        return value, {n: g.float().double() for n, g in grads.items()}

    assert disagreement(product, rounded, point(), {}) is None

    def noisy(params: Tree) -> tuple[float, Tree]:
        value, grads = evaluate(params)
        return value, {n: g + 1e-3 * torch.sin(1e6 * g) for n, g in grads.items()}

    with pytest.raises(TypeError, match="too inexact"):
        disagreement(product, noisy, point(), {})


# -- in a wrapped model --------------------------------------------------------------------------


def make(model: nn.Module, **changes: Any) -> Reweighted:
    arguments: dict[str, Any] = {
        "model": model,
        "weighter": LossWeighter(4),
        "losses": lambda m, b: (m(b[0]).squeeze(-1) - b[1]).square(),
        "outer_loss": lambda m, b: (m(b[0]).squeeze(-1) - b[1]).square().mean(),
        # Few terms of a small step, so that nothing else is warned of.
        "hypergradient": ImplicitHypergradient(Neumann(1, 1e-3)),
        **changes,
    }
    return wrap(**arguments)


def batch(size: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator), torch.randn(size, generator=generator)


def quiet(rw: Reweighted, train: Any, dev: Any) -> str:
    """The mode that ran, nothing being warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        info = rw.hypergradient(train, dev).info
    assert not info.caveat
    return info.hvp_mode


@settings(max_examples=max(5, settings.default.max_examples // 20))
@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([8, 64, 512]),
    size=st.sampled_from([4, 64, 256]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_kinks_are_no_reason_for_suspicion(seed: int, width: int, size: int, scale: float) -> None:
    """A wide network of ReLUs has thousands of kinks, and float32 weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )
    with torch.no_grad():
        for p in model.parameters():
            p *= scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large curvatures, by a scale of 5
        info = make(model).hypergradient(batch(size, 5, seed), batch(size, 5, seed + 1)).info
    assert info.hvp_mode == "autograd" and not info.caveat


class Casting(nn.Module):
    """Rounds what it computes, whatever type it has itself."""

    def __init__(self, to: torch.dtype, where: str) -> None:
        super().__init__()
        self.a, self.b, self.to_, self.where = nn.Linear(4, 8), nn.Linear(8, 1), to, where

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))
        if self.where == "inside":
            hidden = hidden.to(self.to_).to(self.b.weight.dtype)
        out = self.b(hidden)
        return out.to(self.to_) if self.where == "output" else out


@pytest.mark.parametrize("where", ["inside", "output"])
def test_a_model_that_computes_in_float32_is_compared_in_float64(where: str) -> None:
    torch.manual_seed(0)
    info = make(Casting(torch.float32, where)).hypergradient(batch(8, 4), batch(8, 4, 1)).info
    assert info.comparison == Comparison(0) and not info.caveat


@pytest.mark.parametrize("where", ["inside", "output"])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_that_computes_in_half_precision_is_named(to: torch.dtype, where: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=f"computed in {to}"):
        info = make(Casting(to, where)).hypergradient(batch(8, 4), batch(8, 4, 1)).info
    assert not info.trustworthy


def test_constants_of_a_lower_type_round_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x) * torch.tensor([2.0]) + torch.ones(1)

    with caplog.at_level(logging.INFO, "reweight"):
        assert quiet(make(Constant()), batch(8, 4), batch(8, 4, 1)) == "autograd"
    assert not caplog.text  # where products and differences were not compared, the log says so


@pytest.mark.parametrize("zero", ["head", "all"])
def test_what_a_head_of_zeros_hides_is_found_too(zero: str) -> None:
    """Nothing below it has a gradient yet, nor does its second derivative show."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
            for p in (self if zero == "all" else self.head).parameters():
                nn.init.zeros_(p)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Detaching.apply(self.body(x)))

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="second derivatives"):
        info = make(Headed()).hypergradient(batch(8, 4), batch(8, 4, 1)).info
    assert info.hvp_mode == "finite_difference"


def test_a_tensor_that_no_module_registers_is_no_obstacle() -> None:
    mask = torch.ones(4, 4)  # of float32, whatever the model becomes

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.scale = nn.Linear(4, 1), torch.full((4,), 2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x @ mask * self.scale)

    info = make(Fixed()).hypergradient(batch(8, 4), batch(8, 4, 1)).info
    assert info.comparison == Comparison(0)


def test_what_can_not_be_compared_is_said() -> None:
    calls: list[int] = []

    def losses(m: nn.Module, b: Any) -> Tensor:
        calls.append(1)  # never the same function
        return (m(b[0]).squeeze(-1) - b[1]).square() * (1.0 + 0.1 * (-1) ** len(calls))

    info = make(nn.Linear(4, 1), losses=losses).hypergradient(batch(8, 4), batch(8, 4, 1)).info
    assert not info.trustworthy and "could not be compared" in info.message
    exact = ImplicitHypergradient(ConjugateGradient(), damping=1.0)
    with pytest.warns(UserWarning, match="not examined.*could not be compared"):
        make(nn.Linear(4, 1), losses=losses, hypergradient=exact).hypergradient(
            batch(8, 4), batch(8, 4, 1)
        )


def test_a_detach_in_the_losses_is_told_and_the_mode_stays() -> None:
    """A scale that follows one of the parameters, behind the back of the gradient."""

    def losses(m: Any, b: Any) -> Tensor:
        return (m(b[0]).squeeze(-1) - b[1]).square() * m.bias.detach().exp()

    torch.manual_seed(0)
    rw = make(nn.Linear(4, 1), losses=losses)
    with pytest.warns(UserWarning, match=r"derivatives.*detach\(\)"):
        info = rw.hypergradient(batch(8, 4), batch(8, 4, 1)).info
    assert info.hvp_mode == "autograd" and not info.trustworthy
    assert info.caveat and info.caveat in info.message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rw.hypergradient(batch(8, 4), batch(8, 4, 1)).info.caveat == info.caveat


def test_a_loss_that_detaches_a_factor_of_itself_is_told() -> None:
    """e·detach(e) descends e²/2 and shows e²: no difference of the one is the other's."""

    def losses(m: nn.Module, b: Any) -> Tensor:
        error = (m(b[0]).squeeze(-1) - b[1]).square()
        return error * error.detach()

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"derivatives.*detach\(\)"):
        make(nn.Linear(4, 1), losses=losses).hypergradient(batch(8, 4), batch(8, 4, 1))


def test_it_is_looked_at_once() -> None:
    calls = []

    def losses(m: nn.Module, b: Any) -> Tensor:
        calls.append(b[0].dtype)
        return (m(b[0]).squeeze(-1) - b[1]).square()

    rw = make(nn.Linear(4, 1), losses=losses)
    rw.hypergradient(batch(8, 4), batch(8, 4, 1))
    assert torch.float64 in calls
    calls.clear()
    rw.hypergradient(batch(8, 4), batch(8, 4, 1))
    assert calls == [torch.float32]


def test_a_mode_that_did_not_serve_is_not_tried_again() -> None:
    calls = []

    def losses(m: nn.Module, b: Any) -> Tensor:
        calls.append(1)
        return (m(b[0]).squeeze(-1) - b[1]).square()

    rw = make(Bag(), losses=losses)
    with pytest.warns(UserWarning, match="finite differences"):
        rw.hypergradient(batch(8, 4), batch(8, 4, 1))
    calls.clear()
    info = rw.hypergradient(batch(8, 4), batch(8, 4, 1)).info
    # The losses once, then two gradients each for a product and for the influence.
    assert info.hvp_mode == "finite_difference" and len(calls) == 1 + 2 * 2


def test_a_wrong_mode_stays_ruled_out_whatever_comes_in_between() -> None:
    """An error after it was found out, in the mode that came next, must not let it in again."""
    torch.manual_seed(0)
    calls = []

    def failing_once(matvec: Any, b: Any) -> Solution:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("not now")
        return Solution(b, Status.APPROXIMATED)

    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1))
    rw = make(model, hypergradient=ImplicitHypergradient(failing_once))
    with pytest.raises(KeyError):
        rw.hypergradient(batch(8, 4), batch(8, 4, 1))
    with pytest.warns(UserWarning, match="second derivatives"):
        info = rw.hypergradient(batch(8, 4), batch(8, 4, 1)).info
    assert info.hvp_mode == "finite_difference"


def test_a_large_frozen_backbone_is_not_copied(caplog: pytest.LogCaptureFixture) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Embedding(2_000_001, 10, _freeze=True)
            self.out = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x)

    with caplog.at_level(logging.INFO, "reweight"):
        quiet(make(Backbone()), batch(8, 4), batch(8, 4, 1))
    assert "20000027 parameters" in caplog.text
