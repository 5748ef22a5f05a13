"""Epochs as lists, and settings that a sampler accepts."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from reweight.samplers import FoldSampler, ReorderReuseSampler, SplitSampler

Pairs = list[tuple[list[int], list[int]]]


def epoch_of(sampler: FoldSampler | ReorderReuseSampler | SplitSampler) -> Pairs:
    return [(train.tolist(), dev.tolist()) for train, dev in sampler]


def all_ranks(cls: Any, settings: dict[str, Any]) -> list[Any]:
    """The sampler of each rank."""
    return [cls(**settings, rank=rank) for rank in range(settings.get("num_replicas", 1))]


def globally(ranks: list[Any]) -> Pairs:
    """One epoch of all ranks, each pair put together from the ranks' shares."""
    return [
        (sum((train for train, _ in pair), []), sum((dev for _, dev in pair), []))
        for pair in zip(*(epoch_of(rank) for rank in ranks), strict=True)
    ]


@st.composite
def reuse_settings(draw: st.DrawFn, disjoint: bool = True) -> dict[str, Any]:
    """Sizes up to the tightest that a disjoint sampler accepts."""
    num_replicas = draw(st.sampled_from([1, 2, 3, 4, 7]))
    n = draw(st.integers(2 * num_replicas, 40))
    largest = n // num_replicas - 1
    batch_size = draw(st.integers(1, largest))
    same = 2 * batch_size <= n // num_replicas and draw(st.booleans())
    dev_batch_size = None if same else draw(st.integers(1, largest - batch_size + 1))
    return {
        "n": n,
        "batch_size": batch_size,
        "dev_batch_size": dev_batch_size,
        "seed": draw(st.integers(0, 2**40)),
        "disjoint": disjoint,
        "num_replicas": num_replicas,
    }


@st.composite
def split_settings(draw: st.DrawFn) -> dict[str, Any]:
    num_replicas = draw(st.sampled_from([1, 2, 3, 4, 7]))
    n = draw(st.integers(2 * num_replicas, 40))
    held_out = draw(st.integers(num_replicas, n - num_replicas))
    return {
        "n": n,
        "ratio": held_out / n,
        "batch_size": draw(st.integers(1, 12)),
        "dev_batch_size": draw(st.none() | st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**40)),
        "num_replicas": num_replicas,
    }


@st.composite
def fold_settings(draw: st.DrawFn) -> dict[str, Any]:
    num_replicas, folds = draw(st.sampled_from([1, 2, 3])), draw(st.integers(2, 5))
    return {
        "n": draw(st.integers(folds * num_replicas, 40)),
        "folds": folds,
        "fold": draw(st.integers(0, folds - 1)),
        "batch_size": draw(st.integers(1, 12)),
        "dev_batch_size": draw(st.none() | st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**40)),
        "num_replicas": num_replicas,
    }


any_sampler = st.one_of(
    st.tuples(st.just(ReorderReuseSampler), reuse_settings()),
    st.tuples(st.just(ReorderReuseSampler), reuse_settings(disjoint=False)),
    st.tuples(st.just(SplitSampler), split_settings()),
    st.tuples(st.just(FoldSampler), fold_settings()),
)
