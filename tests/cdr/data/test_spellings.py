"""Ids that are equal to Unicode, and ids that look equal and are not."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cdr.data import CrossDomainData, load

NAMES = ("Zoë", "José", "ann")


def scenario(folder: Path, name: object = lambda text, row, domain: text) -> CrossDomainData:
    """Three behaviours of three users in each domain, with names as `name` writes them."""
    lines, row = ["user,item,rating,timestamp,domain"], 0
    for domain in ("books", "toys"):
        for user in NAMES:
            for place in range(3):
                item = f"café {place}"
                texts = [name(text, row, domain) for text in (user, item)]
                lines.append(f"{texts[0]},{texts[1]},{1 + row % 5},{row},{domain}")
                row += 1
    (folder / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    return load("log.csv", folder, "books", "toys", source_cut="all")


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("write", "rows"),
    [
        (lambda text, row, domain: decomposed(text) if row % 4 == 0 else text, 5),
        (lambda text, row, domain: decomposed(text) if domain == "toys" else text, 6),
    ],
)
def test_two_unicode_forms_of_a_text_are_one_id(write: object, rows: int, tmp_path: Path) -> None:
    expected, data = scenario(tmp_path), scenario(tmp_path, write)
    assert data.statistics == expected.statistics
    assert sorted(data.user_ids) == sorted(NAMES)
    assert data.repaired == {"ids in another Unicode form": rows}
    (note,) = (note for note in data.notes if "Unicode" in note)
    assert sum(int(word) for word in note.split() if word.isdigit()) == rows


def test_an_id_in_one_form_stays_as_it_is_written(tmp_path: Path) -> None:
    data = scenario(tmp_path, lambda text, row, domain: decomposed(text))
    assert sorted(data.user_ids) == sorted(map(decomposed, NAMES))
    assert data.repaired == {} and not any("Unicode" in note for note in data.notes)
    assert data.statistics == scenario(tmp_path).statistics


@pytest.mark.parametrize("other", ["007", "7.0", " 7", "7 ", "７"])
def test_ids_that_look_equal_are_kept_apart_and_noted(other: str, tmp_path: Path) -> None:
    def write(text: str, row: int, domain: str) -> str:
        return {"Zoë": "7", "José": other}.get(text, text)

    data = scenario(tmp_path, write)
    assert data.num_users == 3 and data.repaired == {}
    (note,) = (note for note in data.notes if "user ids" in note)
    assert note.startswith("2 user ids differ") and repr("7") in note and repr(other) in note


def test_users_that_look_equal_are_noted_across_domains(tmp_path: Path) -> None:
    def write(text: str, row: int, domain: str) -> str:
        return "01" if (text, domain) == ("Zoë", "books") else {"Zoë": "1"}.get(text, text)

    data = scenario(tmp_path, write)
    assert data.num_users == 2  # as a text, "01" is not "1"
    assert any("2 user ids differ" in note and "'01' and '1'" in note for note in data.notes)


def test_items_that_look_equal_are_noted_also_of_joint_sources(tmp_path: Path) -> None:
    lines = [
        "u,01,5,1,books",
        "u,1,5,1,books",
        "u,1,5,1,films",
        "u,x1,5,1,films",
        "u,x01,5,1,films",
    ]
    lines += [f"u,t{n},{n},{n},toys" for n in range(2, 5)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,rating,timestamp,domain", *lines]))
    notes = load("log.csv", tmp_path, "books+films", "toys").notes
    assert any("2 source item ids differ" in note and "'books/01'" in note for note in notes)


def parquet(folder: Path, users: pa.Array) -> CrossDomainData:
    columns = {"item": list("abcdef"), "rating": [5, 1] * 3, "timestamp": list(range(6))}
    table = pa.table({"user": users, **columns, "domain": ["books"] * 2 + ["toys"] * 4})
    pyarrow.parquet.write_table(table, folder / "log.parquet")
    return load("log.parquet", folder, "books", "toys")


def test_floats_are_read_as_the_integers_they_were(tmp_path: Path) -> None:
    large = 2**53 - 1
    assert parquet(tmp_path, pa.array([float(large)] * 6)).user_ids.tolist() == [str(large)]


def test_floats_that_have_become_equal_are_refused(tmp_path: Path) -> None:
    users = np.array([2**53, 2**53 + 1, *[2**53] * 4]).astype(float)
    with pytest.raises(ValueError, match="'user' holds floating-point .* 9007199254740992"):
        parquet(tmp_path, pa.array(users))
    with pytest.raises(ValueError, match="'user' .* 16777216"):
        parquet(tmp_path, pa.array([16_777_217.0] * 6, pa.float32()))


def test_a_missing_user_is_not_the_user_nan(tmp_path: Path) -> None:
    users = pa.array([1.0, float("nan"), 1.0, float("nan"), 1.0, 1.0])
    with pytest.raises(ValueError, match="'user' is empty in row 2"):
        parquet(tmp_path, users)
