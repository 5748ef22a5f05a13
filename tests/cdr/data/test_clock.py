"""Times in several units: the scenario is that of the same log in one unit, or they are refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import amazon_files
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdr.data import CrossDomainData, Interactions, audit, build, load

DAY = 86_400
START = 1_400_000_000 // DAY * DAY  # a midnight in 2014
RNG = np.random.default_rng(0)


def log(per_user: int, prefix: str) -> Interactions:
    """Behaviours of 20 users at whole seconds of 100 days."""
    user = np.repeat(np.arange(20), per_user)
    item = np.array([f"{prefix}{n}" for n in range(len(user))], dtype=object)
    time = START + RNG.integers(0, 100 * DAY, len(user)).astype(float)
    return Interactions(user, item, RNG.random(len(user)) < 0.6, time)


SOURCE, TARGET = log(8, "s"), log(6, "t")
Change = Callable[[np.ndarray], np.ndarray]


def with_times(source: Change, target: Change) -> CrossDomainData:
    domains = ((SOURCE, source), (TARGET, target))
    return build("x", *(replace(rows, time=change(rows.time)) for rows, change in domains))


def same(times: np.ndarray) -> np.ndarray:
    return times


def times(factor: float) -> Change:
    return lambda seconds: seconds * factor


def mixed(most: Change, some: Change) -> Change:
    """Another change in every ninth row."""
    return lambda seconds: np.where(np.arange(len(seconds)) % 9 == 4, some(seconds), most(seconds))


def in_some_rows(change: Change) -> Change:
    return mixed(same, change)


def as_dates(seconds: np.ndarray) -> np.ndarray:
    return np.array([int(str(day).replace("-", "")) for day in days(seconds)], dtype=float)


def as_clock_times(seconds: np.ndarray) -> np.ndarray:
    written = seconds.astype("datetime64[s]").astype(str)
    return np.array([float("".join(filter(str.isdigit, text))) for text in written])


def days(seconds: np.ndarray) -> np.ndarray:
    return seconds.astype("datetime64[s]").astype("datetime64[D]")


def assert_same(data: CrossDomainData, expected: CrossDomainData) -> None:
    assert data.statistics == expected.statistics
    for part in ("source", "train", "valid", "test"):
        for name, column in vars(getattr(expected, part)).items():
            assert column is None or torch.equal(getattr(getattr(data, part), name), column)
    assert torch.equal(data.target_history.end, expected.target_history.end)
    audit(data)


@pytest.mark.parametrize("change", [times(1e3), times(1e6), times(1e9), as_clock_times])
@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("rows", [same, in_some_rows], ids=["all rows", "some rows"])
def test_times_in_another_unit_are_converted_and_noted(
    change: Change, domain: str, rows: Callable[[Change], Change]
) -> None:
    changed = rows(change) if rows is in_some_rows else change
    data = with_times(*((changed, same) if domain == "source" else (same, changed)))
    assert_same(data, with_times(same, same))
    assert data.repaired == {"times converted": len(SOURCE) + len(TARGET)}
    (note,) = data.notes
    assert "converted to seconds" in note and "2014-05" in note


def test_dates_written_as_numbers_are_days() -> None:
    data = with_times(as_dates, same)
    by_day = with_times(lambda seconds: seconds // DAY * DAY, same)
    assert_same(data, by_day)
    assert "160 as YYYYMMDD in the source" in data.notes[0]
    # A source behaviour of the evening counts as one of midnight, before the target's noon.
    for each in (data, by_day):
        assert each.notes[-1].startswith("The source has the days of its behaviours")
    assert not with_times(same, same).notes and not with_times(as_dates, as_dates).notes


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6, 1e9, 1 / 60, 1 / 3600, 1 / DAY])
def test_one_unit_is_left_as_it_is_whichever_it_is(factor: float) -> None:
    data = with_times(times(factor), times(factor))
    assert_same(data, with_times(same, same))
    assert data.notes == () and data.repaired == {}
    assert float(data.times.test.max()) == TARGET.time.max() * factor


@pytest.mark.parametrize(
    "change",
    [
        times(1 / DAY),
        times(1 / 3600),
        times(1 / 60),
        lambda seconds: seconds - START,  # from another origin
        lambda seconds: np.minimum(np.arange(len(seconds)), 11.0) + 1,  # bins
        lambda seconds: -seconds,
        lambda seconds: seconds * 0 - 62_135_596_800,  # the year 1
        lambda seconds: as_dates(seconds) + 90,  # no days of a month
        lambda seconds: seconds * 1e7 + 116_444_736e9,  # 100 ns since 1601
    ],
)
@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("rows", [same, in_some_rows], ids=["all rows", "some rows"])
def test_times_that_cannot_be_compared_are_refused(
    change: Change, domain: str, rows: Callable[[Change], Change]
) -> None:
    changed = rows(change) if rows is in_some_rows else change
    with pytest.raises(ValueError, match=rf"{domain}: .* not in the same unit.*'?{domain[0]}\d"):
        with_times(*((changed, same) if domain == "source" else (same, changed)))


@pytest.mark.parametrize("placeholder", [0.0, -1.0])
@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_placeholders_count_as_unknown_times(placeholder: float, unit: float) -> None:
    missing = in_some_rows(lambda seconds: seconds * np.nan)
    marked = in_some_rows(lambda seconds: np.full_like(seconds, placeholder / unit))
    data = with_times(*[lambda seconds: marked(seconds) * unit] * 2)
    assert_same(data, with_times(missing, missing))
    num = [int(np.isnan(missing(rows.time)).sum()) for rows in (SOURCE, TARGET)]
    assert data.repaired == {"times taken as unknown": sum(num)}
    assert any(f"{num[0]} source and {num[1]} target" in note for note in data.notes)


def noted(source: Change, target: Change) -> bool:
    """Whether a doubt about the unit of counters is noted."""
    return any("unit" in note for note in with_times(source, target).notes)


@pytest.mark.parametrize("origin", [START, 0])
def test_counters_that_seem_to_be_in_two_units_are_noted(origin: int) -> None:
    def counter(unit: float) -> Change:
        return lambda seconds: np.ceil((seconds - origin) / unit)

    minutes, hours, days = counter(60), counter(3600), counter(DAY)
    for one in (minutes, hours, days):
        assert not noted(one, one)
    # Where the domain in larger numbers is the source, none of it may be left.
    assert noted(days, hours) and noted(hours, minutes)
    assert noted(mixed(days, hours), days) and noted(hours, mixed(hours, minutes))
    assert noted(mixed(hours, minutes), mixed(hours, minutes))
    if origin == 0:  # near the origin small numbers are no surprise
        assert noted(mixed(hours, days), hours) and noted(minutes, mixed(minutes, hours))


def test_a_cut_that_leaves_out_nothing_is_noted() -> None:
    data = with_times(same, lambda seconds: seconds + 978_307_200)  # target: since 2001
    assert data.statistics["source_train"] == len(SOURCE)
    assert "up to 2014-08" in data.notes[0] and "from 2045" in data.notes[0]


@given(st.integers(0, 2**31 - 1), st.sampled_from([1.0, 1e3]))
def test_a_counter_that_runs_through_the_range_of_a_unit_stays(seed: int, scale: float) -> None:
    # Milliseconds of 100 days from a start run through 3e8 … 4e9, seconds of 300 days through 2e7.
    rng = np.random.default_rng(seed)
    span = 100 * DAY * 1e3 if scale == 1e3 else 300 * DAY
    domains = [
        replace(rows, time=np.floor(rng.random(len(rows)) * span)) for rows in (SOURCE, TARGET)
    ]
    data = build("x", *domains)
    assert data.repaired == {}
    assert float(data.times.test.max()) <= span


# Through the reader of Amazon's files.


def rewrite(path: Path, per_second: int) -> None:
    """Reviews of 1970 become such of 2013, with times in another unit."""
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for record in records:
        record["unixReviewTime"] = (record["unixReviewTime"] + 16_000 * DAY) * per_second
    amazon_files.write(path, list(map(json.dumps, records)))


def test_milliseconds_in_amazons_files_are_converted(tmp_path: Path) -> None:
    root = amazon_files.write_all(tmp_path)
    books = [line for line in amazon_files.books() if line.endswith("}") and '"overall"' in line]
    amazon_files.write(root / "reviews_Books_5.json.gz", books)
    expected = load("amazon", root, "Books", "Toys").statistics
    rewrite(root / "reviews_Books_5.json.gz", 1)
    rewrite(root / "reviews_Toys_and_Games_5.json.gz", 1000)
    data = load("amazon", root, "Books", "Toys")
    assert data.statistics == expected and data.statistics["source_train"] == 18
    assert any("30 in milliseconds in the target" in note for note in data.notes)
