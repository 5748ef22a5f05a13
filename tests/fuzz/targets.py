"""What is tried: each reader, the cache, kept trainings, configurations, and reports."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import amazon_files as made
import numpy as np
import pyarrow as pa
import tyro

from cdr.data import CrossDomainData, amazon_files, load
from cdr.data.cache import cached
from cdr.report.document import Document, sheet
from cdr.run_biao import RunBiao, _start
from cdr.runs.folders import check_output
from cdr.runs.grid import Grid
from cdr.runs.runner import Source, Task
from cdr.training.evaluation import Scores
from cdr.training.options import Options
from cdr.training.result import Result
from fuzz.inputs import TOKENS, VALUES, changed, packed, parquet, swapped

LONGEST = 400  # characters of a message


@dataclass(frozen=True)
class Target:
    """What is tried.

    Args:
        name: Of it.
        write: Given random numbers and a folder, writes an input there; gives the names of which
            a message has to have one.
        read: Reads the input; "" if the outcome is right, else what is wrong with it.
        refusals: The errors that are documented.
        share: Of the inputs, relative to others: less where one takes long.
    """

    name: str
    write: Callable[[Random, Path], Sequence[str]]
    read: Callable[[Path], str]
    refusals: tuple[type[BaseException], ...] = (ValueError, OSError)
    share: float = 1.0


def outcome(target: Target, random: Random, folder: Path) -> tuple[str, str]:
    """What becomes of one input: "read", "refused", or a kind of mistake; and what was said."""
    names = target.write(random, folder)
    try:
        told = target.read(folder)
    except target.refusals as error:
        told = str(error)
        length = len(told.replace(str(folder), ""))  # where the file lies is the user's choice
        if length > LONGEST:
            return "LONG", f"{length} characters: {told}"
        if "\n" in told or not all(c.isprintable() for c in told):
            return "LINES", repr(told)
        if names and not any(name in told for name in names):
            return "NAMELESS", f"{type(error).__name__}: {told}"
        return "refused", told
    except Exception as error:
        return "UNDOCUMENTED", f"{type(error).__name__}: {str(error)[:300]}"
    return ("WRONG", told) if told else ("read", "")


# Tables.

_LOG = "".join(
    f"{user},{item},{1 + (n + len(item)) % 5},{1300000000 + n * 86400},{domain}\n"
    for n, user in enumerate(["ann", "bob", "eve"] * 3)
    for domain, items in (("books", "ab"), ("toys", "xyz"))
    for item in items[n % 2 :]
)
LOGS = [
    f"user,item,rating,timestamp,domain\n{_LOG}".encode(),
    f"User;Item;Rating;Timestamp;Domain\n{_LOG}".replace(",", ";").encode(),
    f"user::item::rating::timestamp::domain\n{_LOG}".replace(",", "::").encode(),
    "user,item,rating,timestamp,domain,title\n{}".format(
        _LOG.replace("\n", ',"A ""title"", or\ntwo"\n')
    ).encode(),
    f"user\titem\trating\ttimestamp\tdomain\n{_LOG}".replace(",", "\t").encode(),
]
ITEMS = [b"item,category\na,novel\nb,\nx,doll\ny,game\nz,game\n"]
_NAMES = ("user", "item", "rating", "timestamp", "domain")


def _written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return path.name


def _some_changes(content: bytes, random: Random, others: list[bytes]) -> bytes:
    """Other cells, other bytes, or both."""
    kind = random.random()
    if kind < 0.6:
        content = swapped(content, random)
    return changed(content, random, others) if kind > 0.4 else content


def _accounted(data: CrossDomainData) -> str:
    """Whether all rows of the files are used or counted, and the notes say so."""
    found = data.account
    if found is None or found.sentence not in data.notes:
        return "rows are not counted"
    parts = (data.source, data.train, data.valid, data.test)
    return "" if found.used == sum(map(len, parts)) else "rows are counted wrong"


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_table(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    ending = random.choice(("csv", "tsv", "dat", "txt.gz", "csv.gz"))
    content = _some_changes(random.choice(LOGS), random, LOGS)
    if ending.endswith("gz"):
        content = packed(content, random)
    names = [_written(folder / f"log.{ending}", content)]
    if random.random() < 0.3:
        names.append(_written(folder / "items.csv", _some_changes(ITEMS[0], random, LOGS)))
    return names


def _read_table(folder: Path) -> str:
    (path,) = folder.glob("log.*")
    items = folder / "items.csv"
    given: dict[str, Any] = {"items": items} if items.exists() else {}
    return _accounted(load(str(path), None, "books", "toys", **given))


def _write_parquet(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    content = parquet(random, _NAMES, random.choice((1, 20, 40)))
    if random.random() < 0.4:
        content = changed(content, random, [content])
    return [_written(folder / "log.parquet", content)]


_ATOMIC = [
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n{}".format(
        "".join(f"{user}\t{item}\t{1 + n % 5}\t{n}\n" for n, user in enumerate("abcabcab"))
    ).encode()
    for item in "xyz"
]
_ATOMIC_ITEMS = [b"item_id:token\tcategories:token_seq\nx\tNovel Long\ny\t\n"]


def _write_atomic(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    kept = random.choice(("books", "toys", "none"))
    names = []
    for name, content in zip(("books", "toys"), _ATOMIC, strict=False):
        for ending, text in (("inter", content), ("item", _ATOMIC_ITEMS[0])):
            if ending == "item" and random.random() < 0.5:
                continue
            text = text if kept == name else _some_changes(text, random, _ATOMIC)
            names.append(_written(folder / f"{name}.{ending}", text))
    return names


def _read_atomic(folder: Path) -> str:
    return _accounted(load("recbole", folder, "books", "toys"))


# Amazon's files.

_REVIEWS = ["\n".join(lines).encode() for lines in (made.books(), made.toys())]
_METADATA = ["\n".join(lines).encode() for lines in (made.BOOK_METADATA, made.TOY_METADATA)]
_MORE = [
    b'{"reviewerID": "U0", "asin": "B1", "overall": 99999999999999999999, "unixReviewTime": 1}\n',
    b'{"reviewerID": "U0", "asin": "B1", "overall": 5, "unixReviewTime": 99999999999999999999}\n',
    b"null\n",
    b"{'asin': 'B1', 'categories': [[['" + b"[" * 500,
]


def _write_reviews(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    whole = random.choice(_REVIEWS)
    lines = whole.split(b"\n")
    start = random.randrange(len(lines))
    content = b"\n".join(lines[start : start + random.choice((1, 3, 40))])
    if random.random() < 0.3:
        content = changed(content, random, _REVIEWS + _MORE)
        return [_written(folder / "reviews.json.gz", packed(content, random))]
    return [_written(folder / "reviews.json", changed(content, random, _REVIEWS + _MORE))]


def _lines_of(path: Path) -> int:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return content.count(b"\n") + (content != b"" and not content.endswith(b"\n"))


def _read_reviews(folder: Path) -> str:
    (path,) = folder.iterdir()
    return _all_lines(amazon_files.reviews(path), path)


def _all_lines(table: pa.Table, path: Path) -> str:
    bad = amazon_files.BadLines.of(table)
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    texts = [line.decode("utf-8-sig", "surrogateescape") for line in content.split(b"\n")]
    records = sum(bool(text.strip()) for text in texts)
    if bad.lines != _lines_of(path):
        return f"{bad.lines} lines of {_lines_of(path)}"
    found = len(table) + bad.count + bad.repeated
    return "" if found == records else f"{found} records of {records}"


def _write_metadata(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    content = random.choice(_METADATA)
    if random.random() < 0.3:
        content = changed(content, random, _METADATA + _MORE)
        return [_written(folder / "meta.json.gz", packed(content, random))]
    return [_written(folder / "meta.json", changed(content, random, _METADATA + _MORE))]


def _read_metadata(folder: Path) -> str:
    (path,) = folder.iterdir()
    told = _all_lines(amazon_files.categories(path), path)
    amazon_files.titles(path, {"B0", "T1"})
    return told


_AMAZON = {
    "reviews_Books_5.json": _REVIEWS[0],
    "reviews_Toys_and_Games_5.json": _REVIEWS[1],
    "meta_Books.json": _METADATA[0],
    "meta_Toys_and_Games.json": _METADATA[1],
}


def _write_amazon(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    chosen = random.choice(list(_AMAZON))
    for name, content in _AMAZON.items():
        others = _REVIEWS + _METADATA + _MORE
        _written(folder / name, changed(content, random, others) if name == chosen else content)
    return list(_AMAZON)


def _read_amazon(folder: Path) -> str:
    return _accounted(load("amazon", folder, "Books", "Toys"))


# The copies with tables of their own.

_EPINIONS = [
    "user,item,rating,timestamp,order,domain\n{}".format(
        "".join(
            f"{user},{item},{1 + (n + user) % 5},{n % 4},{n},{3 + (n > 3)}\n"
            for user in range(4)
            for n, item in enumerate("abcdefgh")
        )
    ).encode()
]
_FIVE = [
    "user,item,rating,label,timestamp,order,domain\n{}".format(
        "".join(
            f"u{user},{item},4.0,{(n + user) % 2},{1300000000 + n},{n},{domain}\n"
            for user in range(4)
            for domain, items in (("Beauty", "abc"), ("Toys_and_Games", "wxyz"))
            for n, item in enumerate(items)
        )
    ).encode(),
    b"item,category,domain,category_path,title\n"
    b'a,1,Beauty,"[[\'Beauty\', \'Skin\', \'Nails\']]",A\nx,2,Toys_and_Games,,"T, and ""more"""\n',
]


def _write_tables(files: dict[str, bytes], place: str) -> Callable[[Random, Path], list[str]]:
    def write(random: Random, folder: Path) -> list[str]:
        _clear(folder)
        (folder / place).mkdir()
        chosen = random.choice(list(files))
        for name, content in files.items():
            if name == chosen:
                content = packed(_some_changes(content, random, list(files.values())), random)
            else:
                content = gzip.compress(content, 1)
            _written(folder / place / name, content)
        return list(files)

    return write


# What is kept.


@cache
def _kept(place: Path) -> tuple[Path, Path, pa.Table, dict[str, bytes]]:
    """A file, its cache, the table, and the files of the cache."""
    place.mkdir(parents=True)
    path, folder = place / "reviews.json", place / "cache"
    made.write(path, made.books())
    table = cached(path, folder, amazon_files.reviews)
    return path, folder, table, {each.name: each.read_bytes() for each in folder.iterdir()}


def _one_damaged(random: Random, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, one of them with a flipped bit or changed otherwise."""
    chosen = random.choice(list(files))
    content = files[chosen]
    if random.random() < 0.5:
        place = random.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        content = bytes(flipped)
    else:
        content = changed(content, random, list(files.values()))
    return {**files, chosen: content}


def _write_cache(random: Random, folder: Path) -> list[str]:
    _, kept, _, files = _kept(folder / "kept")
    for name, content in _one_damaged(random, files).items():
        _written(kept / name, content)
    return []


def _read_cache(folder: Path) -> str:
    path, kept, table, files = _kept(folder / "kept")
    again = cached(path, kept, amazon_files.reviews)
    if not again.equals(table) or again.schema.metadata != table.schema.metadata:
        return "other data"
    mended = {each.name: each.read_bytes() for each in kept.iterdir()}
    return "" if mended.keys() == files.keys() else f"files left over: {sorted(mended)}"


class _GridOfOne(Grid):
    """A grid that makes no data for its key."""

    def data(self, task: Task) -> dict[str, Any]:
        return {}


@cache
def _trained(place: Path) -> tuple[_GridOfOne, Task, Path, dict[str, bytes], Any]:
    grid = _GridOfOne(place, "")
    task = Task("ours", 0, Source("g1", (), seeded=True), Options(), "cpu")
    scores = Scores(
        np.linspace(0.1, 0.9, 30, dtype=np.float32), np.arange(30) % 2, np.arange(30) // 3
    )
    history = [{"epoch": n, "loss": 0.7 - n / 10, "auc": 0.6 + n / 50} for n in range(3)]
    weights = np.linspace(0, 2, 50, dtype=np.float32)
    grid.store(task, replace(Result(scores, None, history, {}), weights=weights, weight_auc=0.5))
    stored = place / grid.key(task)[:2] / grid.key(task)
    files = {each.name: each.read_bytes() for each in stored.iterdir()}
    kept = grid.load(task)
    assert kept is not None
    return grid, task, stored, files, kept


def _write_grid(random: Random, folder: Path) -> list[str]:
    _, _, place, files, _ = _trained(folder / "grid")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, content in _one_damaged(random, files).items():
        _written(place / name, content)
    return []


def _read_grid(folder: Path) -> str:
    grid, task, place, _, kept = _trained(folder / "grid")
    logging.getLogger("cdr").setLevel(logging.ERROR)
    run = grid.load(task)
    if run is None:
        return "" if not place.exists() else "the damaged training is still there"
    same = all(
        np.array_equal(a, b, equal_nan=True)
        for one, other in ((run.test, kept.test), (run.weights, kept.weights))
        for a, b in zip(_arrays(one), _arrays(other), strict=True)
    )
    rest = (run.history, run.weight_auc, run.seconds, run.restarted, run.extra_test is None)
    before = (kept.history, kept.weight_auc, kept.seconds, kept.restarted, kept.extra_test is None)
    return "" if same and rest == before else "other data"


def _arrays(value: Any) -> list[Any]:
    return [value] if isinstance(value, np.ndarray) else list(vars(value).values())


# Configurations.

_ARGUMENTS = [
    *("--data", "g1", "--seeds", "2", "--inner.lr", "0.01", "--variants", "ours", "S", "--model"),
    *("dasl", "--outer.dev", "held-out", "--limits.max-gib", "1", "--harm", "flip-items", "--jobs"),
]


def _write_arguments(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    arguments = list(_ARGUMENTS[: random.choice((2, 4, 6, 9, 11, 15, 17))])
    for _ in range(random.choice((1, 2))):
        place = random.randrange(len(arguments) + 1)
        if random.random() < 0.5:
            arguments[place : place + 1] = [random.choice(VALUES)]
        else:
            token = random.choice(TOKENS).decode("utf-8", "replace")
            arguments.insert(place, token.replace("\0", ""))
    (folder / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
    return []


def _read_arguments(folder: Path) -> str:
    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            tyro.cli(RunBiao, args=arguments, default=_start(arguments))
        except SystemExit as stop:
            return "" if stop.code in (0, 2) else f"exit code {stop.code}"
    return ""


_CONFIG = [b'{"command": "table1", "seeds": 5, "data": ["g1", "amazon5:Beauty:Toys_and_Games"]}']


def _write_config(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    (folder / "out").mkdir()
    _written(folder / "out" / "config.json", changed(_CONFIG[0], random, _CONFIG + _MORE))
    return ["out"]


def _read_config(folder: Path) -> str:
    check_output(folder / "out", "table1")
    return ""


# Reports.


def _write_names(random: Random, folder: Path) -> list[str]:
    _clear(folder)
    names = []
    for _ in range(3):
        name = random.choice(VALUES) + random.choice(TOKENS[:60]).decode("utf-8", "replace")
        names.append(changed(name.encode(), random, TOKENS).decode("utf-8", "replace"))
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    return []


_CONTROLS = ("Cc", "Cs", "Zl", "Zp")


def _read_names(folder: Path) -> str:
    first, second, third = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    table = sheet([first, "AUC"], [[second, "0.5"], [third, "0.6"]], title=third)
    values = ({"name": second, first or "x": 0.5},)
    document = Document(first, (table,), (), (second, third), values, conclusions=(first,))
    for text in (document.text(), document.markdown(), document.csv()):
        if any(unicodedata.category(c) in _CONTROLS and c != "\n" for c in text):
            return f"control characters: {text[:200]!r}"
    rows = [line for line in table.markdown().split("\n") if line.startswith("|")]
    if len(rows) != 4:
        return f"{len(rows)} lines of a table of 4"
    lines = [line for line in document.csv().split("\n") if line[:1] in "=+-@" and line]
    return f"a formula: {lines[0][:100]!r}" if lines else ""


TARGETS = {
    target.name: target
    for target in (
        Target("table", _write_table, _read_table),
        Target("parquet", _write_parquet, _read_table),
        Target("recbole", _write_atomic, _read_atomic),
        Target("reviews", _write_reviews, _read_reviews),
        Target("metadata", _write_metadata, _read_metadata),
        Target("amazon", _write_amazon, _read_amazon, share=0.1),
        Target(
            "epinions",
            _write_tables({"interactions.csv.gz": _EPINIONS[0]}, "epinions"),
            lambda folder: _accounted(load("epinions", folder, "3", "4")),
        ),
        Target(
            "amazon5",
            _write_tables({"interactions.csv.gz": _FIVE[0], "items.csv.gz": _FIVE[1]}, "amazon5"),
            lambda folder: _accounted(load("amazon5", folder, "Beauty", "Toys_and_Games")),
        ),
        Target("cache", _write_cache, _read_cache, ()),
        Target("grid", _write_grid, _read_grid, ()),
        Target("arguments", _write_arguments, _read_arguments, share=0.02),
        Target("config", _write_config, _read_config),
        Target("names", _write_names, _read_names, ()),
    )
}
"""By name."""
