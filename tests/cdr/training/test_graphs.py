"""Steps recorded as CUDA graphs: the same training, or a refusal in words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reweight
from cdr.data import CrossDomainData
from cdr.data.batches import Batches, PairBatch
from cdr.models.conet import CoNet, CoNetOptions
from cdr.training import graphs
from cdr.training.graphs import CapturedStep

Step = Callable[[Any], Tensor]

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# A full batch, then the odd ones of an epoch's end before and after the recording.
SIZES = [16, 16, 7, 16, 16, 16, 16, 7, 16, 5, 16]


class Replayed:
    """Stands in for a CUDA graph: recording does not do the work, replaying does."""

    def __init__(self, devices: set[torch.device]) -> None:
        self.calls: list[str] = []

    def eager(self, work: Callable[[], Tensor]) -> Tensor:
        self.calls.append("eager")
        return work()

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        self.calls.append("record")
        self._work, self._loss = work, torch.zeros(())
        return self._loss

    def replay(self) -> None:
        self.calls.append("replay")
        self._loss.copy_(self._work())


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_Graph", Replayed)


def calls(step: CapturedStep) -> list[str]:
    return step._graph.calls  # type: ignore[attr-defined]


def pair_batches(data: CrossDomainData, history: int = 4) -> list[PairBatch]:
    batches, device = Batches(data, history, seed=0), data.train.user.device
    rows = torch.arange(sum(SIZES), device=device) % len(data.train)
    return [batches.train_pairs(part) for part in rows.split(SIZES)]


def conet(data: CrossDomainData) -> CoNet:
    torch.manual_seed(0)
    return CoNet(data, CoNetOptions()).to(data.train.user.device)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    on_gpu = next(model.parameters()).is_cuda
    # With the usual ε, a gradient that is mere rounding moves a parameter as far as any other.
    return torch.optim.Adam(
        model.parameters(), eps=1e-3, weight_decay=1e-3, fused=True, capturable=on_gpu
    )


def base(model: CoNet) -> Step:
    """A training step without learned weights."""
    optimizer = adam(model)

    def step(batch: PairBatch) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        losses = model.losses(batch)
        loss = losses.fixed + losses.weighted.mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


def ours(model: CoNet) -> Step:
    """A training step with the weights of a perceptron."""
    optimizer = adam(model)
    weighter = reweight.BehavioralPerceptron(2 * model.dim).to(model.user.weight.device)
    rw = reweight.wrap(model, weighter, optimizer=optimizer)

    def step(batch: PairBatch) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = rw.loss(batch)
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_every_batch_is_trained_on_once(tiny: CrossDomainData, replayed: None) -> None:
    eager, captured = conet(tiny), conet(tiny)
    batches = pair_batches(tiny)
    plain, step = base(eager), CapturedStep(base(captured), batches[0])
    for batch in batches:
        assert float(step(batch)) == float(plain(batch).detach())
        for one, other in zip(eager.parameters(), captured.parameters(), strict=True):
            assert torch.equal(one, other)
    warm, odd = ["eager"] * 3, ["eager"]
    assert calls(step) == [
        *(warm + odd),
        *("record", "replay", "replay", "replay"),
        *(odd + ["replay"] + odd + ["replay"]),
    ]


def test_the_loss_is_one_detached_tensor(tiny: CrossDomainData, replayed: None) -> None:
    batches = [batch for batch in pair_batches(tiny) if len(batch) == 16]
    step = CapturedStep(base(conet(tiny)), batches[0])
    losses = [step(batch) for batch in batches]
    assert not any(loss.requires_grad for loss in losses)
    assert len({id(loss) for loss in losses[3:]}) == 1 < len({id(loss) for loss in losses})


def test_batches_are_copied_and_left_alone(tiny: CrossDomainData, replayed: None) -> None:
    one, other = (batch for batch in pair_batches(tiny)[:2])
    before = copy.deepcopy(one)
    seen: list[PairBatch] = []

    def step_fn(batch: PairBatch) -> Tensor:
        seen.append(batch)
        return batch.target_label.sum()

    step = CapturedStep(step_fn, one)
    for batch in (other, one, other, one, other):
        assert float(step(batch)) == float(batch.target_label.sum())
    assert len({id(batch) for batch in seen}) == 1, "work is recorded for one place in memory"
    assert torch.equal(seen[0].user, other.user) and torch.equal(one.user, before.user)
    assert isinstance(seen[0], PairBatch) and seen[0].source_history is not None
    assert torch.equal(seen[0].source_history.mask, other.source_history.mask)  # type: ignore[union-attr]
    assert torch.equal(one.target_label, before.target_label)


def other_batches(batch: PairBatch) -> Iterator[PairBatch]:
    yield replace(batch, target_history=None)
    yield replace(batch, source_history=None, target_history=None)
    yield replace(batch, target_label=batch.target_label.double())
    yield replace(batch, user=batch.user[:5])


def test_a_batch_of_another_kind_is_trained_on_as_it_is(
    tiny: CrossDomainData, replayed: None
) -> None:
    batch = pair_batches(tiny)[0]
    seen = []

    def step_fn(batch: PairBatch) -> Tensor:
        seen.append(batch)
        return batch.user.sum()

    step = CapturedStep(step_fn, batch)
    for _ in range(4):
        step(batch)
    for other in other_batches(batch):
        step(other)
        assert seen[-1] is other and calls(step)[-1] == "eager"


def test_what_is_not_a_tensor_is_part_of_the_shape(replayed: None) -> None:
    x = torch.ones(2)

    def step_fn(batch: dict[str, Any]) -> Tensor:
        (entry,), factor = batch.values()
        return entry.sum() * factor

    step = CapturedStep(step_fn, {"x": [x], "factor": 2})
    for _ in range(4):
        assert float(step({"x": [x], "factor": 2})) == 4.0
    assert calls(step)[-1] == "replay"
    for batch in ({"x": [x], "factor": 3}, {"x": (x,), "factor": 2}, {"y": [x], "factor": 2}):
        assert float(step(batch)) == 2.0 * batch["factor"]
        assert calls(step)[-1] == "eager"


def test_batches_without_a_gpu_are_refused(tiny: CrossDomainData) -> None:
    with pytest.raises(ValueError, match=r"example_batch.*cpu.*CUDA"):
        CapturedStep(base(conet(tiny)), pair_batches(tiny)[0])
    with pytest.raises(ValueError, match="no device"):
        CapturedStep(lambda batch: torch.zeros(()), {"rows": 3})
    with pytest.raises(ValueError, match="cpu, meta"):
        CapturedStep(lambda batch: batch[0], (torch.ones(1), torch.ones(1, device="meta")))


class Cuda:
    """The parts of ``torch.cuda`` that are used, taking down what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        for name in ("Stream", "CUDAGraph", "current_stream", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    class _Stream:
        def __init__(self, name: str, log: list[str]) -> None:
            self.name, self._log = name, log

        def wait_stream(self, other: Any) -> None:
            self._log.append(f"{self.name} waits for {other.name}")

    class _CUDAGraph:
        def __init__(self, log: list[str]) -> None:
            self._log = log

        def replay(self) -> None:
            self._log.append("replay")

    def Stream(self, device: torch.device) -> Any:
        return self._Stream("side", self.log)

    def current_stream(self, device: torch.device) -> Any:
        return self._Stream("current", self.log)

    def CUDAGraph(self) -> Any:
        return self._CUDAGraph(self.log)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append(f"off {stream.name}")

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        self.log.append(f"record on {stream.name}")
        try:
            yield
        except FloatingPointError as error:
            raise RuntimeError("an earlier error ended the recording") from error
        self.log.append("recorded")


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    graph = graphs._Graph({torch.device("cuda", 0)})

    def work() -> Tensor:
        cuda.log.append("work")
        return torch.ones(())

    graph.eager(work)
    around = ["side waits for current", "on side", "work", "off side", "current waits for side"]
    assert cuda.log == around
    cuda.log.clear()
    graph.record(work)
    graph.replay()
    assert cuda.log == ["record on side", "work", "recorded", "replay"]


def test_a_failed_recording_names_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch)
    graph = graphs._Graph({torch.device("cuda", 0)})

    def work() -> Tensor:
        raise FloatingPointError("a value was read")

    with pytest.raises(RuntimeError, match=r"capturable=True.*a value was read"):
        graph.record(work)

    def refused() -> Tensor:
        raise RuntimeError("capturable is False")

    with pytest.raises(RuntimeError, match="capturable is False"):
        graph.record(refused)


@on_a_gpu
@pytest.mark.parametrize("step_of", [base, ours])
def test_a_recorded_training_is_the_same(
    tiny: CrossDomainData, step_of: Callable[[CoNet], Step]
) -> None:
    data = tiny.to("cuda")
    eager, captured = conet(data), conet(data)
    batches = pair_batches(data) * 2
    torch.manual_seed(1)
    plain = step_of(eager)
    torch.manual_seed(1)
    step = CapturedStep(step_of(captured), batches[0])
    for batch in batches:
        # Gradients of tables are sums in no fixed order on a GPU, so that rounding differs.
        assert torch.allclose(step(batch), plain(batch).detach(), rtol=1e-4, atol=1e-5)
    for one, other in zip(eager.parameters(), captured.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@on_a_gpu
def test_dropout_differs_between_replays() -> None:
    x = torch.ones(1000, device="cuda")
    step = CapturedStep(lambda batch: nn.functional.dropout(batch).sum(), x)
    losses = {float(step(x)) for _ in range(10)}
    assert len(losses) > 5


@on_a_gpu
def test_outer_steps_between_replays_are_seen() -> None:
    weight = torch.ones(3, device="cuda")
    step = CapturedStep(lambda batch: (weight * batch).sum(), torch.ones(3, device="cuda"))
    for factor in range(1, 8):
        weight.fill_(factor)
        assert float(step(torch.ones(3, device="cuda"))) == 3.0 * factor


@on_a_gpu
def test_a_read_value_or_an_optimizer_that_cannot_be_recorded_is_refused() -> None:
    x = torch.ones(3, device="cuda")
    step = CapturedStep(lambda batch: batch.sum() * batch.sum().item(), x)
    for _ in range(3):
        step(x)
    with pytest.raises(RuntimeError, match="read on the host"):
        step(x)
    torch.cuda.synchronize()
    weight = nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.Adam([weight], fused=True)

    def step_fn(batch: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (weight * batch).sum()
        loss.backward()
        optimizer.step()
        return loss

    step = CapturedStep(step_fn, x)
    for _ in range(3):
        step(x)
    with pytest.raises(RuntimeError, match="capturable is False"):
        step(x)
