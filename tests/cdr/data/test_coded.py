"""Coded columns stand for arrays of texts."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdr.data import Interactions, build
from cdr.data.coded import Coded, encode, joined, of_arrow
from cdr.data.histories import _up_to

# Sorted by code points, "Z" first and "😀" last; UTF-16 would put it before "\uffee".
TEXTS = st.lists(st.sampled_from(["a", "Z", "é", "中", "\uffee", "😀", "", "a/b"]), max_size=12)


def objects(texts: list[str]) -> np.ndarray:
    return np.array(texts, dtype=object)


@given(texts=TEXTS)
def test_codes_are_those_of_numpy(texts: list[str]) -> None:
    unique, inverse = np.unique(objects(texts), return_inverse=True)
    values = objects([*"aZ", *texts[::-1], "unused", *"aZ"])  # in any order, twice, in no row
    code = np.array([values.tolist().index(text) for text in texts], dtype=np.int32)
    for column in (objects(texts), Coded(values, code)):
        found, place = encode(column)
        assert found.tolist() == unique.tolist() and found.dtype == object
        assert place.tolist() == inverse.tolist() and place.dtype == np.int64


@given(numbers=st.lists(st.integers(-(2**40), 2**40), max_size=12))
def test_codes_of_integers_are_those_of_numpy(numbers: list[int]) -> None:
    found, place = encode(np.array(numbers, dtype=np.int64))
    unique, inverse = np.unique(np.array(numbers, dtype=np.int64), return_inverse=True)
    assert found.tolist() == unique.tolist() and found.dtype == np.int64
    assert place.tolist() == inverse.tolist()


@given(parts=st.lists(TEXTS, min_size=1, max_size=3), encoded=st.booleans())
def test_arrow_columns_keep_their_texts(parts: list[list[str]], encoded: bool) -> None:
    chunks = [pa.array(part, pa.string()) for part in parts]
    if encoded:  # each chunk with a dictionary of its own
        chunks = [chunk.dictionary_encode() for chunk in chunks]
    texts, code = of_arrow(pa.chunked_array(chunks))
    column = Coded(objects(texts.to_pylist()), code)
    every = [text for part in parts for text in part]
    assert np.asarray(column).tolist() == every and column.shape == (len(every),)
    assert np.asarray(joined([column, column])).tolist() == every * 2


def log(rng: np.random.Generator, num: int, start: float) -> dict[str, np.ndarray]:
    time = start + rng.integers(0, 30, num).astype(float)
    time[rng.random(num) < 0.1] = np.nan
    item = rng.integers(0, 25, num)
    return {
        "user": np.array([f"u{n}" for n in rng.integers(0, 12, num)], dtype=object),
        "item": np.array([f"i{n}" for n in item], dtype=object),
        "label": rng.random(num) < 0.6,
        "time": time,
        "category": np.array([f"c{n % 4}" for n in item], dtype=object),
    }


def as_codes(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """The texts of a log as codes of a shuffled list with texts that no row has."""
    coded: dict[str, Any] = dict(columns)
    for name in ("user", "item", "category"):
        values = objects(["unused", *sorted(set(columns[name]), key=lambda text: text[::-1])])
        place = {text: code for code, text in enumerate(values)}
        coded[name] = Coded(values, np.array([place[text] for text in columns[name]], np.int32))
    return coded


def assert_equal(one: Any, other: Any, name: str = "data") -> None:
    if isinstance(one, torch.Tensor):
        # Bit for bit; NaN is an unknown time, which is equal here.
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True, msg=name)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.tolist() == other.tolist(), name
    elif is_dataclass(one):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)
    else:
        assert one == other, name


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), merge=st.booleans(), ordered=st.booleans())
def test_a_split_of_codes_is_that_of_texts(seed: int, merge: bool, ordered: bool) -> None:
    rng = np.random.default_rng(seed)
    logs = [log(rng, 150, 0.0), log(rng, 120, 10.0)]
    if ordered:
        for columns in logs:
            columns["order"] = rng.permutation(len(columns["user"]))
    texts, codes = (
        build("log", *(Interactions(**form(columns)) for columns in logs), merge_lines=merge)
        for form in (dict, as_codes)
    )
    assert_equal(codes, texts)


@given(seed=st.integers(0, 1000), unknown=st.booleans())
def test_the_slice_up_to_a_time_is_found_by_counting(seed: int, unknown: bool) -> None:
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, 6, 40))
    time = rng.integers(-3, 4, 40).astype(float)
    if unknown:  # of a user's first rows
        time[rng.random(40) < 0.2] = -np.inf
    time = time[np.lexsort((time, user))]
    of, until = rng.integers(0, 8, 30), rng.choice([-np.inf, np.inf, -2.0, 0.0, 1.0], 30)
    first, end = _up_to(user, time, of, until)
    for begin, stop, u, t in zip(first, end, of, until, strict=True):
        rows = np.flatnonzero(user == u)
        assert stop - begin == (time[rows] <= t).sum()
        assert stop == begin or begin == rows[0]


def test_an_integer_and_a_text_are_not_mixed() -> None:
    rows = Coded(objects(["7", "8"]), np.zeros(3, np.int32))
    numbers = np.array([7, 7, 7])
    with pytest.raises(ValueError, match="No user is in both domains.*'7'.* 7"):
        build(
            "mixed",
            Interactions(rows, numbers, np.ones(3, bool)),
            Interactions(numbers, numbers, np.ones(3, bool)),
        )


@pytest.mark.parametrize("empty", [np.array([], dtype=np.int64), objects([])])
def test_a_domain_without_rows_has_no_common_user(empty: np.ndarray) -> None:
    rows = np.array([7, 7, 7]) if empty.dtype == np.int64 else objects(["7", "7", "7"])
    with pytest.raises(ValueError, match="the target 0 "):
        build(
            "empty",
            Interactions(rows, rows, np.ones(3, bool)),
            Interactions(empty, empty, np.zeros(0, bool)),
        )
