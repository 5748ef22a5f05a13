"""Tables: the right numbers in the right places."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from made_up import BOOKS_TOYS, G1, aucs, document, run, runs

from cdr.paper.evidence import searched
from cdr.paper.result_table import Table, assemble
from cdr.paper.scenarios import Scenario
from cdr.paper.studies import STUDIES
from cdr.paper.study import Cell, cells, tasks
from cdr.report.comparison import compare
from cdr.report.document import Document, Sheet, sheet
from cdr.report.rounded import signed
from cdr.report.summary import recovered, summarize
from cdr.runs.runner import Source

TABLE1 = STUDIES["table1"]
STRENGTHS = {"S": 0.5, "0": 0.7, "base": 0.9, "ours": 1.4}


@pytest.fixture
def table() -> Table:
    return assemble(TABLE1, runs(TABLE1, STRENGTHS))


def test_entries_are_over_seeds(table: Table) -> None:
    made = {cell.method.name: several for cell, several in runs(TABLE1, STRENGTHS).items()}
    ours, single = table.find(G1, "conet", "ours"), table.find(G1, "conet", "S")
    assert ours is not None and single is not None
    assert ours.label == "CoNet+ours" and ours.auc == tuple(aucs(made["ours"]))
    assert ours.mean == pytest.approx(np.mean(aucs(made["ours"])))
    assert ours.std == pytest.approx(np.std(aucs(made["ours"]), ddof=1))
    assert ours.improvement == pytest.approx((ours.mean - 0.5) / (single.mean - 0.5) - 1)
    assert single.improvement == 0.0
    expected = compare(
        [r.test for r in made["ours"].values()], [r.test for r in made["base"].values()]
    )
    assert ours.comparison == expected
    base = table.find(G1, "conet", "base")
    assert base is not None and base.comparison is None


def test_the_star_is_of_ours_against_the_best_baseline(table: Table) -> None:
    ours = table.find(G1, "conet", "ours")
    assert ours is not None and ours.best is not None and ours.best.name == "base" and ours.star
    assert ours.best.p_value is not None and ours.best.p_value < 0.05
    assert [e.star for e in table.entries] == [False, False, False, True]
    worse = assemble(TABLE1, runs(TABLE1, {**STRENGTHS, "0": 1.8}))
    lost = worse.find(G1, "conet", "ours")
    assert lost is not None and lost.best is not None and lost.best.name == "0" and not lost.star
    # Significantly below it is no reason for a star.
    assert lost.best.p_value is not None and lost.best.p_value < 0.05


def test_a_method_that_learns_nothing_is_named_in_its_cell() -> None:
    assert "remark" not in assemble(TABLE1, runs(TABLE1, STRENGTHS)).sheets()[0].heads
    made = runs(TABLE1, {**STRENGTHS, "S": 0.0})
    base = next(cell for cell in made if cell.method.name == "base")
    one = made[base][0]
    equal = replace(one.test, probability=np.full(300, 0.6, dtype=np.float32))
    made[base][0] = replace(one, test=equal)
    table = assemble(TABLE1, made)
    main = table.sheets()[0]
    place = main.heads.index("G1 remark")
    assert [row[place] for row in main.rows] == ["at chance", "", "collapsed 1/3", ""]
    legend, detectable = table.legend()
    assert detectable.startswith("G1: smallest detectable gain") and "CoNet+ours ." in detectable
    assert "Nothing was learned: collapsed: all scores are equal; at chance: the AUC" in legend
    assert [line["remark"] for line in table.values()] == ["at chance", None, "collapsed 1/3", None]


def test_it_is_laid_out_as_in_the_paper() -> None:
    made = {**runs(TABLE1, STRENGTHS), **runs(TABLE1, STRENGTHS, BOOKS_TOYS)}
    made |= runs(TABLE1, STRENGTHS, BOOKS_TOYS, "minet")
    main, differences = assemble(TABLE1, made).sheets()
    labels = [row[0] for row in main.rows]
    assert labels[:4] == ["CoNet-S", "CoNet-0", "CoNet", "CoNet+ours"]
    assert labels[4:] == ["MiNet-S", "MiNet-0", "MiNet", "MiNet+ours"]
    ours = ("AUC", "±", "RelaImpr", "LogLoss")
    assert [heading for heading, _ in main.groups] == ["", "G1", "Books → Toys"]
    assert [heads for _, heads in main.groups] == [
        ("model",),
        (*ours,),
        (*ours, "paper AUC", "paper RelaImpr"),
    ]
    assert all(len(row) == len(main.heads) for row in main.rows)
    minet = main.rows[labels.index("MiNet+ours")]
    assert minet[1:5] == ("", "", "", "") and minet[-2:] == ("0.6883*", "+10.38%")
    assert main.rows[1][-1] == "+0.47%"
    assert len(differences.rows) == 9  # three methods beside the base, three times
    assert differences.heads[2] == "AUC − that of the base model"


def test_the_paper_s_own_table_is_added_where_there_is_nothing_beside_it() -> None:
    def made(scenario: Scenario) -> Document:
        return document("table1", runs(TABLE1, STRENGTHS, scenario))

    assert made(BOOKS_TOYS).appendix == ()
    (printed,) = made(G1).appendix
    assert printed.title == "As the paper prints it (Table 1)" and len(printed.rows) == 8
    assert printed.rows[7][:3] == ("CoNet+ours", "0.7721*", "+3.34%")
    text = made(G1)
    assert "0.7721*" in text.markdown() and "0.7721*" not in text.text()


def test_what_is_only_trained_for_reference_is_not_shown() -> None:
    study = STUDIES["table3"]
    strengths = {"S": 0.5, "split-0.01": 1.0, "split-0.1": 0.6, "ours": 1.2}
    table = assemble(study, runs(study, strengths, BOOKS_TOYS))
    assert [e.cell.method.name for e in table.entries] == ["split-0.01", "split-0.1", "ours"]
    assert all(e.improvement is not None for e in table.entries)
    assert table.reference == "ours" and table.entries[2].comparison is None
    assert table.entries[1].comparison is not None
    assert table.entries[1].comparison.difference < 0


@pytest.mark.parametrize("command", ["table2", "table3"])
def test_beating_the_hidden_single_domain_model_gives_no_star(command: str) -> None:
    study = STUDIES[command]
    names = [method.name for method in study.methods]
    strengths = {name: {"S": 0.2, "ours": 1.0}.get(name, 1.2) for name in names}
    table = assemble(study, runs(study, strengths))
    ours = table.find(G1, "conet", "ours")
    assert ours is not None and ours.mean < max(e.mean for e in table.entries)
    assert not ours.star and ours.best is None and "*" not in table.legend()[0]


def test_a_missing_seed_is_left_out_of_pairs() -> None:
    made = runs(TABLE1, STRENGTHS)
    ours = next(cell for cell in made if cell.method.name == "ours")
    base = next(cell for cell in made if cell.method.name == "base")
    del made[ours][1]
    entry = assemble(TABLE1, made).find(G1, "conet", "ours")
    assert entry is not None and len(entry.auc) == 2
    expected = np.mean(
        [a - aucs(made[base])[s] for a, s in zip(aucs(made[ours]), (0, 2), strict=True)]
    )
    assert entry.comparison is not None
    assert entry.comparison.difference == pytest.approx(expected)


def test_one_seed_has_no_spread_and_no_p() -> None:
    main, differences = assemble(TABLE1, runs(TABLE1, STRENGTHS, seeds=1)).sheets()
    assert "G1 ±" not in main.heads and "p (seeds)" not in differences.heads
    assert all(len(row) == len(differences.heads) for row in differences.rows)


def test_the_csv_has_all_numbers(table: Table) -> None:
    shown = document("table1", runs(TABLE1, STRENGTHS))
    lines = list(csv.DictReader(io.StringIO(shown.csv())))
    ensembles = ["base-ensemble", "ours-ensemble"]
    assert [line["method"] for line in lines] == [*STRENGTHS, *ensembles]
    assert float(lines[3]["auc"]) == pytest.approx(table.entries[3].mean, abs=1e-6)
    assert (lines[3]["star"], lines[3]["best_baseline"], lines[0]["star"]) == ("*", "base", "")
    assert lines[2]["difference"] == "" and lines[0]["paper_auc"] == ""


def test_the_share_of_the_oracle_is_told() -> None:
    study = STUDIES["behaviors"]
    names = {"crossfit": 1.2, "held-out-loss": 0.8, "oracle": 1.8}
    told = document("behaviors", runs(study, {**STRENGTHS, **names})).notes
    # A name keeps its hyphens where a share gets its minus sign.
    assert any("CoNet+held-out loss −" in note for note in told)
    study = STUDIES["generated"]
    made = runs(study, {**STRENGTHS, "retrain": 1.5, "oracle": 1.8})
    for name, lowest in (("ours", 0.8), ("retrain", 0.7)):
        cell = next(cell for cell in made if cell.method.name == name)
        made[cell] = {s: replace(r, weight_auc=lowest + s / 10) for s, r in made[cell].items()}
    shown = document("generated", made)
    mean = {cell.method.name: np.mean(aucs(several)) for cell, several in made.items()}
    gain = mean["oracle"] - mean["base"]
    share = 100 * (mean["ours"] - mean["base"]) / gain
    assert f"gains {signed(gain)} AUC" in shown.notes[0]
    assert f"CoNet+ours {share:.0f} %" in shown.notes[0]
    assert shown.notes[0].endswith(
        "; weight AUC, and that of single seeds: CoNet+ours 0.900 (0.800 to 1.000), "
        "CoNet+ours retrained 0.800 (0.700 to 0.900)."
    )


def test_gamma_is_searched_on_validation_rows() -> None:
    study = STUDIES["evidence"]
    made = runs(study, STRENGTHS)
    methods = {m.name: m for m in study.methods}
    # The better on test is the worse on validation.
    for name, strength, valid in (("gamma-0.5", 0.6, 0.7), ("gamma-2", 1.2, 0.65)):
        made[Cell(G1, "conet", methods[name])] = {
            s: run(strength, s, valid=valid) for s in range(3)
        }
    best = searched(made, G1, "conet")
    assert best is not None and dict(best[0].method.changes) == {"inner.gamma": 0.5}
    assert best[2] == pytest.approx({0.5: 0.7, 2.0: 0.65})
    shown = document("evidence", made, {G1: Source("g1")})
    labels = [row[0] for row in shown.sheets[0].rows]
    assert labels[:5] == ["CoNet-S", "CoNet-0", "CoNet", "CoNet, γ searched", "CoNet+ours"]
    assert labels[5:] == ["CoNet, ensemble", "CoNet+ours, ensemble", "leniency"]
    assert any("γ 0.5 has the highest mean validation AUC" in note for note in shown.notes)


def test_every_study_can_be_planned() -> None:
    from cdr.training.options import Options

    for name, study in STUDIES.items():
        wanted = cells(study, [G1, BOOKS_TOYS], ["conet"])
        named = {m.name for m in study.methods}
        assert len(named) == len(study.methods) and set(study.hidden) <= named
        assert not any(c.method.variant == "oracle" for c in wanted if c.scenario == BOOKS_TOYS)
        sources = {s: Source("g1", seeded=True) for s in (G1, BOOKS_TOYS)}
        planned = tasks(wanted, range(2), sources, {"conet": Options()}, "cpu")
        assert len(planned) == 2 * len(wanted)
        if name == "evidence":
            inner = {
                c.method.name: t.options.inner
                for (c, _), t in planned.items()
                if c.method.name in ("S", "S-longer")
            }
            for length in ("epochs", "patience"):
                assert getattr(inner["S-longer"], length) == 3 * getattr(inner["S"], length)
        if name == "figure5":
            intervals = {t.options.outer.interval for (c, _), t in planned.items()}
            assert intervals == {5, 10, 20, 100, 200, 300, 400, 500}


def test_groups_are_printed_one_below_the_other() -> None:
    grouped = Sheet(
        "Title", (("", ("model",)), ("A", ("x", "y")), ("B", ("z",))), (("m", "1", "22", ""),)
    )
    assert (
        grouped.text()
        == "Title\n\nA\nmodel  x   y\n────────────\nm      1  22\n\nB\nmodel  z\n────────"
    )
    assert grouped.markdown().splitlines()[2:] == [
        "| model | A x | A y | B z |",
        "| --- | ---: | ---: | ---: |",
        "| m | 1 | 22 |  |",
    ]


def test_bars_in_cells_do_not_break_markdown() -> None:
    assert "| a \\| b |" in sheet(["head"], [["a | b"]]).markdown()


def test_long_texts_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = sheet(["case", "history"], [["1", "word " * 100]], left=2).text()
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("word") == 100


def test_no_share_is_told_of_a_gain_within_its_error() -> None:
    base, ours, oracle = ({n: run(x, n) for n in range(3)} for x in (0.9, 1.0, 1.4))
    learned = [summarize("CoNet+ours", ours)]
    true = summarize("CoNet+oracle", oracle, reference=base)
    assert true.comparison is not None and true.comparison.difference > true.comparison.error
    told = recovered(summarize("CoNet", base), true, learned)
    assert "of that gain, CoNet+ours" in told
    unsure = replace(true, comparison=replace(true.comparison, error=0.3))
    told = recovered(summarize("CoNet", base), unsure, learned)
    assert told.endswith("no more than its standard error (.3000): no share of it can be told")
