"""Numbers on weights, influences and directions, and the recorder that keeps them."""

from __future__ import annotations

import csv
import gc
import json
import math
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reweight import (
    ConjugateGradient,
    Hypergradient,
    Identity,
    ImplicitHypergradient,
    LossWeighter,
    Neumann,
    Reweighted,
    SolveInfo,
    Status,
    wrap,
)
from reweight.diagnostics import (
    Recorder,
    WeightSummary,
    agreement,
    effective_sample_size,
    entropy,
    rank_influence,
)

weights = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=20).filter(lambda w: max(w) > 1e-6)


# -- weights -------------------------------------------------------------------------------------


@given(values=weights)
def test_the_effective_sample_size_is_its_formula_within_its_bounds(values: list[float]) -> None:
    found = effective_sample_size(torch.tensor(values, dtype=torch.float64))
    assert found == pytest.approx(sum(values) ** 2 / sum(w * w for w in values))
    assert 1.0 - 1e-9 <= found <= len(values) + 1e-9


@given(values=weights)
def test_the_entropy_is_its_formula_within_its_bounds(values: list[float]) -> None:
    w = torch.tensor(values, dtype=torch.float64)
    p = [v / sum(values) for v in values if v / sum(values) > 0]
    assert entropy(w) == pytest.approx(-sum(q * math.log(q) for q in p), abs=1e-12)
    assert 0.0 <= entropy(w) <= math.log(len(values)) + 1e-12
    assert 0.0 <= entropy(w, normalised=True) <= 1.0
    # Rényi's entropy of order 2 is at most Shannon's.
    assert math.log(effective_sample_size(w)) <= entropy(w) + 1e-9


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
def test_the_scale_of_the_weights_does_not_matter(scale: float) -> None:
    w = torch.tensor([1.0, 2.0, 3.0])
    assert effective_sample_size(scale * w) == pytest.approx(36 / 14, rel=1e-5)
    assert entropy(scale * w) == pytest.approx(entropy(w), rel=1e-5)
    assert WeightSummary.of(scale * w).mean == pytest.approx(2.0 * scale, rel=1e-5)


def test_equal_weights_are_all_effective_and_a_single_one_is_one() -> None:
    assert effective_sample_size(torch.full((7,), 0.3)) == pytest.approx(7.0)
    assert entropy(torch.full((7,), 0.3), normalised=True) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([0.0, 5.0, 0.0])) == 1.0
    assert entropy(torch.tensor([0.0, 5.0, 0.0])) == 0.0
    assert entropy(torch.tensor([2.0]), normalised=True) == 1.0
    assert effective_sample_size(torch.zeros(3)) == 0.0 == entropy(torch.zeros(3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0] * 8, "learned"),
        ([2.0] * 8, r"\b2\b.*bound.*outer"),
        ([0.0] * 8, "zero"),
        ([1.0] + [0.0] * 19, "collapsed.*outer learning rate"),
        ([2.0] + [0.0] * 7, "collapsed"),
        ([1.98, 1.99, 2.0, 1.985], r"\b1\.99\b.*bound.*outer"),
        ([1.0, -0.5, 2.0], r"1 of 3.*negative.* -0\.5"),
        ([2.0, 2.0, 0.1, 0.1], "apart"),
        ([0.7], "apart"),
    ],
)
def test_a_summary_says_what_the_weights_do(values: list[float], message: str) -> None:
    summary = WeightSummary.of(torch.tensor(values))
    assert re.search(message, summary.message)
    assert str(summary).endswith(summary.message)
    assert summary.smallest == pytest.approx(min(values))
    assert summary.largest == pytest.approx(max(values))
    assert summary.mean == pytest.approx(sum(values) / len(values))
    share = summary.effective_sample_size / len(values)
    assert summary.effective_share == pytest.approx(share, nan_ok=True)


def test_a_batch_without_weighted_samples_is_described() -> None:
    summary = WeightSummary.of(torch.ones(0))
    assert summary.size == 0 == summary.effective_sample_size
    assert math.isnan(summary.mean) and math.isnan(summary.effective_share)
    assert "no weights" in str(summary)


def test_the_largest_numbers_have_a_mean() -> None:
    assert WeightSummary.of(torch.full((4,), 1e308, dtype=torch.float64)).mean == 1e308


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (torch.ones(0), r"shape \(0,\)"),
        (torch.tensor([1.0, math.nan]), "not finite"),
        (torch.tensor([1.0, -0.5]), r"-0\.5"),
    ],
)
def test_weights_that_make_no_sense_are_refused(bad: Any, words: str) -> None:
    for function in (effective_sample_size, entropy):
        with pytest.raises(ValueError, match=words):
            function(bad)
        for other in ([1.0, 2.0], torch.ones(2, dtype=torch.complex64)):
            with pytest.raises(TypeError, match="weights.*(list|complex)"):
                function(other)


# -- influence -----------------------------------------------------------------------------------


def test_a_ranking_has_both_ends_in_order_and_leaves_out_what_does_nothing() -> None:
    ranking = rank_influence(torch.tensor([0.3, -2.0, 0.0, 5.0, -0.1]), k=2)
    assert [name for name, _ in ranking.helpful] == [1, 4]
    assert [name for name, _ in ranking.harmful] == [3, 0]
    assert (ranking.num_helpful, ranking.size) == (2, 5)
    assert ranking.helpful[0][1] == -2.0
    text = str(ranking)
    assert text.index("most helpful") < text.index("-2.000e+00") < text.index("most harmful")


@pytest.mark.parametrize("ids", [["x", "y", "z"], torch.tensor([7, 8, 9])], ids=["names", "tensor"])
def test_samples_go_by_the_ids_given(ids: Any) -> None:
    ranking = rank_influence(torch.tensor([1.0, -1.0, 2.0]), ids)
    first = ids[1] if isinstance(ids, list) else int(ids[1])
    assert ranking.helpful == ((first, -1.0),)
    assert "none" in str(rank_influence(torch.tensor([1.0])))


@pytest.mark.parametrize(
    ("influence", "changes", "words"),
    [
        (torch.ones(2, 2), {}, r"influence.*\(2, 2\)"),
        (torch.tensor([math.nan]), {}, "not finite"),
        (torch.ones(2), {"ids": ["a"]}, r"\b1 ids.*\b2\b"),
        (torch.ones(2), {"k": 0}, "k=0"),
    ],
)
def test_a_ranking_that_makes_no_sense_is_refused(
    influence: Tensor, changes: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        rank_influence(influence, **changes)
    with pytest.raises(TypeError, match=r"\blist\b"):
        rank_influence([1.0, 2.0])  # type: ignore[arg-type]


# -- agreement -----------------------------------------------------------------------------------


def losses(model: nn.Module, batch: Any) -> Tensor:
    error: Tensor = (model(batch[0]).squeeze(-1) - batch[1]).square()
    return error


def make(solver: Any = None, outer_loss: Any = None) -> Reweighted:
    torch.manual_seed(0)
    return wrap(
        nn.Linear(3, 1),
        LossWeighter(4),
        losses,
        outer_loss or (lambda model, batch: losses(model, batch).mean()),
        hypergradient=ImplicitHypergradient(solver or Neumann()),
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator), torch.randn(8, generator=generator)


def test_a_hypergradient_agrees_with_itself_and_nothing_is_left_behind() -> None:
    rw = make()
    rw.hypergradient(batch(0), batch(1))  # the first one looks at the model
    before = dict(vars(rw))
    found = agreement(rw, batch(0), batch(1), batch(1))
    assert found.other_dev == pytest.approx(1.0) == found.other_dev_influence
    assert vars(rw) == before and all(p.grad is None for p in rw.weighter.parameters())


def test_the_identity_agrees_with_itself_and_less_with_the_inverse() -> None:
    same = agreement(make(Identity(0.5)), batch(0), batch(1))
    assert same.identity == pytest.approx(1.0) == same.identity_influence
    assert same.other_dev is None and "another dev batch" not in str(same)
    inverse = agreement(make(ConjugateGradient(50)), batch(0), batch(1))
    assert inverse.identity_influence < 0.999


def test_the_cosine_of_opposite_dev_losses_is_minus_one_and_told() -> None:
    sign = {0: 1.0, 1: -1.0}
    rw = make(outer_loss=lambda model, b: sign[b] * losses(model, batch(1)).mean())
    found = agreement(rw, batch(0), 0, 1)
    assert found.other_dev == pytest.approx(-1.0)
    assert "disagree" in found.message and found.message in str(found)


def test_a_zero_hypergradient_has_no_direction() -> None:
    rw = make(outer_loss=lambda model, b: b * losses(model, batch(1)).mean())
    found = agreement(rw, batch(0), 1.0, 0.0)
    assert math.isnan(found.other_dev) and "zero" in found.message


# -- recorder ------------------------------------------------------------------------------------


def recorded(steps: int = 4) -> tuple[Recorder, list[Hypergradient]]:
    rw, recorder, results = make(), Recorder(), []
    optimizer = torch.optim.Adam(rw.weighter.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        results.append(rw.outer_backward(batch(step), batch(10 + step)))
        optimizer.step()
        recorder.add(10 * step, results[-1], rw.weights(batch(step)))
    return recorder, results


def test_rows_hold_the_numbers_of_the_verdict_and_of_the_weights() -> None:
    recorder, results = recorded()
    for step, (row, result) in enumerate(zip(recorder.rows, results, strict=True)):
        info = result.info
        assert row["step"] == 10 * step
        for name in ("relative_residual", "num_hvps", "curvature", "smallest_curvature"):
            assert row[name] == getattr(info, name)
        assert (row["status"], row["trustworthy"]) == (info.status.name, info.trustworthy)
        size = sum(float(g.square().sum()) for g in result.grads.values()) ** 0.5
        assert row["hypergradient_norm"] == pytest.approx(size, rel=1e-5)
        assert 0.0 <= row["helpful_share"] <= 1.0
    assert recorder.rows[0]["weight_mean"] == pytest.approx(1.0, abs=0.2)
    assert recorder.rows[0]["cosine_with_previous"] is None
    flat = [torch.cat([g.reshape(-1) for g in r.grads.values()]) for r in results]
    expected = float(torch.cosine_similarity(flat[1], flat[2], dim=0))
    assert recorder.rows[2]["cosine_with_previous"] == pytest.approx(expected, abs=1e-5)
    assert len({tuple(row) for row in recorder.rows}) == 1


def test_only_the_last_hypergradient_is_kept_alive() -> None:
    recorder, results = recorded()
    watched = [weakref.ref(r.influence) for r in results]
    del results
    gc.collect()
    assert all(ref() is None for ref in watched)
    assert all(not isinstance(v, Tensor) for row in recorder.rows for v in row.values())


def test_a_recorder_resumes() -> None:
    recorder, results = recorded(3)
    again = Recorder()
    again.load_state_dict(recorder.state_dict())
    for each in (recorder, again):
        each.add(99, results[0])
    assert again.rows == recorder.rows
    assert again.rows[-1]["weight_mean"] is None
    with pytest.raises(ValueError, match="Recorder"):
        again.load_state_dict({"rows": []})


def of(grads: dict[str, Tensor], residual: float = 0.1) -> Hypergradient:
    info = SolveInfo(residual, 3, Status.TRUNCATED, 1.0, "autograd")
    return Hypergradient(grads, info, torch.zeros(0))


def test_what_a_training_may_meet_does_not_end_it() -> None:
    """No weighted samples, negative weights, parameters that were frozen, another precision."""
    recorder, ones = Recorder(), torch.ones(2)
    recorder.add(0, of({"a": ones}), torch.ones(0))
    recorder.add(1, of({"a": ones.double()}), torch.tensor([1.0, -0.5]))
    recorder.add(2, of({"a": ones, "b": ones}), ones)
    recorder.add(3, of({"b": ones}))
    cosines = [row["cosine_with_previous"] for row in recorder.rows]
    assert cosines == [None, pytest.approx(1.0), None, None]
    assert [row["weight_mean"] for row in recorder.rows] == [None, 0.25, 1.0, None]
    assert [row["weight_effective_share"] for row in recorder.rows] == [None, None, 1.0, None]
    assert recorder.rows[0]["helpful_share"] is None
    assert len(recorder.plot().axes) >= 4
    recorder.rows.pop()
    recorder.rows.pop()
    assert re.search(r"0\.25\b.* -0\.5\b.* 1$", recorder.summary())


def test_files_hold_no_numbers_that_others_cannot_read(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.add(0, of({"a": torch.ones(2)}, math.inf))
    path = tmp_path / "steps.JSON"
    recorder.save(path)
    assert json.loads(path.read_text(), parse_constant=pytest.fail)[0]["relative_residual"] is None
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_rows_come_back_from_a_file(ending: str, tmp_path: Path) -> None:
    recorder, _ = recorded()
    path = tmp_path / f"steps.{ending}"
    recorder.save(path)
    text = path.read_text()
    rows = json.loads(text) if ending == "json" else list(csv.DictReader(text.splitlines()))
    assert [float(row["relative_residual"]) for row in rows] == [
        row["relative_residual"] for row in recorder.rows
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    recorder, _ = recorded(1)
    path = tmp_path / "steps.json"
    recorder.save(path)
    before = path.read_text()
    recorder.rows.append({"step": object()})  # nothing that json could write
    with pytest.raises(TypeError):
        recorder.save(path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"\.csv.*\.json"):
        recorder.save(tmp_path / "steps.txt")


def test_a_summary_counts_the_verdicts() -> None:
    recorder, _ = recorded()
    assert re.search(r"\b4 .*\b0 to 30\b.*\b4 truncated\b.*\b0\b.*exact", recorder.summary())
    last = recorder.rows[-1]
    assert f"{last['weight_mean']:.3g}" in recorder.summary().splitlines()[-1]
    assert re.search(r"\bno\b.*steps", Recorder().summary())


def test_a_plot_has_four_named_panels_and_is_written(tmp_path: Path) -> None:
    recorder, _ = recorded()
    figure = recorder.plot(tmp_path / "steps.png")
    titles = [t for axes in figure.axes if (t := axes.get_title(loc="left"))]
    assert titles == ["weights of the batch", "linear solves", "hypergradients", "curvature met"]
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_weights_curvatures_or_residuals_is_drawn_too() -> None:
    recorder = Recorder()
    info = SolveInfo(0.0, 0, Status.CONVERGED, None, "none")
    recorder.add(0, Hypergradient({"w": torch.zeros(2)}, info, torch.zeros(3)))
    assert len(recorder.plot().axes) >= 4
    with pytest.raises(ValueError, match=r"\bno\b.*steps"):
        Recorder().plot()


def test_a_missing_matplotlib_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, _ = recorded(1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"torch-reweight\[plot\]"):
        recorder.plot()


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(TypeError, match="outer_backward.*Tensor"):
        Recorder().add(0, torch.ones(3))  # type: ignore[arg-type]
