"""A process may have fewer samples than the others, or none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reweight
from _support.processes import Processes, values
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
    SampleWeighter,
)

STRATEGIES = {
    "first order": ImplicitHypergradient(Identity()),
    "Neumann": ImplicitHypergradient(Neumann(3)),
    "Neumann, func": ImplicitHypergradient(Neumann(3), hvp="func"),
    "Neumann, differences": ImplicitHypergradient(Neumann(3), hvp="finite_difference"),
    "CG": ImplicitHypergradient(ConjugateGradient(60, rtol=1e-13), damping=1.0),
}
# Sums in another order. Central differences of gradients have some ten digits.
RTOL = {"Neumann, differences": 1e-8}
TRAIN, DEV = 9, 7


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    group = Processes(2, tmp_path_factory.mktemp("two"))
    yield group
    group.close()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 3)
        self.layers = nn.Sequential(nn.Tanh(), nn.Linear(3, 1))

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.layers(self.table(ids)).squeeze(-1)
        return output


Batch = tuple[Tensor, Tensor]


def samples(count: int, seed: int, part: slice) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, (count,), generator=generator)
    y = torch.randn(count, generator=generator, dtype=torch.float64)
    return ids[part], y[part]


class Steady(SampleWeighter):
    """A weighter that knows nothing of batches without samples."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return (self.slope * losses).exp() if len(losses) else torch.ones_like(losses)


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square()


def losses_or_nothing(model: nn.Module, batch: Batch) -> Tensor:
    # A constant in the default type, as one writes it.
    return losses(model, batch) if len(batch[0]) else torch.zeros(0)


def dev_loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).abs().mean()


def dev_loss_or_nothing(model: nn.Module, batch: Batch) -> Tensor:
    # Samples above the middle count; on the first process there are none.
    chosen = batch[0] >= 10
    if not chosen.any():
        return torch.zeros(())
    return (chosen * (model(batch[0]) - batch[1]).abs()).mean()


def step(rank: int, size: int, strategy: str, what: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    weighter = (Steady() if what == "train, constant" else LossWeighter(4)).double()
    with torch.no_grad():
        for p in weighter.parameters():
            p += 0.3 * torch.randn_like(p)
    cut, dev_cut = (0, DEV // 2) if what.startswith("train") else (TRAIN // 2, 0)
    train, dev = samples(TRAIN, 1, slice(None)), samples(DEV, 2, slice(None))
    if what == "dev, constant":
        order = dev[0].argsort()
        dev, dev_cut = (dev[0][order], dev[1][order]), int((dev[0] < 10).sum())
    if what == "none":
        dev = torch.zeros_like(dev[0]), dev[1]
    if size > 1:
        part = slice(cut) if rank == 0 else slice(cut, None)
        dev_part = slice(dev_cut) if rank == 0 else slice(dev_cut, None)
        train, dev = (train[0][part], train[1][part]), (dev[0][dev_part], dev[1][dev_part])
    outer = dev_loss_or_nothing if what in ("dev, constant", "none") else dev_loss
    rw = reweight.wrap(
        Model().double(), weighter, losses_or_nothing, outer, hypergradient=STRATEGIES[strategy]
    )
    try:
        result = rw.hypergradient(train, dev)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    info = result.info
    return {
        "grads": torch.cat([g.flatten() for g in result.grads.values()]),
        "influence": result.influence,
        "verdict": (info.num_hvps, info.status.name, info.hvp_mode, info.trustworthy, info.caveat),
    }


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "train, constant", "dev", "dev, constant"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_process_without_samples_takes_part(two: Processes, strategy: str, what: str) -> None:
    found, one = values(two.run(step, strategy, what)), step(0, 1, strategy, what)
    assert torch.equal(found[0]["grads"], found[1]["grads"])
    assert found[0]["verdict"] == found[1]["verdict"]
    # The residual of conjugate gradients may lie on either side of the tolerance by rounding.
    assert found[0]["verdict"][1:] == one["verdict"][1:]
    assert abs(found[0]["verdict"][0] - one["verdict"][0]) <= ("CG" in str(strategy))
    influence = torch.cat([each["influence"].double() for each in found])
    for got, expected in ((found[0]["grads"], one["grads"]), (influence, one["influence"])):
        assert float((got - expected).norm()) <= RTOL.get(strategy, 1e-11) * float(expected.norm())


@pytest.mark.parametrize("strategy", ["first order", "CG"])
def test_an_outer_loss_that_is_constant_everywhere_is_refused(
    two: Processes, strategy: str
) -> None:
    for each in values(two.run(step, strategy, "none")):
        assert "ValueError: the outer loss does not depend on any inner param" in each["error"]


def without_tensors(rank: int, size: int, kind: str) -> Tensor:
    """An outer step on batches of arrays or lists, of which every process has another number."""
    torch.manual_seed(0)
    x = torch.randn(9, 2, dtype=torch.float64)
    own = slice(None) if size == 1 else slice(3) if rank == 0 else slice(3, None)
    if kind == "arrays":
        batch: Any = (x[own].numpy(), np.arange(2.0))
    else:
        batch = {"name": "a", "x": x[own].tolist()}
    model = nn.Linear(2, 1).double()

    def outputs(model: nn.Module, batch: Any) -> Tensor:
        given = batch["x"] if kind == "lists" else batch[0]
        output: Tensor = model(torch.as_tensor(given, dtype=torch.float64)).squeeze(-1)
        return output

    def fixed(model: nn.Module, batch: Any) -> Losses:
        found = outputs(model, batch)
        return Losses(found.square(), found.sin().square().mean())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rw = reweight.wrap(
            model, LossWeighter(4).double(), fixed, lambda m, b: outputs(m, b).cos().mean()
        )
        result = rw.hypergradient(batch, batch)
    return result.influence


@pytest.mark.parametrize("kind", ["arrays", "lists"])
def test_batches_without_tensors_count_by_their_length(two: Processes, kind: str) -> None:
    found = torch.cat(values(two.run(without_tensors, kind)))
    torch.testing.assert_close(found, without_tensors(0, 1, kind), rtol=1e-11, atol=1e-13)
