"""Published statistics of scenarios, compared with those of the data as loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cdr.data.dataset import Dataset
from cdr.data.schema import CrossDomainData

SOURCE_READINGS: Mapping[str, str] = {
    "source before the cut": "source",
    "source after the cut": "source_train",
}
"""What the paper's number of source behaviours may mean, and what that is in `statistics`."""


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


def check(data: CrossDomainData, dataset: Dataset) -> list[Check]:
    """Compare the statistics of a scenario with the published ones.

    The paper does not say whether its number of source behaviours is before or after the cut by
    time: both are compared with it.

    Args:
        data: The scenario as loaded.
        dataset: Its data set.

    Returns:
        A check per number, none for a scenario of which nothing is published.
    """
    published = dataset.published.get(data.name)
    if published is None:
        return []
    checks = []
    for what, number in published.counts.items():
        readings = {what: what}
        if published.paper_name and what == "source":
            readings = dict(SOURCE_READINGS)
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
    """Which reading of the paper's number of source behaviours matches, in words."""
    readings = [one.what for one in checks if one.match and one.what in SOURCE_READINGS]
    return " and ".join(readings) or "neither of the two"
