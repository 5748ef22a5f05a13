"""The real data: published counts, met exactly. REWEIGHT_DATA names the folder that holds them."""

from __future__ import annotations

import os

import pytest

from cdr.data import audit, load

pytestmark = pytest.mark.skipif(
    "REWEIGHT_DATA" not in os.environ,
    reason="REWEIGHT_DATA is unset; it names the folder that holds amazon5/ and epinions/",
)

TOYS = "Toys_and_Games"
COUNTED = ("users", "source", "target", "source_items", "target_items")
SCENARIOS = {
    ("amazon5", "Beauty", TOYS): (1654, 28890, 28197, 6158, 7199),
    ("amazon5", TOYS, "Beauty"): (1654, 28197, 28890, 7199, 6158),
    ("amazon5", "Baby", TOYS): (2976, 29286, 38875, 5424, 8625),
    ("amazon5", "Office_Products", TOYS): (1609, 23528, 29326, 2152, 6036),
    ("amazon5", "Baby+Office_Products+Beauty", TOYS): (4617, 81704, 59485, 13734, 10071),
    ("epinions", "3", "4"): (8323, 127400, 92733, 26039, 54924),
    ("epinions", "3", "5"): (7243, 114461, 75263, 25162, 31897),
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s[1]}-{s[2]}")
def test_statistics_match_and_nothing_leaks(scenario: tuple[str, str, str]) -> None:
    spec, source, target = scenario
    data = load(spec, os.environ["REWEIGHT_DATA"], source, target)
    assert tuple(data.statistics[name] for name in COUNTED) == SCENARIOS[scenario]
    assert data.statistics["test"] == data.num_users
    audit(data)


def test_beauty_is_cut_at_a_bound_that_is_noted() -> None:
    data = load("amazon5", os.environ["REWEIGHT_DATA"])
    assert data.source_cut == "time" and data.statistics["source_train"] == 19110
    assert "19,110 of 28,890 source behaviours are left" in data.notes[0]
    assert {"Nails", "Shampoos", "others"} <= set(data.source_items.category_names)


def test_sources_without_times_are_kept_whole_and_noted() -> None:
    data = load("amazon5", os.environ["REWEIGHT_DATA"], "Baby", TOYS)
    assert data.source_cut == "all" and "The source has no times" in data.notes[0]


def test_domains_of_a_joint_source_are_its_categories() -> None:
    data = load("epinions", os.environ["REWEIGHT_DATA"], "others", "4")
    assert data.name == "Epinions others → 4"
    assert "4" not in data.source_items.category_names
    assert data.source_items.num_categories == 25  # of 26, one shares no user
    assert data.target_items.category_names == ("others",)
    assert data.statistics["short_users"] == 5562
