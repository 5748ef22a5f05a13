"""Files that are damaged or made to do harm: one sentence with file, place and a cut cell."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import amazon_files as made
import pyarrow as pa
import pyarrow.parquet
import pytest

from cdr.data import CrossDomainData, Limits, amazon_files, limits, load, unpacking
from cdr.data.accounts import Account
from cdr.data.cache import cached
from cdr.data.cells import shown
from cdr.data.limits import GIB, MIB
from cdr.data.line_files import BadLines
from cdr.run_biao import main

HEADER = "user,item,rating,timestamp,domain,title\n"
ROWS = [
    f"u{n % 5},{domain[0]}{n},{1 + n % 5},{1300000000 + n * 86400},{domain},t\n"
    for n in range(40)
    for domain in ("books", "films")
]


@dataclass
class Reader:
    """Reads a file with some content."""

    folder: Path

    def __call__(
        self, content: str | bytes | pa.Table, name: str = "log.csv", **options: Any
    ) -> CrossDomainData:
        path = self.folder / name
        if isinstance(content, pa.Table):
            pyarrow.parquet.write_table(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load(name, self.folder, "books", "films", **options)

    def refused(
        self, content: str | bytes | pa.Table, name: str = "log.csv", **options: Any
    ) -> str:
        """What is said of it: in one line, below 400 characters, with the name of the file."""
        with pytest.raises(ValueError) as caught:
            self(content, name, **options)
        told = str(caught.value)
        assert name in told and len(told) < 400 and told.isprintable()
        return told


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def titled(titles: dict[int, str]) -> str:
    """The log with other titles in some lines; the header is line 1."""
    rows = [
        row if n not in titles else f"{row[:-2]}{titles[n]}\n"
        for n, row in enumerate(ROWS, start=2)
    ]
    return HEADER + "".join(rows)


# Quotes.


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        ({9: '"t'}, "begins on line 9 has no counterpart up to the end"),
        ({9: '"t', 60: 't"'}, "in line 9 has its counterpart in line 60, and the lines between"),
        ({9: '"t', 60: '"t'}, "begins in line 9 ends before 't', in line 60"),
        ({9: '"a" b'}, "begins in line 9 ends before ' b', in line 9"),
        ({9: '"a" "b"'}, "begins in line 9 ends before"),
        ({9: '"t', 12: 'a"'}, "in line 9 has its counterpart in line 12, and the lines between"),
    ],
)
def test_a_stray_quote_is_named_with_its_line(
    titles: dict[int, str], words: str, read: Reader
) -> None:
    assert words in read.refused(titled(titles))


def test_a_stray_quote_is_found_whatever_blocks_the_file_is_read_in(
    read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [titled({9: '"t'}), titled({9: '"t', 60: 't"'}), titled({9: '"a\n""b""\nc"'})]
    expected = [read.refused(contents[0]), read.refused(contents[1]), read(contents[2]).notes]
    for block in (1, 7, 100):
        monkeypatch.setattr(unpacking, "_BLOCK", block)
        found = [read.refused(contents[0]), read.refused(contents[1]), read(contents[2]).notes]
        assert found == expected


@pytest.mark.parametrize("title", ['3.5" disk', '"a ""b"" c"', '""', '"a, b"', 'a""b'])
def test_quotes_that_are_letters_or_belong_to_texts_lose_no_row(title: str, read: Reader) -> None:
    data = read(titled({9: title, 30: title}))
    assert data.account == read(titled({})).account and not told_of_file(data)


def test_a_text_with_line_breaks_is_read_and_noted(read: Reader) -> None:
    data = read(titled({9: '"one\n2,3\nthree"', 30: '"four\r\n\r\nfive"'}))
    assert data.account == read(titled({})).account
    (note,) = told_of_file(data)
    assert note.startswith("3 lines of log.csv are the continuation")


def told_of_file(data: CrossDomainData) -> list[str]:
    return [note for note in data.notes if "log.csv" in note]


# Numbers and types.


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",3,", ",1e999,", "'rating' is '1e999' in row"),
        (",1300000000,", f",{'9' * 5000},", "'timestamp' is '9999.{54,}9…' in row 1"),
        (",1300000000,", ",99999999999999999999,", "times are not in the same unit"),
        (",t\n", ",\0\n", "NUL byte in line 2"),
    ],
)
def test_a_cell_is_named_and_cut(old: str, new: str, words: str, read: Reader) -> None:
    assert re.search(words, read.refused((HEADER + "".join(ROWS)).replace(old, new, 1)))


def test_a_row_that_is_not_utf8_is_named(read: Reader) -> None:
    content = (HEADER + "".join(ROWS)).encode().replace(b"u3,", b"M\xfcller,", 1)
    assert "line 8 has 'M�ller," in read.refused(content)


def test_a_row_with_other_columns_is_named(read: Reader) -> None:
    content = HEADER + "".join(ROWS[:7]) + "\x1b[31m" + "x" * 500 + ",1\n" + ROWS[7]
    told = read.refused(content)
    assert r"row 8 has 2 columns, the header 6: '\x1b[31mxxx" in told and "\x1b" not in told


def columns(**replaced: pa.Array) -> pa.Table:
    cells = [row.rstrip().split(",") for row in ROWS]
    names = HEADER.rstrip().split(",")
    table = {
        name: pa.array(column) for name, column in zip(names, zip(*cells, strict=True), strict=True)
    }
    return pa.table({**table, **replaced})


NUM = len(ROWS)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("item", pa.array([["a"]] * NUM)),
        ("item", pa.array([{"x": 1}] * NUM)),
        ("user", pa.array([[("a", 1)]] * NUM, pa.map_(pa.string(), pa.int64()))),
        ("timestamp", pa.array([timedelta(seconds=1)] * NUM)),
        ("timestamp", pa.array([1] * NUM, pa.time32("s"))),
        ("user", pa.array([1] * NUM, pa.time64("ns"))),
        ("rating", pa.array([[1]] * NUM)),
        ("domain", pa.array([b"books"] * NUM)),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_parquet_column_of_another_type_is_refused(
    column: str, values: pa.Array, read: Reader
) -> None:
    told = read.refused(columns(**{column: values}), "log.parquet")
    assert f"column '{column}' is of type {str(values.type)[:3]}" in told


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("rating", pa.array([Decimal(1 + n // 2 % 5) for n in range(NUM)], pa.decimal128(25, 2))),
        ("rating", pa.array([1 + n // 2 % 5 for n in range(NUM)], pa.float32()).cast(pa.float16())),
        ("title", pa.array([["a"]] * NUM)),  # not read
        ("timestamp", pa.array([10**18 + n for n in range(NUM)], pa.decimal128(25))),
        ("timestamp", pa.array([n // 2 for n in range(NUM)], pa.date32())),
        ("item", columns()["item"].cast(pa.large_string())),
        ("item", columns()["item"].cast(pa.string_view())),
        ("domain", columns()["domain"].combine_chunks().dictionary_encode()),
        ("user", pa.array([10**18 + n // 2 % 5 for n in range(NUM)], pa.uint64())),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_parquet_column_of_these_types_is_read(
    column: str, values: pa.Array, read: Reader
) -> None:
    data = read(columns(**{column: values}), "log.parquet")
    assert data.account is not None and data.account.read == NUM


def test_text_of_a_parquet_file_that_is_not_utf8_is_refused(read: Reader) -> None:
    broken = pa.array([b"\xff\xfe"] * NUM).view(pa.string())
    assert "cannot be read (" in read.refused(columns(item=broken), "log.parquet")


# Amazon's files.

REVIEW = made.review("u", "i", 5.0, 1)


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "null null",
        '{"a": 1} null',
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"a": ' + "[" * 100 + "]" * 100 + "}",
        REVIEW.replace("86400", "99999999999999999999"),
        REVIEW.replace("5.0", "9" * 400),
        REVIEW.replace("5.0", "9" * 5000),
        REVIEW[:-1] + ', "x": ' + "[" * 65 + "]" * 65 + "}",
    ],
    ids=lambda line: line[:30],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_hostile_line_of_reviews_is_left_out(line: str, first: bool, tmp_path: Path) -> None:
    lines = [line, REVIEW, REVIEW] if first else [REVIEW, REVIEW, line]
    table = amazon_files.reviews(made.write(tmp_path / "r.json", lines))
    assert len(table) == 2 and BadLines.of(table) == BadLines(1, (1 if first else 3,), 3)


def test_brackets_in_texts_nest_nothing(tmp_path: Path) -> None:
    smiles = made.review("u" + ":[" * 500, "i" + "{" * 500, 5.0, 1)
    table = amazon_files.reviews(made.write(tmp_path / "r.json", [smiles, REVIEW]))
    assert len(table) == 2
    about = ["{'asin': 'a', 'title': '" + "[(" * 500 + "', 'categories': [['x', 'Y']]}"]
    table = amazon_files.categories(made.write(tmp_path / "m.json", about))
    assert table.to_pylist() == [{"item": "a", "category": "Y"}]


@pytest.mark.parametrize(
    "line",
    [
        "{'asin': 'a', 'x': " + "[" * 100_000,
        "{'asin': 'a', 'x': " + "(" * 65 + ")" * 65 + "}",
        "{'asin': 'a', 'x': " + "-" * 100_000 + "1}",
        "{'asin': 'a', 'x': " + "1+" * 100_000 + "1}",
        "{'asin': " + "9" * 5000 + "}",
        "{'asin': 'a'" + ", 'x': {'y'" * 3000,
    ],
    ids=lambda line: line[:30],
)
def test_a_hostile_line_of_metadata_is_left_out(line: str, tmp_path: Path) -> None:
    path = made.write(tmp_path / "m.json", [line, "{'asin': 'b'}"])
    table = amazon_files.categories(path)
    assert table.to_pylist() == [{"item": "b", "category": "others"}]
    assert BadLines.of(table) == BadLines(1, (1,), 2)
    assert amazon_files.titles(path, {"a", "b"}) == {}


# Limits.


def test_a_file_made_to_fill_the_memory_is_refused_early(
    read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_ALWAYS", 50_000)
    zeros = gzip.compress(HEADER.encode() + (b"a" * 1000 + b"\n") * 100)
    told = read.refused(zeros, "log.csv.gz")
    assert "unpacks" in told and "--limits.max-ratio" in told
    path = read.folder / "log.parquet"
    equal = pa.table({name: ["x" * 100] * 10_000 for name in HEADER.rstrip().split(",")})
    pyarrow.parquet.write_table(equal, path, use_dictionary=False, compression="zstd")
    with pytest.raises(ValueError, match="log.parquet unpacks .*--limits.max-ratio"):
        load(str(path), None, "books", "films")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Limits(max_gib=1000 / GIB), "more than .* GiB unpacked.*--limits.max-gib"),
        (Limits(max_line_mib=20 / MIB), "line 1 is longer than .*--limits.max-line-mib"),
        (Limits(max_memory_gib=500 / GIB), "columns take more .*--limits.max-memory-gib"),
    ],
)
def test_each_limit_is_an_option_that_the_refusal_names(
    given: Limits, words: str, read: Reader
) -> None:
    content = titled({9: '"a b"'})
    assert read(content).account
    for name, written in {
        "log.csv": content,
        "log.csv.gz": gzip.compress(content.encode()),
        "log.dat": content.replace(",", "::").replace('"', ""),
    }.items():
        assert re.search(words, read.refused(written, name, limits=given))


def test_a_text_that_a_parquet_file_repeats_is_counted_as_often(read: Reader) -> None:
    long = pa.array(["x" * 10_000] * NUM)
    told = read.refused(columns(user=long), "log.parquet", limits=Limits(max_memory_gib=99e3 / GIB))
    assert "--limits.max-memory-gib" in told


def test_a_quoted_text_is_no_longer_than_a_line(read: Reader) -> None:
    content = titled({9: '"' + "a\n" * 600 + '"'})
    assert "line 9 is longer" in read.refused(content, limits=Limits(max_line_mib=1000 / MIB))


def test_nesting_is_an_option(tmp_path: Path) -> None:
    nested = REVIEW[:-1] + ', "x": [[[[]]]]}'
    path = made.write(tmp_path / "r.json", [nested, REVIEW])
    assert len(amazon_files.reviews(path)) == 2
    assert len(amazon_files.reviews(path, Limits(max_nesting=3))) == 1


def test_limits_are_options_of_the_command(
    read: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    read(titled({}))
    given = ["data", str(read.folder / "log.csv"), "--source", "books", "--target", "films"]
    assert main(given) == 0
    assert main([*given, "--limits.max-line-mib", "0.00001"]) == 2
    assert "--limits.max-line-mib" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*given, "--limits.max-line-mib", "0"])
    assert "must be a number above 0" in capsys.readouterr().err
    assert main(["data", "g1", "--limits.max-gib", "1"]) == 2
    assert "goes with real data" in capsys.readouterr().err


# Rows in are rows used and rows counted.


def atomic(folder: Path) -> CrossDomainData:
    for name in ("books", "films"):
        rows = [row.split(",") for row in ROWS if f",{name}," in row]
        head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        text = "".join("\t".join(row[:4]) + "\n" for row in [*rows, rows[0]])
        (folder / f"{name}.inter").write_text(head + text)
    return load("recbole", folder, "books", "films")


def table(folder: Path) -> CrossDomainData:
    other = [row.replace("books", "toys") for row in ROWS[:9]]
    alone = "x,b1,5,1300000000,books,t\n"
    return Reader(folder)(HEADER + "".join([*ROWS, *other, ROWS[0], alone, "\n\n"]))


def parquet(folder: Path) -> CrossDomainData:
    return Reader(folder)(columns(), "log.parquet")


def amazon(folder: Path) -> CrossDomainData:
    return load("amazon", made.write_all(folder), "Books", "Toys")


def epinions(folder: Path) -> CrossDomainData:
    (folder / "epinions").mkdir()
    rows = [
        f"{user},{n},{1 + (n + user) % 5},{n % 4},{n},{3 + n % 3}\n"
        for user in range(4)
        for n in range(12)
    ]
    content = "user,item,rating,timestamp,order,domain\n" + "".join([*rows, rows[0]])
    (folder / "epinions" / "interactions.csv.gz").write_bytes(gzip.compress(content.encode()))
    return load("epinions", folder, "3", "4")


def amazon5(folder: Path) -> CrossDomainData:
    (folder / "amazon5").mkdir()
    rows = [
        f"u{user},{n},{'' if n == 7 else (n + user) % 2},{1300000000 + n},{n},{domain}\n"
        for user in range(4)
        for n, domain in enumerate(["Beauty", "Toys_and_Games", "Baby"] * 4)
    ]
    for name, content in (
        ("interactions", "user,item,label,timestamp,order,domain\n" + "".join(rows)),
        ("items", "item,category,domain,category_path\n0,1,Beauty,\n"),
    ):
        path = folder / "amazon5" / f"{name}.csv.gz"
        path.write_bytes(gzip.compress(content.encode()))
    return load("amazon5", folder, "Beauty", "Toys_and_Games")


@pytest.mark.parametrize(
    ("reader", "rows", "left_out"),
    [
        (table, 91, {"of other domains": 5, "that repeat another one": 5}),
        (parquet, 80, {}),
        (atomic, 82, {"that repeat another one": 2}),
        (amazon, 73, {"that are no reviews": 3, "of users who are not in both domains": 10}),
        (epinions, 49, {"of other domains": 16, "that repeat another one": 1}),
        (amazon5, 48, {"of other domains": 16, "without a label": 4}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_row_is_used_or_counted_by_reason(
    reader: Callable[[Path], CrossDomainData], rows: int, left_out: dict[str, int], tmp_path: Path
) -> None:
    data = reader(tmp_path)
    found = data.account
    assert found is not None and found.read == rows
    assert found.used == sum(map(len, (data.source, data.train, data.valid, data.test)))
    assert found.used + sum(found.left_out.values()) == rows
    assert left_out.items() <= found.left_out.items()
    assert found.sentence in data.notes
    for count in (rows, found.used, *found.left_out.values()):
        assert f"{count:,}" in found.sentence


def test_rows_that_are_lost_are_a_mistake_of_the_program() -> None:
    with pytest.raises(RuntimeError, match="mistake of the program"):
        Account(9, 4, {"of other domains": 4})


def test_a_label_that_is_none_is_not_taken_for_a_negative_one(tmp_path: Path) -> None:
    amazon5(tmp_path)
    path = tmp_path / "amazon5" / "interactions.csv.gz"
    content = gzip.decompress(path.read_bytes()).replace(b"u1,0,1,", b"u1,0,yes,")
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="interactions.csv.gz: 'label' is 'yes' in row 13"):
        load("amazon5", tmp_path, "Beauty", "Toys_and_Games")


@pytest.mark.parametrize("order", ["1.5", "1e19"])
def test_an_order_that_is_no_place_is_refused(order: str, tmp_path: Path) -> None:
    epinions(tmp_path)
    path = tmp_path / "epinions" / "interactions.csv.gz"
    content = gzip.decompress(path.read_bytes()).replace(b",0,0,3\n", f",0,{order},3\n".encode())
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=f"interactions.csv.gz: 'order' is '{order}' in row 1"):
        load("epinions", tmp_path, "3", "4")


# Caches.


def test_a_cache_with_any_flipped_bit_is_made_anew(tmp_path: Path) -> None:
    path, folder = made.write(tmp_path / "r.json", made.books()), tmp_path / "cache"
    table = cached(path, folder, amazon_files.reviews)
    kept = {each: each.read_bytes() for each in folder.iterdir()}
    assert len(kept) == 3
    for file, content in kept.items():
        for bit in range(0, 8 * len(content), 499):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            again = cached(path, folder, amazon_files.reviews)
            assert again.equals(table) and again.schema.metadata == table.schema.metadata
        assert file.read_bytes() == content


# What is shown.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("a'b", '"a\'b"'),
        ("\x1b[31m\n\u202e\ud800", r"'\x1b[31m\n\u202e\ud800'"),
        ("x" * 10**6, f"'{'x' * 59}…'"),
        ("\n" * 60, "'" + r"\n" * 29 + r"\…'"),
        (b"\xff" * 3, r"b'\xff\xff\xff'"),
        (None, "None"),
        (["y" * 100], "['" + "y" * 57 + "…"),
    ],
    ids=range(8),
)
def test_a_value_is_shown_in_one_line_and_cut(value: object, text: str) -> None:
    assert shown(value) == text and len(text) <= 64
