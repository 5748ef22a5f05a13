"""Times as files have them: numbers, ISO 8601 dates and times, timestamps."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cdr.data import CrossDomainData, load

NOON = datetime.datetime(2014, 5, 1, 12, tzinfo=datetime.timezone.utc)
MOMENTS = [NOON + datetime.timedelta(hours=7 * n) for n in range(6)]
Write = Callable[[int, datetime.datetime], str]


def scenario(folder: Path, write: Write) -> CrossDomainData:
    """Two source and four target behaviours of a user, in the order of `MOMENTS`."""
    rows = [
        f"u,i{n},{5 - 4 * (n % 2)},{write(n, moment)},{'books' if n < 2 else 'toys'}\n"
        for n, moment in enumerate(MOMENTS)
    ]
    path = folder / "log.csv"
    path.write_text("user,item,rating,timestamp,domain\n" + "".join(rows))
    return load(str(path), source="books", target="toys")


def seconds(data: CrossDomainData) -> list[float]:
    parts = data.times
    return np.concatenate([parts.source, parts.train, parts.valid, parts.test]).tolist()


def number(n: int, moment: datetime.datetime) -> str:
    return f"{moment.timestamp():.0f}"


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%dT%H:%M:%S",
        "%Y-%m-%d %H:%M",
        "%Y-%m-%dT%H:%M:%SZ",
        "%Y-%m-%d %H:%M:%S.000000",
        "%Y-%m-%dT%H:%M:%S+00:00",
        "%Y-%m-%d %H:%M:%S +00:00",
        "%Y-%m-%d %H:%M:%S UTC",
        "%Y-%m-%d %H:%M:%S.000 UTC",
    ],
)
def test_iso_times_are_seconds(form: str, tmp_path: Path) -> None:
    data = scenario(tmp_path, lambda _, moment: moment.strftime(form))
    assert seconds(data) == [moment.timestamp() for moment in MOMENTS]
    (note,) = (note for note in data.notes if "log.csv" in note)
    assert "from 2014-05-01T12:00:00 to 2014-05-02T23:00:00 in UTC" in note
    zoned = "times with a zone" if form.endswith(("Z", "+00:00", "UTC")) else "times without a zone"
    assert f"6 {zoned}" in note


def test_months_that_look_like_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'timestamp' is '05.2014' .* month and a year"):
        scenario(tmp_path, lambda _, moment: f"{moment:%m.%Y}")
    data = scenario(tmp_path, lambda n, moment: f"{moment:%m.%Y}" if n else "0.5")
    assert seconds(data)[:2] == [0.5, 5.2014]  # a counter, then


def test_a_fraction_may_stand_behind_a_comma(tmp_path: Path) -> None:
    def write(_: int, moment: datetime.datetime) -> str:
        return f'"{moment:%Y-%m-%d %H:%M:%S},500"'  # as Python's logging does

    data = scenario(tmp_path, write)
    assert seconds(data) == [moment.timestamp() + 0.5 for moment in MOMENTS]


def test_zones_are_respected(tmp_path: Path) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=-9))
    data = scenario(tmp_path, lambda _, moment: moment.astimezone(zone).isoformat())
    assert seconds(data) == [moment.timestamp() for moment in MOMENTS]


def test_a_date_is_the_first_moment_of_its_day(tmp_path: Path) -> None:
    data = scenario(tmp_path, lambda _, moment: str(moment.date()))
    assert seconds(data) == [moment.timestamp() // 86_400 * 86_400 for moment in MOMENTS]
    assert any("6 dates, which count as the first moment of the day" in n for n in data.notes)


def test_times_that_a_spreadsheet_has_rounded_are_refused(tmp_path: Path) -> None:
    def excel(_: int, moment: datetime.datetime) -> str:
        return f"{moment.timestamp() * 1000:.5E}"  # 1.39895E+12

    with pytest.raises(ValueError, match=r"'timestamp' is '1.39895E\+12' in row 1.*rounded"):
        scenario(tmp_path, excel)
    exact = scenario(tmp_path, lambda _, moment: f"{moment.timestamp():.18e}")  # as numpy
    assert seconds(exact) == [moment.timestamp() for moment in MOMENTS]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (number, "'timestamp' of log.csv has 3 numbers, 3 dates, which count"),
        (lambda _, m: m.isoformat(), "has 3 dates, .* 3 times with a zone"),
        (lambda _, m: m.strftime("%Y-%m-%dT%H:%M"), "has 3 dates, .* 3 times without a zone"),
    ],
)
def test_times_written_in_several_ways_are_read_and_noted(
    other: Write, words: str, tmp_path: Path
) -> None:
    def write(n: int, moment: datetime.datetime) -> str:
        return str(moment.date()) if n % 2 else other(n, moment)

    data = scenario(tmp_path, write)
    expected = [
        moment.timestamp() // 86_400 * 86_400 if n % 2 else moment.timestamp()
        for n, moment in enumerate(MOMENTS)
    ]
    assert seconds(data) == sorted(expected[:2]) + sorted(expected[2:])
    assert any(re.search(words, note) for note in data.notes)


@pytest.mark.parametrize(
    "wrong", ["2014-02-30", "9999-12-31", "2014-05-01T25:00", "2014-05-01 noon"]
)
def test_a_date_that_is_none_is_named_with_its_row(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"'timestamp' is '{wrong}' in row 3"):
        scenario(tmp_path, lambda n, moment: wrong if n == 2 else str(moment.date()))


def test_what_is_neither_number_nor_iso_is_named_beside_dates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'timestamp' is '1/5/2014' in row 4.*ISO 8601"):
        scenario(tmp_path, lambda n, moment: "1/5/2014" if n == 3 else str(moment.date()))


def parquet(folder: Path, timestamp: pa.Array) -> CrossDomainData:
    names = {"user": ["u"] * 6, "item": list("abcdef"), "rating": [5, 1] * 3}
    domain = ["books"] * 2 + ["toys"] * 4
    table = pa.table({**names, "timestamp": timestamp, "domain": domain})
    pyarrow.parquet.write_table(table, folder / "log.parquet")
    return load("log.parquet", folder, "books", "toys")


def test_timestamps_finer_than_a_microsecond_are_read(tmp_path: Path) -> None:
    whole = np.array([moment.timestamp() for moment in MOMENTS], dtype="int64")
    data = parquet(tmp_path, pa.array(whole * 10**9 + 1).cast(pa.timestamp("ns")))
    assert seconds(data) == whole.tolist()


def test_times_of_day_and_durations_are_refused_in_words(tmp_path: Path) -> None:
    for kind in (pa.time64("us"), pa.duration("s")):
        with pytest.raises(ValueError, match=f"'timestamp' is of type {re.escape(str(kind))}"):
            parquet(tmp_path, pa.array([1, 2, 3, 4, 5, 6]).cast(kind))
