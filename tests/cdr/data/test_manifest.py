"""The known sizes of scenarios, and how data are compared with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdr.data import DATASETS, CrossDomainData, agrees
from cdr.data import check as check_statistics
from cdr.data.manifest import Check

BOOKS_TOYS = "Amazon Books → Toys_and_Games"
AMAZON = DATASETS["amazon"]
OTHERS = ("amazon5", "epinions")
PAPER_STATISTICS = {one.paper_name: one.counts for one in AMAZON.published.values()}


def check(data: CrossDomainData, dataset: str = "amazon") -> list[Check]:
    return check_statistics(data, DATASETS[dataset])


def sized(data: CrossDomainData, name: str, **statistics: int) -> CrossDomainData:
    """The data under another name and with other counts."""
    return replace(data, name=name, statistics={**data.statistics, **statistics})


def test_the_papers_table_has_seven_scenarios_of_five_numbers() -> None:
    # Totals of the rows of Table 4, added up from its text.
    totals = {
        "users": 110_870,
        "source": 2_747_958,
        "target": 1_821_284,
        "source_items": 912_794,
        "target_items": 230_873,
    }
    assert len(PAPER_STATISTICS) == 7
    for what, total in totals.items():
        assert sum(row[what] for row in PAPER_STATISTICS.values()) == total
    assert PAPER_STATISTICS["Books-Toys"] == {
        "users": 7_576,
        "source": 317_646,
        "target": 84_564,
        "source_items": 134_350,
        "target_items": 11_567,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (BOOKS_TOYS, "Books-Toys"),
        ("Amazon Electronics → Clothing_Shoes_and_Jewelry", "Elec-Cloth"),
        ("Amazon CDs_and_Vinyl → Home_and_Kitchen", "CDs-Kitchen"),
        ("Amazon Toys_and_Games → Books", None),
        ("Books → Toys_and_Games", None),  # of a file of one's own
    ],
)
def test_the_papers_names_are_found(name: str, expected: str | None) -> None:
    published = AMAZON.published.get(name)
    assert (None if published is None else published.paper_name) == expected
    if expected is not None and published is not None:
        assert AMAZON.paper_scenarios[expected] == (published.source, published.target)


@pytest.mark.parametrize("reading", ["source", "source_train"])
def test_either_reading_of_the_papers_source_will_do(tiny: CrossDomainData, reading: str) -> None:
    table = PAPER_STATISTICS["Books-Toys"]
    data = sized(tiny, BOOKS_TOYS, **{**table, "source": 1, "source_train": 2, reading: 317_646})
    checks = check(data)
    other = {"source": 2, "source_train": 1}[reading]
    got = {c.what: (c.expected, c.got, c.match) for c in checks}
    assert got.pop("users") == (7_576, 7_576, True)
    assert sorted(got.pop(f"source {when} the cut") for when in ("before", "after")) == [
        (317_646, other, False),
        (317_646, 317_646, True),
    ]
    assert list(got) == ["target", "source_items", "target_items"]
    assert agrees(checks)


def test_a_number_that_is_off_by_one_is_told(tiny: CrossDomainData) -> None:
    table = {**PAPER_STATISTICS["Books-Toys"], "source_train": 317_646}
    checks = check(sized(tiny, BOOKS_TOYS, **{**table, "target": 84_565}))
    assert [c for c in checks if not c.match] == [("target", 84_564, 84_565, False)]
    assert not agrees(checks)
    assert not agrees(check(sized(tiny, BOOKS_TOYS, **{**table, "source": 0, "source_train": 0})))


def test_others_are_compared_before_the_cut(tiny: CrossDomainData) -> None:
    known = [(dataset, *item) for dataset in OTHERS for item in DATASETS[dataset].published.items()]
    assert len(known) == 7
    for dataset, name, published in known:
        table = published.counts
        checks = check(sized(tiny, name, **table), dataset)
        assert [c.what for c in checks] == list(table) and agrees(checks)
        assert not agrees(check(sized(tiny, name, **{**table, "source": 1}), dataset))


def test_nothing_is_known_of_other_data(tiny: CrossDomainData) -> None:
    assert all(check(tiny, name) == [] for name in DATASETS)
