"""The generator: what it says about relevance, ratings, the extra test and its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdr.data import CrossDomainData, audit, generate


@pytest.fixture(scope="module")
def data() -> CrossDomainData:
    return generate("G1", num_users=1000, seed=3)


def rows(part) -> list[tuple[int, int]]:
    return list(zip(part.user.tolist(), part.item.tolist(), strict=True))


def test_it_holds_no_leak(data: CrossDomainData) -> None:
    audit(data)
    assert data.source_cut == "time"


def test_sizes_are_as_specified(data: CrossDomainData) -> None:
    counts = data.statistics
    # Means 5 + 15 and 5 + 1; their standard errors over 1,000 users are 0.5 and 0.05.
    assert abs(counts["source"] / 1000 - 20) < 2
    assert abs(counts["target"] / 1000 - 6) < 0.2
    assert data.source_items.num_categories == 24 and data.target_items.num_categories == 12
    assert counts["short_users"] == 0
    per_user = torch.bincount(data.train.user, minlength=1000)
    assert per_user.min() == 3  # five at least, less the last two


def test_relevance_is_a_matter_of_the_category(data: CrossDomainData) -> None:
    category = data.source_items.category[data.source.item]
    flags = [data.relevant[category == c].unique().tolist() for c in range(24)]
    assert all(len(flag) == 1 for flag in flags)
    assert sum(flag == [True] for flag in flags) == round(0.4 * 24)
    # 10 of 24 categories; sizes and popularities of categories vary.
    assert 0.25 < data.relevant.double().mean() < 0.6


def test_between_six_and_nine_in_ten_labels_are_positive(
    data: CrossDomainData,
) -> None:
    for part in (data.source, data.train, data.test, data.extra_test):
        assert 0.6 < part.label.mean() < 0.9


def test_only_relevant_behaviours_tell_about_the_target(data: CrossDomainData) -> None:
    """A user's mean label follows the leaning, which the irrelevant behaviours do not share."""

    def mean_by_user(user: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(1000).index_add(0, user, label)
        return total / torch.bincount(user, minlength=1000)

    target = mean_by_user(data.extra_test.user, data.extra_test.label)
    for flag, low, high in ((True, 0.5, 1.0), (False, -0.15, 0.15)):  # 0.15 is 4 standard errors
        mask = data.relevant == flag
        source = mean_by_user(data.source.user[mask], data.source.label[mask])
        both = ~source.isnan()
        correlation = np.corrcoef(source[both].numpy(), target[both].numpy())[0, 1]
        assert low < correlation < high


def test_extra_test_is_disjoint_from_the_users_other_rows(data: CrossDomainData) -> None:
    extra = rows(data.extra_test)
    assert len(extra) == len(set(extra)) == 10 * 1000
    others = {row for part in (data.train, data.valid, data.test) for row in rows(part)}
    assert not others & set(extra)


def test_items_are_drawn_without_replacement(data: CrossDomainData) -> None:
    target = [row for part in (data.train, data.valid, data.test) for row in rows(part)]
    assert len(target) == len(set(target))
    assert len(rows(data.source)) == len(set(rows(data.source)))


def test_equal_seeds_give_equal_data_and_others_do_not() -> None:
    first, again, other = (generate(num_users=50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.source.item, again.source.item)
    assert torch.equal(first.extra_test.label, again.extra_test.label)
    assert torch.equal(first.times.source, again.times.source)
    assert rows(first.source) != rows(other.source)


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="kind 'G9' is unknown; there is G1"):
        generate("G9")
    with pytest.raises(ValueError, match="num_users is 0"):
        generate(num_users=0)
    with pytest.raises(ValueError, match="num_target_items is 7; give at least 30"):
        generate(num_target_items=7)
