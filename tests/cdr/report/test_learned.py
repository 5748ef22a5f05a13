"""Learned weights on a page: right numbers, the largest categories, safe and readable names."""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cdr.common import write_json
from cdr.data import CrossDomainData
from cdr.report import Document, Learned, sheet, write_page
from cdr.report.readable import readable

HOSTILE = '<script>alert("x")</script> $\\frac{a}$ & \x00\x1b[31m\u202egnp'


def weights_of(data: CrossDomainData, seeds: int = 2) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (2 * rng.random((seeds, len(data.source)))).astype(np.float32)


def test_the_table_by_category_has_the_means(tiny: CrossDomainData) -> None:
    weights = weights_of(tiny)
    shown, rest = Learned("CoNet+ours", tiny, weights).categories
    category = tiny.source_items.category[tiny.source.item].numpy()
    assert sum(one.count for one in shown) + (rest.count if rest else 0) == len(category)
    assert [one.weight for one in shown] == sorted((one.weight for one in shown), reverse=True)
    sizes = [one.count for one in shown]
    assert rest is None or rest.count <= min(sizes) * int(rest.name.split()[0])
    for one in shown:
        rows = category == tiny.source_items.category_names.index(one.name)
        means = [seed[rows].astype(np.float64).mean() for seed in weights]
        # Sums of the same float64 numbers in another order.
        assert one.weight == pytest.approx(np.mean(means), rel=1e-12)
        assert one.spread == pytest.approx(np.std(means, ddof=1), rel=1e-9)
        assert one.liked == pytest.approx(tiny.source.label.numpy()[rows].mean(), rel=1e-6)


def test_the_histogram_counts_every_behaviour_once(tiny: CrossDomainData) -> None:
    for factor in (0.0, 1.0, 40.0):  # all equal, within the usual range, and far above it
        learned = Learned("x", tiny, factor * weights_of(tiny))
        assert sum(one.count for one in learned.histogram) == len(tiny.source)


def test_the_extremes_are_the_extremes(tiny: CrossDomainData) -> None:
    weights = weights_of(tiny)

    def titles(items: Collection[str]) -> dict[str, str]:
        return {item: f"Title of {item}" for item in list(items)[::2]}

    learned = Learned("x", tiny, weights, titles)
    mean = np.sort(weights.mean(0, dtype=np.float64))
    assert [one.weight for one in learned.extremes["highest"]] == mean[::-1][:10].tolist()
    assert [one.weight for one in learned.extremes["lowest"]] == mean[:10].tolist()
    named = [one for rows in learned.extremes.values() for one in rows]
    assert {bool(one.item_id) for one in named} == {True, False}
    for one in named:
        assert not one.item_id or one.item == f"Title of {one.item_id}"
    assert learned.tied("highest") == 0
    equal = Learned("x", tiny, np.ones_like(weights))
    assert equal.tied("lowest") == len(tiny.source) - 10


def page(folder: Path, document: Document, learned: Learned | None = None) -> str:
    for name in ("config", "environment"):
        write_json(folder / f"{name}.json", {"name": HOSTILE})
    (folder / "command.txt").write_text("run_biao.py\n", encoding="utf-8")
    write_page(folder, document, {}, () if learned is None else (learned,))
    return (folder / "report.html").read_text(encoding="utf-8")


class Strict(HTMLParser):
    """Collects tags, and the texts between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_names_on_the_page_cannot_be_more_than_names(tiny: CrossDomainData, tmp_path: Path) -> None:
    items = tiny.source_items
    ids = np.array([f"{HOSTILE}{n}" for n in range(items.num)], dtype=object)
    categories = tuple(f"{HOSTILE}{n}" for n in range(items.num_categories))
    users = np.array([f"{HOSTILE}{n}" for n in range(tiny.num_users)], dtype=object)
    data = replace(
        tiny,
        user_ids=users,
        source_items=replace(items, ids=ids, category_names=categories),
    )
    learned = Learned(HOSTILE, data, weights_of(data), lambda items: {i: HOSTILE for i in items})
    notes = (HOSTILE,)
    document = Document(HOSTILE, (sheet((HOSTILE, "b"), [(HOSTILE, "1")]),), (), notes)
    text = page(tmp_path, replace(document, conclusions=notes), learned)
    parser = Strict()
    parser.feed(text)
    assert "script" not in parser.tags and "iframe" not in parser.tags
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "http" not in re.sub("json|html", "", text)  # nothing is fetched from elsewhere
    # They can still be read.
    assert any('<script>alert("x")</script> $\\frac{a}$ & ␀␛[31m' in one for one in parser.texts)


def test_the_page_shows_the_weights(tiny: CrossDomainData, tmp_path: Path) -> None:
    learned = Learned("CoNet+ours", tiny, weights_of(tiny))
    document = Document("Results", (sheet(("model", "AUC"), [("CoNet", ".7")]),))
    text = html.unescape(page(tmp_path, replace(document, conclusions=("Nothing.",)), learned))
    for one in learned.categories[0]:
        assert one.name in text and f"{one.weight:.3f}" in text
    for rows in learned.extremes.values():
        assert all(one.item in text and one.user in text for one in rows)
    assert "Learned weights: CoNet+ours" in text and learned.sentence in text
    assert 'class="conclusions"' in text and "<p>Nothing.</p>" in text
    assert "Learned weights" not in page(tmp_path, document)


def test_one_category_is_no_table(tiny: CrossDomainData, tmp_path: Path) -> None:
    items = tiny.source_items
    one = replace(items, category=items.category * 0, category_names=("others",))
    learned = Learned("x", replace(tiny, source_items=one), weights_of(tiny))
    text = page(tmp_path, Document("x", (sheet(("a", "b"), [("c", "d")]),)), learned)
    assert "All items are of one category" in text and ">others<" not in text


def test_wide_tables_name_the_column_beside_each_value(tmp_path: Path) -> None:
    heads = ("model", "AUC", "±", "p", "remark")
    text = page(tmp_path, Document("x", (sheet(heads, [("CoNet", "1", "2", "3", "4")]),)))
    assert 'class="blocks"' in text and 'data-head="remark"' in text


def test_long_and_blank_names_stay_readable() -> None:
    assert readable(" \t ") == "(blank)" and readable("a\nb") == "a␊b"
    assert len(readable("x" * 5000)) == 120
