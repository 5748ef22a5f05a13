"""The recorder keeps the numbers of every outer step."""

from __future__ import annotations

import csv
import gc
import json
import math
import re
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from _support.diagnostics import batch, make
from reweight import Hypergradient, SolveInfo, Status
from reweight.diagnostics import Recorder


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
    measured = [row["relative_residual"] for row in recorder.rows]
    assert measured[0] is not None and measured[1:] == [None] * (len(measured) - 1)
    found = [row["relative_residual"] for row in rows]
    assert float(found[0]) == measured[0] and not any(found[1:])
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
    assert re.search(r"\b4 .*\b0 to 30\b.*\b4 truncated, as chosen", recorder.summary())
    recorder.rows[0] |= {"status": "MAX_STEPS"}
    assert re.search(r"\b1 max steps, 3 truncated; 0 of them exact", recorder.summary())
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


def test_a_missing_matplotlib_is_named_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, _ = recorded(1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        recorder.plot()


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(TypeError, match="outer_backward.*Tensor"):
        Recorder().add(0, torch.ones(3))  # type: ignore[arg-type]
