"""The generator: what it says about relevance, ratings, the extra test and its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdr.data import CrossDomainData, audit, generate, load


@pytest.fixture(scope="module")
def g1() -> CrossDomainData:
    return generate("G1", num_users=1000, seed=3)


@pytest.fixture(scope="module")
def g2() -> CrossDomainData:
    return generate("G2", num_users=1000, seed=3)


@pytest.fixture(params=["g1", "g2"])
def data(request: pytest.FixtureRequest) -> CrossDomainData:
    return request.getfixturevalue(request.param)


def rows(part) -> list[tuple[int, int]]:
    return list(zip(part.user.tolist(), part.item.tolist(), strict=True))


def count(user: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rows of each of the 1,000 users at which the mask holds."""
    return torch.bincount(user[mask], minlength=1000)


def in_relevant_category(data: CrossDomainData) -> torch.Tensor:
    """Whether each source row's category is relevant to anyone, as the flags tell."""
    category = data.source_items.category[data.source.item]
    return torch.isin(category, category[data.relevant].unique())


def correlation_with_target(data: CrossDomainData, mask: torch.Tensor) -> float:
    """Over users: of the mean label of these source rows with that of the further target rows.

    Both follow the user's leaning, if the source rows share the target's.
    """
    extra = data.extra_test
    target = torch.zeros(1000).index_add(0, extra.user, extra.label) / 10
    total = torch.zeros(1000).index_add(0, data.source.user[mask], data.source.label[mask])
    number = count(data.source.user, mask)
    some = number > 0
    return float(np.corrcoef((total / number)[some].numpy(), target[some].numpy())[0, 1])


def grouped(data: CrossDomainData) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the users with ten source rows or more: households, and the others.

    An ordinary user's row is relevant about every other time: that none of ten is, happens to one
    in 2^10 of the few who have no more than ten.
    """
    flagged = count(data.source.user, data.relevant) > 0
    many = torch.bincount(data.source.user, minlength=1000) >= 10
    return many & ~flagged, many & flagged


def test_it_holds_no_leak(data: CrossDomainData) -> None:
    audit(data)
    assert data.source_cut == "time"


@pytest.mark.parametrize(("kind", "mean"), [("g1", 5 + 15), ("g2", 5 + 25)])
def test_sizes_are_as_specified(kind: str, mean: int, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(kind)
    counts = data.statistics
    # The standard error over 1,000 users: Poisson(Gamma(1, s)) has the variance s + s^2.
    assert abs(counts["source"] / 1000 - mean) < 4 * np.sqrt((mean - 5) * (mean - 4) / 1000)
    # The mean is 5 + 1, its standard error 0.05.
    assert abs(counts["target"] / 1000 - 6) < 0.2
    assert data.source_items.num_categories == 24 and data.target_items.num_categories == 12
    assert counts["short_users"] == 0
    per_user = torch.bincount(data.train.user, minlength=1000)
    assert per_user.min() == 3  # five at least, less the last two


def test_relevance_is_a_matter_of_the_category(g1: CrossDomainData) -> None:
    category = g1.source_items.category[g1.source.item]
    flags = [g1.relevant[category == c].unique().tolist() for c in range(24)]
    assert all(len(flag) == 1 for flag in flags)
    assert sum(flag == [True] for flag in flags) == round(0.4 * 24)
    # 10 of 24 categories; sizes and popularities of categories vary.
    assert 0.25 < g1.relevant.double().mean() < 0.6


def test_relevance_is_a_matter_of_category_and_user(g2: CrossDomainData) -> None:
    category = g2.source_items.category[g2.source.item]
    assert len(category[g2.relevant].unique()) == 24 // 2
    household, ordinary = (mask[g2.source.user] for mask in grouped(g2))
    relevant = in_relevant_category(g2)
    assert torch.equal(g2.relevant[ordinary], relevant[ordinary])
    # Not for want of such behaviours.
    assert relevant[household].any() and not g2.relevant[household].any()


def test_a_quarter_of_the_users_are_households(g2: CrossDomainData) -> None:
    assert (count(g2.source.user, g2.relevant) > 0).sum() <= 750
    household, ordinary = (int(mask.sum()) for mask in grouped(g2))
    many = household + ordinary
    # `many` of 1,000 users, of whom exactly 250 are households.
    error = np.sqrt(0.25 * 0.75 / many * (1000 - many) / 999)
    assert abs(household / many - 0.25) < 4 * error


def test_households_read_another_mix_of_categories(g2: CrossDomainData) -> None:
    log_odds, variance = [], 0.0
    for users in grouped(g2):
        mask = users[g2.source.user]
        relevant = count(g2.source.user, mask & in_relevant_category(g2)).double()
        all_rows = count(g2.source.user, mask)
        share = relevant.sum() / all_rows.sum()
        log_odds.append(float(share.logit()))
        # Of a ratio of sums over users: a user's rows are not independent of each other.
        excess = relevant - share * all_rows
        variance += float((excess**2).sum() / (all_rows.sum() * share * (1 - share)) ** 2)
    # For a first draw and one taste the groups differ by -2 - 1 exactly. What is drawn without
    # replacement runs out: on average over a household's draws about a tenth of the popularity of
    # the half it prefers is gone, log(0.9) = -0.11. Differences in taste, which sharpen that and
    # average odds rather than their logarithms, bring the groups closer by less than that again.
    error = np.sqrt(variance)
    assert error < 0.1
    assert -3 - 4 * error < log_odds[0] - log_odds[1] < -3 + 0.2 + 4 * error


def test_between_six_and_nine_in_ten_labels_are_positive(
    data: CrossDomainData,
) -> None:
    for part in (data.source, data.train, data.test, data.extra_test):
        assert 0.6 < part.label.mean() < 0.9


def test_only_relevant_behaviours_tell_about_the_target(data: CrossDomainData) -> None:
    assert 0.5 < correlation_with_target(data, data.relevant) < 1.0
    # 0.15 is more than 4 standard errors over 1,000 users.
    assert abs(correlation_with_target(data, ~data.relevant)) < 0.15


def test_no_behaviour_of_a_household_tells_about_the_target(g2: CrossDomainData) -> None:
    household, _ = grouped(g2)
    # 4 standard errors over the households; the others' relevant behaviours are above 0.5.
    most = 4 / np.sqrt(int(household.sum()))
    assert most < 0.35
    assert abs(correlation_with_target(g2, household[g2.source.user])) < most


def test_extra_test_is_disjoint_from_the_users_other_rows(data: CrossDomainData) -> None:
    extra = rows(data.extra_test)
    assert len(extra) == len(set(extra)) == 10 * 1000
    others = {row for part in (data.train, data.valid, data.test) for row in rows(part)}
    assert not others & set(extra)


def test_items_are_drawn_without_replacement(data: CrossDomainData) -> None:
    target = [row for part in (data.train, data.valid, data.test) for row in rows(part)]
    assert len(target) == len(set(target))
    assert len(rows(data.source)) == len(set(rows(data.source)))


@pytest.mark.parametrize("kind", ["G1", "G2"])
def test_equal_seeds_give_equal_data_and_others_do_not(kind: str) -> None:
    first, again, other = (generate(kind, num_users=50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.relevant, again.relevant)
    assert torch.equal(first.source.item, again.source.item)
    assert torch.equal(first.extra_test.label, again.extra_test.label)
    assert torch.equal(first.times.source, again.times.source)
    assert rows(first.source) != rows(other.source)


def test_kinds_are_found_by_name() -> None:
    for name in ("g1", "g2"):
        loaded, made = load(name, num_users=20), generate(name.upper(), num_users=20)
        assert loaded.name == name.upper() and rows(loaded.source) == rows(made.source)


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="'G9'.*G1, G2"):
        generate("G9")
    with pytest.raises(ValueError, match="num_users is 0"):
        generate(num_users=0)
    with pytest.raises(ValueError, match="num_target_items is 7.*30"):
        generate(num_target_items=7)
