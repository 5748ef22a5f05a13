"""What all weighters share, and the small ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reweight.weighters import (
    BehavioralPerceptron,
    BehaviorInputs,
    ConstantWeighter,
    GroupWeighter,
    LossWeighter,
    SampleWeighter,
    TableWeighter,
)
from reweight.weighters._positive import positive, positive_inverse

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DIM = 6


def behaviors(batch: int, dtype: torch.dtype) -> BehaviorInputs:
    return BehaviorInputs(
        item=torch.randn(batch, DIM, dtype=dtype),
        source_history=torch.randn(batch, 5, DIM, dtype=dtype),
        target_history=torch.randn(batch, 3, DIM, dtype=dtype),
        source_mask=torch.rand(batch, 5) < 0.7,
        target_mask=torch.rand(batch, 3) < 0.7,
    )


def ids(batch: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(batch) % 4


def nothing(batch: int, dtype: torch.dtype) -> None:
    return None


Case = tuple[Callable[[], SampleWeighter], Callable[[int, torch.dtype], Any]]
CASES: dict[str, Case] = {
    "constant": (ConstantWeighter, nothing),
    "loss": (LossWeighter, nothing),
    "loss-scale": (lambda: LossWeighter(learn_scale=True), nothing),
    "table": (lambda: TableWeighter(4), ids),
    "group": (lambda: GroupWeighter(4), ids),
    "group-sizes": (lambda: GroupWeighter(4, sizes=[30, 20, 7, 3]), ids),
    "group-scale": (lambda: GroupWeighter(4, learn_scale=True), ids),
    "perceptron": (lambda: BehavioralPerceptron(DIM), behaviors),
    "perceptron-centered": (
        lambda: BehavioralPerceptron(DIM, normalization="centered"),
        behaviors,
    ),
    "perceptron-softmax": (
        lambda: BehavioralPerceptron(DIM, normalization="softmax"),
        behaviors,
    ),
    "perceptron-global": (lambda: BehavioralPerceptron(DIM, use_local=False), behaviors),
    "perceptron-local": (lambda: BehavioralPerceptron(DIM, use_global=False), behaviors),
    "perceptron-authors": (
        lambda: BehavioralPerceptron(
            DIM,
            global_hidden=(),
            local_hidden=(32, 16),
            normalization="softmax",
            global_bias=0.0,
            mask_keys=False,
            gamma_map="relu",
        ),
        behaviors,
    ),
}
every_weighter = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def perturb(module: nn.Module) -> None:
    """Move off the start, where the zero layers hold back the gradient of those below."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@every_weighter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 8])
def test_an_untrained_weighter_gives_weights_of_exactly_one(
    case: Case, dtype: torch.dtype, batch: int
) -> None:
    make, inputs = case
    weights = make().to(dtype)(torch.rand(batch, dtype=dtype), inputs(batch, dtype))
    torch.testing.assert_close(weights, torch.ones(batch, dtype=dtype), rtol=0, atol=0)


@every_weighter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 8])
def test_a_trained_weighter_gives_finite_positive_weights(
    case: Case, dtype: torch.dtype, batch: int
) -> None:
    make, inputs = case
    weighter = make().to(dtype)
    perturb(weighter)
    weights = weighter(torch.rand(batch, dtype=dtype), inputs(batch, dtype))
    assert weights.shape == (batch,)
    assert weights.dtype == dtype
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()


@every_weighter
def test_the_gradient_reaches_every_parameter(case: Case) -> None:
    make, inputs = case
    weighter = make().double()
    perturb(weighter)
    losses = torch.rand(8, dtype=torch.float64)
    coefficients = torch.randn(8, dtype=torch.float64)
    (coefficients * weighter(losses, inputs(8, torch.float64))).sum().backward()
    for name, parameter in weighter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_weighter
def test_the_first_step_moves_something(case: Case) -> None:
    make, inputs = case
    weighter = make()
    weights = weighter(torch.rand(8), inputs(8, torch.float32))
    grads = torch.autograd.grad((torch.randn(8) * weights).sum(), list(weighter.parameters()))
    assert sum(float(grad.abs().sum()) for grad in grads) > 0


@every_weighter
def test_weights_follow_a_permutation_of_the_batch(case: Case) -> None:
    make, inputs = case
    weighter = make().double()
    perturb(weighter)
    losses, known = torch.rand(8, dtype=torch.float64), inputs(8, torch.float64)
    order = torch.randperm(8)
    if isinstance(known, BehaviorInputs):
        shuffled = BehaviorInputs(*(field[order] for field in known))
    else:
        shuffled = None if known is None else known[order]
    # 1e-14: batched products may sum in another order at another place of the batch.
    torch.testing.assert_close(
        weighter(losses[order], shuffled), weighter(losses, known)[order], rtol=1e-14, atol=1e-14
    )


@every_weighter
def test_a_state_dict_carries_the_weights_over(case: Case) -> None:
    make, inputs = case
    trained, fresh = make(), make()
    perturb(trained)
    fresh.load_state_dict(trained.state_dict())
    losses, known = torch.rand(8), inputs(8, torch.float32)
    assert torch.equal(trained(losses, known), fresh(losses, known))


def test_a_weighter_without_forward_cannot_be_made() -> None:
    class Forgotten(SampleWeighter):
        pass

    with pytest.raises(TypeError, match="forward"):
        Forgotten()


def test_positive_is_one_at_zero_and_grows_no_faster_than_linearly() -> None:
    x = torch.tensor([-50.0, -1.0, 0.0, 1.0, 1e4], dtype=torch.float64, requires_grad=True)
    y = positive(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (y > 0).all()
    assert y[2] == 1.0
    assert (slope <= 1 / math.log(2) + 1e-15).all()
    expected = torch.log1p(x.detach()[:4].exp()) / math.log(2)
    # Relative rounding of two library functions.
    torch.testing.assert_close(y.detach()[:4], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("value", [1e-6, 0.3, 1.0, 7.0, 1e5])
def test_positive_inverse_inverts_positive(value: float) -> None:
    x = torch.tensor(positive_inverse(value), dtype=torch.float64)
    # 3e-9: torch's softplus drops e^-x where x > 20.
    assert float(positive(x)) == pytest.approx(value, rel=3e-9)


@pytest.mark.parametrize("initial", [1e-6, 0.02, 0.5, 1.0, 3.0])
def test_constant_starts_at_the_given_weight(initial: float) -> None:
    weights = ConstantWeighter(initial)(torch.rand(3), None)
    # A few float32 roundings; at 1e-6 the raw parameter is -14, whose rounding counts 14-fold.
    torch.testing.assert_close(weights, torch.full((3,), initial), rtol=2e-6, atol=0)


@pytest.mark.parametrize("initial", [0.0, -1.0, math.nan, math.inf])
def test_constant_refuses_a_start_that_is_not_positive(initial: float) -> None:
    with pytest.raises(ValueError, match=f"initial={initial!r}"):
        ConstantWeighter(initial)


def test_the_mean_weight_of_a_batch_is_one_whatever_the_network_learned() -> None:
    weighter = LossWeighter(hidden=3).double()
    perturb(weighter)
    for losses in (
        torch.rand(9),
        torch.randn(9),
        torch.tensor([0.0, 1e3, 1e6]),
        1e-30 * torch.rand(9),
    ):
        weights = weighter(losses.double(), None)
        assert (weights > 0).all()
        # Rounding of a sum of at most nine numbers.
        assert float(weights.detach().mean()) == pytest.approx(1.0, abs=1e-14)


def test_loss_weights_do_not_depend_on_the_unit_of_the_loss_and_equal_losses_weigh_one() -> None:
    weighter = LossWeighter(hidden=3).double()
    perturb(weighter)
    losses = torch.rand(9, dtype=torch.float64)
    # The standard deviation has a floor of 1e-6 beside values of about 1.
    torch.testing.assert_close(
        weighter(1e4 * losses, None), weighter(losses, None), rtol=1e-9, atol=0
    )
    assert torch.equal(
        weighter(torch.full((5,), 0.7, dtype=torch.float64), None), torch.ones(5).double()
    )
    assert torch.equal(weighter(torch.zeros(5, dtype=torch.float64), None), torch.ones(5).double())


@pytest.mark.parametrize(
    "make", [LossWeighter, lambda **k: GroupWeighter(4, **k), lambda **k: TableWeighter(4, **k)]
)
def test_a_common_pull_on_all_weights_moves_the_scale_only(
    make: Callable[..., SampleWeighter],
) -> None:
    losses, known = torch.rand(4, dtype=torch.float64), torch.arange(4)
    bound = make().double()
    perturb(bound)
    grads = torch.autograd.grad(bound(losses, known).sum(), list(bound.parameters()))
    assert max(float(grad.abs().max()) for grad in grads) < 1e-12  # rounding of terms of about 1
    free = make(learn_scale=True).double()
    free(losses, known).sum().backward()
    assert free.raw_scale.grad is not None and free.raw_scale.grad > 0
    with torch.no_grad():
        free.raw_scale += 3.0
    assert float(free(losses, known).detach().mean()) == pytest.approx(
        float(positive(torch.tensor(3.0).double()))
    )


def test_loss_weighter_can_learn_to_drop_large_losses() -> None:
    weighter = LossWeighter(hidden=16)
    losses = torch.cat((torch.rand(32), 3 + torch.rand(32)))
    wanted = torch.cat((torch.full((32,), 2.0), torch.zeros(32)))
    optimizer = torch.optim.Adam(weighter.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (weighter(losses, None) - wanted).square().mean().backward()
        optimizer.step()
    weights = weighter(losses, None)
    assert weights[:32].min() > 1.0 > weights[32:].max()


def test_loss_weighter_takes_losses_of_another_dtype() -> None:
    weights = LossWeighter()(torch.rand(4, dtype=torch.bfloat16), None)
    assert weights.dtype == torch.float32


def test_loss_weighter_refuses_an_empty_hidden_layer() -> None:
    with pytest.raises(ValueError, match="hidden=0"):
        LossWeighter(hidden=0)


@pytest.mark.parametrize("make", [TableWeighter, GroupWeighter])
def test_a_lookup_is_a_softmax_over_its_table(make: type[TableWeighter]) -> None:
    weighter = make(5).double()
    perturb(weighter)
    rows = torch.tensor([1, 3, 1])
    weights = weighter(torch.rand(3), rows)
    # Rounding of a sum of five numbers.
    torch.testing.assert_close(weights, 5 * weighter.raw.softmax(0)[rows], rtol=1e-14, atol=0)
    assert torch.equal(weighter.table()[rows], weights)


def test_the_mean_weight_of_all_samples_is_one_for_groups_of_known_sizes() -> None:
    sizes = torch.tensor([700.0, 200.0, 99.0, 1.0], dtype=torch.float64)
    weighter = GroupWeighter(4, sizes=sizes.tolist()).double()
    perturb(weighter)
    weights = weighter.table().detach()
    # The sizes pass through float32 once.
    assert float((weights * sizes).sum() / sizes.sum()) == pytest.approx(1.0, rel=1e-6)
    torch.testing.assert_close(
        weighter.probabilities(), weights * sizes / (weights * sizes).sum(), rtol=1e-6, atol=0
    )
    assert float(GroupWeighter(4).probabilities().sum()) == 1.0


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ([1, 2], r"\[2\].*3 groups"),
        ([1, 0, 2], r"sizes\[1\]=0\.0"),
        ([1, 2, float("nan")], r"sizes\[2\]=nan"),
    ],
)
def test_sizes_that_are_not_one_positive_number_a_group_are_refused(
    sizes: list[float], found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        GroupWeighter(3, sizes=sizes)


@pytest.mark.parametrize("make", [TableWeighter, GroupWeighter])
def test_a_single_weight_of_mean_one_is_refused(make: type[TableWeighter]) -> None:
    with pytest.raises(ValueError, match="ConstantWeighter"):
        make(1)
    assert make(1, learn_scale=True)(torch.rand(2), torch.tensor([0, 0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("make", "counted"), [(TableWeighter, "sample"), (GroupWeighter, "group")])
def test_a_lookup_names_the_wrong_id(make: type[TableWeighter], counted: str) -> None:
    weighter = make(5)
    with pytest.raises(ValueError, match=rf"{counted} id 7\b.*\b2\b.*num_{counted}s=5"):
        weighter(torch.rand(3), torch.tensor([0, 1, 7]))
    with pytest.raises(ValueError, match=rf"{counted} id -1\b.*\b0\b"):
        weighter(torch.rand(2), torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match=f"num_{counted}s=0"):
        make(0)


@pytest.mark.parametrize("make", [TableWeighter, GroupWeighter])
def test_a_lookup_weighs_many_batches_at_once(make: type[TableWeighter]) -> None:
    weighter = make(5)
    perturb(weighter)
    losses, ids = torch.rand(3, 4), torch.randint(5, (3, 4))

    def total(scale: torch.Tensor, losses: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return (weighter(scale * losses, ids) * scale * losses).sum()

    alone = torch.stack([total(torch.ones(()), *batch) for batch in zip(losses, ids, strict=True)])
    together = torch.vmap(total, in_dims=(None, 0, 0))(torch.ones(()), losses, ids)
    torch.testing.assert_close(together, alone)
    # The total is proportional to the scale.
    slopes = torch.vmap(torch.func.grad(total), in_dims=(None, 0, 0))(torch.ones(()), losses, ids)
    torch.testing.assert_close(slopes, alone)


@pytest.mark.parametrize("make", [TableWeighter, GroupWeighter])
def test_a_lookup_refuses_what_is_not_one_id_per_loss(make: type[TableWeighter]) -> None:
    weighter = make(5)
    with pytest.raises(TypeError, match="int64.*float32"):
        weighter(torch.rand(2), torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match="NoneType"):
        weighter(torch.rand(2), None)
    with pytest.raises(ValueError, match=r"\[2, 1\].*\[2\]"):
        weighter(torch.rand(2), torch.tensor([[0], [1]]))


def test_the_repr_shows_the_size() -> None:
    assert repr(GroupWeighter(3)) == "GroupWeighter(num_groups=3)"
    assert (
        repr(TableWeighter(3, learn_scale=True)) == "TableWeighter(num_samples=3, learn_scale=True)"
    )
    assert repr(LossWeighter(7)).startswith("LossWeighter(\n  hidden=7")
