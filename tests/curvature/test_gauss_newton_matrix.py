"""The Gauss-Newton matrix of random small networks, against one made of dense matrices."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reweight._curvature import (
    Forward,
    OutputHessian,
    gauss_newton,
    jacobian_by_func,
    jacobian_of_graph,
)
from reweight._curvature.gauss_newton import Jacobian
from reweight._curvature.layered import LayeredJacobian
from reweight._tables import Graph, SubstituteRows, looked_up

# Sums of at most some hundred products of numbers of order one, in two orders.
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}
DIM = 3
# Three ways share the examples, and each builds dense matrices.
shared = settings(max_examples=settings.default.max_examples // 5)

# Dense Jacobians of a bag, in the reference.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@dataclass(frozen=True)
class Spec:
    """What hypothesis chooses."""

    kind: str
    loss: str
    batch_size: int
    outputs: int
    seed: int


specs = st.builds(
    Spec,
    kind=st.sampled_from(("linear", "mlp", "sequence", "tables")),
    loss=st.sampled_from(("cross entropy", "squares", "huber")),
    batch_size=st.integers(1, 4),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)


class Model(nn.Module):
    """Layers of the kinds that the sample space serves."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.kind = spec.kind
        self.table = nn.Embedding(5, DIM, padding_idx=0)
        self.bag = nn.EmbeddingBag(5, DIM)
        self.norm, self.hidden = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        self.out = nn.Linear(DIM, spec.outputs)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.out(x)  # type: ignore[no-any-return]
        if self.kind == "mlp":
            return self.out(torch.tanh(self.hidden(x)))  # type: ignore[no-any-return]
        if self.kind == "tables":
            return self.out(self.table(ids[:, 0]) * self.bag(ids))  # type: ignore[no-any-return]
        rows = self.norm(self.table(ids))
        rows = torch.tanh(self.hidden(torch.tanh(self.hidden(rows))))
        return self.out(rows).sum(1)  # type: ignore[no-any-return]


class Problem:
    """A network, its weighted loss on a batch, and the same as dense matrices."""

    def __init__(self, spec: Spec) -> None:
        generator = torch.Generator().manual_seed(spec.seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.spec, self.model = spec, Model(spec).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(randn(*p.shape))
        self.x = randn(spec.batch_size, DIM)
        self.ids = torch.randint(5, (spec.batch_size, 2), generator=generator)
        self.target = randn(spec.batch_size, spec.outputs)
        self.weights = randn(spec.batch_size).abs()
        self.params = dict(self.model.named_parameters())
        self.outputs = (self.model(self.x, self.ids),)
        self.value = self.loss(self.outputs[0])
        tables = {n: self.params[n] for n in ("table.weight", "bag.weight")}
        self.tables = looked_up(Graph(self.value), tables)

    def loss(self, out: Tensor) -> Tensor:
        if self.spec.loss == "cross entropy":
            losses = F.cross_entropy(out, self.target.softmax(1), reduction="none")
        elif self.spec.loss == "squares":
            losses = (out - self.target).square().sum(1)
        else:
            losses = F.huber_loss(out, self.target, reduction="none", delta=0.5).sum(1)
        return (self.weights * losses).mean()

    def forward(self) -> Forward:
        rows = {n: table.values() for n, table in self.tables.items()}

        def outputs(params: dict[str, Tensor]) -> tuple[Tensor, ...]:
            whole = {n: p for n, p in params.items() if n not in rows}
            with SubstituteRows(self.tables, {n: params[n] for n in rows}):
                return (torch.func.functional_call(self.model, whole, (self.x, self.ids)),)

        at = {n: table.rows for n, table in self.tables.items()}
        return Forward(outputs, self.params | rows, at)

    def dense(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """``J`` and ``H_out``, over some parameters; of tables, over the rows that are read."""

        def outputs(params: dict[str, Tensor]) -> Tensor:
            everything = {**self.params, **params}
            found: Tensor = torch.func.functional_call(self.model, everything, (self.x, self.ids))
            return found

        some = {n: self.params[n].detach() for n in names}
        blocks = torch.func.jacrev(outputs)(some)
        for name in names:
            if name in self.tables:
                blocks[name] = blocks[name][:, :, self.tables[name].rows]
        size = self.outputs[0].numel()
        jacobian = torch.cat([blocks[n].reshape(size, -1) for n in names], 1)
        curvature = torch.func.hessian(self.loss)(self.outputs[0].detach())
        return jacobian, curvature.reshape(size, size)

    def vector(self, names: tuple[str, ...], seed: int, jacobian: Jacobian) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows = jacobian.rows
        shapes = {
            n: (len(rows[n]), self.params[n].shape[1]) if n in rows else self.params[n].shape
            for n in names
        }
        return {
            n: torch.randn(shape, generator=generator, dtype=torch.float64)
            for n, shape in shapes.items()
        }


def flat(tree: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return torch.cat([tree[n].reshape(-1) for n in names])


def jacobians(problem: Problem) -> dict[str, Jacobian]:
    layered = LayeredJacobian(problem.outputs, problem.value, problem.params, problem.tables)
    return {
        "graph": jacobian_of_graph(problem.outputs, problem.params, problem.tables),
        "func": jacobian_by_func(problem.forward()),
        "layers": layered.jacobian(),
    }


@pytest.mark.parametrize("way", ["graph", "func", "layers"])
@shared
@given(spec=specs, seed=st.integers(0, 10_000))
def test_products_are_those_of_a_dense_matrix(way: str, spec: Spec, seed: int) -> None:
    problem = Problem(spec)
    jacobian = jacobians(problem)[way]
    names = jacobian.params
    dense, curvature = problem.dense(names)
    v = problem.vector(names, seed, jacobian)
    found = gauss_newton(jacobian, OutputHessian(problem.value, problem.outputs, {})).hvp(v)
    expected = dense.T @ (curvature @ (dense @ flat(v, names)))
    scale = 1.0 + float(expected.abs().max())
    torch.testing.assert_close(flat(found, names) / scale, expected / scale, **ROUNDING)


@pytest.mark.parametrize("way", ["graph", "func", "layers"])
@shared
@given(spec=specs, seed=st.integers(0, 10_000))
def test_the_matrix_is_symmetric_and_positive_semi_definite(
    way: str, spec: Spec, seed: int
) -> None:
    problem = Problem(spec)
    jacobian = jacobians(problem)[way]
    names = jacobian.params
    hvp = gauss_newton(jacobian, OutputHessian(problem.value, problem.outputs, {})).hvp
    v, w = (problem.vector(names, seed + i, jacobian) for i in range(2))
    a, b = flat(hvp(v), names), flat(hvp(w), names)
    sizes = float(a.norm() * flat(w, names).norm() + b.norm() * flat(v, names).norm())
    assert abs(float(a @ flat(w, names) - b @ flat(v, names))) <= 1e-12 * sizes
    assert float(a @ flat(v, names)) >= -1e-12 * float(a.norm() * flat(v, names).norm())


@shared
@given(spec=specs, shift=st.floats(0.1, 10.0))
def test_the_kernel_is_that_of_the_dense_jacobian(spec: Spec, shift: float) -> None:
    problem = Problem(spec)
    layered = LayeredJacobian(problem.outputs, problem.value, problem.params, problem.tables)
    names = tuple(layered.layers)
    dense, _ = problem.dense(names)
    shifts = {name: shift * (1 + i) for i, name in enumerate(names)}
    of_entries = [
        torch.full((x.numel(),), shifts[n], dtype=torch.float64)
        for n, x in problem.vector(names, 0, layered.jacobian()).items()
    ]
    expected = (dense / torch.cat(of_entries)) @ dense.T
    size, count = spec.outputs, spec.batch_size
    # Outputs come before samples in the kernel.
    expected = expected.view(count, size, count, size).permute(1, 0, 3, 2)
    scale = 1.0 + float(expected.abs().max())
    torch.testing.assert_close(layered.kernel(shifts) / scale, expected / scale, **ROUNDING)
