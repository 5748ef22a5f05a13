"""Domains that are named, not named or misspelt: which ones there are, and which may be meant."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from cdr.data.cells import shown

_SHOWN = 20
_CHARACTERS = 180  # of a list: a message stays below 400
_SIMILAR = 3
_COMPARED = 100  # characters
_CANDIDATES = 10_000


def listed(counts: Mapping[str, int | None]) -> str:
    """Domains with their numbers of rows, the largest first.

    Args:
        counts: Rows of each domain; None where they are not counted.

    Example:
        >>> listed({"toys": 9, "books": 1200})
        "'books' (1,200 rows), 'toys' (9 rows)"
    """
    ordered = sorted(counts, key=lambda name: (-(counts[name] or 0), name))
    told: list[str] = []
    length = 0
    for name in ordered[:_SHOWN]:
        one = _one(name, counts[name])
        length += len(one) + 2
        if told and length > _CHARACTERS:
            break
        told.append(one)
    more = len(ordered) - len(told)
    return ", ".join(told) + (f" and {more:,} smaller ones" if more else "")


def _one(name: str, rows: int | None) -> str:
    text = shown(name, 40)
    return text if rows is None else f"{text} ({rows:,} row{'s' * (rows != 1)})"


def unknown(argument: str, name: str, counts: Mapping[str, int | None], where: str) -> str:
    """A sentence on a domain that is not there.

    Args:
        argument: "source" or "target".
        name: What was given.
        counts: Rows of the domains that are there.
        where: In what they are.

    Example:
        >>> unknown("source", "Book", {"books": 3}, "log.csv").partition("; ")[2]
        "is 'books' meant? There are 'books' (3 rows)."
    """
    similar = close(name, counts)
    meant = f"; is {' or '.join(map(_short, similar))} meant?" if similar else "."
    told = f"{argument}: there is no domain {shown(name)} in {where}{meant}"
    return f"{told} There are {listed(counts)}."


def left_out(read: Collection[str], counts: Mapping[str, int]) -> Iterator[str]:
    """Sentences on domains that are not read, although they may be meant.

    Args:
        read: The domains that are read.
        counts: Rows of all domains.

    Example:
        >>> list(left_out(["books"], {"books": 9, "Books": 4, "toys": 2}))
        ["'Books' (4 rows) is not read: as a name it differs from 'books' in form only."]
    """
    plain = {_plain(name): name for name in read}
    for name, rows in counts.items():
        if name not in read and _plain(name) in plain:
            yield (
                f"{_one(name, rows)} is not read: as a name it differs from "
                f"{shown(plain[_plain(name)])} in form only."
            )


def _short(name: str) -> str:
    return shown(name, 25)


def _plain(name: str) -> str:
    """The name without upper case, blanks around it, and what Unicode has two forms of."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def close(name: str, among: Mapping[str, object]) -> list[str]:
    """Names that are like one, the most similar first."""
    by_plain: dict[str, list[str]] = {}
    # Comparing takes longer the longer names are, and the more there are.
    for each in islice((name for name in among if len(name) <= _COMPARED), _CANDIDATES):
        by_plain.setdefault(_plain(each), []).append(each)
    plain = _plain(name[:_COMPARED])
    found = difflib.get_close_matches(plain, by_plain, _SIMILAR, cutoff=0.7)
    begun = [each for each in by_plain if plain and each.startswith(plain) and each not in found]
    return [each for text in (*found, *sorted(begun)) for each in by_plain[text]][:_SIMILAR]
