"""The benchmark of the contestants: their numbers, what is counted, and what is reported."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers as script
from benchmarks import plot
from benchmarks._measure import interleaved
from benchmarks._peers import cells, goals, measure, plain, report, trainings
from benchmarks._peers.agreement import apart, ready, reference
from benchmarks._peers.method import (
    CG,
    IDENTITY,
    NEUMANN,
    ROUNDED,
    SETTINGS,
    STEP_SIZE,
    Method,
    NotServed,
    Setting,
)
from benchmarks._peers.ours import FIRST_ORDER, GENERAL
from benchmarks._peers.peers import all_methods
from benchmarks._peers.plain import PLAIN
from benchmarks._peers.race import Disagreement, Measured, Race
from reweight import GroupWeighter, Losses

METHODS = {method.name: method for method in all_methods()}
# Betty makes the next direction of conjugate gradients from the residual before the step. Its
# difference moves the parameters, and with them the losses that the weighter reads.
OTHER_NUMBERS = {("Betty", "CG 10"), ("Betty, differences", "identity")}


@pytest.fixture(scope="module")
def small() -> cells.Case:
    return cells.dense(2_000).small_in_float64()


@pytest.mark.filterwarnings("ignore")  # verdicts on an untrained network, and peers' deprecations
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("name", METHODS)
def test_a_contestant_has_the_numbers_of_its_reference_or_is_known_not_to(
    small: cells.Case, name: str, setting: Setting
) -> None:
    method = METHODS[name]
    if method.missing:
        pytest.skip(method.missing)
    try:
        found = ready(method, small, setting)()
    except NotServed as reason:
        pytest.skip(str(reason))
    difference = apart(found, reference(method, small, setting)())
    equal = difference <= method.tolerance(setting, torch.float64)
    assert equal == ((name, setting.name) not in OTHER_NUMBERS), difference


def test_the_difference_by_betty_is_right_where_the_weighter_does_not_read_the_losses(
    small: cells.Case,
) -> None:
    method = METHODS["Betty, differences"]
    if method.missing:
        pytest.skip(method.missing)

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
        return Losses(small.losses(model, batch).weighted, inputs=batch[1] % 4)

    case = dataclasses.replace(small, weighter=GroupWeighter(4).double(), losses=losses)
    difference = apart(method.make(case, IDENTITY)(), PLAIN.make(case, IDENTITY)())
    assert difference <= method.tolerance(IDENTITY, torch.float64)


def dense_gauss_newton(case: cells.Case, solve: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The hypergradient with the whole matrix."""
    names = [name for name, _ in case.model.named_parameters()]
    shapes = [p.shape for p in case.params]
    theta = torch.cat([p.detach().flatten() for p in case.params])

    def outputs(theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes])
        tensors = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        out: Tensor = torch.func.functional_call(case.model, tensors, case.batch[:1])
        return out

    def losses(outputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, case.batch[1], reduction="none")

    weights = case.weighter(losses(outputs(theta)), None)
    jacobian = torch.func.jacrev(outputs)(theta).flatten(0, 1)
    curved = torch.func.hessian(lambda out: (weights.detach() * losses(out)).mean())(outputs(theta))
    matrix = jacobian.T @ curved.flatten(2).flatten(0, 1) @ jacobian
    v = torch.cat([g.flatten() for g in torch.autograd.grad(case.outer(), case.params)])
    along = torch.func.jacrev(lambda theta: losses(outputs(theta)))(theta) @ solve(matrix, v)
    return [-g for g in torch.autograd.grad((weights * along).mean(), case.hparams)]


def test_the_reference_of_gauss_newton_is_that_of_the_dense_matrix(small: cells.Case) -> None:
    damping = CG.damping(small)
    expected = dense_gauss_newton(
        small,
        lambda matrix, v: torch.linalg.solve(
            matrix + damping * torch.eye(len(v), dtype=v.dtype), v
        ),
    )
    # At a condition number near 1, only rounding is left.
    assert apart(plain.gauss_newton(small, CG, converged=True)(), expected) < 1e-12


def test_its_solution_stops_at_rounding_in_float32_too() -> None:
    case = cells.dense(2_000)
    found = plain.gauss_newton(case, CG, converged=True)()
    expected = plain.gauss_newton(case.small_in_float64(cells.BATCH), CG, converged=True)()
    assert apart(found, expected) < ROUNDED


def test_its_series_is_that_of_the_dense_matrix(small: cells.Case) -> None:
    def solve(matrix: Tensor, v: Tensor) -> Tensor:
        left = torch.eye(len(v), dtype=v.dtype) - STEP_SIZE * matrix
        powers = (torch.linalg.matrix_power(left, n) @ v for n in range(NEUMANN.num + 1))
        return STEP_SIZE * sum(powers, torch.zeros_like(v))

    # Rounding of float64, times the hundreds of entries in a sum.
    assert apart(plain.gauss_newton(small, NEUMANN)(), dense_gauss_newton(small, solve)) < 1e-12


@pytest.mark.parametrize(("name", "size"), [("MLP 10 k", 10_000), ("MLP 1 M", 1_000_000)])
def test_a_network_has_the_size_of_its_name(name: str, size: int) -> None:
    count = sum(p.numel() for p in cells.CLASSIFIERS[name]().params)
    assert count == pytest.approx(size, rel=0.01)  # the width is a whole number


# -- what is counted -------------------------------------------------------------------------------


def test_views_are_not_launched_and_values_are_waited_for() -> None:
    x = torch.arange(4.0)
    assert measure.counted(lambda: (x + 1.0).view(2, 2)).launches == 1
    for call in (x.sum().item, x.tolist, x.nonzero, lambda: bool(x.sum() > 0), lambda: float(x[0])):
        assert measure.counted(call).waits == 1, call
    assert measure.counted(lambda: x.sum() + 1.0).waits == 0


def test_the_peak_of_memory_is_that_of_tensors_alive_at_a_time() -> None:
    mib = 2**18  # float32 numbers

    def call() -> None:
        torch.ones(mib)  # gone before the next
        both = torch.ones(2 * mib), torch.ones(mib)
        del both

    # Scalars that operations make are of a few bytes.
    assert measure.counted(call).peak_mib == pytest.approx(3.0, rel=1e-4)


def test_every_call_runs_in_every_round() -> None:
    ran: list[str] = []
    calls = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    times = interleaved(calls, cells.CPU, seconds=0.0, rounds=3)
    assert ran == list("abcbcacab")
    assert {name: len(spent) for name, spent in times.items()} == {"a": 3, "b": 3, "c": 3}


# -- the race --------------------------------------------------------------------------------------


def other(ours: bool) -> Method:
    def make(case: cells.Case, setting: Setting) -> object:
        return lambda: [2.0 * g for g in plain.hypergradient(case, setting)()]

    return Method("another", make, ours=ours)


def test_a_row_of_ours_with_other_numbers_ends_the_benchmark() -> None:
    case = cells.dense(1_000)
    with pytest.raises(Disagreement, match=r"another is 1.0e\+00 from its reference"):
        Race("MLP", case, NEUMANN, [PLAIN, other(ours=True)])


def test_a_peer_with_other_numbers_is_timed_and_marked() -> None:
    rows = list(Race("MLP", cells.dense(1_000), NEUMANN, [PLAIN, other(ours=False)]).run(0.0, 1))
    assert [(row.method, row.agrees) for row in rows] == [
        ("plain autograd", True),
        ("another", False),
    ]
    assert all(row.ms > 0.0 and row.launches for row in rows)
    text = report.details(rows).splitlines()
    assert text[-1].endswith("other numbers") and not text[-2].endswith("other numbers")


def test_what_cannot_run_is_told() -> None:
    def refuses(case: cells.Case, setting: Setting) -> object:
        raise NotServed("not this one")

    def fails(case: cells.Case, setting: Setting) -> object:
        raise KeyError("inside another library")

    methods = [PLAIN, Method("refuses", refuses), Method("fails", fails)]
    race = Race("MLP", cells.dense(1_000), IDENTITY, methods)
    assert race.skipped == {
        "refuses": "not this one",
        "fails": "KeyError: 'inside another library'",
    }
    assert [row.method for row in race.run(0.0, 1)] == ["plain autograd"]
    with pytest.raises(KeyError, match="inside another library"):
        Race("MLP", cells.dense(1_000), IDENTITY, [Method("a defect of ours", fails, ours=True)])


# -- the report ------------------------------------------------------------------------------------


def row(setting: str, method: str, ms: float, *, agrees: bool = True) -> Measured:
    return Measured(
        cell="MLP 1 M",
        setting=setting,
        method=method,
        ms=ms,
        fb=ms / 10.0,
        mib=6.0,
        unit_mib=5.0,
        launches=int(ms),
        waits=2,
        apart=0.0,
        apart_float64=0.0,
        agrees=agrees,
        ours=method.startswith("reweight"),
    )


ROWS = [
    row("identity", GENERAL, 30.0),
    row("identity", FIRST_ORDER, 15.0),
    row("identity", "plain autograd", 30.0),
    row("identity", "Betty", 10.0, agrees=False),
    row("identity", "TorchOpt", 20.0),
    row("Neumann 3", GENERAL, 100.0),
    row("Neumann 3", "plain autograd", 80.0),
    row("Neumann 3", "Betty", 200.0),
]


def test_ratios_are_by_problem_and_setting_and_other_numbers_are_in_brackets() -> None:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.ratios(ROWS).splitlines()
    ]
    assert lines[0][1:] == ["plain autograd", "Betty", "TorchOpt", "ours in fb"]
    assert lines[2] == ["MLP 1 M", "0.50 · 1.25", "(1.50) · 0.50", "0.75 · -", "1.5 · 10.0"]
    assert len({len(line) for line in report.ratios(ROWS).splitlines()}) == 1, "aligned"


def test_a_target_is_reached_or_not_or_was_not_measured() -> None:
    trained = {"LoRA": {"without weights": 2.0, "default": 5.0, "Identity": 2.2}}
    table = goals.goals(goals.Results(ROWS, trained)).splitlines()
    found = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:5]]
        for line in table[2:]
    }
    assert found["first-order, in fb, the worst of MLP 1 M, CNN, transformer"] == ["1.50", "yes"]
    # TorchOpt's 20 ms are the fastest: Betty's numbers are others.
    fastest = "first-order / fastest other identity, the worst of MLP 1 M, CNN, transformer"
    assert found[fastest] == ["0.75", "yes"]
    assert found["Neumann 3 / plain autograd, the worst"] == ["1.25", "no"]
    assert found["GPT-2 shape, LoRA: Identity / without weights"] == ["1.10", "yes"]
    assert found["GPT-2 shape, all parameters: Identity / without weights"] == ["-", "not measured"]
    assert len(found) == len(goals.GOALS)


def test_every_contestant_has_a_mark_in_the_figure() -> None:
    assert set(plot.CONTESTANTS) == set(METHODS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*hypergradient")
def test_every_training_is_measured() -> None:
    found = trainings.measured(trainings.SMALL, seconds=0.0, rounds=1)
    assert set(found) == {"all parameters", "LoRA"}
    for times in found.values():
        assert set(times) == {"without weights", "default", "Identity"}
        assert all(spent > 0.0 for spent in times.values())
    assert "| LoRA " in report.trainings(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_quick_run_says_what_is_left_out_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["peers.py", "--quick", "--json", str(tmp_path / "peers.json")]
    )
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    for method in METHODS.values():
        if method.missing:
            assert f"{method.name} is left out: {method.missing}" in said
    written = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert {r["cell"] for r in written["rows"]} == set(script.QUICK_CELLS)
    assert {r["setting"] for r in written["rows"]} == {s.name for s in SETTINGS}
    assert {"reweight", "plain autograd"} <= {r["method"] for r in written["rows"]}
    assert "the project's own target" in said
