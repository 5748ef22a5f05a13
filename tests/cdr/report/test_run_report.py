"""The table: right numbers, at most 80 columns, and sentences that fit the numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cdr.data import CrossDomainData
from cdr.report.rounded import signed
from cdr.report.run_report import Report, report
from cdr.training.evaluation import Scores
from cdr.training.metrics import auc, log_loss
from cdr.training.result import Result


def result(seed: int, strength: float, weight_auc: float | None = None) -> Result:
    rng = np.random.default_rng(seed)
    label = (np.random.default_rng(99).random(200) < 0.6).astype(np.float32)
    logit = strength * (label - 0.5) + rng.standard_normal(200)
    scores = Scores((1 / (1 + np.exp(-logit))).astype(np.float32), label, np.arange(200))
    return Result(scores, None, [{"epoch": 1, "auc": 0.6}], {}, weight_auc=weight_auc)


def results(num_seeds: int) -> dict[str, list[Result]]:
    strength = {"S": 0.5, "0": 0.7, "base": 0.9, "ours": 1.1, "oracle": 1.4}
    return {
        variant: [
            result(10 * i + seed, strength[variant], 0.875 if variant == "ours" else None)
            for seed in range(num_seeds)
        ]
        for i, variant in enumerate(strength)
    }


@pytest.fixture
def data(tiny: CrossDomainData) -> CrossDomainData:
    return replace(tiny, extra_test=None, notes=("A note of the data.",))


@pytest.fixture
def table(data: CrossDomainData) -> Report:
    return report(results(3), data, "CoNet", "default")


def test_rows_hold_means_over_seeds(table: Report) -> None:
    several = results(3)["ours"]
    aucs = [auc(r.test.probability, r.test.label) for r in several]
    row = table.rows["ours"]
    assert row.auc == tuple(aucs) and row.weight_auc == 0.875
    losses = [log_loss(r.test.probability, r.test.label) for r in several]
    assert row.log_loss == pytest.approx(np.mean(losses))
    single = np.mean([auc(r.test.probability, r.test.label) for r in results(3)["S"]])
    assert row.improvement == pytest.approx((np.mean(aucs) - 0.5) / (single - 0.5) - 1)
    assert table.rows["S"].improvement == 0.0
    assert [row.label for row in table.rows.values()] == [
        "CoNet-S",
        "CoNet-0",
        "CoNet",
        "CoNet+ours",
        "CoNet+oracle",
        "CoNet, ensemble",
        "CoNet+ours, ensemble",
    ]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_it_fits_the_terminal(table: Report, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, text, notes = str(table).split("\n\n")
    assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, notes.splitlines())) <= min(columns, 100)
    widths = {len(line) for line in text.splitlines()}
    assert len(widths) == 1, "columns are not aligned"


def test_markdown_holds_the_same(table: Report) -> None:
    lines = table.markdown().splitlines()
    assert lines[0] == "## G1 · CoNet · preset default · 3 seeds"
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    head, rule, *body = rows
    assert head[0] == "model" and "p" in head and len(body) == 7
    assert all(len(row) == len(head) == len(rule) for row in body)
    assert body[3][1] == f"{np.mean(table.rows['ours'].auc):.4f}"
    text = str(table)
    assert all(cell in text for row in body for cell in row)
    assert "- A note of the data." in lines


def test_one_seed_has_no_spread_and_no_p(data: CrossDomainData) -> None:
    table = report(results(1), data, "CoNet", "paper")
    head = str(table).splitlines()[2].split()
    assert "±" not in head and "p" not in head
    assert table.title.endswith("1 seed")
    assert any("--seeds" in note for note in table.notes)
    assert not any("±" in note for note in table.notes)


def shares(table: Report) -> dict[str, str]:
    """By label, the share of the oracle's gain as printed."""
    (note,) = (note for note in table.notes if "the oracle" in note)
    _, _, told = note.rstrip(".").partition("of that gain, ")
    return dict(part.removesuffix(" %").rsplit(" ", 1) for part in told.split(", ") if part)


def test_what_the_oracle_leaves_is_told(table: Report, data: CrossDomainData) -> None:
    gain = table.rows["ours"].comparison.difference / table.rows["oracle"].comparison.difference
    assert shares(table) == {"CoNet+ours": f"{100 * gain:.0f}"}
    oracle = table.rows["oracle"].comparison.difference
    assert any(f"gains {signed(oracle)} AUC" in note for note in table.notes)
    assert any("Weight AUC" in note and "CoNet+ours 0.875" in note for note in table.notes)
    more = {**results(3), "search": results(3)["ours"], "retrain": results(3)["oracle"]}
    judged = report(more, data, "CoNet", "default")
    assert shares(judged)["CoNet+ours retrained"] == "100"
    (weights,) = (note for note in judged.notes if note.startswith("Weight AUC"))
    assert "CoNet+ours 0.875 (0.875 to 0.875), CoNet+ours, search 0.875" in weights
    worse = report({**results(3), "ours": results(3)["S"]}, data, "CoNet", "default")
    assert shares(worse)["CoNet+ours"].startswith("−")
    none = report({**results(3), "oracle": results(3)["S"]}, data, "CoNet", "default")
    assert shares(none) == {}


@pytest.mark.parametrize("kept", [("S",), ("ours",), ("base", "ours"), ("S", "oracle")])
def test_any_choice_of_variants_makes_a_table(data: CrossDomainData, kept: tuple[str, ...]) -> None:
    table = report({v: results(2)[v] for v in kept}, data, "CoNet", "default")
    ensembles = [f"{v}-ensemble" for v in kept if v in ("base", "ours")]
    assert list(table.rows) == [*kept, *ensembles]
    assert ("RelaImpr" in str(table)) == ("S" in kept)
    assert ("vs base" in str(table)) == ("base" in kept)


def test_nothing_is_relative_to_a_model_at_chance(data: CrossDomainData) -> None:
    constant = result(0, 1.0)
    constant.test = replace(constant.test, probability=np.full(200, 0.6, dtype=np.float32))
    table = report({"S": [constant], "base": [result(1, 1.0)]}, data, "CoNet", "default")
    assert table.rows["S"].auc == (0.5,)
    assert table.rows["base"].improvement is None and "RelaImpr" not in str(table)


def collapsed(seed: int) -> Result:
    constant = result(seed, 1.0)
    constant.test = replace(constant.test, probability=np.full(200, 0.6, dtype=np.float32))
    return constant


def test_a_collapsed_model_is_named_in_its_row(data: CrossDomainData) -> None:
    rows = {"base": results(2)["base"], "ours": [collapsed(0), results(2)["ours"][1]]}
    table = report(rows, data, "CoNet", "default")
    base, ours, *_ = (line for line in str(table).splitlines() if line.startswith("CoNet"))
    assert ours.endswith("collapsed 1/2") and not base.endswith("2")
    (note,) = (note for note in table.notes if note.startswith("Nothing was learned"))
    assert "CoNet+ours collapsed 1/2" in note and "all scores are equal" in note
    assert "| collapsed 1/2 |" in table.markdown()
    table = report({"S": [collapsed(0)]}, data, "CoNet", "default")
    assert "0.5000" in str(table) and table.rows["S"].remark == "collapsed"


def test_rows_at_chance_say_so(data: CrossDomainData) -> None:
    table = report({"S": [result(seed, 0.0) for seed in (0, 1)]}, data, "CoNet", "default")
    assert "at chance" in str(table).splitlines()[4]
    assert any("Nothing was learned in CoNet-S at chance 2/2" in note for note in table.notes)
    learned = report({"S": [result(0, 2.0)]}, data, "CoNet", "default")
    assert "remark" not in str(learned)
    assert not any("Nothing was learned" in note for note in learned.notes)


def test_further_test_rows_are_used_where_there_are_some(tiny: CrossDomainData) -> None:
    last, further = result(0, 1.0), result(1, 1.0)
    last.extra_test = further.test
    table = report({"S": [last]}, tiny, "CoNet", "default")
    assert table.rows["S"].auc == (auc(further.test.probability, further.test.label),)
    assert "further test behaviours" in table.notes[1]
