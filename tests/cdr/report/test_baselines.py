"""Rows for which nothing is trained: leniency and ensembles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cdr.data import CrossDomainData
from cdr.report.baselines import ensembled, leniency
from cdr.report.comparison import compare
from cdr.report.run_report import report
from cdr.training.ensemble import ensemble
from cdr.training.evaluation import Scores
from cdr.training.leniency import fit_leniency
from cdr.training.metrics import auc
from cdr.training.result import Result


def result(seed: int, strength: float, rows: int = 99) -> Result:
    label = (np.random.default_rng(rows).random(200) < 0.6).astype(np.float32)
    logit = strength * (label - 0.5) + np.random.default_rng(seed).standard_normal(200)
    probability = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return Result(Scores(probability, label, np.arange(200)), None, [{"epoch": 1, "auc": 0.6}], {})


@pytest.fixture
def data(tiny: CrossDomainData) -> CrossDomainData:
    return replace(tiny, extra_test=None, notes=())


def test_an_ensemble_averages_log_odds() -> None:
    scores = [result(seed, 1.0).scores for seed in range(3)]
    found = ensemble(scores)
    odds = np.prod([s.probability / (1 - s.probability.astype(float)) for s in scores], axis=0)
    mean = odds ** (1 / 3)
    np.testing.assert_allclose(found.probability, mean / (1 + mean), rtol=1e-5)  # float32
    assert auc(found.probability, found.label) > np.mean(
        [auc(s.probability, s.label) for s in scores]
    )


def test_certain_predictions_have_finite_odds() -> None:
    rows = np.array([1.0, 0.0], np.float32), np.arange(2)
    sure, open_ = (Scores(np.array(p, np.float32), *rows) for p in ([1, 0], [0.5, 0.5]))
    found = ensemble([sure, open_]).probability
    assert np.isfinite(found).all() and found[0] > 0.5 > found[1]


def test_there_is_no_ensemble_of_one_seed_or_of_other_rows() -> None:
    assert ensembled({0: result(0, 1.0)}) == {}
    assert ensembled({0: result(0, 1.0), 1: result(1, 1.0, rows=98)}) == {}
    assert list(ensembled({3: result(0, 1.0), 7: result(1, 1.0)})) == [3, 7]


def test_rows_stand_below_the_variants(data: CrossDomainData) -> None:
    trained = {v: [result(10 * i + s, 1.0) for s in range(3)] for i, v in enumerate(("S", "base"))}
    trained["ours"] = [result(50 + s, 1.2) for s in range(3)]
    # Its rows have to be those of the trainings.
    other = dict.fromkeys(range(3), result(70, 2.0))
    table = report(trained, data, "CoNet", "default", other)
    assert list(table.rows) == ["S", "base", "ours", "base-ensemble", "ours-ensemble", "leniency"]
    labels = [row.label for row in table.rows.values()]
    assert labels[3:] == [
        "CoNet, ensemble",
        "CoNet+ours, ensemble",
        "leniency",
    ]
    for name in ("base-ensemble", "leniency"):
        row = table.rows[name]
        # No seed changes it: it has no spread, and a test over seeds would be of the base model.
        assert len(row.auc) == 1 and row.std is None
        assert row.comparison is not None and row.comparison.p_value is None
        base = np.mean(table.rows["base"].auc)
        assert row.comparison.difference == pytest.approx(row.mean - base, abs=1e-12)
    both = [ensemble([r.scores for r in trained[v]]) for v in ("ours", "base")]
    gain = compare([both[0]], [both[1]]).difference
    (note,) = (note for note in table.notes if note.startswith("ensemble"))
    assert f"{gain:+.4f}".replace("0.", ".").replace("-", "−") in note
    assert any(note.startswith("leniency: logistic regression") for note in table.notes)
    (detectable,) = (note for note in table.notes if "detectable" in note)
    assert all(label in detectable for label in labels[2:])


def test_a_variant_equal_to_the_base_model_has_no_smallest_gain(data: CrossDomainData) -> None:
    base = [result(seed, 1.0) for seed in range(2)]
    table = report({"base": base, "ours": base}, data, "CoNet", "default")
    (detectable,) = (note for note in table.notes if "detectable" in note)
    assert "CoNet, ensemble" in detectable and "CoNet+ours ." not in detectable


def test_leniency_is_fitted_once_for_all_seeds_on_the_same_data(tiny: CrossDomainData) -> None:
    loaded = []

    def load(seed: int) -> CrossDomainData:
        loaded.append(seed)
        return tiny

    assert tiny.extra_test is not None
    one = leniency(load, range(3), seeded=False)
    assert loaded == [0] and len({id(run.scores) for run in one.values()}) == 1
    expected = fit_leniency(tiny).scores(tiny.extra_test)
    np.testing.assert_array_equal(one[2].scores.probability, expected.probability)
    each = leniency(load, range(2), seeded=True)
    assert loaded == [0, 0, 1] and each[0].scores is not each[1].scores
