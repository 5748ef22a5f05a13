"""The report as a value and as a page."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from _support.checking import (
    DEV,
    NOT_COMPARED,
    TRAIN,
    absolute_errors,
    make,
    network,
    trained_weighter,
)
from reweight import CheckRow, Neumann, check_hypergradient
from reweight.checking import check as flow


def test_a_mismatch_raises_with_the_report_when_asked_to() -> None:
    rw = make(network("mlp"), solver=Neumann(1))
    report = check_hypergradient(rw, TRAIN, DEV)
    with pytest.raises(RuntimeError) as caught:
        check_hypergradient(rw, TRAIN, DEV, raise_on_mismatch=True)
    assert str(caught.value) == str(report)
    # A looser question gets a kinder answer.
    assert check_hypergradient(rw, TRAIN, DEV, rtol=2.0 * report.error, raise_on_mismatch=True).ok


def test_the_report_is_a_table_that_a_person_can_read() -> None:
    report = check_hypergradient(make(), TRAIN, DEV)
    lines = str(report).splitlines()
    assert "agrees" in lines[0] and f"{report.error:.2g}" in lines[0]
    assert re.search("parameter.*hypergradient.*exact.*finite.*error", lines[1])
    table = lines[1:5]
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0] for line in table[1:]] == [
        n for n, _ in trained_weighter().named_parameters()
    ]
    assert lines[5].startswith("advice:") and lines[5].endswith(report.advice)
    assert lines[6].startswith("position:")
    assert all(len(line) <= 110 for line in lines)


def test_the_directions_follow_the_seed() -> None:
    rw = make()
    one, same, other = (
        [row.exact for row in check_hypergradient(rw, TRAIN, DEV, seed=seed).rows]
        for seed in (0, 0, 1)
    )
    assert one == same and one != other


def test_each_row_has_its_error_and_the_largest_is_the_reports() -> None:
    report = check_hypergradient(make(network("mlp"), solver=Neumann(1)), TRAIN, DEV)
    largest = max(abs(row.finite_difference) for row in report.rows)
    for row in report.rows:
        apart = abs(row.hypergradient - row.finite_difference)
        assert row.error == pytest.approx(apart / largest)
    assert report.error == max(row.error for row in report.rows)
    worst = max(report.rows, key=lambda row: row.error)
    marked = [line for line in str(report).splitlines() if line.endswith("<- worst")]
    assert [line.split()[0] for line in marked] == [worst.name]
    assert f"{worst.error:.1e}" in marked[0]


def test_long_names_lose_their_middle_and_not_the_table() -> None:
    report = check_hypergradient(make(solver=Neumann(1)), TRAIN, DEV)
    name = "encoder.layers.11.attention.self.query.lora_A.default.parametrizations.weight"
    rows = (CheckRow(name, -1.0, -1.0, -1.0, 2.0), CheckRow("b", 1.0, 1.0, 1.0, 1.0))
    lines = str(dataclasses.replace(report, rows=rows)).splitlines()
    assert all(len(line) <= 110 for line in lines)
    head, tail = lines[2].split()[0].split("…")
    assert name.startswith(head) and name.endswith(tail) and min(len(head), len(tail)) > 15
    assert lines[2].endswith("<- worst")
    assert lines[2].index("1.000000e+00") == lines[3].index("1.000000e+00")


def test_what_could_not_be_compared_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_DAMPING", ())
    report = check_hypergradient(make(optimizer=None, losses=absolute_errors), TRAIN, DEV)
    assert not report.ok and math.isnan(report.error)
    assert all(math.isnan(row.finite_difference) and math.isnan(row.error) for row in report.rows)
    assert all(math.isfinite(row.hypergradient) for row in report.rows)
    assert NOT_COMPARED.search(report.verdict)
    lines = str(report).splitlines()
    assert lines[2].split()[3:] == ["-", "-"]
    assert f"{report.inner_gradient:.2g}" in report.advice and "train" in report.advice
