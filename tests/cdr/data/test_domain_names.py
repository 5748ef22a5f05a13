"""Domains that are not named, misspelt, alone, or thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdr.data import load

HEADER = "user,item,rating,timestamp,domain\n"


def log(folder: Path, sizes: dict[str, int]) -> str:
    rows = [f"u,i{n},5,{n},{name}\n" for name, size in sizes.items() for n in range(size)]
    (folder / "log.csv").write_text(HEADER + "".join(rows))
    return "log.csv"


def test_domains_are_listed_with_their_rows_where_none_is_named(tmp_path: Path) -> None:
    name = log(tmp_path, {"books": 3, "toys": 1, "films": 2})
    words = r"with --source and --target; there are 'books' \(3 rows\), 'films' \(2 rows\), 'toys' "
    with pytest.raises(ValueError, match=words + r"\(1 row\)\."):
        load(name, tmp_path)
    with pytest.raises(ValueError, match="source='books', target=None.*'films'"):
        load(name, tmp_path, source="books")


@pytest.mark.parametrize("given", ["Books", "book", "boks", "books ", "BOOKS & MORE"])
def test_names_that_are_close_are_proposed(given: str, tmp_path: Path) -> None:
    name = log(tmp_path, {"books": 3, "toys": 1, "books & more": 2})
    with pytest.raises(ValueError, match=r"is '?books.* meant\? There are 'books' \(3 rows\)"):
        load(name, tmp_path, given, "toys")


def test_nothing_is_proposed_where_nothing_is_close(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no domain 'x' in .*log.csv\. There are 'books'"):
        load(log(tmp_path, {"books": 3, "toys": 1}), tmp_path, "x", "toys")


def test_of_thousands_of_domains_the_largest_are_listed(tmp_path: Path) -> None:
    sizes = {f"shop{n}": 1 for n in range(3000)} | {"large": 5}
    with pytest.raises(ValueError, match=r"There are 'large' \(5 rows\), .* and 2,992 smaller"):
        load(log(tmp_path, sizes), tmp_path, "nope", "large")
    with pytest.raises(ValueError, match="is 'shop2999'"):
        load(log(tmp_path, sizes), tmp_path, "Shop2999", "large")


def test_blanks_around_a_name_are_none_of_it(tmp_path: Path) -> None:
    rows = [
        f"u,i{n},{5 - n % 4},{n},{' ' * (n % 3)}{'books' if n < 4 else 'toys'} \n" for n in range(8)
    ]
    (tmp_path / "log.csv").write_text(HEADER + "".join(rows))
    data = load("log.csv", tmp_path, "books", "toys")
    assert (data.statistics["source"], data.statistics["target"]) == (4, 4)


def test_rows_of_a_name_in_another_form_are_told(tmp_path: Path) -> None:
    rows = [f"u,i{n},{n % 6},{n},{name}\n" for name in ("books", "toys", "Books") for n in range(8)]
    (tmp_path / "log.csv").write_text(HEADER + "".join(rows))
    notes = load("log.csv", tmp_path, "books", "toys").notes
    assert any(note.startswith("'Books' (8 rows) is not read") for note in notes)


def test_a_file_of_one_domain_is_told_that_it_needs_two(tmp_path: Path) -> None:
    name = log(tmp_path, {"books": 3})
    with pytest.raises(ValueError, match=r"has the domain 'books' \(3 rows\) alone, and two"):
        load(name, tmp_path)
    with pytest.raises(ValueError, match="no column 'domain'.*two are needed"):
        (tmp_path / "one.csv").write_text("user,item,rating,timestamp\nu,a,5,1\n")
        load("one.csv", tmp_path)


def test_atomic_files_are_listed(tmp_path: Path) -> None:
    for path in ("books/books.inter", "toys/toys.inter", "toys/other.inter", "films.inter"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("user_id:token\n")
    words = "name two domains of recbole, .*; there are 'books', 'films', 'toys'"
    with pytest.raises(ValueError, match=words):
        load("recbole", tmp_path)
    with pytest.raises(FileNotFoundError, match="Is 'books' meant.* 'books', 'films', 'toys'"):
        load("recbole", tmp_path, "Book", "toys")
