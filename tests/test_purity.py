"""An outer step leaves nothing behind but its result."""

from __future__ import annotations

import contextlib
import gc
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from _support.problems import mean_squared_error, squared_errors
from benchmarks.catalogue.operations import Bag
from reweight import (
    ConjugateGradient,
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    Reweighted,
    SampleWeighter,
    wrap,
)
from reweight._isolation import swapped

MODES = ("auto", "autograd", "func", "finite_difference")
every_mode = pytest.mark.parametrize("hvp", MODES)


class Restless(nn.Module):
    """Changes everything that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(4), persistent=False)
        self.register_buffer("later", None)
        self.cached: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.dropout(self.norm(self.inner(x)), 0.3, self.training)
        self.average = 0.9 * self.average + hidden.detach().mean(0)
        self.later = hidden.detach().mean(0)
        self.cached = hidden
        if self.training:
            random.random()
            np.random.rand()
        return self.out(hidden) * self.frozen


def model(seed: int = 0) -> Restless:
    torch.manual_seed(seed)
    return Restless().double()


def weighter(seed: int = 1) -> LossWeighter:
    torch.manual_seed(seed)
    weighter = LossWeighter(4).double()
    nn.init.normal_(weighter.mlp[-1].weight)
    return weighter


def batches(seed: int = 2) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        return x, x.sum(1).sin()

    return batch(), batch()


def make(net: nn.Module | None = None, hvp: Any = "auto", **changes: Any) -> Reweighted:
    arguments: dict[str, Any] = {
        "model": net if net is not None else model(),
        "weighter": weighter(),
        "losses": squared_errors,
        "outer_loss": mean_squared_error,
        "hypergradient": ImplicitHypergradient(ConjugateGradient(8), damping=1.0, hvp=hvp),
        **changes,
    }
    return wrap(**arguments)


def same_state(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = dict(module.named_buffers())
    return now.keys() == before.keys() and all(torch.equal(now[n], t) for n, t in before.items())


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Fails if anything of the modules or of a random state is other than before."""
    before = [
        (
            module,
            {
                n: (p, p.detach().clone(), p._version, p.requires_grad)
                for n, p in parameters(module)
            },
            {
                n: (p.grad, None if p.grad is None else p.grad.clone())
                for n, p in parameters(module)
            },
            dict(module._buffers),
            {n: b.clone() for n, b in module.named_buffers()},
            {n: v for part in module.modules() for n, v in vars(part).items()},
        )
        for root in modules
        for module in root.modules()
    ]
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    grad_enabled = torch.is_grad_enabled()
    yield
    for module, values, grads, slots, buffers, attributes in before:
        now = dict(parameters(module))
        assert now.keys() == values.keys()
        for name, (parameter, value, version, requires_grad) in values.items():
            assert now[name] is parameter
            assert torch.equal(parameter, value) and parameter._version == version
            assert parameter.requires_grad == requires_grad
            grad, kept = grads[name]
            assert parameter.grad is grad
            assert kept is None or torch.equal(grad, kept)
        assert module._buffers.keys() == slots.keys()
        assert all(module._buffers[n] is b for n, b in slots.items())
        assert same_state(module, buffers)
        after = {n: v for part in module.modules() for n, v in vars(part).items()}
        assert after.keys() == attributes.keys()
        assert all(after[n] is v for n, v in attributes.items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert torch.is_grad_enabled() == grad_enabled


def parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters())


def assert_same(one: Hypergradient, two: Hypergradient) -> None:
    assert torch.equal(one.influence, two.influence)
    assert one.grads.keys() == two.grads.keys()
    assert all(torch.equal(one.grads[n], two.grads[n]) for n in one.grads)
    assert one.info == two.info


# -- the outer step ----------------------------------------------------------------------------


@every_mode
def test_a_hypergradient_leaves_no_trace(hvp: str) -> None:
    rw = make(hvp=hvp)
    train, dev = batches()
    with untouched(rw.model, rw.weighter):
        rw.hypergradient(train, dev)


@every_mode
def test_gradients_that_are_there_already_stay(hvp: str) -> None:
    rw = make(hvp=hvp)
    train, dev = batches()
    rw.loss(train).backward()
    rw.outer_backward(train, dev)
    with untouched(rw.model, rw.weighter):
        rw.hypergradient(train, dev)


@pytest.mark.parametrize(
    ("hvp", "call"),
    [
        *((hvp, call) for hvp in MODES for call in (1, 2)),
        # The third evaluation is one inside the linearisation, where there is one.
        *((hvp, 3) for hvp in ("func", "finite_difference")),
    ],
)
def test_an_error_in_the_users_losses_leaves_no_trace(hvp: str, call: int) -> None:
    calls = []

    def failing(net: nn.Module, batch: Any) -> Tensor:
        losses = squared_errors(net, batch)
        calls.append(1)
        if len(calls) >= call:
            raise KeyError("a column is missing")
        return losses

    rw = make(hvp=hvp, losses=failing, outer_loss=lambda net, batch: failing(net, batch).mean())
    train, dev = batches()
    with untouched(rw.model, rw.weighter), pytest.raises(KeyError, match="a column is missing"):
        rw.outer_backward(train, dev)
    assert len(calls) == call


@every_mode
def test_a_module_in_evaluation_mode_stays_in_it(hvp: str) -> None:
    rw = make(hvp=hvp)
    rw.model.eval()
    train, dev = batches()
    with untouched(rw.model, rw.weighter):
        rw.hypergradient(train, dev)


def test_an_outer_loss_that_switches_to_evaluation_switches_nothing_else() -> None:
    def evaluated(net: nn.Module, batch: Any) -> Tensor:
        net.eval()
        return mean_squared_error(net, batch)

    training = []

    def losses(net: nn.Module, batch: Any) -> Tensor:
        training.append(net.training)
        return squared_errors(net, batch)

    rw = make(losses=losses, outer_loss=evaluated)
    rw.hypergradient(*batches())
    assert training and all(training) and rw.model.training


@every_mode
def test_two_calls_give_the_same(hvp: str) -> None:
    rw = make(hvp=hvp)
    train, dev = batches()
    assert_same(rw.hypergradient(train, dev), rw.hypergradient(train, dev))


def test_every_mode_sees_the_same_dropout_mask_and_batch_statistics() -> None:
    train, dev = batches()
    torch.manual_seed(7)
    expected = make(hvp="autograd").hypergradient(train, dev)
    for hvp, atol in (("func", 1e-12), ("finite_difference", 1e-6)):
        torch.manual_seed(7)
        found = make(hvp=hvp).hypergradient(train, dev)
        assert found.info.hvp_mode == hvp
        torch.testing.assert_close(found.influence, expected.influence, rtol=0.0, atol=atol)


def test_no_grad_and_inference_mode_around_the_call_change_nothing() -> None:
    rw = make()
    train, dev = batches()
    expected = rw.hypergradient(train, dev)
    with torch.no_grad(), untouched(rw.model, rw.weighter):
        assert_same(rw.hypergradient(train, dev), expected)
    with torch.inference_mode():
        assert_same(rw.hypergradient(train, dev), expected)
    assert not expected.influence.requires_grad


def test_autocast_around_the_call_changes_nothing() -> None:
    rw = make(model().float(), weighter=weighter().float())
    train, dev = ((x.float(), y.float()) for x, y in batches())
    expected = rw.hypergradient(train, dev)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(rw.hypergradient(train, dev), expected)


def test_a_graph_from_before_can_still_be_differentiated() -> None:
    """The buffers it saved hold what they held, though they were written to and put back."""
    rw = make()
    train, dev = batches()
    torch.manual_seed(0)
    rw.loss(train).backward()
    expected = {n: p.grad for n, p in rw.model.named_parameters()}
    again = make()
    torch.manual_seed(0)
    loss = again.loss(train)
    again.hypergradient(train, dev)
    loss.backward()
    for name, parameter in again.model.named_parameters():
        if expected[name] is not None:
            assert torch.equal(parameter.grad, expected[name])


def attention_backends() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("hvp", ["autograd", "func"])
def test_the_choice_of_an_attention_kernel_is_put_back(hvp: str, fails: bool) -> None:
    """Products run by the plain formula, which is the one that can be differentiated twice."""
    seen = []

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.Linear(1, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(attention_backends())
            if fails and len(seen) > 2:
                raise KeyError("in the middle")
            h = self.body(x[..., None])
            return self.out(nn.functional.scaled_dot_product_attention(h, h, h).mean(1))

    rw = make(Attending().double(), hvp=hvp)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        before = attention_backends()
        with pytest.raises(KeyError) if fails and hvp == "func" else contextlib.nullcontext():
            rw.hypergradient(*batches())
        assert attention_backends() == before
    assert seen[0] == before  # the outer gradient is of first order: whatever the user likes
    assert seen[1] == (False, False, True, False)


class Averaging(nn.Module):
    """Uses a buffer in the pass that wrote to it, in place or anew."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)
        self.register_buffer("average", torch.ones(1).double())
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.average.mul_(0.5).add_(2.0 + x.detach().mean())
        else:
            self.average = self.average * 0.5 + 2.0 + x.detach().mean()
        return self.out(x) * self.average


@every_mode
@pytest.mark.parametrize("fresh", [False, True])
def test_a_buffer_that_was_written_and_used_is_seen_as_it_was_then(hvp: str, fresh: bool) -> None:
    """A graph saved it, so no later pass may write to what was saved."""
    train, dev = batches()
    options: dict[str, Any] = {"batches": [batches(s)[0] for s in (5, 6, 7)]} if fresh else {}
    results = []
    for in_place in (True, False):
        torch.manual_seed(0)
        net = Averaging(in_place).double()
        rw = make(net, hypergradient=ImplicitHypergradient(Neumann(3, 0.01), hvp=hvp))  # type: ignore[arg-type]
        with untouched(net) if in_place else contextlib.nullcontext():
            results += [rw.hypergradient(train, dev, **options) for _ in range(2)]
    for other in results[1:]:
        torch.testing.assert_close(other.influence, results[0].influence, rtol=1e-12, atol=0.0)


def test_a_buffer_of_nan_stays_one() -> None:
    net = Averaging(False).double()
    net.register_buffer("unset", torch.full((1,), float("nan")).expand(3))
    rw = make(net)
    rw.hypergradient(*batches())
    assert bool(net.unset.isnan().all())


def test_memory_does_not_grow_with_calls() -> None:
    rw = make()
    train, dev = batches()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(x), Tensor) for x in gc.get_objects())

    rw.hypergradient(train, dev)
    before = tensors()
    for _ in range(3):
        rw.hypergradient(train, dev)
    assert tensors() <= before  # what earlier tests left may go in between


def test_a_mode_that_fails_does_not_keep_the_batch_alive() -> None:
    rw = make(Bag().double())
    train, dev = batches()
    watched = [weakref.ref(t) for t in (*train, *dev)]
    with pytest.warns(UserWarning, match="finite differences"):
        rw.hypergradient(train, dev)
    del train, dev
    gc.collect()
    assert all(ref() is None for ref in watched)


# -- .grad -------------------------------------------------------------------------------------


def test_the_inner_loss_reaches_the_model_only() -> None:
    rw = make()
    train, _ = batches()
    rw.loss(train).backward()
    assert all(p.grad is None for p in rw.weighter.parameters())
    assert all(p.grad is not None for p in rw.model.parameters() if p.requires_grad)


def test_an_outer_backward_accumulates_the_hypergradient_and_reaches_the_weighter_only() -> None:
    rw = make()
    train, dev = batches()
    expected = rw.hypergradient(train, dev)
    assert_same(rw.outer_backward(train, dev), expected)
    named = dict(rw.weighter.named_parameters())
    assert all(torch.equal(named[n].grad, g) for n, g in expected.grads.items())
    rw.outer_backward(train, dev)
    assert all(torch.equal(named[n].grad, g + g) for n, g in expected.grads.items())
    assert all(p.grad is None for p in rw.model.parameters())


def test_the_result_does_not_share_memory_with_what_is_accumulated() -> None:
    rw = make()
    train, dev = batches()
    result = rw.outer_backward(train, dev)
    kept = {n: g.clone() for n, g in result.grads.items()}
    rw.outer_backward(train, dev)
    assert all(torch.equal(result.grads[n], g) for n, g in kept.items())


def test_weights_carry_no_gradient_and_leave_no_trace() -> None:
    rw = make()
    train, _ = batches()
    with untouched(rw.model, rw.weighter):
        weights = rw.weights(train)
    assert weights.shape == (6,) and not weights.requires_grad


# -- parameters with several names -------------------------------------------------------------


class Twice(nn.Module):
    """One submodule under two names, and one weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.third = nn.Linear(3, 3)
        self.third.weight = self.first.weight
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.third(torch.tanh(self.second(self.first(x))))))


class Plain(nn.Module):
    """The same function with each parameter in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 3))
        self.biases = nn.Parameter(torch.empty(2, 3))
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        w, (a, b) = self.weight, self.biases
        for _ in range(2):
            x = x @ w.T + a
        return self.out(torch.tanh(torch.tanh(x) @ w.T + b))


@every_mode
def test_shared_parameters_are_differentiated_in_all_their_places(hvp: str) -> None:
    torch.manual_seed(0)
    twice, plain = Twice().double(), Plain().double()
    with torch.no_grad():
        plain.weight.copy_(twice.first.weight)
        plain.biases[0] = twice.first.bias
        plain.biases[1] = twice.third.bias
        plain.out.load_state_dict(twice.out.state_dict())
    train, dev = batches()
    rw = make(twice, hvp=hvp)
    with untouched(twice):
        found = rw.hypergradient(train, dev)
    assert twice.first is twice.second and twice.third.weight is twice.first.weight
    expected = make(plain, hvp="autograd").hypergradient(train, dev)
    atol = 1e-6 if hvp == "finite_difference" else 1e-13
    torch.testing.assert_close(found.influence, expected.influence, rtol=0.0, atol=atol)


def test_parameters_come_back_after_an_error_in_the_middle() -> None:
    net = Twice()
    replacement = {id(p): torch.zeros_like(p) for p in net.parameters()}
    with untouched(net), pytest.raises(KeyError), swapped(net, replacement):
        assert not bool(net.second.weight.any())
        raise KeyError


class Recurrent(nn.Module):
    """Keeps its weights in a list beside the named ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(1, 3, batch_first=True)
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x[..., None])[0][:, -1])


@every_mode
def test_a_recurrent_network_sees_the_swapped_weights_and_gets_its_own_back(hvp: str) -> None:
    torch.manual_seed(0)
    net = Recurrent().double()
    train, dev = batches()
    expected = make(net, hvp="autograd").hypergradient(train, dev)
    rw = make(net, hvp=hvp)
    with untouched(net):
        found = rw.hypergradient(train, dev)
    atol = 1e-6 if hvp == "finite_difference" else 1e-13
    torch.testing.assert_close(found.influence, expected.influence, rtol=0.0, atol=atol)


# -- weighters ---------------------------------------------------------------------------------


class Noisy(SampleWeighter):
    """A weighter with a dropout mask and statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return torch.dropout(self.norm(losses[:, None]).squeeze(-1).sigmoid(), 0.5, self.training)


@every_mode
def test_the_weighters_own_statistics_and_noise_stay_too(hvp: str) -> None:
    rw = make(weighter=Noisy().double(), hvp=hvp)
    train, dev = batches()
    with untouched(rw.model, rw.weighter):
        first = rw.hypergradient(train, dev)
    assert_same(rw.hypergradient(train, dev), first)


@pytest.mark.parametrize("spoil", ["shape", "nan"])
def test_an_error_in_the_weighter_leaves_no_trace(spoil: str) -> None:
    class Bad(SampleWeighter):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, losses: Tensor, inputs: Any) -> Tensor:
            weights = self.scale * losses
            return weights[:, None] if spoil == "shape" else weights * float("nan")

    rw = make(weighter=Bad().double())
    train, dev = batches()
    with untouched(rw.model, rw.weighter), pytest.raises(ValueError, match="weighter Bad"):
        rw.outer_backward(train, dev)


def test_inputs_of_the_weighter_are_cut_off_from_the_model() -> None:
    """The weights depend on an embedding; no gradient flows there, in either problem."""
    seen: list[Any] = []

    class Watching(LossWeighter):
        def forward(self, losses: Tensor, inputs: Any = None) -> Tensor:
            seen.append((losses, inputs))
            return super().forward(losses, inputs)

    def losses(net: nn.Module, batch: Any) -> Losses:
        hidden = net.inner(batch[0])
        return Losses(squared_errors(net, batch), 0.0, {"hidden": (hidden, [hidden.mean()])})

    rw = make(weighter=Watching(4).double(), losses=losses)
    train, dev = batches()
    rw.loss(train)
    rw.hypergradient(train, dev)
    assert len(seen) == 2
    for given, inputs in seen:
        hidden, (mean,) = inputs["hidden"]
        assert not given.requires_grad and not hidden.requires_grad and not mean.requires_grad
