"""A generator of two domains in which the relevant source behaviours are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cdr.data.dataset import Dataset
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.schema import CrossDomainData, Interactions
from cdr.data.split import build

_EXTRA_ITEMS = 10  # further target items of each user, kept as a test without much noise
_HOUSEHOLD_TILTS = (-2.0, 1.0)  # of log weight: relevant categories, the others
_THRESHOLDS = (-2.6, -1.7, 0.0, 1.2)  # of the score, between ratings 1 to 5
_TASTE_SIZE = 2


@dataclass(frozen=True)
class _Recipe:
    """The parameters of one kind of data."""

    relevant_share: float  # of the source categories
    source_rate: float  # mean number of source behaviours above the minimum
    household_share: float = 0.0  # of the users: those without a relevant behaviour
    target_rate: float = 1.0
    minimum: int = 5
    source_categories: int = 24
    target_categories: int = 12


KINDS = {
    "G1": _Recipe(relevant_share=0.4, source_rate=15.0),
    "G2": _Recipe(relevant_share=0.5, source_rate=25.0, household_share=0.25),
}


@dataclass(frozen=True)
class _Catalogue:
    """The items of one domain, [num_items] each."""

    category: np.ndarray
    vector: np.ndarray  # [num_items, _TASTE_SIZE]
    bias: np.ndarray
    popularity: np.ndarray


def generate(
    kind: str = "G1",
    *,
    num_users: int = 4000,
    num_source_items: int = 4000,
    num_target_items: int = 1500,
    seed: int = 0,
    protocol: Protocol = LAST_ONE,
) -> CrossDomainData:
    """Generate a scenario in which some source behaviours are informative about the target.

    "G1": relevance depends on the category; 40 % of the source categories are *relevant*. Each
    user has a taste z and a bias b, and another taste n and bias b' that are independent of the
    target. Target behaviours and source behaviours of relevant categories are rated from
    (z, b), the other source behaviours from (n, b')::

        score = 1.6 + 1.8 <item, taste> + item bias + user bias + 0.7 logistic noise

    cut at (-2.6, -1.7, 0, 1.2) into ratings 1 to 5. Tastes are standard normal in R^2, user biases
    N(0, 2^2), item biases N(0, 0.5^2); an item is (0.85 category mean + 0.5 noise) / sqrt(2).
    A user has 5 + Poisson(Gamma(shape 1, scale 15)) source and 5 + Poisson(Gamma(1, 1)) target
    behaviours, on items drawn without replacement in proportion to popularity *
    exp(0.6 <item, z>), where popularity is (rank + 5)^-0.9. The target spans 400 days from a
    random start, the source 600 days from 200 days earlier, in whole days. Draws of a user are
    shuffled before they are separated, so that `extra_test` (ten items a user, in none of the
    user's other rows) is distributed as the target behaviours are.

    "G2": relevance depends on the user too. As "G1", but half of the source categories are
    relevant, the scale of the source's Gamma is 25, and a quarter of the users are *households*,
    whose source is uninformative: all their source behaviours are rated from (n, b') and none is
    flagged. It shows in the mix of categories: in proportion to the product above, times exp(-2)
    for a source item of a relevant category and times exp(1) for any other.

    Args:
        kind: "G1" or "G2".
        num_users: Number of users.
        num_source_items: Size of the source catalogue.
        num_target_items: Size of the target catalogue.
        seed: Equal seeds give equal data.
        protocol: See :func:`cdr.data.split.build`.

    Returns:
        The scenario after :func:`cdr.data.split.build`, with `relevant` and `extra_test`.

    Raises:
        ValueError: If `kind` is unknown or a size is too small.

    Example:
        >>> data = generate("G1", num_users=50, seed=1)
        >>> data.num_users, len(data.extra_test), len(data.relevant) == len(data.source)
        (50, 500, True)
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; there is {', '.join(KINDS)}.")
    recipe = KINDS[kind]
    smallest = 2 * (recipe.minimum + _EXTRA_ITEMS)
    for name, size, least in (
        ("num_users", num_users, 1),
        ("num_source_items", num_source_items, smallest),
        ("num_target_items", num_target_items, smallest),
    ):
        if size < least:
            raise ValueError(f"{name} is {size}; give at least {least}.")

    rng = np.random.default_rng(seed)
    taste, nuisance = rng.standard_normal((2, num_users, _TASTE_SIZE))
    bias, nuisance_bias = 2.0 * rng.standard_normal((2, num_users))
    start = np.floor(1000.0 * rng.random(num_users))
    users = _Users(taste, nuisance, bias, nuisance_bias, start)
    source_items = _catalogue(rng, num_source_items, recipe.source_categories)
    target_items = _catalogue(rng, num_target_items, recipe.target_categories)
    source = _source(rng, recipe, users, source_items)
    target, is_extra = _target(rng, recipe, users, target_items)
    return build(
        kind,
        source,
        target.select(~is_extra),
        protocol=protocol,
        extra_test=target.select(is_extra),
    )


@dataclass(frozen=True)
class _Users:
    """The users, [num_users] each.

    Attributes:
        taste: What target ratings and relevant source ratings come from, [num_users, _TASTE_SIZE].
        nuisance: What the other source ratings come from, likewise.
        bias: Added to the scores of the former.
        nuisance_bias: Added to the scores of the latter.
        start: First day of the target.
    """

    taste: np.ndarray
    nuisance: np.ndarray
    bias: np.ndarray
    nuisance_bias: np.ndarray
    start: np.ndarray


def _source(
    rng: np.random.Generator, recipe: _Recipe, users: _Users, items: _Catalogue
) -> Interactions:
    """The source behaviours with their flags; all draws of a user are behaviours."""
    relevant = _random_mask(rng, recipe.source_categories, recipe.relevant_share)
    household = _random_mask(rng, len(users.start), recipe.household_share)
    tilt = household[:, None] * np.where(relevant, *_HOUSEHOLD_TILTS)
    user, item, _ = _pick(rng, items, users.taste, tilt, recipe.source_rate, recipe.minimum)
    flag = relevant[items.category[item]] & ~household[user]
    score = _score(
        rng,
        items,
        item,
        np.where(flag[:, None], users.taste[user], users.nuisance[user]),
        np.where(flag, users.bias[user], users.nuisance_bias[user]),
    )
    time = users.start[user] - 200.0 + np.floor(600.0 * rng.random(len(user)))
    category = _names(items.category[item])
    return Interactions(user, item, _rating(score) > 3, time, category=category, relevant=flag)


def _target(
    rng: np.random.Generator, recipe: _Recipe, users: _Users, items: _Catalogue
) -> tuple[Interactions, np.ndarray]:
    """The target behaviours, and which of them are the extra test: the first draws of a user."""
    no_tilt = np.zeros((len(users.start), recipe.target_categories))
    minimum = recipe.minimum + _EXTRA_ITEMS
    user, item, place = _pick(rng, items, users.taste, no_tilt, recipe.target_rate, minimum)
    score = _score(rng, items, item, users.taste[user], users.bias[user])
    time = users.start[user] + np.floor(400.0 * rng.random(len(user)))
    category = _names(items.category[item])
    target = Interactions(user, item, _rating(score) > 3, time, category=category)
    return target, place < _EXTRA_ITEMS


def _catalogue(rng: np.random.Generator, num_items: int, num_categories: int) -> _Catalogue:
    category = rng.integers(num_categories, size=num_items)
    mean = rng.standard_normal((num_categories, _TASTE_SIZE))
    noise = rng.standard_normal((num_items, _TASTE_SIZE))
    return _Catalogue(
        category,
        (0.85 * mean[category] + 0.5 * noise) / np.sqrt(2.0),
        0.5 * rng.standard_normal(num_items),
        (rng.permutation(num_items) + 5.0) ** -0.9,
    )


def _random_mask(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """A mask [size] that is True at a share of the places, drawn at random."""
    mask = np.zeros(size, dtype=bool)
    chosen = round(share * size)
    if chosen:  # without a draw the random numbers that follow stay the same
        mask[rng.permutation(size)[:chosen]] = True
    return mask


def _pick(
    rng: np.random.Generator,
    catalogue: _Catalogue,
    taste: np.ndarray,
    tilt: np.ndarray,
    rate: float,
    minimum: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws of items without replacement: user [n], item [n], place among the user's draws [n].

    `tilt` [num_users, num_categories] is added to the logarithm of the weights.
    """
    num_users, num_items = len(taste), len(catalogue.bias)
    count = minimum + rng.poisson(rng.gamma(1.0, rate, size=num_users))
    # Half of a small catalogue at most, or the last draws would no longer follow the taste.
    count = np.minimum(count, num_items // 2)
    most = int(count.max())
    items = np.empty((num_users, most), dtype=np.int64)
    for begin in range(0, num_users, 500):  # in blocks, to bound the memory
        block = slice(begin, begin + 500)
        liking = 0.6 * taste[block] @ catalogue.vector.T + tilt[block][:, catalogue.category]
        weight = catalogue.popularity * np.exp(liking)
        # Race of exponential clocks (the Gumbel top-k trick without logarithms): the k smallest
        # of E / w are k draws without replacement in proportion to w.
        clock = rng.standard_exponential(weight.shape, dtype=np.float32) / weight
        first = np.argpartition(clock, most - 1, axis=1)[:, :most]
        by_clock = np.argsort(np.take_along_axis(clock, first, axis=1), axis=1)
        items[block] = np.take_along_axis(first, by_clock, axis=1)
    # The first draws are the popular ones: shuffle, so that a draw's place says nothing.
    real = np.arange(most) < count[:, None]
    shuffled = np.argsort(np.where(real, rng.random(real.shape), 2.0), axis=1)
    items = np.take_along_axis(items, shuffled, axis=1)
    user, place = np.nonzero(real)
    return user, items[real], place


def _score(
    rng: np.random.Generator,
    catalogue: _Catalogue,
    item: np.ndarray,
    taste: np.ndarray,
    user_bias: np.ndarray,
) -> np.ndarray:
    liking = (catalogue.vector[item] * taste).sum(axis=1)
    noise = 0.7 * rng.logistic(size=len(item))
    return np.asarray(1.6 + 1.8 * liking + catalogue.bias[item] + user_bias + noise)


def _rating(score: np.ndarray) -> np.ndarray:
    return np.asarray(np.digitize(score, _THRESHOLDS)) + 1


def _names(category: np.ndarray) -> np.ndarray:
    # Padded, so that the names sort as the numbers do.
    names = np.array([f"c{number:02d}" for number in range(category.max() + 1)], dtype=object)
    return np.asarray(names[category])


def _dataset(kind: str) -> Dataset:
    # By the name of the module, so that a test can replace `generate` by one of small data.
    def load(**options: Any) -> CrossDomainData:
        return generate(kind, **options)

    def sample() -> CrossDomainData:
        return load(num_users=20, num_source_items=60, num_target_items=60, seed=0)

    name = kind.lower()
    return Dataset(name, "generated", load, flags=frozenset(), sample=sample)


DATASETS = tuple(map(_dataset, KINDS))
