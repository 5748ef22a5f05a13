"""Rows of result tables for which nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up import document, runs

from cdr.data import load
from cdr.paper.baselines import untrained
from cdr.paper.scenarios import Scenario
from cdr.paper.studies import STUDIES
from cdr.paper.study import Cell, Results
from cdr.report.baselines import Untrained
from cdr.training.evaluation import Scores
from cdr.training.leniency import fit_leniency

TABLE1 = STUDIES["table1"]


@pytest.fixture
def results(ratings: Path) -> Results:
    """Two models on a file, with scores of its test rows."""
    scenario = Scenario(str(ratings), "books", "toys")
    test = load(str(ratings), source="books", target="toys").test
    label, user = test.label.numpy(), test.user.numpy()

    def scores(strength: float, seed: int) -> Untrained:
        noise = np.random.default_rng(seed).standard_normal(len(label))
        logit = strength * (label - 0.5) + noise
        return Untrained(Scores((1 / (1 + np.exp(-logit))).astype(np.float32), label, user))

    methods = {method.name: method for method in TABLE1.methods}
    made = {
        Cell(scenario, model, methods[name]): {s: scores(strength, s) for s in (0, 1)}
        for model in ("minet", "conet")
        for name, strength in {"S": 0.5, "base": 1.0, "ours": 1.1}.items()
    }
    return Results(TABLE1, {scenario: scenario.data(None)}, made)  # type: ignore[arg-type]


def test_each_model_has_ensembles_and_one_leniency_beside_it(results: Results) -> None:
    found = [(cell.model, cell.method.name) for cell in untrained(results)]
    assert found == [
        ("minet", "base-ensemble"),
        ("minet", "ours-ensemble"),
        ("conet", "base-ensemble"),
        ("conet", "ours-ensemble"),
        ("minet", "leniency"),
        ("conet", "leniency"),
    ]


def test_a_table_shows_them(results: Results, ratings: Path) -> None:
    shown = TABLE1.document(results)
    main, differences = shown.sheets
    labels = [row[0] for row in main.rows]
    assert labels.count("leniency") == 1 and "CoNet+ours, ensemble" in labels
    data = load(str(ratings), source="books", target="toys")
    expected = fit_leniency(data).scores(data.test).metrics()["auc"]
    assert main.rows[labels.index("leniency")][1] == f"{expected:.4f}"
    beside = [row[1] for row in differences.rows if row[1].startswith("leniency")]
    assert beside == ["leniency, beside MiNet", "leniency, beside CoNet"]
    assert "SE" in differences.heads
    (detectable,) = (note for note in shown.notes if "detectable" in note)
    assert all(label in detectable for label in beside)
    notes = " ".join(shown.notes)
    assert "ensemble: log odds" in notes and "leniency: logistic" in notes
    assert "CoNet: Ensemble of ours less that of the base model" in notes


def test_nothing_stands_for_what_was_not_trained() -> None:
    made = runs(TABLE1, {"S": 0.5}, seeds=1)
    assert untrained(Results(TABLE1, {}, made)) == {}
    assert "ensemble" not in document("table1", made).text()
