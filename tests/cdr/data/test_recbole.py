"""RecBole's atomic files: what they become, and what is said about bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import gappy_log

from cdr.data import audit, load
from cdr.run_biao import main

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
BOOKS = HEADER + "007\ta\t5\t1\n007\tb\t3\t2\n8\ta\t2\t\n"
# Another order, a column more.
FILMS = (
    "timestamp:float\titem_id:token\tuser_id:token\tlength:float\trating:float\n"
    "3\tx\t007\t90\t4.5\n4\ty\t007\t90\t1\n5\tz\t007\t\t4\n7\tx\t8\t90\t5\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in (("books", BOOKS), ("films", FILMS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.inter").write_text(content)
    return tmp_path


def test_two_atomic_files_become_a_scenario(root: Path) -> None:
    data = load("recbole", root, "books", "films")
    assert data.name == "books → films"
    assert data.user_ids.tolist() == ["007", "8"]  # ids stay text: no leading zero is lost
    assert data.source.label.tolist() == [1, 0, 0]  # positive above 3
    assert data.times.source.isnan().tolist() == [False, False, True]
    assert data.times.train.tolist() == [3] and data.train.label.tolist() == [1]
    assert data.target_items.ids[data.test.item].tolist() == ["z", "x"]
    assert data.source_items.category_names == ("others",)
    assert data.statistics["source"] == 3 and data.statistics["target"] == 4
    audit(data)


def test_files_may_lie_side_by_side_or_be_named_by_their_paths(root: Path) -> None:
    data = load("recbole", root, "books", "films")
    (root / "films" / "films.inter").rename(root / "films.inter")
    assert load("recbole", root, "books", "films").statistics == data.statistics
    again = load("recbole", root, "books/books.inter", "films.inter")
    assert (again.name, again.statistics) == (data.name, data.statistics)


def test_several_sources_are_each_others_categories(root: Path) -> None:
    (root / "toys.inter").write_text(HEADER + "007\ta\t5\t2\n")
    data = load("recbole", root, "books+toys", "films")
    assert data.source_items.ids.tolist() == ["books/a", "books/b", "toys/a"]
    assert data.source_items.category_names == ("books", "toys")


@pytest.mark.parametrize(
    ("head", "values", "names"),
    [
        ("class:token_seq", ("Novel Long", " Crime"), ["Novel", "Crime"]),
        ("categories:token_seq", ("Novel", ""), ["Novel", "others"]),
        ("category:token", ("Long novel", "Crime"), ["Long novel", "Crime"]),
    ],
)
def test_categories_come_from_the_item_file(
    head: str, values: tuple[str, str], names: list[str], root: Path
) -> None:
    rows = "".join(f"{item}\t1\t{value}\n" for item, value in zip("ab", values, strict=True))
    (root / "books" / "books.item").write_text(f"item_id:token\tprice:float\t{head}\n{rows}")
    data = load("recbole", root, "books", "films")
    items = data.source_items
    assert [items.category_names[c] for c in items.category] == names
    assert data.target_items.category_names == ("others",)


def test_quotes_are_letters_like_others(root: Path) -> None:
    path = root / "books" / "books.inter"
    path.write_text(HEADER + '007\t"a\t5\t1\n8\tb"\t2\t2\n')
    assert load("recbole", root, "books", "films").source_items.ids.tolist() == ['"a', 'b"']


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOOKS.replace("rating:float", "stars:float"), "no column 'rating'; its header is 'user"),
        (BOOKS.replace("\t", ","), "no column 'item_id' and no column .*separated by tabs"),
        (BOOKS.replace("\t3\t", "\tgood\t"), "'rating:float' is 'good' in row 2"),
        (BOOKS.replace("\t3\t", "\t\t"), "'rating:float' is '' in row 2"),
        (BOOKS.replace("\t1\n", "\tMay\n"), "'timestamp:float' is 'May' in row 1"),
        (BOOKS.replace("8\ta", "\ta"), "column 'user_id:token' is empty in row 3"),
        (BOOKS + "9\n", "books.inter cannot be read"),
        ("", "books.inter cannot be read"),
        (HEADER, "has a header but no rows"),
    ],
)
def test_bad_files_are_errors(content: str, words: str, root: Path) -> None:
    (root / "books" / "books.inter").write_text(content)
    with pytest.raises(ValueError, match=words):
        load("recbole", root, "books", "films")


def test_an_item_file_without_a_category_is_an_error(root: Path) -> None:
    (root / "books" / "books.item").write_text("item_id:token\ttitle:token\na\tA\n")
    with pytest.raises(ValueError, match="category, categories or class"):
        load("recbole", root, "books", "films")


def test_a_missing_file_is_named_with_the_places_looked_at(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="toys/toys.inter .*/toys.inter"):
        load("recbole", root, "toys", "films")
    with pytest.raises(FileNotFoundError, match="/a.inter"):
        load("recbole", root, "a.inter", "films")


def test_two_domains_must_be_named(root: Path) -> None:
    with pytest.raises(ValueError, match="two domains"):
        load("recbole", root, "books")
    with pytest.raises(ValueError, match="once"):
        load("recbole", root, "films", "films")
    with pytest.raises(ValueError, match="root is None.*NAME.inter"):
        load("recbole", None, "books", "films")


def test_a_training_ends_in_a_table(tmp_path: Path) -> None:
    for name, log in zip(("books", "toys"), gappy_log(), strict=True):
        columns = [log[key].tolist() for key in ("user", "item", "rating", "timestamp")]
        rows = "".join("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))
        (tmp_path / f"{name}.inter").write_text(HEADER + rows)
    told = f"--data recbole --root {tmp_path} --source books --target toys --out {tmp_path}/run"
    brief = "--inner.epochs 1 --inner.batch-size 64 --outer.interval 2 --variants S ours"
    assert main([*told.split(), *brief.split()]) == 0
    assert "books → toys" in (tmp_path / "run" / "table.md").read_text()
