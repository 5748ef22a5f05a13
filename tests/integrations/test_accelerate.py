"""A loop of Accelerate makes the outer steps of a loop without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reweight
from _support.problems import SigmoidWeights

accelerate = pytest.importorskip("accelerate")
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

from reweight.integrations.accelerate import MicroBatches, dev_batches, wrap  # noqa: E402

FEATURES, SAMPLES = 3, 48


@pytest.fixture(autouse=True)
def _no_state_of_another_test() -> Iterator[None]:
    yield
    for shared in (AcceleratorState, GradientState, PartialState):
        shared._reset_state()


def losses(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x).squeeze(-1) - y).square()


def outer_loss(model: nn.Module, batch: Any) -> Tensor:
    return losses(model, batch).mean()


def samples(seed: int, n: int = SAMPLES, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator, dtype=dtype)
    return x, torch.where(torch.arange(n) % 2 == 0, x[:, 0], -x[:, 0])


class Loop:
    """A training whose state Accelerate saves."""

    def __init__(
        self,
        batch_size: int = 4,
        dtype: torch.dtype = torch.float64,
        weighter: Any = reweight.LossWeighter,
        **options: Any,
    ):
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-3)
        train = DataLoader(TensorDataset(*samples(1, dtype=dtype)), batch_size=batch_size)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(net, optimizer, train)
        weighter = weighter(8).to(dtype)
        self.outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-2)
        dev = DataLoader(TensorDataset(*samples(2, 10, dtype)), batch_size=4, shuffle=True)
        self.dev = dev_batches(self.accelerator, dev)
        self.rw = wrap(
            self.accelerator, self.model, weighter, losses, outer_loss, self.optimizer,
            outer_optimizer=self.outer_optimizer,
        )  # fmt: skip

    def epoch(self) -> None:
        window = []
        for batch in self.loader:
            window.append(batch)
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.rw.loss(batch))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.outer_optimizer.zero_grad()
                self.rw.outer_backward(MicroBatches(window), next(self.dev))
                self.outer_optimizer.step()
                window = []

    def learned(self) -> list[Tensor]:
        modules = (self.rw.model, self.rw.weighter)
        return [p.detach().clone() for module in modules for p in module.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def test_the_training_is_that_of_a_loop_without_accelerate() -> None:
    loop = Loop()
    loop.epoch()
    expected = loop.learned()

    loop = Loop()
    model, optimizer = loop.rw.model, loop.optimizer.optimizer
    rw = reweight.wrap(model, loop.rw.weighter, losses, outer_loss, optimizer)
    for batch in loop.loader.base_dataloader:
        optimizer.zero_grad()
        rw.loss(batch).backward()
        optimizer.step()
        loop.outer_optimizer.zero_grad()
        rw.outer_backward(batch, next(loop.dev))
        loop.outer_optimizer.step()
    assert same(loop.learned(), expected)


def test_the_optimizer_inside_a_prepared_one_is_read() -> None:
    loop = Loop()
    assert loop.rw.problem.optimizers == (loop.optimizer.optimizer,)
    theta = loop.rw.problem.theta()
    assert set(loop.rw.problem.weight_decay(theta).values()) == {1e-3}


def test_four_accumulated_batches_are_one_of_four_times_the_size() -> None:
    runs = []
    for size, steps in ((4, 4), (16, 1)):
        # A weight of LossWeighter depends on the others of its micro-batch.
        loop = Loop(size, weighter=SigmoidWeights, gradient_accumulation_steps=steps)
        for _ in range(3):
            loop.epoch()
        assert loop.rw.problem.progress.steps == 9
        runs.append(loop.learned())
    for accumulated, at_once in zip(*runs, strict=True):
        # Sums in another order: rounding, magnified by Adam's division by small gradients.
        assert torch.allclose(accumulated, at_once, rtol=1e-9, atol=1e-9)


def test_a_resumed_training_is_bit_for_bit_one_that_was_not_interrupted(tmp_path: Path) -> None:
    loop = Loop()
    for _ in range(4):
        loop.epoch()
    expected = loop.learned()

    loop = Loop()
    for _ in range(2):
        loop.epoch()
    loop.accelerator.save_state(str(tmp_path / "half"))

    loop = Loop()  # nothing of the first half is left
    for p in (*loop.rw.model.parameters(), *loop.rw.weighter.parameters()):
        nn.init.normal_(p)
    loop.accelerator.load_state(str(tmp_path / "half"))
    for _ in range(2):
        loop.epoch()
    assert same(loop.learned(), expected)


def test_outer_steps_are_made_without_the_autocast_that_accelerate_puts_into_forward() -> None:
    loop = Loop(dtype=torch.float32, mixed_precision="bf16")
    batch, dev = samples(1, dtype=torch.float32), samples(2, dtype=torch.float32)
    seen = set()
    loop.rw.model[0].register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    wrapped = loop.rw.model.forward
    loop.rw.loss(batch)
    assert seen == {torch.bfloat16}
    seen.clear()
    found = loop.rw.hypergradient(batch, dev)
    assert torch.bfloat16 not in seen and loop.rw.model.forward is wrapped
    weights = loop.rw.weights(batch)

    loop = Loop(dtype=torch.float32)
    AcceleratorState._reset_state()
    expected = loop.rw.hypergradient(batch, dev)
    assert all(torch.equal(found.grads[name], g) for name, g in expected.grads.items())
    assert torch.equal(weights, loop.rw.weights(batch))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"accelerator": None}, "accelerator must be the Accelerator of your loop, got NoneType"),
        ({"losses": None}, r"losses is missing and Sequential has no method losses\(batch\)"),
        ({"outer_optimizer": "prepared"}, "outer_optimizer is one that accelerator.prepare"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], match: str) -> None:
    loop = Loop()
    given: dict[str, Any] = {
        "accelerator": loop.accelerator,
        "model": loop.model,
        "weighter": loop.rw.weighter,
        "losses": losses,
        "outer_loss": outer_loss,
        "optimizer": loop.optimizer,
    }
    if "outer_optimizer" in change:
        change = {"outer_optimizer": loop.accelerator.prepare(loop.outer_optimizer)}
    with pytest.raises(TypeError, match=match):
        wrap(**(given | change))


def test_parameters_in_half_precision_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"torch\.bfloat16.*mixed_precision"):
        Loop(dtype=torch.bfloat16)


def test_a_prepared_dev_loader_is_refused() -> None:
    loop = Loop()
    with pytest.raises(TypeError, match="loader is one that accelerator.prepare returned"):
        dev_batches(loop.accelerator, loop.loader)
