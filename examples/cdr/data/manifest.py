"""What is known about the size of a scenario beforehand, and whether the data loaded agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cdr.data.schema import CrossDomainData

# All of the common users; behaviours and items before any cut by time.
_COUNTED = ("users", "source", "target", "source_items", "target_items")
_PAPER = {
    "Books-Movies": (37_388, 944_533, 792_319, 269_301, 49_273),
    "Books-CDs": (16_738, 418_653, 380_675, 191_942, 61_201),
    "Books-Elec": (28_506, 735_683, 364_267, 229_189, 52_134),
    "Books-Toys": (7_576, 317_646, 84_564, 134_350, 11_567),
    "CDs-Cloth": (4_283, 71_491, 36_319, 26_178, 15_445),
    "CDs-Kitchen": (8_144, 160_358, 96_670, 36_018, 22_550),
    "Elec-Cloth": (8_235, 99_594, 66_470, 25_816, 18_703),
}
_KNOWN = {
    "Beauty → Toys_and_Games": (1_654, 28_890, 28_197, 6_158, 7_199),
    "Toys_and_Games → Beauty": (1_654, 28_197, 28_890, 7_199, 6_158),
    "Baby → Toys_and_Games": (2_976, 29_286, 38_875, 5_424, 8_625),
    "Office_Products → Toys_and_Games": (1_609, 23_528, 29_326, 2_152, 6_036),
    "Baby+Office_Products+Beauty → Toys_and_Games": (4_617, 81_704, 59_485, 13_734, 10_071),
    "Epinions 3 → 4": (8_323, 127_400, 92_733, 26_039, 54_924),
    "Epinions 3 → 5": (7_243, 114_461, 75_263, 25_162, 31_897),
}

SHORT_NAMES: Mapping[str, str] = {
    "Books": "Books",
    "Movies": "Movies_and_TV",
    "CDs": "CDs_and_Vinyl",
    "Elec": "Electronics",
    "Toys": "Toys_and_Games",
    "Cloth": "Clothing_Shoes_and_Jewelry",
    "Kitchen": "Home_and_Kitchen",
}
"""What the paper calls a domain of Amazon, and its name in the files."""

PAPER_STATISTICS: Mapping[str, Mapping[str, int]] = {
    name: dict(zip(_COUNTED, counts, strict=True)) for name, counts in _PAPER.items()
}
"""Table 4 of BIAO (WWW'23), by the paper's name of the scenario."""

KNOWN_STATISTICS: Mapping[str, Mapping[str, int]] = {
    name: dict(zip(_COUNTED, counts, strict=True)) for name, counts in _KNOWN.items()
}
"""The same of the incomplete amazon5 and of epinions, by the name of the data."""

SOURCE_READINGS: Mapping[str, str] = {
    "source before the cut": "source",
    "source after the cut": "source_train",
}
"""What the paper's number of source behaviours may mean, and what that is in `statistics`."""


PUBLISHED = ("amazon", "amazon5", "epinions")
"""The data sets of which something is known; a file of one's own may have the same names in it."""


class Check(NamedTuple):
    """One number: what is counted, what it should be, what it is, whether they agree."""

    what: str
    expected: int
    got: int
    match: bool

    @property
    def statistic(self) -> str:
        """Its name in `CrossDomainData.statistics`."""
        return SOURCE_READINGS.get(self.what, self.what)

    @property
    def verdict(self) -> str:
        """In a word."""
        return "match" if self.match else "MISMATCH"


def paper_name(data: CrossDomainData) -> str | None:
    """The paper's name of a scenario of Amazon's original files, None if it has none."""
    for name in PAPER_STATISTICS:
        source, target = (SHORT_NAMES[domain] for domain in name.split("-"))
        if data.name == f"Amazon {source} → {target}":
            return name
    return None


def check(data: CrossDomainData) -> list[Check]:
    """Compare the statistics of a scenario with those known of it.

    The paper does not say whether its number of source behaviours is before or after the cut by
    time: both are compared with it.

    Args:
        data: A scenario of amazon, amazon5 or epinions.

    Returns:
        A check per number, none for a scenario of which nothing is known.
    """
    paper = paper_name(data)
    expected = KNOWN_STATISTICS.get(data.name, {}) if paper is None else PAPER_STATISTICS[paper]
    checks = []
    for what, number in expected.items():
        readings = {what: what} if paper is None or what != "source" else SOURCE_READINGS
        for reading, key in readings.items():
            got = data.statistics[key]
            checks.append(Check(reading, number, got, number == got))
    return checks


def agrees(checks: Sequence[Check]) -> bool:
    """Whether all numbers match; of the two readings of the paper's source, at least one."""
    readings = [one.match for one in checks if one.what in SOURCE_READINGS]
    return all(one.match for one in checks if one.what not in SOURCE_READINGS) and (
        not readings or any(readings)
    )


def source_reading(checks: Sequence[Check]) -> str:
    """What the paper's number of source behaviours turns out to count, in words."""
    readings = [one.what for one in checks if one.match and one.what in SOURCE_READINGS]
    return " and ".join(readings) or "neither of the two"
