"""Inputs: bytes that are changed at random, and tables that are drawn by a grammar."""

from __future__ import annotations

import gzip
import io
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet

TOKENS = [
    *(b'"', b"'", b",", b";", b"\t", b"|", b"::", b"\n", b"\r", b"\r\n", b"\0", b"\x1f", b"\\"),
    *(b"null", b"true", b"[]", b"{}", b"{", b"[", b"]", b"}", b"(", b"-", b"nan", b"inf", b"-inf"),
    *(b"1e999", b"1e19", b"99999999999999999999", b"-1", b"0", b"9" * 400, b"0x10", b"1_000"),
    *(b"2014-01-31", b"2014-02-31", b"9999-12-31T23:59:59Z", b"1,5", b"1.23E+11", b"07.2014"),
    *(
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\x1b[31m",
        "é".encode(),
        "\u202e".encode(),
    ),
    *(b"sep=;\n", b"=cmd|'x'!A1", b"a" * 5000, b"[" * 3000, b'{"a":' * 500, b"-" * 3000, b" " * 50),
]
"""What a parser may stumble on."""

VALUES = [
    *("", " ", "a", "007", "7", "7.0", "é", "e\u0301", "a\nb", 'a"b', "a,b", "=1+1", "@x", "$x$"),
    *("5", "4", "3", "2", "1", "0", "-1", "1e999", "nan", "inf", "4,5", "1,000", "1e19", "1" * 25),
    *("1300000000", "1300000000000", "1.3e18", "20140131", "2014-01-31", "2014-01-31T12:30:00Z"),
    *("2014-02-30", "0001-01-01", "31.01.2014", "07.2014", "1.23457E+11", "books", "toys", "Books"),
    *("books ", "x" * 300, "\x1b[2J", "\u202e", "None", "True", "[1]"),
]
"""Texts of cells."""


def changed(content: bytes, random: Random, others: list[bytes]) -> bytes:
    """The content after one to four changes."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        place, length = random.randrange(len(data) + 1), int(random.expovariate(1 / 20)) + 1
        kind = random.randrange(9)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << random.randrange(8)
        elif kind == 1 and data:
            data[place % len(data)] = random.randrange(256)
        elif kind in (2, 3):
            data[place:place] = random.choice(TOKENS)
        elif kind == 4:
            data[place : place + length] = random.choice(TOKENS)
        elif kind == 5:
            del data[place : place + length]
        elif kind == 6:
            data[place:place] = data[place : place + length] * random.choice((1, 2, 20))
        elif kind == 7:
            other = random.choice(others)
            start = random.randrange(len(other) + 1)
            data[place : place + length] = other[start : start + length]
        else:
            lines = data.split(b"\n")
            random.shuffle(lines)
            data = bytearray(b"\n".join(lines))
    if random.random() < 0.03:
        del data[random.randrange(len(data) + 1) :]
    return bytes(data)


def packed(content: bytes, random: Random) -> bytes:
    """The content gzipped, sometimes with changes."""
    whole = gzip.compress(content, 1, mtime=0)
    return changed(whole, random, [whole]) if random.random() < 0.1 else whole


def swapped(content: bytes, random: Random) -> bytes:
    """Lines of separated values with some cells replaced by others of another type."""
    lines = content.decode().split("\n")
    for _ in range(random.choice((1, 2, 5))):
        place = random.randrange(1, len(lines)) if len(lines) > 1 else 0
        for separator in ("\t", "::", ";", "|", ","):
            cells = lines[place].split(separator)
            if len(cells) > 2:
                cells[random.randrange(len(cells))] = random.choice(VALUES)
                lines[place] = separator.join(cells)
                break
    return "\n".join(lines).encode()


_TYPES: list[Any] = [
    *(pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
    *(pa.string(), pa.large_string(), pa.binary(), pa.string_view(), pa.null(), pa.date32()),
    *(pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("s"), pa.timestamp("s")),
    *(pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "Asia/Tokyo")),
    *(pa.decimal128(25, 2), pa.decimal256(50), pa.list_(pa.string()), pa.list_(pa.int64(), 2)),
    *(pa.struct([("x", pa.int64())]), pa.map_(pa.string(), pa.int64())),
    *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.int64())),
]
_INTEGERS = [0, 1, 2, 3, 4, 5, -1, 10**9, 1_300_000_000, 2**53 + 1, 2**63 - 1, -(2**63), 10**20]


def _cell(kind: Any, random: Random) -> object:
    if random.random() < 0.02:
        return None
    number = random.choice(_INTEGERS)
    text = random.choice(VALUES)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return bool(number % 2)
    if pa.types.is_floating(kind):
        return random.choice([float(number), 0.5, 1e300, float("nan"), float("inf")])
    if pa.types.is_binary(kind):
        return random.choice(TOKENS)
    if any(
        f(kind) for f in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    ):
        return text
    if pa.types.is_fixed_size_list(kind):
        return [number, 1]
    if pa.types.is_list(kind):
        return [text] * random.randrange(3)
    if pa.types.is_struct(kind):
        return {"x": number}
    if pa.types.is_map(kind):
        return [(text, number)]
    return number


def column(random: Random, name: str, num_rows: int, odd: bool) -> pa.Array:
    """A column of a parquet file, of a type that it should have or of an odd one."""
    usual: dict[str, list[Any]] = {
        "rating": [1, 2, 3, 4, 5],
        "timestamp": [*range(1_300_000_000, 1_300_000_020)],
        "domain": ["books", "toys"],
        "user": ["ann", "bob"],
        "item": list("abcdef"),
    }
    if not odd:
        return pa.array([random.choice(usual[name]) for _ in range(num_rows)])
    kind = random.choice(_TYPES)
    made = []
    for _ in range(num_rows):
        cell = _cell(kind, random)
        try:
            pa.array([cell], kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            cell = None
        made.append(cell)
    return pa.array(made, kind)


def parquet(random: Random, names: tuple[str, ...], num_rows: int) -> bytes:
    """A parquet file of columns drawn at random."""
    odd = {random.choice(names) for _ in range(random.randrange(3))}
    table = pa.table({name: column(random, name, num_rows, name in odd) for name in names})
    sink = io.BytesIO()
    compression = random.choice(["none", "snappy", "zstd", "gzip"])
    try:
        pyarrow.parquet.write_table(
            table, sink, compression=compression, store_schema=random.random() < 0.8
        )
    except pa.ArrowException:  # a type that parquet does not have
        return parquet(random, names, num_rows)
    return sink.getvalue()
