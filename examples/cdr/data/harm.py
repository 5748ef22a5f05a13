"""A known harm to the source behaviours of a scenario; the flags tell what was harmed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch

from cdr.data.new_source import with_source
from cdr.data.schema import CrossDomainData, Items

HarmKind = Literal["flip-items", "flip-users", "permute-users", "foreign-domain"]


@dataclass(frozen=True)
class Harm:
    """What is done to the source behaviours that a model trains on.

    Args:
        kind: "flip-items": the labels of all behaviours of some items are flipped; "flip-users":
            those of some users; "permute-users": the behaviours of some users (item and label)
            are permuted among these users, within the category of the item, so that neither labels
            nor categories tell which they are; "foreign-domain": the behaviours of some users are
            replaced by random ones of another domain, or of other users.
        share: How many of the items or users, between 0 and 1. Of those in the source behaviours
            that are trained on.
        seed: Which; equal seeds harm equally.

    Raises:
        ValueError: If the kind is unknown, or share or seed is out of range.
    """

    kind: HarmKind
    share: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(HarmKind):
            raise ValueError(
                f"--harm {self.kind}: there is no such harm; there are "
                f"{', '.join(get_args(HarmKind))}."
            )
        if not 0 < self.share < 1:
            raise ValueError(
                f"--harm-share {self.share:g}: it must lie between 0 and 1; harm to all or to none "
                "leaves no truth to be found."
            )
        if self.seed < 0:
            raise ValueError(f"--harm-seed {self.seed}: it must be 0 or more.")

    def __str__(self) -> str:
        return f"{self.kind} {self.share:g}" + (f" (seed {self.seed})" if self.seed else "")


class Foreign(NamedTuple):
    """Behaviours of a domain that is not part of the scenario.

    Args:
        domain: Its name.
        data: A scenario that has it as the source.
    """

    domain: str
    data: CrossDomainData


class _Changed(NamedTuple):
    """What becomes of the source rows.

    Args:
        item: Item index of each, [n].
        label: Whether each is positive, bool [n].
        items: The items.
        harmed: Which are harmed, bool [n].
        done: What was done, in words.
    """

    item: np.ndarray
    label: np.ndarray
    items: Items
    harmed: np.ndarray
    done: str


def harmed(data: CrossDomainData, harm: Harm, foreign: Foreign | None = None) -> CrossDomainData:
    """The scenario after a harm to its source behaviours.

    Each behaviour keeps its user and its time; its item, its label or both are another's. The harm
    comes before the histories: they show what the log shows after it. `relevant` is False where a
    behaviour was harmed; where the data had flags already, it is False too where they were.

    Args:
        data: A scenario on the CPU.
        harm: What to do.
        foreign: Where "foreign-domain" takes behaviours from; None: from other users of the
            source.

    Raises:
        ValueError: If all or none of the behaviours would be harmed.

    Example:
        >>> from cdr.data.generator import generate
        >>> data = generate("G1", num_users=50, seed=1)
        >>> after = harmed(data, Harm("flip-users", share=0.5))
        >>> flipped = after.source.label != data.source.label
        >>> len(after.source.user[flipped].unique()), bool(after.relevant[flipped].any())
        (25, False)
    """
    rng = np.random.default_rng(harm.seed)
    changed = _change(data, harm, foreign, rng)
    count, num = int(changed.harmed.sum()), len(data.source)
    if count in (0, num):
        raise ValueError(
            f"--harm {harm.kind} --harm-share {harm.share:g}: {count:,} of {num:,} source "
            "behaviours would be harmed, so that there is no truth to be found. Take another "
            "share, or data with more users and items."
        )
    relevant = ~changed.harmed
    if data.relevant is not None:
        relevant &= data.relevant.numpy()
    after = with_source(data, changed.item, changed.label, changed.items, relevant)
    note = (
        f"Known harm, {harm}: {changed.done}. This harms {count:,} of {num:,} source behaviours "
        "that are trained on; their flags are false. Histories are built "
        "after it, and the target is as it was."
    )
    return replace(
        after,
        name=f"{data.name}, {harm}",
        statistics={**after.statistics, "harmed": count},
        notes=(note, *data.notes),
    )


def _change(
    data: CrossDomainData, harm: Harm, foreign: Foreign | None, rng: np.random.Generator
) -> _Changed:
    user, item = data.source.user.numpy(), data.source.item.numpy()
    label = data.source.label.numpy().astype(bool)
    items = data.source_items
    if harm.kind == "flip-items":
        chosen, told = _chosen(item, harm.share, "source items", rng)
        done = f"the labels of the behaviours of {told} are flipped"
        return _Changed(item, label ^ chosen, items, chosen, done)
    chosen, told = _chosen(user, harm.share, "users with source behaviours", rng)
    if harm.kind == "flip-users":
        done = f"the labels of the behaviours of {told} are flipped"
        return _Changed(item, label ^ chosen, items, chosen, done)
    rows = np.flatnonzero(chosen)
    if harm.kind == "foreign-domain" and foreign is not None:
        return _from_domain(item, label, items, rows, foreign, told, rng)
    if harm.kind == "permute-users":
        taken = _permuted(rows, items.category.numpy()[item[rows]], rng)
        done = f"the behaviours of {told} are permuted among them, within the category"
    else:
        taken = _of_others(user, rows, rng)
        done = (
            f"the behaviours of {told} are replaced by random ones of other users, since the data "
            "have no other domain"
        )
    new_item, new_label = item.copy(), label.copy()
    new_item[rows], new_label[rows] = item[taken], label[taken]
    foreign_rows = np.zeros(len(user), dtype=bool)
    # A behaviour that comes back to its own user is not harmed.
    foreign_rows[rows] = user[taken] != user[rows]
    return _Changed(new_item, new_label, items, foreign_rows, done)


def _chosen(
    of: np.ndarray, share: float, what: str, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """The rows of a share of the users or items, as a mask [n], and how many these are."""
    unique, place = np.unique(of, return_inverse=True)
    count = round(share * len(unique))
    taken = np.zeros(len(unique), dtype=bool)
    taken[rng.permutation(len(unique))[:count]] = True
    return taken[place], f"{count:,} of {len(unique):,} {what}"


def _permuted(rows: np.ndarray, category: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each of some rows the row whose behaviour it gets: a permutation in each category."""
    place = np.lexsort((np.arange(len(rows)), category))
    drawn = np.lexsort((rng.random(len(rows)), category))
    taken = np.empty_like(rows)
    taken[place] = rows[drawn]
    return taken


def _of_others(user: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each of some rows a random row of another user; itself if there is a single user."""
    first, last = np.searchsorted(user, user[rows]), np.searchsorted(user, user[rows], "right")
    others = len(user) - (last - first)
    drawn = (rng.random(len(rows)) * others).astype(np.int64)
    # The rows of a user are neighbours: those behind them are counted on from their end.
    taken = np.where(drawn < first, drawn, drawn + (last - first))
    return np.where(others > 0, taken, rows)


def _from_domain(
    item: np.ndarray,
    label: np.ndarray,
    items: Items,
    rows: np.ndarray,
    foreign: Foreign,
    told: str,
    rng: np.random.Generator,
) -> _Changed:
    """Random behaviours of another domain in the place of some rows."""
    others = foreign.data
    drawn = rng.integers(len(others.source), size=len(rows))
    shown, place = np.unique(others.source.item.numpy()[drawn], return_inverse=True)
    joined, old, new = _joined(items, others.source_items, shown, foreign.domain)
    new_item, new_label = old[item], label.copy()
    new_item[rows] = new[place]
    new_label[rows] = others.source.label.numpy()[drawn] > 0.5
    chosen = np.zeros(len(item), dtype=bool)
    chosen[rows] = True
    done = f"the behaviours of {told} are replaced by random ones of the domain {foreign.domain}"
    return _Changed(new_item, new_label, joined, chosen, done)


def _joined(
    items: Items, others: Items, shown: np.ndarray, domain: str
) -> tuple[Items, np.ndarray, np.ndarray]:
    """Items with some of another domain, whose names go in front of their ids and categories.

    Returns:
        The items; the new index of each of `items` [num]; and of those shown [len(shown)].
    """
    ids = np.array(
        [*map(str, items.ids), *(f"{domain}/{name}" for name in others.ids[shown])], dtype=object
    )
    names = np.array([f"{domain}/{name}" for name in others.category_names], dtype=object)
    categories = np.array(items.category_names, dtype=object)[items.category.numpy()]
    of_item = np.concatenate([categories, names[others.category.numpy()[shown]]])
    order = np.argsort(ids, kind="stable")
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    category_names, category = np.unique(of_item[order].astype(str), return_inverse=True)
    joined = Items(ids[order], torch.from_numpy(category), tuple(map(str, category_names)))
    return joined, rank[: items.num], rank[items.num :]
