"""Titles of items: each item's own, also where domains share ids."""

from __future__ import annotations

from pathlib import Path

import amazon_files
import pytest

from cdr.runs import Source, item_titles


def own(items: Path, source: str) -> Source:
    options = {"items": items, "source": source, "target": "films"}
    return Source("log.csv", tuple(options.items()))


def test_items_of_several_domains_that_share_ids_have_titles_of_their_own(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text(
        "item;Title;domain\na;The book;books\na;The toy;toys\na;The film;films\nb;;books\n"
        "a;Another book;books\n"
    )
    asked = ["books/a", "books/b", "toys/a", "toys/c", "a"]
    assert item_titles(own(items, "books+toys"), asked) == {
        "books/a": "The book",
        "toys/a": "The toy",
        "a": "The film",  # of the target
    }
    assert item_titles(own(items, "toys"), ["a"]) == {"a": "The toy"}


def test_a_slash_may_be_a_part_of_an_id(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item,title\nx/a,With a slash\na,Without\n")
    assert item_titles(own(items, "books"), ["x/a"]) == {"x/a": "With a slash"}
    assert item_titles(own(items, "books+toys"), ["books/x/a"]) == {"books/x/a": "With a slash"}


@pytest.mark.parametrize("content", ["item,category\na,b\n", ""])
def test_without_a_column_of_titles_there_are_none(content: str, tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text(content)
    source = own(items, "books") if content else Source("log.csv")
    assert item_titles(source, ["a"]) == {}


def test_amazon_is_asked_by_the_names_of_its_files(tmp_path: Path) -> None:
    root = amazon_files.write_all(tmp_path)
    options = {"root": root, "source": "Books", "target": "Toys"}
    assert item_titles(Source("amazon", tuple(options.items())), ["B0"]) == {
        "B0": "It's [a] 'title'"
    }
