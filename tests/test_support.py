"""The table of what works with what: every cell is tried, on a small model beside dense algebra."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import reweight
from _support.processes import Processes, values
from benchmarks.catalogue.problems import relative_error
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, LossWeighter, Neumann

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "support.md"
DAMPING, STEP, BATCH = 10.0, 0.05, 6
# Rounding, times condition numbers below 100: conjugate gradients run to their end.
DIGITS = {torch.float64: 1e-8, torch.float32: 1e-3}

# What the second derivatives of some operations warn of is not the subject.
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Ids through a table, and two layers."""

    def __init__(self, **table: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4, **table)
        self.hidden: nn.Module = nn.Linear(4, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inside(self.table(ids))))

    def inside(self, x: Tensor) -> Tensor:
        return self.hidden(x)


class Checkpointed(Net):
    """The middle is evaluated again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def inside(self, x: Tensor) -> Tensor:
        return checkpoint(self.hidden, x, use_reentrant=self.reentrant)


class AutocastInside(Net):
    """As models are that a framework has prepared for mixed precision."""

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(ids).float()


class LowRank(nn.Module):
    """A frozen layer with a trainable product of two thin matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 3).requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Adapted(Net):
    """All frozen but the adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.hidden = LowRank()


class Normalised(Net):
    """Statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(3)
        nn.init.constant_(norm.weight, 0.1)  # at 1, curvatures of -11 outweigh the damping
        self.hidden = nn.Sequential(nn.Linear(4, 3), norm)


class Attending(Net):
    """Every sample as a sequence of two tokens, by fused attention."""

    def inside(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (2, 2))
        return self.hidden(F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1))


class Recurrent(Net):
    """Every sample as a sequence of two tokens, by a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.GRU(2, 3, batch_first=True)

    def inside(self, x: Tensor) -> Tensor:
        return self.hidden(x.unflatten(1, (2, 2)))[0][:, -1]


Optimizers = Callable[[Any], Any]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def two(parameters: Any) -> list[torch.optim.Optimizer]:
    first, *others = parameters
    return [sgd([first]), torch.optim.Adam(others)]


@dataclass
class Case:
    """One row: a model, the same without the feature, and the optimizer with its weight decay."""

    make: Callable[[], nn.Module] = Net
    plain: Callable[[], nn.Module] = Net
    optimizers: Optimizers = sgd
    decay: float = 0.0
    wrapper: Callable[[nn.Module], nn.Module] = lambda model: model
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    dtype: torch.dtype = torch.float64


def decayed(kind: Any, **options: Any) -> Case:
    return Case(
        optimizers=lambda parameters: kind(parameters, lr=1e-2, weight_decay=0.1, **options),
        decay=0.1,
    )


CASES = {
    "plain": Case(),
    "single precision": Case(dtype=torch.float32),
    "autocast around the call": Case(
        around=lambda: torch.autocast("cpu", torch.bfloat16), dtype=torch.float32
    ),
    "autocast inside `forward`": Case(AutocastInside, dtype=torch.float32),
    "`torch.compile(model)`": Case(wrapper=lambda model: torch.compile(model, backend="eager")),  # type: ignore[arg-type, return-value]
    "`checkpoint(use_reentrant=False)`": Case(lambda: Checkpointed(False)),
    "`checkpoint(use_reentrant=True)`": Case(lambda: Checkpointed(True)),
    "LoRA: adapters of frozen layers": Case(Adapted, Adapted),
    "`Embedding(sparse=True)`": Case(lambda: Net(sparse=True)),
    "`BatchNorm` in training": Case(Normalised, Normalised),
    "fused attention": Case(Attending, Attending),
    "`GRU`, `LSTM`": Case(Recurrent, Recurrent),
    "`SGD`, momentum, weight decay": decayed(torch.optim.SGD, momentum=0.9),
    "`Adam`, weight decay": decayed(torch.optim.Adam),
    "`AdamW`": decayed(torch.optim.AdamW),
    "`RMSprop`, weight decay": decayed(torch.optim.RMSprop),
    "`Adagrad`, weight decay": decayed(torch.optim.Adagrad),
    "several optimizers": Case(optimizers=two),
}

SOLVERS = {
    "first-order": ImplicitHypergradient(Identity()),
    "Neumann": ImplicitHypergradient(Neumann(3, step_size=STEP), damping=DAMPING),
    "conjugate gradients": ImplicitHypergradient(
        ConjugateGradient(100, rtol=1e-12), damping=DAMPING
    ),
    "Gauss–Newton": ImplicitHypergradient(
        ConjugateGradient(100, rtol=1e-12), damping=DAMPING, curvature="gauss_newton"
    ),
}
IDS, TARGETS = torch.arange(BATCH) % 5, torch.linspace(-1, 1, 2 * BATCH).reshape(BATCH, 2)


Batch = tuple[Tensor, Tensor]


def losses(model: Any, batch: Batch) -> reweight.Losses:
    ids, y = batch
    return reweight.Losses.of(model(ids), lambda z: (z - y.to(z.dtype)).square().sum(-1))


def outer_loss(model: Any, batch: Batch) -> Tensor:
    return model(batch[0]).sin().mean()


def dense(model: nn.Module, solver: str, decay: float) -> Tensor:
    """The influence by dense matrices, in float64, of weights that are all 1."""
    model = model.double()
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in parameters.values()]
    flat = torch.cat([p.flatten() for p in parameters.values()])

    def outputs(theta: Tensor) -> Tensor:
        parts = zip(parameters.items(), theta.split(sizes), strict=True)
        return functional_call(model, {n: part.view_as(p) for (n, p), part in parts}, (IDS,))

    def each(theta: Tensor) -> Tensor:
        return (outputs(theta) - TARGETS.double()).square().sum(-1)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        by_theta = torch.autograd.functional.jacobian(each, flat)
        v = torch.autograd.functional.jacobian(lambda theta: outputs(theta).sin().mean(), flat)
        if solver == "Gauss–Newton":
            jacobian = torch.autograd.functional.jacobian(outputs, flat).flatten(0, 1)
            matrix = 2 * jacobian.T @ jacobian / BATCH
        else:
            matrix = torch.autograd.functional.hessian(lambda theta: each(theta).mean(), flat)
    matrix = matrix + (decay + DAMPING) * torch.eye(len(flat), dtype=flat.dtype)
    if solver == "first-order":
        u = v
    elif solver == "Neumann":
        u = term = STEP * v
        for _ in range(3):
            term = term - STEP * matrix @ term
            u = u + term
    else:
        u = torch.linalg.solve(matrix, v)
    return -by_theta @ u / BATCH


def outcome(case: Case, solver: str, own: slice = slice(None)) -> str:
    """How the library answers: right, not trusted, refused, or wrong without a word.

    Args:
        case: the row.
        solver: the column.
        own: the samples of this process.
    """
    torch.manual_seed(0)
    inside = case.make().to(case.dtype)
    plain = case.plain()
    plain.load_state_dict(inside.state_dict())
    model = case.wrapper(inside)
    optimizers = case.optimizers([p for p in inside.parameters() if p.requires_grad])
    try:
        rw = reweight.wrap(
            model, LossWeighter().to(case.dtype), losses, outer_loss, optimizers, SOLVERS[solver]
        )
        with case.around():
            batch = IDS[own], TARGETS[own]
            result = rw.hypergradient(batch, batch)
    except (TypeError, ValueError):
        return "refused"
    if "not a hypergradient" in result.info.message:
        return "not trusted"
    expected = dense(plain, solver, case.decay)[own]
    error = relative_error(result.influence.double(), expected)
    return "yes" if error < DIGITS[case.dtype] else f"WRONG by {error:.0e}"


def parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fully_sharded(model: nn.Module) -> nn.Module:
    mesh = distributed.device_mesh.init_device_mesh("cpu", (distributed.get_world_size(),))
    distributed.fsdp.fully_shard(model, mesh=mesh)
    return model


def row_sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    mesh = distributed.device_mesh.init_device_mesh("cpu", (distributed.get_world_size(),))
    plan = {"table": RowwiseParallel(input_layouts=Shard(0), output_layouts=Shard(0))}
    return parallelize_module(model, mesh, plan)


# Rows of the table on several processes: the way to spread the model, and the case.
WAYS = {"DDP": parallel, "`fully_shard`": fully_sharded, "rows sharded": row_sharded}
SPREAD = {
    f"{way}, {name}": (way, name)
    for way, names in {
        # The statistics of a BatchNorm are those of a process's own batch.
        "DDP": [name for name in CASES if name != "`BatchNorm` in training"],
        "`fully_shard`": [
            "plain",
            "single precision",
            "autocast around the call",
            "`checkpoint(use_reentrant=False)`",
            "LoRA: adapters of frozen layers",
            "`Adam`, weight decay",
            "`AdamW`",
        ],
        "rows sharded": ["plain", "single precision", "`Adam`, weight decay"],
    }.items()
    for name in names
}


def spread(rank: int, size: int, row: str) -> list[str]:
    """The outcomes of a row on one of several processes."""
    way, name = SPREAD[row]
    case, share = CASES[name], BATCH // size
    whole = dataclasses.replace(case, wrapper=lambda model: WAYS[way](case.wrapper(model)))
    own = slice(rank * share, (rank + 1) * share)
    return [outcome(whole, solver, own) for solver in SOLVERS]


def rows(place: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A table of the page, row by row: the first one, or that of several processes."""
    text = PAGE.read_text(encoding="utf-8")
    text = text[text.index("\n## Several processes") :] if place else text
    table = text.split("\n| --- ")[1].split("\n\n")[0]
    for line in table.splitlines()[1:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
        yield name, [re.sub(r"\s*\(.*\)", "", cell) for cell in cells]


def test_the_page_has_a_row_for_every_case_and_a_column_for_every_solver() -> None:
    assert [name for name, _ in rows()] == list(CASES)
    assert all(len(cells) == len(SOLVERS) for _, cells in rows())


@pytest.mark.parametrize("name", CASES)
def test_every_cell_of_the_page_is_what_happens(name: str) -> None:
    assert dict(rows())[name] == [outcome(CASES[name], solver) for solver in SOLVERS]


@pytest.mark.slow
@pytest.mark.parametrize("row", SPREAD)
def test_every_cell_on_two_processes_is_what_happens(two: Processes, row: str) -> None:
    if SPREAD[row][0] == "`fully_shard`" and not hasattr(distributed.fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    assert values(two.run(spread, row)) == [dict(rows(1))[row]] * 2


def test_the_page_has_a_row_for_every_case_on_several_processes() -> None:
    assert [name for name, _ in rows(1)] == list(SPREAD)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_data_parallel_module_is_served_in_one_process() -> None:
    alone = Case(wrapper=nn.parallel.DistributedDataParallel)
    assert [outcome(alone, solver) for solver in SOLVERS] == ["yes"] * len(SOLVERS)


@pytest.mark.usefixtures("process_group")
def test_a_fully_sharded_module_is_served_in_one_process() -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    case = Case(wrapper=fully_sharded)
    assert [outcome(case, solver) for solver in SOLVERS] == ["yes"] * len(SOLVERS)
