"""LazyAdam: Adam on the rows of the batch, and on nothing else."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reweight
from cdr.training.optimizers import LazyAdam

NUMBERS: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


class Model(nn.Module):
    """Two tables and a layer on top."""

    def __init__(self, rows: int = 12, *, sparse: bool = True) -> None:
        super().__init__()
        self.user = nn.Embedding(rows, 3, sparse=sparse)
        self.item = nn.Embedding(rows, 3, sparse=sparse)
        self.head = nn.Linear(6, 1)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        user, item, y = batch
        out = self.head(torch.cat([self.user(user), self.item(item)], -1).tanh())
        return (out.squeeze(-1) - y).square()


def batch(size: int, rows: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    user, item = torch.randint(rows, (2, size), generator=generator)
    return user, item, torch.randn(size, generator=generator, dtype=torch.float64)


def train(model: Model, optimizer: torch.optim.Optimizer, seeds: range, size: int = 5) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        model.losses(batch(size, seed=seed)).mean().backward()
        optimizer.step()


def pair() -> tuple[Model, Model]:
    """The same model with sparse and with dense gradients."""
    torch.manual_seed(0)
    lazy, dense = Model().double(), Model(sparse=False).double()
    dense.load_state_dict(lazy.state_dict())
    return lazy, dense


def reference_step(
    param: Tensor, grad: Tensor, state: dict[str, Any], rows: Tensor, numbers: dict[str, Any]
) -> None:
    """One step of Adam on these rows, as written in the paper of Adam, with L2 regularization."""
    (beta1, beta2), m, v = numbers["betas"], state["m"], state["v"]
    state["t"] += 1
    for row in rows.tolist():
        g = grad[row] + numbers["weight_decay"] * param[row]
        m[row] = beta1 * m[row] + (1 - beta1) * g
        v[row] = beta2 * v[row] + (1 - beta2) * g * g
        m_hat = m[row] / (1 - beta1 ** state["t"])
        v_hat = v[row] / (1 - beta2 ** state["t"])
        param[row] -= numbers["lr"] * m_hat / (v_hat.sqrt() + numbers["eps"])


def test_a_training_is_that_of_the_reference() -> None:
    lazy, dense = pair()
    optimizer = LazyAdam(lazy.parameters(), **NUMBERS)
    params = dict(dense.named_parameters())
    states = {
        n: {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)} for n, p in params.items()
    }
    repeats = 0
    for seed in range(8):
        train(lazy, optimizer, range(seed, seed + 1))
        user, item, y = batch(5, seed=seed)
        repeats += len(user) - len(user.unique())
        grads = torch.autograd.grad(dense.losses((user, item, y)).mean(), list(params.values()))
        with torch.no_grad():
            for (name, param), grad in zip(params.items(), grads, strict=True):
                rows = {"user.weight": user.unique(), "item.weight": item.unique()}.get(
                    name, torch.arange(len(param))
                )
                reference_step(param, grad, states[name], rows, NUMBERS)
    assert repeats, "batches should look up some rows twice"
    for name, param in lazy.named_parameters():
        assert torch.allclose(param, params[name], rtol=0, atol=1e-12), name
        state = optimizer.state[param]
        assert float(state["step"]) == 8
        assert torch.allclose(state["exp_avg"], states[name]["m"], rtol=0, atol=1e-12)
        assert torch.allclose(state["exp_avg_sq"], states[name]["v"], rtol=0, atol=1e-12)


def test_it_is_dense_adam_where_every_row_is_looked_up() -> None:
    lazy, dense = pair()
    optimizers = [LazyAdam(lazy.parameters(), **NUMBERS)]
    optimizers += [torch.optim.Adam(dense.parameters(), **NUMBERS)]  # type: ignore[list-item]
    everything = torch.arange(12)
    for seed in range(20):
        user, item, y = batch(30, seed=seed)
        rows = torch.cat([everything, user]), torch.cat([everything, item])
        for model, optimizer in zip((lazy, dense), optimizers, strict=True):
            optimizer.zero_grad()
            model.losses((*rows, torch.cat([y[:12], y]))).mean().backward()
            optimizer.step()
    for one, other in zip(lazy.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_without_weight_decay_it_is_sparse_adam_on_tables() -> None:
    lazy, other = pair()[0], pair()[0]
    # SparseAdam adds ε before the bias correction, so that they agree as far as ε does not matter.
    numbers = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-20}
    train(lazy, LazyAdam([lazy.user.weight, lazy.item.weight], **numbers), range(6))
    tables = [other.user.weight, other.item.weight]
    train(other, torch.optim.SparseAdam(tables, **numbers), range(6))
    assert torch.allclose(lazy.user.weight, other.user.weight, rtol=0, atol=1e-12)
    assert torch.allclose(lazy.item.weight, other.item.weight, rtol=0, atol=1e-12)


def test_other_rows_and_their_moments_keep_every_bit() -> None:
    model = pair()[0]
    optimizer = LazyAdam(model.parameters(), **NUMBERS)
    train(model, optimizer, range(5))
    table = model.user.weight
    state = optimizer.state[table]
    before = [x.detach().clone() for x in (table, state["exp_avg"], state["exp_avg_sq"])]
    train(model, optimizer, range(9, 10))
    looked_up = torch.zeros(12, dtype=torch.bool)
    looked_up[batch(5, seed=9)[0]] = True
    assert 0 < looked_up.sum() < 12
    for now, then in zip((table, state["exp_avg"], state["exp_avg_sq"]), before, strict=True):
        assert torch.equal(now[~looked_up], then[~looked_up])
        assert (now[looked_up] != then[looked_up]).any(1).all()


def test_a_row_counts_once_however_often_it_is_looked_up() -> None:
    table = nn.Embedding(4, 2, sparse=True).double()
    once = copy.deepcopy(table)
    table(torch.tensor([1, 1, 1])).sum().backward()
    (3.0 * once(torch.tensor([1]))).sum().backward()
    for one in (table, once):
        LazyAdam(one.parameters(), **NUMBERS).step()
    assert torch.allclose(table.weight, once.weight, rtol=0, atol=1e-15)


def test_a_state_goes_through_a_file_and_training_goes_on_the_same() -> None:
    model = pair()[0]
    optimizer = LazyAdam(model.parameters(), **NUMBERS)
    train(model, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    again = Model().double()
    again.load_state_dict(saved["model"])
    resumed = LazyAdam(again.parameters())
    resumed.load_state_dict(saved["optimizer"])
    assert {k: resumed.param_groups[0][k] for k in NUMBERS} == NUMBERS
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        for key, entry in optimizer.state[one].items():
            assert torch.equal(entry, resumed.state[other][key])
            assert entry.dtype == resumed.state[other][key].dtype
    train(model, optimizer, range(4, 8))
    train(again, resumed, range(4, 8))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that an operation made, views and writes in place left out."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.data_ptr() for x in tree_leaves((args, kwargs)) if _dense(x)}
        made = [x for x in tree_leaves(out) if _dense(x) and x.data_ptr() not in given]
        self.largest = max([self.largest, *(x.numel() for x in made)])
        return out


def _dense(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout is torch.strided


def largest_made_by_a_step(rows: int, *, sparse: bool) -> int:
    model = Model(rows, sparse=sparse).double()
    optimizer = LazyAdam(model.parameters(), **NUMBERS)
    optimizer.zero_grad()
    model.losses(batch(5, rows)).mean().backward()
    optimizer.step()
    with Largest() as seen:
        optimizer.zero_grad()
        model.losses(batch(5, rows)).mean().backward()
        optimizer.step()
    return seen.largest


def test_a_step_makes_nothing_of_the_size_of_a_table() -> None:
    assert largest_made_by_a_step(10_000, sparse=False) == 30_000, "else nothing is seen at all"
    assert largest_made_by_a_step(10_000, sparse=True) == largest_made_by_a_step(10, sparse=True)
    assert largest_made_by_a_step(10_000, sparse=True) <= 30  # the batch's two lookups, joined


def test_a_step_reads_and_writes_only_rows_of_a_table() -> None:
    # An update of the whole table in place makes nothing new, but a NaN would reach the moments.
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = LazyAdam(table.parameters(), **NUMBERS)
    table(torch.tensor([0, 5])).sum().backward()
    optimizer.step()
    with torch.no_grad():
        table.weight[3] = math.nan
    optimizer.step()
    assert table.weight.isnan().any(1).tolist() == [False, False, False, True, False, False]
    assert not optimizer.state[table.weight]["exp_avg"].isnan().any()


def test_groups_have_numbers_of_their_own() -> None:
    lazy, other = pair()[0], pair()[0]
    groups = [
        {"params": [lazy.user.weight, lazy.head.weight], "weight_decay": 0.5},
        {"params": [lazy.item.weight, lazy.head.bias], "lr": 0.5},
    ]
    train(lazy, LazyAdam(groups, **NUMBERS), range(3))
    optimizers = [
        LazyAdam([other.user.weight, other.head.weight], **{**NUMBERS, "weight_decay": 0.5}),
        LazyAdam([other.item.weight, other.head.bias], **{**NUMBERS, "lr": 0.5}),
    ]
    for seed in range(3):
        other.zero_grad()
        other.losses(batch(5, seed=seed)).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    for one, two in zip(lazy.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_has_no_gradient_stays() -> None:
    model = pair()[0]
    optimizer = LazyAdam(model.parameters(), **NUMBERS)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert not optimizer.state
    model.user(torch.empty(0, dtype=torch.long)).sum().backward()  # a table that nobody looked up
    optimizer.step()
    assert float(optimizer.state[model.user.weight]["step"]) == 1
    assert all(torch.equal(before[name], entry) for name, entry in model.state_dict().items())


def test_a_closure_gives_the_loss() -> None:
    model = pair()[0]
    optimizer = LazyAdam(model.parameters(), **NUMBERS)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.losses(batch(5)).mean()
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(20)]  # type: ignore[arg-type]
    assert losses[-1] < losses[0]


def test_the_wrapper_reads_its_weight_decay_and_its_moments() -> None:
    lazy, dense = pair()
    found = []
    for model, kind in ((lazy, LazyAdam), (dense, torch.optim.Adam)):
        optimizer = kind(model.parameters(), **NUMBERS)
        for _ in range(2):  # every row, so that the two agree
            optimizer.zero_grad()
            rows = torch.arange(12)
            model.losses((rows, rows, batch(12)[2])).mean().backward()
            optimizer.step()
        torch.manual_seed(1)
        weighter = reweight.LossWeighter().double()
        rw = reweight.wrap(
            model,
            weighter,
            outer_loss=lambda model, batch: model.losses(batch).mean(),
            optimizer=optimizer,
            hypergradient=reweight.ImplicitHypergradient(
                reweight.Neumann(3, 0.5), preconditioner=reweight.SecondMoments()
            ),
        )
        found.append(rw.hypergradient(batch(8), batch(8, seed=1)))
        optimizer.param_groups[0]["weight_decay"] = 0.0
        without = rw.hypergradient(batch(8), batch(8, seed=1))
        assert not torch.allclose(without.influence, found[-1].influence, rtol=1e-3)
    assert found[0].info.hvp_mode == found[1].info.hvp_mode == "autograd"
    assert torch.allclose(found[0].influence, found[1].influence, rtol=1e-9)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0\): it must be 0 or more"),
        ({"lr": math.nan}, r"lr=nan\)"),
        ({"eps": -1e-8}, r"eps=-1e-08\)"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1\)"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0\.9, 1\.0\)\): each must be at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any], message: str) -> None:
    table = nn.Embedding(3, 2, sparse=True)
    with pytest.raises(ValueError, match=message):
        LazyAdam(table.parameters(), **numbers)
    optimizer = LazyAdam(table.parameters())
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **numbers})
    assert len(optimizer.param_groups) == 1


def test_gradients_that_are_not_rows_are_refused() -> None:
    param = nn.Parameter(torch.ones(3, 2))
    param.grad = torch.eye(3)[:, :2].to_sparse()
    with pytest.raises(ValueError, match=r"\[3, 2\].* 2 .*to_dense"):
        LazyAdam([param]).step()
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    param.grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="torch.complex64"):
        LazyAdam([param]).step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_does_what_it_does_on_a_cpu() -> None:
    here, there = pair()[0], pair()[0].cuda()
    train(here, LazyAdam(here.parameters(), **NUMBERS), range(6))
    optimizer = LazyAdam(there.parameters(), **NUMBERS)
    for seed in range(6):
        optimizer.zero_grad()
        on_gpu = tuple(x.cuda() for x in batch(5, seed=seed))
        there.losses(on_gpu).mean().backward()  # type: ignore[arg-type]
        optimizer.step()
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.allclose(one, other.cpu(), rtol=0, atol=1e-10)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = LazyAdam(there.parameters())
    resumed.load_state_dict(torch.load(file, map_location="cpu"))
    state = resumed.state[there.user.weight]
    assert state and all(entry.is_cuda for entry in state.values())
    resumed.step()
