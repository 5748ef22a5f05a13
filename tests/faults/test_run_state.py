"""A state says what it is of, holds everything, and goes into nothing else."""

from __future__ import annotations

import io
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import reweight
from _support.problems import mean_squared_error, squared_errors
from _support.processes import Processes, Raised
from _support.wrapping import DEV, TRAIN, make
from reweight import GroupWeighter, LossWeighter, ReorderReuseSampler, TableWeighter, checkpoint
from reweight.checkpoint import ResumableLoader, RunState, from_tensors, to_tensors


def by_id(weighter: nn.Module, model: nn.Module | None = None) -> reweight.Reweighted:
    return make(model, weighter=weighter.double())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (by_id(TableWeighter(5)), "GroupWeighter.*TableWeighter"),
        (by_id(GroupWeighter(6)), r"other parameters: .*\[5\] in the state and \[6\] here"),
        (by_id(GroupWeighter(5), nn.Linear(4, 1).double()), r"model.*weight is \[1, 3\].*\[1, 4\]"),
        (by_id(GroupWeighter(5), nn.Linear(3, 1, False).double()), "bias is only in the state"),
        (by_id(GroupWeighter(5), nn.Sequential(nn.Linear(3, 1)).double()), "0.weight is not in"),
    ],
)
def test_a_state_of_something_else_is_refused_by_name(other: Any, named: str) -> None:
    before = [p.clone() for p in other.weighter.parameters()]
    with pytest.raises(ValueError, match=named):
        other.load_state_dict(by_id(GroupWeighter(5)).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, other.weighter.parameters(), strict=True))


def test_a_model_may_be_wrapped_or_compiled_when_it_is_resumed() -> None:
    state = make(nn.Sequential(nn.Linear(3, 1)).double()).state_dict()

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    for resumed in (Wrapper(nn.Sequential(nn.Linear(3, 1))).double(), nn.LazyLinear(1).double()):
        if isinstance(resumed, nn.LazyLinear):
            state = make(nn.Linear(3, 1).double()).state_dict()
        make(resumed).load_state_dict(state)


def test_a_state_of_an_earlier_release_is_loaded_with_a_warning() -> None:
    rw, other = by_id(GroupWeighter(5)), by_id(GroupWeighter(5))
    torch.nn.init.normal_(next(rw.weighter.parameters()))
    old = {"version": 1, "weighter": rw.weighter.state_dict()}
    with pytest.warns(UserWarning, match="earlier release.*GroupWeighter"):
        other.load_state_dict(old)
    assert torch.equal(next(other.weighter.parameters()), next(rw.weighter.parameters()))
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        by_id(GroupWeighter(6)).load_state_dict(old)


def started() -> dict[str, Any]:
    torch.manual_seed(0)
    model, weighter = nn.Linear(3, 1).double(), LossWeighter().double()
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "outer_optimizer": torch.optim.Adam(weighter.parameters()),
    }
    parts["rw"] = reweight.wrap(
        model, weighter, squared_errors, mean_squared_error, parts["optimizer"]
    )
    return parts


def test_a_part_that_is_missing_or_has_no_state_is_named() -> None:
    parts = started()
    for left_out, named in (("model", "the model of rw"), ("optimizer", "the Adam that rw")):
        with pytest.raises(ValueError, match=named):
            RunState(**{n: p for n, p in parts.items() if n != left_out})
    with pytest.warns(UserWarning, match="outer optimizer"):
        RunState(**{n: p for n, p in parts.items() if n != "outer_optimizer"})
    torch.optim.lr_scheduler.StepLR(parts["optimizer"], 3)
    with pytest.warns(UserWarning, match="scheduler"):
        RunState(**parts)
    with pytest.raises(TypeError, match=r"loader is a DataLoader.*ResumableLoader\(loader\)"):
        RunState(loader=DataLoader([1, 2]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="step is a int"):
        RunState(step=3)
    with pytest.raises(ValueError, match="no parts"):
        RunState()


def test_a_state_with_other_parts_or_of_another_kind_is_refused() -> None:
    run = RunState(**started())
    state = run.state_dict()
    with pytest.raises(ValueError, match="has the parts.*sampler"):
        RunState(**started(), sampler=ReorderReuseSampler(4, 2)).load_state_dict(state)
    with pytest.raises(ValueError, match="not a state of a RunState: found .*model"):
        run.load_state_dict({"model": {}})
    with pytest.raises(ValueError, match="version 7"):
        run.load_state_dict({**state, "version": 7})
    other = RunState(sampler=ReorderReuseSampler(4, 2))
    with pytest.raises(ValueError, match=r"part sampler \(ReorderReuseSampler\).*n \(state: 4"):
        RunState(sampler=ReorderReuseSampler(6, 2)).load_state_dict(other.state_dict())


def test_generators_of_your_own_are_parts() -> None:
    def parts() -> dict[str, Any]:
        return {
            "torch": torch.Generator(),
            "new": np.random.default_rng(),
            "philox": np.random.Generator(np.random.Philox()),
            "old": np.random.RandomState(),
            "python": random.Random(),
        }

    def drawn(own: dict[str, Any]) -> list[float]:
        return [
            float(torch.rand((), generator=own["torch"])),
            float(own["new"].random()),
            float(own["philox"].random()),
            float(own["old"].randn()),
            own["python"].gauss(0.0, 1.0),
            float(torch.rand(())),
            float(np.random.randn()),
            random.gauss(0.0, 1.0),
        ]

    one, other = parts(), parts()
    drawn(one)  # so that the second number of a pair is kept
    state = RunState(**one).state_dict()
    expected = drawn(one)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    RunState(**other).load_state_dict(torch.load(file, weights_only=True))
    assert drawn(other) == expected
    RunState(**other).load_state_dict(from_tensors(to_tensors(state)))
    assert drawn(other) == expected


def test_gradients_that_wait_for_the_optimizer_are_part_of_the_state() -> None:
    def sparse() -> tuple[nn.Embedding, RunState]:
        table = nn.Embedding(5, 2, sparse=True)
        return table, RunState(table=table, optimizer=torch.optim.SGD(table.parameters(), 0.1))

    (table, run), (other, resumed) = sparse(), sparse()
    table(torch.tensor([1, 3, 3])).square().sum().backward()
    resumed.load_state_dict(from_tensors(to_tensors(run.state_dict())))
    assert other.weight.grad is not None and other.weight.grad.is_sparse
    assert table.weight.grad is not None
    assert torch.equal(other.weight.grad.to_dense(), table.weight.grad.to_dense())
    table.weight.grad = None
    resumed.load_state_dict(run.state_dict())
    assert other.weight.grad is None


def test_flat_tensors_have_memory_of_their_own_and_lack_nothing() -> None:
    x = torch.arange(6.0).view(2, 3)
    state = {"a": x, "b": x.T, "list": [x, (1, None, float("inf"))], 3: "three"}
    flat = to_tensors(state)
    assert len({t.untyped_storage().data_ptr() for t in flat.values()}) == len(flat)
    assert all(t.is_contiguous() for t in flat.values())
    found = from_tensors(flat)
    assert torch.equal(found["b"], x.T) and found["list"][1] == (1, None, float("inf"))
    with pytest.raises(ValueError, match="lacks '0 a'"):
        from_tensors({n: t for n, t in flat.items() if n != "0 a"})
    with pytest.raises(ValueError, match="state.json"):
        from_tensors({"a": x})


# -- loaders -----------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        for i in range(6):
            yield i + random.random() + float(torch.rand(())) + float(np.random.rand())


def loaders() -> dict[str, Any]:
    data = TensorDataset(torch.arange(7))
    return {
        "shuffled": lambda: DataLoader(data, batch_size=2, shuffle=True),
        "own generator": lambda: DataLoader(
            data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1)
        ),
        "stream": lambda: DataLoader(Stream(), batch_size=2),
        "in order": lambda: DataLoader(data, batch_size=3),
    }


@pytest.mark.parametrize("kind", loaders())
@pytest.mark.parametrize("used", [0, 1, 3, 4, 6])
def test_a_loader_goes_on_where_it_was(kind: str, used: int) -> None:
    make_loader = loaders()[kind]

    def batches(loader: ResumableLoader, run: RunState, stop: int = 9) -> tuple[list[str], Any]:
        found: list[str] = []
        state = run.state_dict()
        while len(found) < stop:
            for batch in loader:
                torch.rand(3), random.random()  # as dropout does
                found.append(str(batch))
                state = run.state_dict()
                if len(found) == stop:
                    break
        return found, state

    torch.manual_seed(0)
    whole, stopped, resumed = (ResumableLoader(make_loader()) for _ in range(3))
    expected, _ = batches(whole, RunState(loader=whole))
    torch.manual_seed(0)
    first, state = batches(stopped, RunState(loader=stopped), used)
    torch.manual_seed(5)
    run = RunState(loader=resumed)
    run.load_state_dict(from_tensors(to_tensors(state)))
    rest, _ = batches(resumed, run, 9 - used)
    assert first + rest == expected


@pytest.mark.parametrize("kind", loaders())
def test_an_epoch_that_is_left_as_soon_as_it_goes_on_counts_as_begun(kind: str) -> None:
    # As of a loop over another loader that begins this one anew in each of its epochs.
    make_loader = loaders()[kind]
    whole, resumed = ResumableLoader(make_loader()), ResumableLoader(make_loader())
    torch.manual_seed(0)
    first = iter(whole)
    next(first), next(first)
    state, random_state = whole.state_dict(), torch.get_rng_state()
    expected = [str(batch) for batch in whole]
    resumed.load_state_dict(state)
    torch.set_rng_state(random_state)
    iter(resumed)
    assert [str(batch) for batch in resumed] == expected


def test_a_loader_leaves_the_random_numbers_of_the_training_alone() -> None:
    torch.manual_seed(0)
    loader = iter(ResumableLoader(DataLoader(Stream(), batch_size=2)))
    next(loader)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    next(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_a_loader_that_cannot_be_repeated_is_refused() -> None:
    data = TensorDataset(torch.arange(8))
    with pytest.raises(ValueError, match="persistent_workers"):
        ResumableLoader(DataLoader(data, num_workers=1, persistent_workers=True))
    with pytest.raises(TypeError, match="PairLoader"):
        ResumableLoader(
            DataLoader(data, sampler=ReorderReuseSampler(8, 2), batch_size=None)  # type: ignore[arg-type]
        )
    with pytest.raises(TypeError, match="loader is a list"):
        ResumableLoader([1, 2])  # type: ignore[arg-type]
    shorter, loader = (ResumableLoader(DataLoader(range(n))) for n in (1, 8))  # type: ignore[arg-type]
    pairs = iter(loader)
    next(pairs), next(pairs)
    shorter.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="has 1 batches.*after batch 2"):
        iter(shorter)
    with pytest.raises(ValueError, match="not a state of a ResumableLoader"):
        loader.load_state_dict({"epoch": 1})


# -- many processes ----------------------------------------------------------------------------


def ranks(rank: int, size: int, folder: str, fault: str) -> Any:
    torch.manual_seed(rank)
    random.seed(rank)
    parts = started()
    sampler = ReorderReuseSampler(8, 2, num_replicas=size, rank=rank)
    run = RunState(**parts, sampler=sampler, own=torch.Generator().manual_seed(rank))
    parts["rw"].loss(TRAIN).backward()
    if fault == "gradients":
        parts["optimizer"].param_groups[0]["params"][0].grad += rank
    if fault == "another step" and rank == 1:
        return parts["rw"].outer_backward(TRAIN, DEV)
    state = run.state_dict()
    checkpoint.save(state, folder)
    expected = float(torch.rand(())), random.random()
    torch.manual_seed(9)
    run.load_state_dict(checkpoint.load(folder))
    assert (float(torch.rand(())), random.random()) == expected
    return json.dumps([s["random"]["python"] for s in state["of_processes"]]), expected


def test_each_process_gets_its_own_random_states(two: Processes, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    (one, first), (other, second) = two.run(ranks, folder, "")
    assert one == other and first != second
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {**started(), "sampler": ReorderReuseSampler(8, 4), "own": torch.Generator()}
    with pytest.warns(UserWarning, match="of 2 processes, and these are 1"):
        RunState(**parts).load_state_dict(checkpoint.load(folder))


@pytest.mark.parametrize(
    ("fault", "named"),
    [("gradients", "gradients that wait for optimizer"), ("another step", "not at the same place")],
)
def test_what_would_be_lost_of_a_process_is_told(
    fault: str, named: str, two: Processes, tmp_path: Path
) -> None:
    for answer in two.run(ranks, str(tmp_path / "run"), fault):
        assert isinstance(answer, Raised)
        assert named in str(answer)
