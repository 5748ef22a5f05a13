"""Figures: their numbers by hand, and that they can be drawn."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import G1, document, run, runs

from cdr.data import CrossDomainData
from cdr.paper.cases import cases, user_specific
from cdr.paper.figure3 import by_category
from cdr.paper.scenarios import Scenario
from cdr.paper.studies import STUDIES
from cdr.paper.study import Cell
from cdr.report import plots
from cdr.report.document import Document
from cdr.report.page import learning_curves
from cdr.runs.runner import Source

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402


class Fixed(Source):
    """Data that are there already."""

    def load(self, seed: int) -> CrossDomainData:
        return self.data  # type: ignore[attr-defined, no-any-return]


def fixed(data: CrossDomainData) -> Source:
    source = Fixed("g1")
    object.__setattr__(source, "data", data)
    return source


def learned(command: str, *weights: np.ndarray, scenario: Scenario = G1) -> dict:
    (method,) = STUDIES[command].methods
    several = {seed: run(1.0, seed, weights=w) for seed, w in enumerate(weights)}
    return {Cell(scenario, "conet", method): several}


def drawn(shown: Document, folder: Path) -> None:
    assert shown.pictures
    for picture in shown.pictures:
        picture.save(folder)
        png = (folder / f"{picture.name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 5_000
        first = (folder / f"{picture.name}.svg").read_bytes()
        xml.etree.ElementTree.fromstring(first)
        picture.save(folder)
        assert (folder / f"{picture.name}.svg").read_bytes() == first


def test_categories_are_averaged(tiny: CrossDomainData) -> None:
    category = tiny.source_items.category[tiny.source.item].numpy()
    weights = (1.0 + category).astype(np.float32)
    found = by_category("G1", [(tiny, weights), (tiny, weights + 2)])
    names = tiny.source_items.category_names
    met = sorted(set(category.tolist()), reverse=True)
    assert found.name == tuple(names[c] for c in met)
    assert found.mean.tolist() == pytest.approx([2.0 + c for c in met])
    assert found.spread.tolist() == pytest.approx([2**0.5] * len(met))
    assert found.count.tolist() == [int((category == c).sum()) for c in met]
    assert found.relevant is not None and tiny.relevant is not None
    for c, relevant in zip(met, found.relevant, strict=True):
        assert tiny.relevant[torch.from_numpy(category == c)].all() == relevant


def test_figure3(tiny: CrossDomainData, tmp_path: Path) -> None:
    assert tiny.relevant is not None
    weights = np.where(tiny.relevant.numpy(), 1.5, 0.5).astype(np.float32)
    shown = document("figure3", learned("figure3", weights), {G1: fixed(tiny)})
    assert "relevant categories have a mean weight of 1.500, the others of 0.500" in shown.notes[0]
    lines = list(csv.DictReader(io.StringIO(shown.csv())))
    assert {(line["relevant"], line["mean_weight"]) for line in lines} == {
        ("True", "1.5"),
        ("False", "0.5"),
    }
    drawn(shown, tmp_path)


def test_figure3_of_data_without_categories(gappy: CrossDomainData, tmp_path: Path) -> None:
    scenario = Scenario("epinions", "3", "4")
    weights = np.ones(len(gappy.source), dtype=np.float32)
    runs = learned("figure3", weights, weights, scenario=scenario)
    shown = document("figure3", runs, {scenario: fixed(gappy)})
    assert "one category only" in shown.notes[0]
    drawn(shown, tmp_path)


@pytest.mark.slow
def test_figure3_of_many_rare_categories(gappy: CrossDomainData, tmp_path: Path) -> None:
    scenario = Scenario("epinions", "3", "4")
    items = gappy.source_items
    apart = replace(
        items,
        category=torch.arange(items.num),
        category_names=tuple(f"c{i}" for i in range(items.num)),
    )
    data = replace(gappy, source_items=apart)
    count = np.bincount(data.source.item.numpy(), minlength=items.num)
    assert (count > 0).sum() > 40 and count.max() < 20
    weights = count[data.source.item.numpy()].astype(np.float32)
    runs = learned("figure3", weights, scenario=scenario)
    shown = document("figure3", runs, {scenario: fixed(data)})
    # The 40th of the categories by number of behaviours, of those that have as many as it.
    least = np.sort(count)[-40]
    assert f"highest, of those with {least} behaviours or more: " in shown.notes[0]
    (table,) = shown.appendix
    assert len(table.rows) == 40 and all(int(row[3]) >= least for row in table.rows)
    drawn(shown, tmp_path)


def test_figure4(gappy: CrossDomainData, tmp_path: Path) -> None:
    source = gappy.source_offsets.diff()
    target = torch.bincount(gappy.train.user, minlength=gappy.num_users)
    # The weight of a user's behaviours is how many more of them there are.
    weights = (source - target)[gappy.source.user].numpy().astype(np.float32) + 20.0
    scenario = Scenario("epinions", "3", "4")
    runs = learned("figure4", weights, weights, scenario=scenario)
    shown = document("figure4", runs, {scenario: fixed(gappy)})
    assert "rank correlation" in shown.notes[0] and "+1.00" in shown.notes[0]
    lines = list(csv.DictReader(io.StringIO(shown.csv())))
    for line in lines:
        assert float(line["mean_weight"]) == pytest.approx(
            float(line["source_minus_target"]) + 20, abs=1e-3
        )
    # Each user who has a source behaviour once.
    assert sum(int(line["users"]) for line in lines) == int((source > 0).sum())
    drawn(shown, tmp_path)


def test_figure4_of_equal_weights(gappy: CrossDomainData) -> None:
    runs = learned("figure4", np.ones(len(gappy.source), dtype=np.float32))
    assert "about the same" in document("figure4", runs, {G1: fixed(gappy)}).notes[0]


def test_user_specific_weights_are_relative_to_the_category(tiny: CrossDomainData) -> None:
    category = tiny.source_items.category[tiny.source.item].numpy()
    weights = (0.1 + category).astype(np.float32)
    assert user_specific(tiny, weights) == pytest.approx(np.ones(len(weights)), rel=1e-6)
    weights[5] *= 3
    own = user_specific(tiny, weights)
    assert own.argmax() == 5
    for c in set(category.tolist()):
        assert own[category == c].mean() == pytest.approx(1.0, rel=1e-6)


def test_cases_are_the_extremes_of_different_users(tiny: CrossDomainData, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random(len(tiny.source)).astype(np.float32)
    found = cases(tiny, weights, lambda items: {})
    assert [case.kind for case in found] == ["low", "low", "high", "high"]
    assert found[0].own <= found[1].own < found[3].own <= found[2].own
    assert all(case.source_history and case.target_history for case in found)
    shown = document("figure6", learned("figure6", weights), {G1: fixed(tiny)})
    assert len(shown.sheets) == 4 and "case 1: low" in shown.sheets[0].title
    drawn(shown, tmp_path)


def test_items_are_named_by_category_and_title(tiny: CrossDomainData) -> None:
    weights = np.random.default_rng(0).random(len(tiny.source)).astype(np.float32)
    asked: list[str] = []

    def titles(items: Collection[str]) -> dict[str, str]:
        asked.extend(items)
        return {item: f"Title {item}" for item in items}

    found = cases(tiny, weights, titles)
    assert all("(Title " in case.item for case in found)
    # An item and two histories of up to eight for each of four cases.
    assert 4 <= len(asked) <= 4 * 17


def test_figure5(tmp_path: Path) -> None:
    study = STUDIES["figure5"]
    made = runs(study, {"base": 0.9, "interval-5": 0.8, "interval-20": 1.2, "interval-500": 1.0})
    made |= runs(study, {"base": 0.5, "interval-5": 0.8}, model="minet")
    shown = document("figure5", made)
    assert "G1, CoNet: 2 of 3 intervals have a higher mean AUC" in shown.notes[0]
    assert shown.notes[0].endswith("at 20.") and "G1, MiNet: 1 of 1" in shown.notes[1]
    drawn(shown, tmp_path)


def test_figure5_puts_each_interval_at_its_own_tick(tmp_path: Path) -> None:
    study = STUDIES["figure5"]
    # As where trainings have failed: one model lacks an interval, one a scenario.
    made = runs(study, {"base": 0.9, "interval-5": 0.8, "interval-20": 1.2, "interval-500": 1.0})
    made |= runs(study, {"base": 0.5, "interval-5": 0.8, "interval-500": 0.7}, model="minet")
    made |= runs(study, {"interval-20": 0.9}, Scenario("g2"), model="dasl")
    picture = document("figure5", made).pictures[0]
    figure = Figure()
    picture.draw(figure)
    for panel in figure.axes:
        assert [tick.get_text() for tick in panel.get_xticklabels()] == ["5", "20", "500"]
    first, second = (
        {line.get_label(): line[0].get_xdata().round().tolist() for line in panel.containers}
        for panel in figure.axes
    )
    assert first == {"CoNet+ours": [0, 1, 2], "MiNet+ours": [0, 2]}
    assert second == {"DASL+ours": [1]}
    (legend,) = figure.legends
    named = {text.get_text() for text in legend.get_texts()}
    assert named == {*first, *second, "CoNet w/o ours", "MiNet w/o ours"}
    drawn(Document("", pictures=(picture,)), tmp_path)


def test_differences(tmp_path: Path) -> None:
    study = STUDIES["table1"]
    shown = document("table1", runs(study, {"base": 0.5, "ours": 0.9}))
    drawn(shown, tmp_path)
    alone = document("table1", runs(study, {"S": 0.5}))
    assert alone.pictures == ()


def test_learning_curves_of_unequal_length(tmp_path: Path) -> None:
    curves = {("G1", "CoNet"): [[0.5, 0.6, 0.7], [0.5]], ("G2", "CoNet"): [[0.4]]}
    drawn(Document("", pictures=(learning_curves(curves),)), tmp_path)


def test_matplotlib_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="matplotlib.*pip install"):
        plots.needed()
