"""An outer step leaves nothing behind but its result."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from _support.problems import squared_errors
from _support.restless import (
    MODES,
    Averaging,
    assert_same,
    batches,
    every_mode,
    make,
    untouched,
    weighter,
)
from benchmarks.catalogue.operations import Bag
from reweight import LossWeighter, SampleWeighter
from reweight._problem.isolation import Isolation


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
    # A comparison with differences goes on without an answer; the evaluation that counts does not.
    assert len(calls) >= call


@every_mode
def test_a_module_in_evaluation_mode_stays_in_it(hvp: str) -> None:
    rw = make(hvp=hvp)
    rw.model.eval()
    train, dev = batches()
    with untouched(rw.model, rw.weighter):
        rw.hypergradient(train, dev)


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


def test_a_buffer_of_nan_stays_one() -> None:
    net = Averaging(False).double()
    net.register_buffer("unset", torch.full((1,), float("nan")).expand(3))
    rw = make(net)
    rw.hypergradient(*batches())
    assert bool(net.unset.isnan().all())


@pytest.mark.slow
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


def test_an_interrupt_while_the_copies_are_made_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: Isolation) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Isolation, "_clear_gradients", interrupted)
    rw = make()
    before = list(rw.model.buffers())
    with pytest.raises(KeyboardInterrupt):
        rw.hypergradient(*batches())
    assert all(a is b for a, b in zip(before, rw.model.buffers(), strict=True))


class Counting(nn.Module):
    """Adds to a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1).double()
        self.usage = torch.zeros(3).double()

    def forward(self, x: Tensor) -> Tensor:
        self.usage += x.detach().sum(0)
        return self.out(x)


def test_a_tensor_that_is_assigned_anew_is_put_back_as_the_one_before() -> None:
    """As statistics that start from zero in each epoch."""
    rw = make(Counting(), weighter=LossWeighter().double())
    train, dev = batches()
    for epoch in range(3):
        rw.model.usage = torch.full((3,), float(epoch), dtype=torch.float64)
        rw.hypergradient(train, dev)
        rw.weights(train)
        assert rw.model.usage.tolist() == [epoch] * 3


def test_a_batch_that_was_made_in_inference_mode_serves_as_any_other() -> None:
    rw = make()
    train, dev = batches()
    expected, weights = rw.hypergradient(train, dev), rw.weights(train)
    with torch.inference_mode():
        copies = [tuple(x.clone() for x in batch) for batch in (train, dev)]
        assert_same(rw.hypergradient(*copies), expected)
        assert torch.equal(rw.weights(copies[0]), weights)


def single(in_autocast: bool) -> Any:
    """A wrapped model in float32; its ``forward`` may be as Accelerate leaves it for bfloat16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    if in_autocast:
        net._original_forward = net.forward
        net.forward = torch.autocast("cpu", torch.bfloat16)(net.forward)  # type: ignore
    return make(net, weighter=weighter().float())


def test_the_autocast_that_accelerate_puts_into_forward_is_off_in_outer_steps() -> None:
    train, dev = (tuple(x.float() for x in batch) for batch in batches())
    rw, plain = single(True), single(False)
    forward = rw.model.forward
    found, expected = rw.hypergradient(train, dev), plain.hypergradient(train, dev)
    assert found.info == expected.info
    assert all(torch.equal(found.grads[name], g) for name, g in expected.grads.items())
    assert rw.model.forward is forward
    assert forward(train[0]).dtype == torch.bfloat16


def test_an_error_in_an_outer_step_leaves_that_autocast_in_place() -> None:
    rw = single(True)
    forward = rw.model.forward
    with pytest.raises(RuntimeError):
        rw.hypergradient((torch.ones(2, 7), torch.ones(2)), (torch.ones(2, 7), torch.ones(2)))
    assert rw.model.forward is forward
