"""Titles of items, as far as a data set has them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cdr.data import find_dataset
from cdr.runs.runner import Source


def item_titles(source: Source, items: Collection[str]) -> dict[str, str]:
    """The titles of some items by id, as far as they are known.

    Args:
        source: What the items were loaded from.
        items: Ids; those of several source domains with the domain's name in front.
    """
    dataset, options = find_dataset(source.spec), dict(source.options)
    if dataset.titles is None or not items:
        return {}
    default = dataset.scenarios[0] if dataset.scenarios else ("", "")
    domains = str(options.get("source", default[0])).split("+")
    target = str(options.get("target", default[1]))
    root = Path(options.get("root") or ".")
    given = {"catalogue": options["items"]} if "items" in options else {}
    given |= {"limits": options["limits"]} if "limits" in options else {}
    if len(domains) == 1:
        return dict(dataset.titles(root, (domains[0], target), items, **given))
    found: dict[str, str] = {}
    left = set(items)
    for domain in domains:
        front = f"{dataset.full_name(domain)}/"
        bare = {item.removeprefix(front): item for item in left if item.startswith(front)}
        known = dataset.titles(root, (domain, target), bare, **given)
        found |= {bare[item]: title for item, title in known.items()}
        left -= set(bare.values())
    return found | dict(dataset.titles(root, (target, target), left, **given))
