"""Compiled outer steps give what eager ones give, and say when they are eager."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from _support.compiling import (
    assert_same,
    backend,
    batches,
    is_compiled,
    mean_error,
    network,
    pair,
    squares,
    steps,
    weighter,
)
from _support.problems import SigmoidWeights
from reweight import (
    BehavioralPerceptron,
    BehaviorInputs,
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    Neumann,
    SecondMoments,
    Solution,
    Status,
    TableWeighter,
    check_hypergradient,
    wrap,
)
from reweight._tensors import no_compiling, reducing
from reweight.diagnostics import agreement

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the outer step was compiled"),
    pytest.mark.skipif(bool(no_compiling()), reason=no_compiling()),
]

SOLVERS = [Identity(0.3), Neumann(3, 0.05), Neumann(3), Neumann(0), Neumann(0, 0.1)]
SAME = [batches(6, seed) for seed in (0, 10, 20)]


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with backend("eager"):
        yield


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_compiled_step_gives_what_an_eager_one_gives(solver: Any) -> None:
    model = network()
    groups = [
        {"params": [*model[0].parameters()], "weight_decay": 0.3},
        {"params": [*model[1:].parameters()]},
    ]
    one, two = pair(solver, model, optimizer=torch.optim.SGD(groups, lr=0.1))
    found, _ = steps(one, SAME)
    expected, _ = steps(two, SAME)
    assert [is_compiled(each) for each in found] == [False, True, True]
    assert not any(is_compiled(each) for each in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
        if theirs.info.curvature is not None:
            # Products of float64 in another order.
            assert ours.info.curvature == pytest.approx(theirs.info.curvature, rel=1e-9)
            assert ours.info.smallest_curvature == pytest.approx(
                theirs.info.smallest_curvature, rel=1e-9
            )


@pytest.mark.parametrize("solver", SOLVERS[:4], ids=repr)
def test_a_preconditioner_is_read_in_every_compiled_step(solver: Any) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    options = {"preconditioner": SecondMoments()}
    one, two = pair(solver, model, optimizer=optimizer, strategy=options)
    for number, batch in enumerate(SAME):
        one.loss(batch[0]).backward()
        optimizer.step()
        (found,), _ = steps(one, [batch])
        (expected,), _ = steps(two, [batch])
        assert is_compiled(found) is (number > 0)
        assert_same(found, expected)
        if expected.info.curvature is not None:
            # Products of float64 in another order.
            assert found.info.curvature == pytest.approx(expected.info.curvature, rel=1e-9)


def test_a_sum_over_samples_and_an_outer_loss_of_the_weighter_are_compiled_too() -> None:
    own = weighter()

    def outer(model: nn.Module, batch: Any) -> Tensor:
        return mean_error(model, batch) + 0.1 * own.mlp[0].weight.square().sum()

    one, two = pair(Neumann(2), weighter=own, outer_loss=outer, reduction="sum")
    found, _ = steps(one, SAME)
    assert is_compiled(found[-1])
    assert_same(found[-1], two.hypergradient(*SAME[-1]))


def test_a_perceptron_is_compiled() -> None:
    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(20, 8)

        def forward(self, item: Tensor, history: Tensor, mask: Tensor) -> Tensor:
            liked = (self.items(history) * mask.unsqueeze(2)).sum(1)
            return (self.items(item) * liked).sum(1)

    def losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        item, history, mask, label = batch
        found = nn.functional.binary_cross_entropy_with_logits(
            model(item, history, mask), label, reduction="none"
        )
        items: Any = model.items
        behaviors = items(item), *2 * (items(history),), *2 * (mask,)
        return Losses(found, inputs=BehaviorInputs(*behaviors))

    def outer(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return losses(model, batch).weighted.mean()

    def drawn(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        item, history = (torch.randint(20, shape, generator=generator) for shape in ((6,), (6, 5)))
        # Histories of several lengths, which an eager step pools apart.
        mask = torch.arange(5) < torch.arange(6).unsqueeze(1)
        return item, history, mask, torch.rand(6, generator=generator).round().double()

    torch.manual_seed(0)
    perceptron = BehavioralPerceptron(8).double()
    nn.init.normal_(perceptron.local_mlp[-1].weight)
    one, two = pair(
        Neumann(2, 0.1),
        Scorer().double(),
        weighter=perceptron,
        losses=losses,
        outer_loss=outer,
    )
    same = [(drawn(seed), drawn(seed + 1)) for seed in (0, 10)]
    found, _ = steps(one, same)
    assert is_compiled(found[-1])
    expected, _ = steps(two, same)
    assert_same(found[-1], expected[-1])


def test_two_names_for_one_module_and_tied_weights_are_put_back() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.two = nn.Linear(3, 3)
            self.tied = nn.Linear(3, 3)
            self.tied.weight = self.one.weight
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tied(torch.tanh(self.two(torch.tanh(self.one(x))))))

    torch.manual_seed(0)
    model = Twice().double()
    before = {name: p for name, p in model.named_parameters(remove_duplicate=False)}
    one, two = pair(Neumann(2), model)
    found, _ = steps(one, SAME)
    assert is_compiled(found[-1])
    assert_same(found[-1], two.hypergradient(*SAME[-1]))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is p for name, p in before.items())


def test_compiled_steps_follow_parameters_weight_decay_and_modes() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)
    one, two = pair(Neumann(2, 0.1), model, optimizer=optimizer)
    steps(one, SAME[:1])
    for number, batch in enumerate(SAME[1:]):
        one.loss(batch[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["weight_decay"] = 0.2 * number
        found = one.hypergradient(*batch)
        assert is_compiled(found)
        assert_same(found, two.hypergradient(*batch))
    assert one.problem.compilation.programs == 1
    model.eval()
    (first, second), _ = steps(one, SAME[:2])
    assert not is_compiled(first) and is_compiled(second)
    assert_same(second, two.hypergradient(*SAME[1]))


def test_python_attributes_are_not_frozen_into_a_program() -> None:
    class Scaled(nn.Linear):
        factor: float

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * super().forward(x)

    model = Scaled(3, 1).double()
    model.factor = 1.0
    one, two = pair(Identity(), model)
    steps(one, SAME[:2])
    for factor in (0.5, 1.0):
        model.factor = factor
        (first, second), _ = steps(one, SAME[:2])
        assert is_compiled(first) is (factor == 1.0) and is_compiled(second)
        assert_same(second, two.hypergradient(*SAME[1]))
    assert one.problem.compilation.programs == 2


def test_new_parameters_are_compiled_anew() -> None:
    model = network()
    one, two = pair(Neumann(2), model)
    steps(one, SAME)
    model[0] = nn.Linear(3, 4).double()
    (first, second), _ = steps(one, SAME[:2])
    assert not is_compiled(first) and is_compiled(second)
    assert_same(second, two.hypergradient(*SAME[1]))


def test_small_tables_are_used_whole_with_a_fixed_step_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 1))

    def losses(model: nn.Module, batch: Tensor) -> Losses:
        return Losses(model(batch).reshape(-1).square())

    def outer(model: nn.Module, batch: Tensor) -> Tensor:
        return losses(model, batch).weighted.mean()

    optimizer = torch.optim.SGD(model.double().parameters(), lr=0.1, weight_decay=0.1)
    one, two = pair(Neumann(2, 0.1), model, losses=losses, outer_loss=outer, optimizer=optimizer)
    ids = torch.arange(24).remainder(12).reshape(2, 6, 2)
    found, _ = steps(one, [(ids[0], ids[1])] * 2)
    assert is_compiled(found[1])
    assert_same(found[1], two.hypergradient(ids[0], ids[1]))


# -- when ------------------------------------------------------------------------------------------


def test_steps_that_measure_the_residual_are_eager_and_compared() -> None:
    one, _ = pair(Neumann(2), strategy={"verdict_every": 3})
    found, warned = steps(one, SAME * 2)
    assert [is_compiled(each) for each in found] == [False, True, True, False, True, True]
    assert [each.info.relative_residual is None for each in found] == [
        is_compiled(each) for each in found
    ]
    assert "compared with an eager step 2 steps ago" in found[2].info.message
    assert "compared with an eager step one step ago" in found[4].info.message
    assert found[2].info.last_residual.age == 2 and found[2].info.comparison.age == 2
    assert found[2].info.hvp_mode == "func"
    assert sum("was compiled in" in each for each in warned) == 1


def test_first_order_steps_are_compiled_and_compared_now_and_then() -> None:
    one, two = pair(Identity(0.3), strategy={"verdict_every": 3})
    found, _ = steps(one, SAME * 2)
    assert [is_compiled(each) for each in found] == [False, True, True, False, True, True]
    for ours, batch in zip(found, SAME * 2, strict=True):
        theirs = two.hypergradient(*batch)
        assert_same(ours, theirs)
        assert ours.info.first_order and ours.info.hvp_mode == theirs.info.hvp_mode == "forward"
        assert ours.info.last_residual is None and ours.info.relative_residual is None
    assert "first-order" in found[2].info.message
    assert found[2].info.detail == "compiled, last compared with an eager step 2 steps ago"


def test_products_by_func_are_compiled_for_the_identity_too() -> None:
    one, two = pair(Identity(0.3), strategy={"hvp": "func"})
    found, _ = steps(one, SAME)
    assert is_compiled(found[-1]) and found[-1].info.hvp_mode == "func"
    assert found[-1].info.last_residual.age == 2
    assert_same(found[-1], two.hypergradient(*SAME[-1]))


def test_each_shape_is_compiled_up_to_a_limit() -> None:
    one, two = pair(Identity(), nn.Linear(3, 1).double())
    shapes = [batches(size, 0) for size in (4, 5, 6, 7, 8)]
    found, warned = steps(one, shapes + shapes)
    assert [is_compiled(each) for each in found] == [False] * 5 + [True] * 4 + [False]
    assert sum("drop_last" in each for each in warned) == 1
    assert sum("was compiled in" in each for each in warned) == 1
    for ours, batch in zip(found[5:], shapes, strict=True):
        assert_same(ours, two.hypergradient(*batch))


def test_wrapped_objects_do_not_share_a_limit() -> None:
    # torch.compile keeps programs by code, eight of one code by default.
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(4):
            one, _ = pair(Identity(), nn.Linear(3, 1).double())
            found, _ = steps(one, SAME[:2])
            assert is_compiled(found[-1])


def test_a_compiled_step_changes_nothing() -> None:
    model = network()
    one, _ = pair(Neumann(2), model)
    one.outer_backward(*SAME[0])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    buffers, random = dict(model.named_buffers()), torch.get_rng_state()
    batch = [x.clone() for pair in SAME[1] for x in pair]
    model[0].weight.grad = kept = torch.ones_like(model[0].weight)
    assert is_compiled(one.hypergradient(*SAME[1]))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert all(buffers[name] is x for name, x in model.named_buffers())
    assert all(p.requires_grad for p in model.parameters())
    assert model[0].weight.grad is kept and torch.equal(kept, torch.ones_like(kept))
    assert torch.equal(random, torch.get_rng_state())
    assert all(map(torch.equal, batch, (x for pair in SAME[1] for x in pair)))


def test_a_copy_does_not_use_the_programs_of_the_original() -> None:
    one, _ = pair(Neumann(2))
    one.model[0].requires_grad_(False)
    steps(one, SAME)
    two = copy.deepcopy(one)
    nn.init.ones_(two.model[0].weight)
    (first, second), _ = steps(two, SAME[:2])
    assert not is_compiled(first) and is_compiled(second)
    two.problem.compilation = None
    assert_same(second, two.hypergradient(*SAME[1]))


def test_a_check_compiles_nothing() -> None:
    one, _ = pair(Neumann(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda *_, **__: pytest.fail("it compiles"))
        check_hypergradient(one, *SAME[0], max_seconds=5.0)
    agreement(one, *SAME[0])
    assert one.problem.compilation.programs == 1


# -- what stays eager ------------------------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.body(x), 0.5)


def reading(model: nn.Module, batch: Any) -> Losses:
    losses = squares(model, batch)
    return losses if float(losses.weighted.sum()) > 0 else Losses(losses.weighted)


def cheating(model: nn.Module, batch: Any) -> Losses:
    losses = squares(model, batch)
    return Losses(losses.weighted * (1.01 if torch.compiler.is_compiling() else 1.0))


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2.0


def without_forward_mode(model: nn.Module, batch: Any) -> Losses:
    return Losses(Half.apply(squares(model, batch).weighted))


def stated(model: nn.Module, batch: Any) -> Losses:
    x, y = batch
    return Losses.of(model(x), lambda out: (out.reshape(-1) - y).square())


def outside(model: nn.Module, batch: Any) -> Losses:
    return Losses((model(batch[0]).reshape(-1) + batch[0] @ OUTSIDE - batch[1]).square())


OUTSIDE = torch.ones(3, dtype=torch.float64, requires_grad=True)
FALLBACKS = {
    "conjugate gradients": ({"solver": ConjugateGradient()}, "decides by values"),
    "a callable": (
        {"solver": lambda matvec, b: Solution(b, Status.APPROXIMATED)},
        "decides by values",
    ),
    "the Gauss-Newton matrix": (
        {"strategy": {"curvature": "gauss_newton"}, "losses": stated},
        "curvature='gauss_newton'",
    ),
    "what forward mode does not differentiate": (
        {"solver": Identity(), "losses": without_forward_mode},
        "no exact derivatives",
    ),
    "a long series": ({"solver": Neumann(9)}, "more than 8 terms"),
    "a compiled model": ({"model": lambda: torch.compile(network())}, "compiled already"),
    "random numbers": ({"model": Dropping}, "draw random numbers"),
    "losses that read values": ({"losses": reading}, "run eagerly"),
    "what differs": ({"losses": cheating}, "differs from the eager step by"),
    "no module holds it": (
        {
            "losses": outside,
            "outer_loss": lambda model, batch: outside(model, batch).weighted.mean(),
            "optimizer": lambda model: torch.optim.SGD([OUTSIDE, *model.parameters()], lr=0.1),
        },
        "in no module",
    ),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(name: str) -> None:
    changes, reason = FALLBACKS[name]
    model = changes.get("model", network)()
    changes = {"solver": Neumann(2), **changes, "model": model}
    if "optimizer" in changes:
        changes["optimizer"] = changes["optimizer"](model)
    one, two = pair(**changes)
    found, warned = steps(one, SAME)
    reasons = [each for each in warned if "although compile=True" in each]
    assert len(reasons) == 1 and reason in reasons[0]
    torch.manual_seed(0)
    ours = one.hypergradient(*SAME[0])
    torch.manual_seed(0)
    theirs = two.hypergradient(*SAME[0])
    assert not any(map(is_compiled, (*found, ours)))
    assert_same(ours, theirs)


def test_gradient_hooks_are_tried_in_eager_steps() -> None:
    model = network()
    one, two = pair(Neumann(2), model)
    steps(one, SAME[:2])
    hook = model[0].weight.register_hook(lambda g: g * (torch.arange(3) > 0))
    (found,), warned = steps(one, SAME[:1])
    assert not is_compiled(found) and any("gradient hooks" in each for each in warned)
    assert_same(found, two.hypergradient(*SAME[0]))
    hook.remove()
    assert is_compiled(one.hypergradient(*SAME[0]))


def test_fresh_batches_are_products_of_eager_steps() -> None:
    one, _ = pair(Neumann(2, 0.1))
    steps(one, SAME)
    with pytest.warns(UserWarning, match=r"batches= gives every product another batch"):
        found = one.hypergradient(*SAME[0], batches=iter([SAME[1][0], SAME[2][0]]))
    assert not is_compiled(found)


def test_several_processes_and_captured_graphs_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair(Neumann(2))
    steps(one, SAME[:2])
    with reducing(samples=lambda x: x):
        (found,), warned = steps(one, SAME[:1])
    assert not is_compiled(found) and any("several processes" in each for each in warned)
    assert_same(found, two.hypergradient(*SAME[0]))
    monkeypatch.setattr("reweight._problem.compiled.can_read", lambda _: False)
    (found,), warned = steps(one, SAME[:1])
    assert not is_compiled(found) and any("CUDA graph" in each for each in warned)


@pytest.mark.parametrize(("solver", "limit"), [(Neumann(2), 1000), (Neumann(2, 0.1), 10)])
def test_tables_by_rows_stay_eager(
    solver: Any, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reweight._problem.compiled._LARGEST_TABLE", limit)
    model = nn.Embedding(20, 1).double()

    def losses(model: nn.Module, batch: Tensor) -> Losses:
        return Losses((model(batch).reshape(-1) - 1.0).square())

    one, _ = pair(
        solver,
        model,
        losses=losses,
        outer_loss=lambda model, batch: losses(model, batch).weighted.mean(),
    )
    ids = torch.arange(6)
    found, warned = steps(one, [(ids, ids)] * 2)
    assert not any(map(is_compiled, found)) and any("embedding tables" in each for each in warned)


def test_a_compiled_result_that_goes_wrong_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair(Neumann(2), strategy={"verdict_every": 3})
    steps(one, SAME[:2])
    compilation = one.problem.compilation
    run = compilation.run

    def wrong(*args: Any) -> Any:
        grads, influence, numbers = run(*args)
        return grads, 1.01 * influence, numbers

    monkeypatch.setattr(compilation, "run", wrong)
    found, warned = steps(one, SAME)
    assert [is_compiled(each) for each in found] == [True, False, False]
    assert any("differs from the eager step by 0.01" in each for each in warned)
    assert_same(found[1], two.hypergradient(*SAME[1]))


def test_a_step_with_nothing_to_solve_neither_compiles_nor_refuses() -> None:
    def losses(model: nn.Module, batch: Any) -> Losses:
        return Losses((model(batch[0]).reshape(-1) - batch[1]).square())

    model = nn.Linear(3, 1).double()
    one, two = pair(Neumann(2), model, losses=losses)
    x, dev_x = SAME[0][0][0], SAME[0][1][0]
    empty = (x[:0], x[:0, 0]), SAME[0][1]
    with torch.no_grad():
        solved = SAME[0][0], (dev_x, model(dev_x).reshape(-1))
    found, _ = steps(one, [empty, solved, *SAME])
    assert [each.info.hvp_mode for each in found[:2]] == ["none", "none"]
    assert [is_compiled(each) for each in found[2:]] == [False, True, True]
    (again,), _ = steps(one, [solved])
    assert_same(again, two.hypergradient(*solved))
    assert is_compiled(one.hypergradient(*SAME[0]))


def test_ids_out_of_range_raise_as_in_eager_steps() -> None:
    own = TableWeighter(6).double()

    def losses(model: nn.Module, batch: Any) -> Losses:
        return Losses(squares(model, batch[0]).weighted, inputs=batch[1])

    one, _ = pair(
        Identity(),
        nn.Linear(3, 1).double(),
        weighter=own,
        losses=losses,
        outer_loss=lambda model, batch: losses(model, batch).weighted.mean(),
    )
    ids = torch.arange(6)
    train, dev = (SAME[0][0], ids), (SAME[0][1], ids[:5])
    found, _ = steps(one, [(train, dev)] * 2)
    assert is_compiled(found[1])
    with pytest.raises(ValueError, match=r"sample id 6 at position 3"):
        one.hypergradient((train[0], ids + 3), dev)
    # A program that raises must not leave hooks on saved tensors off, which checkpoints need.
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        pass


def test_values_that_are_not_finite_raise_as_in_eager_steps() -> None:
    one, two = pair(Neumann(2))
    steps(one, SAME[:2])
    (x, y), dev = SAME[2]
    bad = x, y.clone().index_fill_(0, torch.tensor([3]), math.nan)
    texts = []
    for rw in (one, two):
        with pytest.raises(ValueError, match=r"losses.weighted is nan for sample 3") as caught:
            rw.hypergradient(bad, dev)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert is_compiled(one.hypergradient(*SAME[0]))


def test_weights_at_their_bound_are_told_in_compiled_runs_too() -> None:
    own = SigmoidWeights(4).double()
    one, _ = pair(Neumann(2), weighter=own)
    steps(one, SAME[:2])
    nn.init.constant_(own.mlp[-1].bias, 60.0)
    with pytest.warns(UserWarning, match=r"bound"):
        for batch in SAME * 2:
            one.outer_backward(*batch)


def test_a_compiler_that_fails_is_named() -> None:
    def failing(*_: Any) -> Any:
        raise OSError("no compiler here")

    one, two = pair(Neumann(2))
    with backend(failing):  # type: ignore[arg-type]
        found, warned = steps(one, SAME)
    assert not any(map(is_compiled, found))
    assert sum("no compiler here" in each for each in warned) == 1
    assert_same(found[-1], two.hypergradient(*SAME[-1]))


def test_a_platform_without_a_compiler_is_named() -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("not supported on this version of Python")

    one, two = pair(Neumann(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", missing)
        found, warned = steps(one, SAME)
    assert sum("not supported on this version" in each for each in warned) == 1
    assert_same(found[-1], two.hypergradient(*SAME[-1]))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, "inductor", None, {"mode": "max-autotune"}])
def test_compile_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"compile=.*True or False"):
        ImplicitHypergradient(compile=value)


@pytest.mark.parametrize("hvp", ["autograd", "finite_difference"])
def test_a_mode_that_is_not_compiled_is_refused(hvp: Any) -> None:
    with pytest.raises(ValueError, match=rf"compile=True, hvp='{hvp}'.*func"):
        ImplicitHypergradient(compile=True, hvp=hvp)


def test_a_verdict_in_every_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"verdict_every=1.*raise verdict_every"):
        ImplicitHypergradient(compile=True, verdict_every=1)


def test_a_call_as_a_function_is_refused() -> None:
    params = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match=r"compile=True.*only the outer steps of wrap"):
        ImplicitHypergradient(compile=True)(
            lambda p, h: (h["w"] * p["w"]).square().sum(), lambda p, h: p["w"].sum(), params, params
        )


# -- other backends --------------------------------------------------------------------------------


def test_ahead_of_time_graphs_hold_no_hidden_state() -> None:
    with backend("aot_eager"):
        one, two = pair(Neumann(2))
        found, _ = steps(one, SAME)
        assert is_compiled(found[-1])
        assert_same(found[-1], two.hypergradient(*SAME[-1]))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_what_an_eager_step_gives() -> None:
    with backend("inductor"):
        model = nn.Linear(3, 1).double()
        one, two = pair(Neumann(2), model)
        found, _ = steps(one, SAME)
        assert is_compiled(found[-1])
        assert_same(found[-1], two.hypergradient(*SAME[-1]))


def test_a_losses_method_of_the_model_is_compiled() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def losses(self, batch: Any) -> Losses:
            return squares(self.body, batch)

        def outer_loss(self, batch: Any) -> Tensor:
            return mean_error(self.body, batch)

    one, two = (
        wrap(
            model,
            weighter(),
            hypergradient=ImplicitHypergradient(Neumann(2), damping=0.1, compile=compile),
        )
        for compile, model in ((True, Own()), (False, Own()))
    )
    found, _ = steps(one, SAME)
    assert is_compiled(found[-1])
    assert_same(found[-1], two.hypergradient(*SAME[-1]))
