"""The original files of Amazon: what they become, what is kept, and what is said about bad ones."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import amazon_files
import pyarrow as pa
import pytest
from amazon_files import BOOK_CATEGORIES, DAY, review, write

from cdr.data import CrossDomainData, amazon, audit, load, unpacking
from cdr.data import amazon_files as reader
from cdr.data.cache import cached
from cdr.data.limits import MIB, Limits
from cdr.data.line_files import BadLines
from cdr.run_biao import main

GOOD = [review("u", f"i{n}", 5.0, n) for n in range(4)]
ROWS = [{"user": "u", "item": f"i{n}", "rating": 5.0, "time": n * DAY} for n in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return amazon_files.write_all(tmp_path / "data")


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read any more."""

    def refuse(path: Path, limits: Limits) -> pa.Table:
        pytest.fail(f"{path} was read again")

    monkeypatch.setattr(reader, "reviews", refuse)
    monkeypatch.setattr(reader, "categories", refuse)


def books_to_toys(root: Path) -> CrossDomainData:
    return load("amazon", root, "Books", "Toys_and_Games")


def test_the_files_become_the_scenario_counted_by_hand(root: Path) -> None:
    data = books_to_toys(root)
    assert data.name == "Amazon Books → Toys_and_Games"
    expected = {
        "users": 6,
        "source": 30,
        "target": 30,
        "source_items": 10,
        "target_items": 10,
        "source_train": 18,  # days 10, 11 and 12 of 10 … 14
        "source_uncut": 0,
        "bounded_users": 0,
        "users_without_cut": 0,
        "train": 18,
        "valid": 6,
        "test": 6,
        "source_positive": 9,
        "train_positive": 9,
        "short_users": 0,
        "users_with_two": 0,
        "users_with_one": 0,
        "users_without_source": 0,
    }
    assert data.statistics == expected
    audit(data)


def test_of_two_toys_of_one_day_the_later_in_the_file_is_the_test(root: Path) -> None:
    data = books_to_toys(root)
    ids = data.target_items.ids
    assert ids[data.valid.item].tolist() == [f"T{user + 3}" for user in range(6)]
    assert ids[data.test.item].tolist() == [f"T{user + 4}" for user in range(6)]
    assert data.test.label.tolist() == [1, 0] * 3 and data.valid.label.tolist() == [0, 1] * 3
    # Days 11, 12, 12; in the file the third stands before the first two.
    assert ids[data.train.item[:3]].tolist() == ["T0", "T2", "T1"]


def test_categories_are_the_second_level_of_the_first_path(root: Path) -> None:
    items = books_to_toys(root).source_items
    found = {
        item: items.category_names[category]
        for item, category in zip(items.ids, items.category, strict=True)
    }
    assert found == {f"B{n}": BOOK_CATEGORIES.get(f"B{n}", "others") for n in range(10)}
    assert books_to_toys(root).target_items.category_names == ("Dolls", "Games")


def test_bad_lines_are_told(root: Path) -> None:
    assert books_to_toys(root).notes[:3] == (
        "3 of 39 lines of reviews_Books_5.json.gz are not reviews and left out (lines 3, 10, 39).",
        "1 of 10 lines of meta_Books.json.gz is not metadata and left out (line 10).",
        "1 of 10 lines of meta_Books.json.gz is on an item with a line above, which counts.",
    )


def test_the_papers_names_and_both_endings_and_a_folder_within_do(root: Path) -> None:
    data = books_to_toys(root)
    other = amazon_files.write_all(root.parent / "other" / "amazon", ".json").parent
    again = load("amazon", other, "Books", "Toys")
    assert (again.name, again.statistics) == (data.name, data.statistics)
    assert [n.replace(".json ", ".json.gz ") for n in again.notes] == list(data.notes)
    assert amazon.full_name("Kitchen") == "Home_and_Kitchen"


def test_several_sources(root: Path) -> None:
    write(root / "reviews_Beauty_5.json", [review(f"U{n}", "B0", 5.0, 10) for n in range(3)])
    write(root / "meta_Beauty.json", ["{'asin': 'B0', 'categories': [['Beauty', 'Soap']]}"])
    data = load("amazon", root, "Books+Beauty", "Toys")
    assert data.statistics["source"] == 33 and data.statistics["source_items"] == 11
    assert {"Books/B0", "Beauty/B0"} < set(data.source_items.ids)
    assert {"Books/Arts", "Beauty/Soap", "Books/others"} < set(data.source_items.category_names)


# What is kept.


@pytest.mark.usefixtures("unread")
def test_the_refusal_of_the_next_tests_works(root: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="was read again"):
        books_to_toys(root)


def test_a_second_load_reads_what_was_kept(root: Path, request: pytest.FixtureRequest) -> None:
    first = books_to_toys(root)
    kept = sorted(path.name for path in (root / ".cache-reweight").iterdir())
    assert len(kept) == 12 and not [name for name in kept if "partial" in name]
    request.getfixturevalue("unread")
    again = books_to_toys(root)
    assert (again.statistics, again.notes) == (first.statistics, first.notes)
    assert again.source.item.tolist() == first.source.item.tolist()
    assert again.source_items.category_names == first.source_items.category_names


def test_a_file_that_was_only_touched_is_not_read_again(
    root: Path, request: pytest.FixtureRequest
) -> None:
    books_to_toys(root)
    request.getfixturevalue("unread")
    os.utime(root / "meta_Books.json.gz", (1, 1))
    books_to_toys(root)


def test_a_changed_file_is_read_again(root: Path) -> None:
    books_to_toys(root)
    more = [*amazon_files.toys(), review("U0", "NEW", 5.0, 14)]
    write(root / "reviews_Toys_and_Games_5.json.gz", more)
    data = books_to_toys(root)
    assert data.statistics["target"] == 31
    assert data.target_items.ids[data.test.item[0]] == "NEW"


def test_a_damaged_table_is_made_again(root: Path) -> None:
    data = books_to_toys(root)
    for path in (root / ".cache-reweight").glob("*.parquet"):
        content = bytearray(path.read_bytes())
        content[40] ^= 1
        path.write_bytes(content)
    again = books_to_toys(root)
    assert (again.statistics, again.notes) == (data.statistics, data.notes)


def test_the_cache_may_be_elsewhere(root: Path, tmp_path: Path) -> None:
    load("amazon", root, "Books", "Toys", cache=tmp_path / "a" / "cache")
    assert not (root / ".cache-reweight").exists()
    assert len(list((tmp_path / "a" / "cache").glob("*.parquet"))) == 4


def test_a_cache_that_cannot_be_written_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file cannot be written to.*--cache"):
        load("amazon", root, "Books", "Toys", cache=tmp_path / "file")


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    def read_slowly(path: Path) -> pa.Table:
        table = reader.reviews(path)
        with path.open("a") as file:
            file.write(GOOD[0])
        return table

    path = write(tmp_path / "reviews_Books_5.json", GOOD)
    with pytest.raises(ValueError, match="changed"):
        cached(path, tmp_path / "cache", read_slowly)
    assert not list((tmp_path / "cache").glob("*.parquet"))


# Reviews.


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("block", [1, 100, 1 << 24])
def test_blocks_of_any_size_give_the_same(
    block: int, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [GOOD[0], "", GOOD[1], "{", GOOD[2], "[]", GOOD[3], GOOD[0][:50]]
    path = write(tmp_path / f"reviews_X_5.json{ending}", lines, newline_at_end=False)
    monkeypatch.setattr(unpacking, "_BLOCK", block)
    table = reader.reviews(path)
    assert table.to_pylist() == ROWS
    assert BadLines.of(table) == BadLines(3, (4, 6, 8), 8)


def test_good_blocks_take_the_fast_way_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_review", lambda nesting, line: pytest.fail(line))
    assert reader.reviews(write(tmp_path / "r.json", GOOD)).to_pylist() == ROWS


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        "{'asin': 'python, not json'}",
        review("", "i", 5.0, 1),
        review("u", "", 5.0, 1),
        review("u", "i", float("nan"), 1),
        GOOD[0].replace("5.0", '"5.0"'),
        GOOD[0].replace("5.0", "null"),
        GOOD[0].replace("5.0", "true"),
        GOOD[0].replace('"u"', "7"),
        GOOD[0].replace('"u"', '"\\ud800"'),
        GOOD[1].replace(f"{DAY}", f"{DAY}.5"),
        GOOD[0].replace("overall", "rating"),
        GOOD[0] + GOOD[1],
        GOOD[0][:-1],
        "[" * 100_000,
    ],
    ids=lambda line: line[:40],
)
def test_bad_reviews_are_left_out(line: str, tmp_path: Path) -> None:
    table = reader.reviews(write(tmp_path / "r.json", [GOOD[0], line, GOOD[1]]))
    assert table.to_pylist() == ROWS[:2]
    assert BadLines.of(table) == BadLines(1, (2,), 3)


@pytest.mark.parametrize("beside", ["", "{"])
def test_bytes_that_are_not_utf_8_matter_in_ids_only(beside: str, tmp_path: Path) -> None:
    text = GOOD[0].encode().replace(b"Fine", b"\xff\xfe")
    user = GOOD[0].encode().replace(b'"u"', b'"\xff"')
    path = tmp_path / "r.json"
    path.write_bytes(b"\n".join([text, user, GOOD[1].encode(), beside.encode()]))
    table = reader.reviews(path)
    assert table.to_pylist() == ROWS[:2]
    assert BadLines.of(table).first[:1] == (2,)


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for end in ("", "\r\n{"):
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(GOOD).encode() + end.encode())
        assert reader.reviews(path).to_pylist() == ROWS


def test_the_first_few_bad_lines_are_named(tmp_path: Path) -> None:
    bad = BadLines.of(reader.reviews(write(tmp_path / "r.json", ["x"] * 7 + GOOD)))
    assert bad == BadLines(7, (1, 2, 3, 4, 5), 11)
    assert bad.sentence("r.json", "reviews") == (
        "7 of 11 lines of r.json are not reviews and left out (lines 1, 2, 3, 4, 5, …)."
    )
    assert BadLines(0, (), 11).sentence("r.json", "reviews") == ""


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews_X_5.json", ["user,item", "", "u,i"])
    with pytest.raises(ValueError, match="review.* 3 lines 2 "):
        reader.reviews(path)
    with pytest.raises(ValueError, match="metadata"):
        reader.categories(path)
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(ValueError, match="empty"):
        reader.reviews(tmp_path / "empty.json")


def test_a_download_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews_X_5.json.gz", [review("u", str(n), 5, n) for n in range(99)])
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:], b"plain"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="decompressed"):
            reader.reviews(path)


def test_gzip_members_one_after_another_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "reviews_X_5.json.gz"
    path.write_bytes(b"".join(gzip.compress(f"{line}\n".encode()) for line in GOOD))
    assert reader.reviews(path).to_pylist() == ROWS


def test_an_endless_line_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, limits = (
        write(tmp_path / "r.json", [GOOD[0], "x" * 2000]),
        Limits(max_line_mib=1000 / MIB),
    )
    for block in (10, 1 << 24):
        monkeypatch.setattr(unpacking, "_BLOCK", block)
        with pytest.raises(
            ValueError, match="r.json: line 2 is longer than .*--limits.max-line-mib"
        ):
            reader.reviews(path, limits)


# Metadata.


@pytest.mark.parametrize(
    ("line", "category"),
    [
        ("{'asin': 'a', 'categories': [['Toys', 'Games', 'Chess'], ['Other', 'No']]}", "Games"),
        ("{'categories': [['Toys', 'Games']], 'asin': 'a'}", "Games"),
        ("{'asin': 'a', 'categories': [['Toys', 'Men\\'s']]}", "Men's"),
        ("{'asin': 'a', 'categories': [['Toys', \"Men's [x]\"]]}", "Men's [x]"),
        ("{'asin': 'a', 'categories': [[\"B]'s\", '7\" {x}']]}", '7" {x}'),
        ('{"asin": "a", "categories": [["Toys", "Games"]]}', "Games"),
        ("{'asin': u'a', 'categories': [[u'Toys', u'Caf\\u00e9']]}", "Café"),
        ("{'asin': 'a', 'categories': [['Toys']]}", "others"),
        ("{'asin': 'a', 'categories': [['Toys', '']]}", "others"),
        ("{'asin': 'a', 'categories': [['Toys', 7]]}", "others"),
        ("{'asin': 'a', 'categories': [[], ['Toys', 'No']]}", "others"),
        ("{'asin': 'a', 'categories': []}", "others"),
        ("{'asin': 'a', 'categories': None}", "others"),
        ("{'asin': 'a', 'categories': [('Toys', 'Games')]}", "Games"),
        ("{'asin': 'a', 'title': 'categories', 'categories': [['x', 'Y']]}", "Y"),
        ("{'asin': 'a', 'title': \"'categories': [['x', 'no']]\"}", "others"),
        ("{'title': \"'asin': 'b'\", 'asin': 'a'}", "others"),
        ("{'asin': 'a', 'title': 'C:\\dir', 'categories': [['x', 'Y']]}", "Y"),
        ("  {'asin': 'a'}\r", "others"),
    ],
)
def test_categories_are_found_whatever_stands_around_them(
    line: str, category: str, tmp_path: Path
) -> None:
    table = reader.categories(write(tmp_path / "m.json", [line]))
    assert table.to_pylist() == [{"item": "a", "category": category}]


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "{'asin': 'a', 'categories': [['x', 'Y']], 'ti",
        "{'asin': 'a', 'categories': [['x', 'Y}",
        "{'asin': 'a', 'categories': [['x', Y()]]}",
        "{'asin': __import__('os').getcwd()}",
        "{'asin': 7}",
        "{'title': 'no asin'}",
        "['asin', 'a']",
        "(" * 5000,
    ],
    ids=lambda line: line[:40],
)
def test_bad_metadata_are_left_out(line: str, tmp_path: Path) -> None:
    table = reader.categories(write(tmp_path / "m.json", [line, "{'asin': 'b'}"]))
    assert table.to_pylist() == [{"item": "b", "category": "others"}]
    assert BadLines.of(table) == BadLines(1, (1,), 2)


def test_one_field_is_read_and_not_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    literal = reader.literal
    monkeypatch.setattr(reader, "literal", lambda text, n: (seen.append(text), literal(text, n))[1])
    reader._category.cache_clear()
    reader.categories(write(tmp_path / "m.json", amazon_files.TOY_METADATA[:1]))
    assert seen == ["'T0'", "[['Toys & Games', 'Dolls', 'More']]"]


def test_titles_are_read_for_the_items_asked_for(root: Path, tmp_path: Path) -> None:
    assert amazon.titles(root, ("Books", "Toys"), ["B0", "B1", "T1"]) == {"B0": "It's [a] 'title'"}
    lines = [
        "{'asin': 'a', 'title': 'One &amp; two'}",
        "{'asin': 'a', 'title': 'Another'}",
        "{'asin': 'b', 'title': 'Cut",
        "{'asin': 'c', 'title': 7}",
        "{'asin': 'd', 'title': 'Not asked for'}",
    ]
    path = write(tmp_path / "m.json", lines)
    assert reader.titles(path, {"a", "b", "c"}) == {"a": "One & two"}
    assert reader.titles(path, set()) == {}


# Scenarios that cannot be.


def test_all_missing_files_are_named_at_once(root: Path) -> None:
    (root / "meta_Books.json.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load("amazon", root, "Books", "Movies")
    told = str(caught.value)
    assert "reviews_Books" not in told
    names = ("meta_Books", "reviews_Movies_and_TV_5", "meta_Movies_and_TV")
    assert "".join(f"\n  {name}.json.gz" for name in names) + "\n" in told
    assert ".json, they are taken as well" in told and "Amazon product data" in told


def test_no_common_user_is_an_error(root: Path) -> None:
    write(root / "reviews_Books_5.json.gz", GOOD)
    with pytest.raises(ValueError, match="both domains.* 1 users .* 7 of Toys"):
        books_to_toys(root)


@pytest.mark.parametrize("source", ["Toys", "Toys_and_Games", "Books+Books", []])
def test_a_domain_named_twice_is_an_error(source: str, root: Path) -> None:
    with pytest.raises(ValueError, match="once"):
        load("amazon", root, source, "Toys")


# The command line.


def test_a_training_ends_in_a_table(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"--data amazon --root {root} --source Books --target Toys --cache {tmp_path}/cache"
    brief = "--inner.epochs 1 --inner.batch-size 8 --outer.interval 1 --variants S base ours"
    assert main([*told.split(), *brief.split(), "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("Amazon Books → Toys_and_Games: 6 users")
    table = (tmp_path / "run" / "table.md").read_text()
    assert "CoNet+ours" in table and "3 of 39 lines of reviews_Books_5.json.gz" in table


def test_options_of_others_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--data", "amazon"], "--root is missing: give the folder that holds reviews_X_5.json.gz"),
        (["--data", "amazon", "--root", str(root), "--items", "x"], "--items x goes with a file"),
        (["--data", "amazon5", "--root", "x", "--cache", "x"], "--cache x goes with --data amazon"),
    ):
        assert main([*arguments, "--out", str(root / "run")]) == 2
        assert words in capsys.readouterr().err
