"""Values of samples in files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from reweight.valuation import SampleValues

EXTENSIONS = (".parquet", ".csv", ".npz")
every_format = pytest.mark.parametrize("extension", EXTENSIONS)

NAMES = ["007", "7", 'a "quoted", b', "two\nlines", " ", "µ-☃", "=1+1"]


def made(ids: Any = None, influence: bool = True) -> SampleValues:
    ids = [5, -3, 2**62] if ids is None else ids
    size = len(ids)
    weights = np.random.default_rng(0).random(size)
    return SampleValues(ids, weights, weights / 3 - 0.1 if influence else None, np.arange(size) + 1)


@every_format
@pytest.mark.parametrize("influence", [True, False])
@pytest.mark.parametrize("ids", [None, NAMES, ["1", "2"], []], ids=["int", "str", "digits", "none"])
def test_what_is_saved_is_loaded_bit_for_bit(
    tmp_path: Path, extension: str, ids: Any, influence: bool
) -> None:
    values, path = made(ids, influence), tmp_path / f"values{extension}"
    values.save(path)
    again = SampleValues.load(path)
    assert (again.influence is None) == (not influence)
    for name in ("ids", "weights", "seen", *(["influence"] if influence else [])):
        one, other = getattr(values, name), getattr(again, name)
        np.testing.assert_array_equal(one, other)
        assert one.dtype.kind == other.dtype.kind


def test_every_file_states_the_sign_and_the_units(tmp_path: Path) -> None:
    for extension in EXTENSIONS:
        made().save(tmp_path / f"values{extension}")
    schema = pyarrow.parquet.read_schema(tmp_path / "values.parquet")
    with np.load(tmp_path / "values.npz") as file:
        npz = json.loads(str(file["about"]))["columns"]
    beside = json.loads((tmp_path / "values.csv-metadata.json").read_text("utf-8"))
    assert beside["url"] == "values.csv"
    stated = [
        {field.name: field.metadata[b"description"].decode() for field in schema},
        npz,
        {c["name"]: c["dc:description"] for c in beside["tableSchema"]["columns"]},
    ]
    assert stated[0] == stated[1] == stated[2]
    assert list(stated[0]) == ["id", "weight", "influence", "seen"]
    assert "below zero: more of this sample decreases the dev loss" in stated[0]["influence"]
    assert "units of the dev loss" in stated[0]["influence"]


def test_a_csv_file_is_a_plain_table(tmp_path: Path) -> None:
    SampleValues(["a", "b"], [0.5, 2.0], [0.25, -1e-9]).save(tmp_path / "values.csv")
    with (tmp_path / "values.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["id", "weight", "influence", "seen"],
            ["a", "0.5", "0.25", "1"],
            ["b", "2.0", "-1e-09", "1"],
        ]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("id,weight\n2,0.5\n1,1.5\n", [1, 2]),
        ("id,weight\n1,0.5\n99999999999999999999,1.5\n", ["1", "9" * 20]),
        ("\ufeffweight,other,id\r\n0.5,x,7\r\n1.5,y,007\r\n", ["007", "7"]),
    ],
    ids=["integers", "too large", "names"],
)
def test_a_csv_file_from_elsewhere_is_read(tmp_path: Path, text: str, ids: list[Any]) -> None:
    (tmp_path / "other.csv").write_text(text, encoding="utf-8", newline="")
    assert SampleValues.load(tmp_path / "other.csv").ids.tolist() == ids


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no column 'id'.*none"),
        ("sample,weight\n1,1\n", r"no column 'id'.*weight"),
        ("id\n1\n", "no column 'weight'"),
        ("id,weight\n1,1\n1,2\n", "more than once: 1"),
        ("id,weight\n1,heavy\n", "'weight' holds an entry that is no number.*heavy"),
        ("id,weight\n1,nan\n", "weights is nan"),
        ("id,weight\n1,1\n2\n", "row 3 has 1 entries for 2 columns"),
        ("id,weight,seen\n1,1,often\n", "'seen' holds an entry that is no integer"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"(?s)bad\.csv.*{words}"):
        SampleValues.load(tmp_path / "bad.csv")


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", id=[1], weight=[1.0], about='{"version": 2}')
    with pytest.raises(ValueError, match=r"version 2.*update"):
        SampleValues.load(tmp_path / "new.npz")


@every_format
def test_a_failed_write_leaves_the_earlier_file(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"values{extension}"
    made().save(path)
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        made(NAMES).save(path)
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before


def test_other_names_of_files_are_refused(tmp_path: Path) -> None:
    for act in (made().save, SampleValues.load):
        with pytest.raises(ValueError, match=r"values\.json.*\.parquet, \.csv, \.npz"):
            act(tmp_path / "values.json")
    with pytest.raises(FileNotFoundError):
        made().save(tmp_path / "missing" / "values.csv")


def test_without_pyarrow_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for act in (made().save, SampleValues.load):
        with pytest.raises(ImportError, match=r"pip install pyarrow, or choose \.csv or \.npz"):
            act(tmp_path / "values.parquet")
