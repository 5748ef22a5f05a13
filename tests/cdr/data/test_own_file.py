"""Tables of one's own: what they become, and what is said about bad ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from cdr.data import audit, load

HEADER = "user,item,rating,timestamp,domain\n"
ROWS = (
    "007,a,5,1,books\n"
    "007,b,3,2,books\n"
    "007,x,4.5,3,films\n"
    "007,y,1,4,films\n"
    "007,z,4,5,films\n"
    "8,a,2,,books\n"
    "8,x,5,7,films\n"
    "007,a,5,2,toys\n"
)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + ROWS)
    return path


def test_csv_becomes_a_scenario(csv: Path) -> None:
    data = load(str(csv), source="books", target="films")
    assert data.name == "books → films"
    assert data.user_ids.tolist() == ["007", "8"]  # ids stay text: no leading zero is lost
    assert data.source.label.tolist() == [1, 0, 0]  # positive above 3
    assert data.times.source.isnan().tolist() == [False, False, True]
    assert data.statistics["short_users"] == 1 and data.statistics["source_uncut"] == 1
    audit(data)


def test_root_gzip_and_parquet_read_the_same(csv: Path) -> None:
    (csv.parent / "log.csv.gz").write_bytes(gzip.compress(csv.read_bytes()))
    columns = list(zip(*(line.split(",") for line in ROWS.split()), strict=True))
    seconds = pa.array([int(t) if t else None for t in columns[3]], pa.timestamp("s", "UTC"))
    table = {
        "user": columns[0],
        "item": pa.array(columns[1]).dictionary_encode(),
        "rating": np.array(columns[2], dtype=float),
        "timestamp": seconds,
        "domain": columns[4],
    }
    pyarrow.parquet.write_table(pa.table(table), csv.parent / "log.parquet")
    data = load(str(csv), source="books", target="films")
    for name in ("log.csv.gz", "log.parquet"):
        other = load(name, csv.parent, "books", "films")
        assert other.statistics == data.statistics
        assert torch.equal(other.source.item, data.source.item)
        np.testing.assert_array_equal(other.times.source, data.times.source)  # NaN included


def test_several_sources_keep_their_items_apart(csv: Path) -> None:
    data = load(str(csv), source="books+toys", target="films")
    assert data.source_items.ids.tolist() == ["books/a", "books/b", "toys/a"]
    assert data.source_items.category_names == ("books", "toys")
    assert load(str(csv), source=["books", "toys"], target="films").statistics == data.statistics


def test_categories_come_from_a_table_of_items(csv: Path) -> None:
    items = csv.parent / "items.csv"
    items.write_text("item,category\na,novel\nx,\n")
    data = load(str(csv), source="books", target="films", items=items)
    assert data.source_items.category_names == ("novel", "others")
    assert data.target_items.category_names == ("others",)
    items.write_text("item,category,domain\na,novel,books\na,doll,toys\n")
    data = load(str(csv), source="books+toys", target="films", items=items)
    names = data.source_items.category_names
    assert [names[c] for c in data.source_items.category] == [
        "books/novel",
        "books/others",
        "toys/doll",
    ]


def test_a_table_of_items_that_lacks_or_repeats_some_is_noted(csv: Path) -> None:
    items = csv.parent / "items.csv"

    def notes() -> list[str]:
        data = load(str(csv), source="books", target="films", items=items)
        return [note for note in data.notes if "items.csv" in note]

    # Of a, b, x, y and z; "0a" is another item than "a".
    items.write_text("item,category\n0a,novel\nx,\nx,crime\ny,\nz,\nb,\n")
    repeated, missing = notes()
    assert repeated.startswith("1 of 6 rows") and missing.startswith("1 of 5 items")
    assert "'a'" in missing
    items.write_text("item,category\na,\nb,\nx,\ny,\nz,\n")
    assert notes() == []
    # Rows of other domains are of no interest.
    rows = ["a,,books", "b,,books", "x,,films", "y,,films", "a,,toys", "a,,toys"]
    items.write_text("\n".join(["item,category,domain", *rows]))
    (missing,) = notes()
    assert missing.startswith("1 of 5 items") and "'films/z'" in missing


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.csv"):
        load("gone.csv", tmp_path, "books", "films")


def test_missing_column_is_named_with_those_found(csv: Path) -> None:
    csv.write_text("user,item,stars,timestamp,domain\n1,2,3,4,5\n")
    with pytest.raises(ValueError, match="'rating'.*'user', 'item', 'stars'"):
        load(str(csv), source="books", target="films")


@pytest.mark.parametrize("rating", ["good", "", "nan", "inf"])
def test_rating_that_is_no_number_is_named_with_its_row(csv: Path, rating: str) -> None:
    csv.write_text(HEADER + ROWS.replace("7,b,3,", f"7,b,{rating},"))
    with pytest.raises(ValueError, match=f"'rating' is '{rating}' in row 2"):
        load(str(csv), source="books", target="films")


def test_rating_missing_from_a_parquet_is_named_with_its_row(tmp_path: Path) -> None:
    table = {k: ["1", "2"] for k in ("user", "item", "domain")}
    table |= {"rating": [1.0, None], "timestamp": [1, 2]}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="'rating' is None in row 2"):
        load("log.parquet", tmp_path, "1", "2")


def test_timestamp_that_is_no_number_is_named_with_its_row(csv: Path) -> None:
    csv.write_text(
        HEADER + ROWS.replace("7,x,5,7,", "7,x,5,yesterday,").replace("8,x,5,7", "8,x,5,May")
    )
    with pytest.raises(ValueError, match="'timestamp' is 'May' in row 7"):
        load(str(csv), source="books", target="films")


def test_empty_user_is_named_with_its_row(csv: Path) -> None:
    csv.write_text(HEADER + ",a,5,1,books\n" + ROWS)
    with pytest.raises(ValueError, match="'user' is empty in row 1"):
        load(str(csv), source="books", target="films")


def test_unknown_domain_is_named_with_those_found(csv: Path) -> None:
    with pytest.raises(ValueError, match="target: .*'music'.*'films' .4 rows.*'toys' .1 row"):
        load(str(csv), source="books", target="music")
    with pytest.raises(ValueError, match="source.*'opera'"):
        load(str(csv), source="books+opera", target="films")


@pytest.mark.parametrize("source", ["films", "books+books", []])
def test_domain_named_twice_or_none_is_an_error(csv: Path, source: str) -> None:
    with pytest.raises(ValueError, match="once"):
        load(str(csv), source=source, target="films")


def test_no_common_users_is_an_error(csv: Path) -> None:
    csv.write_text(HEADER + "1,a,5,1,books\n2,b,5,1,films\n2,c,1,2,films\n")
    with pytest.raises(ValueError, match="both domains.*'1'.*'2'"):
        load(str(csv), source="books", target="films")


@pytest.mark.parametrize("content", ["", HEADER, HEADER + "1,a\n"])
def test_empty_or_ragged_file_is_an_error(csv: Path, content: str) -> None:
    csv.write_text(content)
    with pytest.raises(ValueError, match="cannot be read|no rows"):
        load(str(csv), source="books", target="films")


def test_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path) -> None:
    for name in ("log.parquet", "log.csv.gz"):
        (tmp_path / name).write_text(HEADER + ROWS)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load(name, tmp_path, "books", "films")


def test_specs_that_say_too_little_or_too_much_are_errors(csv: Path) -> None:
    with pytest.raises(ValueError, match="'g7'"):
        load("g7")
    with pytest.raises(ValueError, match="two domains"):
        load(str(csv), source="books")
    with pytest.raises(ValueError, match="leave out.*source"):
        load("g1", source="books")
    with pytest.raises(ValueError, match='"g2".*root'):
        load("g2", root=csv.parent)
    with pytest.raises(ValueError, match="amazon5/"):
        load("amazon5")


def test_missing_data_set_is_named(tmp_path: Path) -> None:
    for spec in ("amazon5", "epinions"):
        with pytest.raises(FileNotFoundError, match="interactions.csv.gz"):
            load(spec, tmp_path)
