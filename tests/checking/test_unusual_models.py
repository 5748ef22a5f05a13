"""Models, losses and batches that can't be copied or converted are checked as they are.

Everything is as before afterwards, also where the check is interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm

from _support.checking import DEV, NOT_COMPARED, SIZE, TRAIN, make, network
from _support.problems import mean_squared_error, squared_errors
from reweight import LossWeighter, Reweighted, check_hypergradient, wrap


class Restless(nn.Module):
    """Keeps its last activation with its graph, a list of all, a lock, and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network("mlp")
        self.norm = nn.BatchNorm1d(3)
        self.lock, self.history, self.last = threading.Lock(), [], torch.zeros(())
        self.scale = torch.tensor(0.5)  # no buffer
        self.apply_net = lambda x: self.net(self.norm(x)) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.last = self.apply_net(torch.dropout(x, 0.1, True))
        self.history.append(self.last)
        return self.last


def pruned() -> nn.Module:
    model = network("mlp")
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def weight_normed() -> nn.Module:
    model = network("mlp")
    weight_norm(model[0])
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model


class Norm(nn.Module):
    """A norm that is taken in float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def own_optimizer() -> nn.Module:
    model = network("mlp")
    model.optimizer = torch.optim.Adam(model.parameters())  # type: ignore[assignment]
    model.batches = iter(torch.utils.data.DataLoader([1, 2]))  # type: ignore[assignment]
    return model


def state(rw: Reweighted, batch: Any) -> list[Any]:
    """All that a check may not change, as values that can be compared."""
    found: list[Any] = [torch.get_default_dtype(), torch.get_rng_state().tolist()]
    for part in (*rw.model.modules(), *rw.weighter.modules()):
        attributes = {k: v for k, v in vars(part).items() if not k.startswith("_")}
        found.append({k: id(v) for k, v in attributes.items()})
        found += [list(map(id, v)) for v in attributes.values() if isinstance(v, list)]
        tensors = (*part.parameters(False), *part.buffers(False), *attributes.values(), *batch)
        for t in tensors:
            if isinstance(t, Tensor):
                found += [id(t), t.dtype, t.data_ptr(), t.tolist()]
                if t.is_leaf and t.grad is not None:
                    found += [id(t.grad), t.grad.tolist()]
    return found


def trained(rw: Reweighted) -> Reweighted:
    """After an inner step, whose gradients and activations are still there."""
    rw.loss(TRAIN).backward()
    return rw


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("model", [pruned, weight_normed, Restless, own_optimizer])
def test_models_that_cannot_be_copied_are_checked_and_left_alone(
    model: Callable[[], nn.Module],
) -> None:
    rw = trained(make(model()))
    before = state(rw, TRAIN)
    report = check_hypergradient(rw, TRAIN, DEV)
    assert report.setup_ok and report.exact_error < 1e-5
    assert state(rw, TRAIN) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_check_leaves_everything_alone(error: type[BaseException]) -> None:
    calls: list[int] = []

    def losses(model: nn.Module, b: Any) -> Tensor:
        calls.append(0)
        if len(calls) > 40:  # in the middle of the search
            raise error
        return squared_errors(model, b)

    rw = trained(make(Restless(), losses=losses))
    before = state(rw, TRAIN)
    with pytest.raises(error):
        check_hypergradient(rw, TRAIN, DEV)
    assert state(rw, TRAIN) == before


@pytest.mark.slow
def test_what_computes_in_float32_is_checked_in_float64() -> None:
    other = network()  # a teacher that no module has registered
    for p in other.parameters():
        p.requires_grad_(False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), Norm(), nn.Linear(2, 1))

    def losses(model: nn.Module, b: Any) -> Tensor:
        taught = (model(b[0]) - other(b[0].float()).float()).square().mean(-1)
        return squared_errors(model, b) @ torch.eye(SIZE) + 0.1 * taught.float()

    # Only float64 agrees to 1e-6: in float32, the differences carry errors of 1e-3.
    report = check_hypergradient(make(model, losses=losses), TRAIN, DEV, rtol=1e-6)
    assert report.ok
    assert {p.dtype for p in (*model.parameters(), *other.parameters())} == {torch.float32}


@pytest.mark.parametrize("kind", ["namespace", "numpy"])
def test_batches_of_any_kind_are_checked_in_float64(kind: str) -> None:
    def wrapped(b: Any) -> Any:
        if kind == "numpy":
            return {"x": b[0].numpy(), "y": b[1].numpy()}
        return SimpleNamespace(x=b[0], y=b[1])

    def losses(model: nn.Module, b: Any) -> Tensor:
        x, y = (b["x"], b["y"]) if kind == "numpy" else (b.x, b.y)
        return squared_errors(model, (torch.as_tensor(x), torch.as_tensor(y)))

    def outer(model: nn.Module, b: Any) -> Tensor:
        return losses(model, b).mean()

    rw = make(losses=losses, outer_loss=outer)
    assert check_hypergradient(rw, wrapped(TRAIN), wrapped(DEV), rtol=1e-6).ok


def test_losses_may_differentiate_something_themselves() -> None:
    def losses(model: nn.Module, b: Any) -> Tensor:
        x = b[0].detach().requires_grad_(True)
        energy = model(x)
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return (energy.squeeze(-1) - b[1]).square() + 0.1 * force.square().sum(1)

    def adversarial(model: nn.Module, b: Any) -> Tensor:
        delta = torch.zeros_like(b[0]).requires_grad_(True)
        squared_errors(model, (b[0] + delta, b[1])).mean().backward()
        assert delta.grad is not None
        return squared_errors(model, (b[0] + 0.1 * delta.grad.sign(), b[1]))

    for own in (losses, adversarial):
        rw = trained(make(network("mlp"), losses=own))
        before = state(rw, TRAIN)
        report = check_hypergradient(rw, TRAIN, DEV)
        assert report.setup_ok and not report.unlisted
        assert state(rw, TRAIN) == before


def test_what_has_no_float64_is_not_blamed_on_the_user() -> None:
    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise NotImplementedError('"kernel" not implemented for Double')
            return 2.0 * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2.0 * grad

    rw = make(losses=lambda model, b: Kernel.apply(squared_errors(model, b)))
    report = check_hypergradient(rw, TRAIN, DEV)
    assert not report.ok and not report.setup_ok and NOT_COMPARED.search(report.verdict)
    assert "not implemented for Double" in report.advice and "detach" not in report.advice
    assert [row.hypergradient for row in report.rows]  # of the user's own outer step
    assert rw.hypergradient(TRAIN, DEV).info == report.info


@pytest.mark.slow
def test_rounding_that_cannot_be_prevented_is_told() -> None:
    kept = torch.zeros(SIZE, 1)

    class Rounded(torch.autograd.Function):
        kind = ""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if Rounded.kind == "numpy":
                return torch.from_numpy(x.detach().numpy().astype(np.float32)).to(x.dtype)
            return kept.copy_(x) + 0.0

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    def losses(model: nn.Module, b: Any) -> Tensor:
        return (Rounded.apply(model(b[0])).reshape(-1) - b[1]).square()

    for kind, word in (("numpy", "numpy"), ("written", "float32")):
        Rounded.kind = kind
        report = check_hypergradient(make(losses=losses), TRAIN, DEV, rtol=1e-6)
        assert not report.ok and NOT_COMPARED.search(report.verdict)
        assert word in report.advice and "detach" not in report.advice


def test_tensors_that_wrap_does_not_know_of_are_named() -> None:
    scale, shift = (nn.Parameter(torch.tensor(x)) for x in (0.5, 0.1))

    def losses(model: nn.Module, b: Any) -> Tensor:
        return scale.exp() * squared_errors(model, b) + shift.square()

    report = check_hypergradient(make(losses=losses), TRAIN, DEV)
    assert len(report.unlisted) == 2 and not report.setup_ok
    assert report.exact_error < 1e-5  # as if they were constants, which may be meant
    assert "INCOMPLETE" in report.verdict and "unlisted:" in str(report)
    scale.requires_grad_(False)
    shift.requires_grad_(False)
    report = check_hypergradient(make(losses=losses), TRAIN, DEV)
    assert report.setup_ok and not report.unlisted
    assert scale.dtype == torch.float32


def test_parameters_that_inner_params_leaves_out_are_known() -> None:
    model = network("mlp")
    rw = make(model, inner_params=lambda name: name.startswith("2"))
    assert check_hypergradient(rw, TRAIN, DEV).setup_ok


def test_a_batch_that_requires_gradients_is_known() -> None:
    x, y, ids = TRAIN
    batch = x.clone().requires_grad_(True), y, ids
    report = check_hypergradient(make(), batch, DEV)
    assert report.setup_ok and not report.unlisted
    assert mean_squared_error(network(), batch).requires_grad


@pytest.mark.slow
def test_a_deep_network_that_bends_is_not_accused() -> None:
    """Sixteen layers with BatchNorm: a step of 1e-5 is too long for their slopes."""
    torch.manual_seed(1)
    layers = [
        layer
        for _ in range(16)
        for layer in (nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.Linear(16, 4))

    def losses(model: nn.Module, b: Any) -> Tensor:
        return nn.functional.cross_entropy(model(b[0]), b[1], reduction="none")

    def draw(count: int) -> Any:
        return torch.randn(count, 16), torch.randint(4, (count,))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    rw = wrap(model, LossWeighter(4), losses, lambda m, b: losses(m, b).mean(), optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        rw.loss(draw(16)).backward()
        optimizer.step()
    report = check_hypergradient(rw, draw(4), draw(4))
    assert report.setup_ok, str(report)
