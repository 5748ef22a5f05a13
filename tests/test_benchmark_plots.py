"""The plots of the documentation, drawn from made-up numbers in the benchmarks' formats."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import plot

METHODS = ("reweight, fixed", "reweight, auto", "plain autograd", "TorchOpt")
MODES = ("forward + backward", "autograd", "func", "finite_difference")


def row(kind: str, size: int, num_terms: int, method: str) -> dict[str, object]:
    cost = float(size * (1 + num_terms) * (1 + METHODS.index(method)))
    return {
        "kind": kind,
        "size": size,
        "num_terms": num_terms,
        "method": method,
        "ms": 1e-4 * cost,
        "mib": 1e-5 * cost,
    }


def write(folder: Path, tables: bool = True) -> None:
    points = [("dense", size, 3) for size in (10_000, 100_000, 1_000_000)]
    points += [("dense", 100_000, terms) for terms in (0, 1, 3, 10, 30)]
    rows = [row(*point, method) for point in points for method in METHODS]
    # Beyond a size, the others are left out.
    rows += [row("tables", 10_000, 3, method) for method in METHODS] * tables
    rows += [row("tables", 10**8, 3, METHODS[0])] * tables
    runners = dict.fromkeys(plot.RUNNERS)
    epoch = {
        "interval": 10,
        "phases": {name: dict.fromkeys(list(plot.PHASES)[:-1], 0.002) for name in runners},
        "summary": {"outer": dict.fromkeys(runners, 0.01)},
    }
    times = {size: {mode: {"ms": float(size)} for mode in MODES} for size in ("64", "4096")}
    sweeps = ("batch size", "rows touched", "width")
    scaling = {"table": 100_000, **{name: {"times": times} for name in sweeps}}
    peers = {
        "rows": [
            {"cell": cell, "setting": setting, "method": method, "fb": fb, "agrees": fb < 9.0}
            for cell in ("MLP", "CNN")
            for setting in ("identity", "Neumann 3", "CG 10")
            for fb, method in enumerate(plot.CONTESTANTS, 1)
        ]
    }
    told = {
        "hypergradient": {"rows": rows},
        "epoch": epoch,
        "scaling": scaling,
        "peers": peers,
    }
    for kind, result in told.items():
        (folder / f"{kind}.json").write_text(json.dumps(result), encoding="utf-8")


@pytest.mark.slow
def test_the_same_numbers_give_the_same_small_files_which_the_page_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write(tmp_path)
    first = plot.draw(tmp_path, tmp_path / "first")
    second = plot.draw(tmp_path, tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    # That of the contestants has the most marks and names, which are drawn as outlines.
    assert all(path.stat().st_size < 80_000 for path in first)
    page = (plot.PLACE.parent.parent / "reference" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"_static/benchmarks/(\S+)", page)) == {path.name for path in first}
    assert {path.name for path in plot.PLACE.iterdir()} == {path.name for path in first}


def test_a_sweep_is_found_among_others(tmp_path: Path) -> None:
    write(tmp_path)
    results = plot.Results(tmp_path)
    by_terms = results.sweep("dense", "num_terms")
    assert {(row["size"], row["num_terms"]) for row in by_terms} == {
        (100_000, terms) for terms in (0, 1, 3, 10, 30)
    }
    assert len(by_terms) == 5 * len(METHODS), "3 terms were measured in two sweeps"
    assert {row["num_terms"] for row in results.sweep("dense", "size")} == {3}


def test_missing_results_are_told_with_the_commands_that_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path)])
    with pytest.raises(SystemExit) as refusal:
        plot.main()
    for kind in ("hypergradient", "epoch", "scaling", "peers"):
        assert f"python benchmarks/{kind}.py --json {tmp_path}/{kind}.json" in str(refusal.value)
    write(tmp_path, tables=False)
    with pytest.raises(SystemExit, match="tables.*size"):
        plot.Results(tmp_path).sweep("tables", "size")


def test_a_figure_without_results_is_left_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write(tmp_path)
    for kind in ("hypergradient", "epoch", "scaling"):
        (tmp_path / f"{kind}.json").unlink()
    assert [path.name for path in plot.draw(tmp_path, tmp_path / "to")] == ["peers.svg"]
    assert f"python benchmarks/epoch.py --json {tmp_path}/epoch.json" in capsys.readouterr().out
