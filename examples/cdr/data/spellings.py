"""Ids that are equal, or may be meant to be, although they are written differently; broken ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdr.data.cells import shown


def unicode_forms(ids: np.ndarray) -> Mapping[str, str]:
    """Ids that are the same text as another one in another Unicode form, and the form to read.

    "é" is one character, or "e" and an accent; to Unicode both are the same text. An id that is
    written in one form only is left as it is, whichever form that is.

    Args:
        ids: Ids, [n]; one may occur several times.

    Example:
        >>> forms = unicode_forms(np.array(["e\\u0301", "\\u00e9", "a\\u0301"], dtype=object))
        >>> {ascii(written): ascii(read) for written, read in forms.items()}
        {"'e\\\\u0301'": "'\\\\xe9'"}
    """
    texts = _texts(ids)
    if texts is None or pc.all(pc.string_is_ascii(texts)).as_py():
        return {}
    texts = pc.unique(texts)
    composed = pc.utf8_normalize(texts, form="NFC")
    shared = pc.is_in(composed, value_set=_repeated(composed))
    pairs = zip(texts.filter(shared).to_pylist(), composed.filter(shared).to_pylist(), strict=True)
    return {text: common for text, common in pairs if text != common}


def refuse_shortened(column: pa.ChunkedArray, name: str, path: Path | str) -> None:
    """Refuse ids that a spreadsheet or a stray quote has made of others.

    A spreadsheet writes 123456789012 as 1.23457E+11, and so different ids in one way. A quote that
    begins a value and has no counterpart takes the lines up to the next quote into it.

    Args:
        column: Ids, [n], as a dictionary.
        name: Of the column.
        path: Of the file.

    Raises:
        ValueError: If there is such an id.
    """
    ids = pc.unique(column)
    ids = ids.dictionary if pa.types.is_dictionary(ids.type) else ids
    for pattern, told in (
        (
            r"^\d[.,]\d+E\+\d+$",
            "is a number that a spreadsheet has shortened: different ids may have become one. "
            "Export the table again with the column as text",
        ),
        (
            r"[\r\n]",
            "has a line break: a quote at the beginning of a value has no counterpart, and lines "
            "are lost. Double each quote within a value and put the value in quotes, or remove it",
        ),
    ):
        broken = pc.match_substring_regex(ids, pattern)
        if pc.any(broken).as_py():
            first = ids[pc.index(broken, True).as_py()].as_py()
            raise ValueError(f"{path}: column {name!r} holds {shown(first)}, which {told}.")


def alike(ids: np.ndarray) -> tuple[int, tuple[str, ...]]:
    """Ids that differ only in leading zeros, a trailing ".0", blanks around them or wide digits.

    A spreadsheet or a table of numbers makes "7" or "7.0" of "007". Upper and lower case are not
    among the differences: in random ids they mean something.

    Args:
        ids: Ids, [n]; one may occur several times. What stands before the last "/" is the domain
            of an item.

    Returns:
        How many ids are like another one, and the first few of those that are like one.

    Example:
        >>> alike(np.array(["007", "7.0", "8", "a7"], dtype=object))
        (2, ('007', '7.0'))
    """
    texts = _texts(ids)
    if texts is None:
        return 0, ()
    may_be_odd = _may_be_odd(texts)
    odd = pc.unique(texts.filter(may_be_odd))
    if not len(odd):
        return 0, ()
    plain = pc.utf8_normalize(pc.utf8_trim_whitespace(odd), form="NFKC")
    plain = pc.replace_substring_regex(plain, r"^(.*/)?0*(\d+)(\.0+)?$", r"\1\2")
    like_an_odd_one = pc.and_(pc.invert(may_be_odd), pc.is_in(texts, value_set=plain))
    others = pc.unique(texts.filter(like_an_odd_one))
    read, written = pa.concat_arrays([plain, others]), pa.concat_arrays([odd, others])
    repeated = _repeated(read)
    if not len(repeated):
        return 0, ()
    example = written.filter(pc.equal(read, repeated[0])).slice(0, 3).to_pylist()
    return pc.sum(pc.is_in(read, value_set=repeated)).as_py(), tuple(sorted(example))


def _may_be_odd(texts: pa.Array) -> pa.Array:
    """Every id that `alike` would write in another way, and some more, in less time."""
    blank = pc.not_equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), pc.utf8_length(texts))
    zero = pc.or_(pc.starts_with(texts, "0"), pc.match_substring(texts, "/0"))
    fraction = pc.match_substring(texts, ".0")
    return pc.or_(pc.or_(blank, zero), pc.or_(fraction, pc.invert(pc.string_is_ascii(texts))))


def _texts(ids: np.ndarray) -> pa.Array | None:
    """The ids as strings; None if they are numbers, or none at all."""
    texts = pa.array(ids)
    return texts if len(texts) and pa.types.is_string(texts.type) else None


def _repeated(texts: pa.Array) -> pa.Array:
    """The texts that occur more than once."""
    counted = pc.value_counts(texts)
    return counted.field(0).filter(pc.greater(counted.field(1), 1))
