"""The domains of Amazon 2014: their names in the files, in the paper and in tables."""

from __future__ import annotations

from collections.abc import Mapping

PAPER_DOMAINS: Mapping[str, str] = {
    "Books": "Books",
    "Movies": "Movies_and_TV",
    "CDs": "CDs_and_Vinyl",
    "Elec": "Electronics",
    "Toys": "Toys_and_Games",
    "Cloth": "Clothing_Shoes_and_Jewelry",
    "Kitchen": "Home_and_Kitchen",
}
"""What the paper calls a domain, and its name in the files."""

TABLE_NAMES: Mapping[str, str] = {
    **{full: short for short, full in PAPER_DOMAINS.items()},
    "Office_Products": "Office",
}
"""What tables call a domain, by its name in the files."""


def full_name(domain: str) -> str:
    """A domain's name in the files, given that or the paper's."""
    return PAPER_DOMAINS.get(domain, domain)
