"""Files in the form of Amazon 2014, small enough to count by hand, with every oddity of the real.

Users U0 … U5 have five books (items k … k + 4 of user k) on days 10 … 14 and five toys (likewise)
on days 11, 12, 12, 13, 13; a user more is in one file only. So there are 6 users, 30 and 30
behaviours, 10 and 10 items. The second last toy is of day 13: three books a user are earlier.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cdr.data import DATASETS

DAY = 86400
NUM_USERS = 6
TOY_DAYS = (11, 12, 12, 13, 13)
# In this order in the file: the last two, of one day, come first and keep their order.
TOY_ORDER = (3, 4, 2, 0, 1)


def review(user: str, item: str, rating: float, day: int) -> str:
    """A line of reviews_X_5.json."""
    return json.dumps(
        {
            "reviewerID": user,
            "asin": item,
            "reviewerName": 'J. "Abe" Doe',
            "helpful": [2, 3],
            "reviewText": 'It\'s {good}, \\ "really" [5/5].\té',
            "overall": rating,
            "summary": "Fine",
            "unixReviewTime": day * DAY,
            "reviewTime": "09 13, 2009",
        }
    )


def rating(user: int, number: int) -> float:
    """The rating of a user's behaviour by its number: five stars and two in turn."""
    return 5.0 if (user + number) % 2 == 0 else 2.0


def books() -> list[str]:
    """The lines of the source: 35 reviews of which 30 are of common users, 3 bad ones, a blank."""
    lines = [
        review(f"U{user}", f"B{user + number}", rating(user, number), 10 + number)
        for number in range(5)
        for user in range(NUM_USERS)
    ]
    lines += [review("READER", f"B{20 + number}", 5.0, 10) for number in range(5)]
    lines.insert(2, "not json")  # line 3
    lines.insert(6, "")  # line 7
    lines.insert(9, '{"reviewerID": "U1", "asin": "B1", "unixReviewTime": 1}')  # line 10
    return [*lines, review("U0", "B0", 5.0, 10)[:-9]]  # line 39, cut off


def toys() -> list[str]:
    """The lines of the target: 30 of common users and 5 more."""
    lines = [
        review(f"U{user}", f"T{user + number}", rating(user, number), TOY_DAYS[number])
        for number in TOY_ORDER
        for user in range(NUM_USERS)
    ]
    return lines + [review("CHILD", f"T{number}", 5.0, 10) for number in range(5)]


BOOK_METADATA = [
    "{'asin': 'B0', 'title': \"It's [a] 'title'\", 'categories': [['Books', 'Arts'], ['X']]}",
    "{'asin': 'B1', 'categories': [['Books', \"Children's [Books]\"]], 'price': 3.0}",
    "{'asin': 'B2', 'title': 'No categories'}",
    "{'asin': 'B3', 'categories': [['Books']]}",
    "{'asin': 'B4', 'categories': [['Books', 'First']]}",
    "{'asin': 'B4', 'categories': [['Books', 'Second']]}",
    "",
    "{'asin': 'B5', 'categories': [['Books', 'Caf\\xe9']]}",
    "{'asin': 'B6', 'description': \"Say 'categories': [['No', 'never']] twice\"}",
    "{'asin': 'B7', 'categories': [['Books', 'Cut",  # line 10; B8 and B9 have no line
]
BOOK_CATEGORIES = {
    "B0": "Arts",
    "B1": "Children's [Books]",
    "B4": "First",
    "B5": "Café",
}  # of all other books: others
TOY_METADATA = [
    f"{{'asin': 'T{item}', 'salesRank': {{'Toys & Games': 7}}, "
    f"'categories': [['Toys & Games', '{('Dolls', 'Games')[item % 2]}', 'More']]}}"
    for item in range(10)
]


def write(path: Path, lines: list[str], *, newline_at_end: bool = True) -> Path:
    """Lines as a file, gzipped if its name says so."""
    content = ("\n".join(lines) + "\n" * newline_at_end).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_all(folder: Path, ending: str = ".json.gz") -> Path:
    """The four files of Books → Toys_and_Games; the source's last lines are cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"reviews_Books_5{ending}", books(), newline_at_end=False)
    write(folder / f"reviews_Toys_and_Games_5{ending}", toys())
    write(folder / f"meta_Books{ending}", BOOK_METADATA, newline_at_end=False)
    write(folder / f"meta_Toys_and_Games{ending}", TOY_METADATA)
    return folder


def publish(monkeypatch: pytest.MonkeyPatch, counts: dict[str, int]) -> None:
    """Give other published statistics to Books → Toys, the one scenario of these files."""
    known = {
        name: replace(one, counts=counts)
        for name, one in DATASETS["amazon"].published.items()
        if one.paper_name == "Books-Toys"
    }
    assert len(known) == 1
    monkeypatch.setitem(DATASETS, "amazon", replace(DATASETS["amazon"], published=known))
