"""The leniency model: equal to scikit-learn's, and blind to what it must not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cdr.data import CrossDomainData, generate
from cdr.training.leniency import Leniency, fit_leniency, generosity


def one_hot(model: Leniency, data: CrossDomainData) -> np.ndarray:
    """The columns of scikit-learn's regression, scaled so that its one penalty is that of each."""
    rows = data.train
    user, item = rows.user.numpy(), rows.item.numpy()
    of = {"user": user, "item": item, "category": data.target_items.category.numpy()[item]}
    parts = [
        np.eye(len(model.effects[kind]))[of[kind]] / np.sqrt(model.strengths[kind]) for kind in of
    ]
    # A column so large has next to no penalty on its slope.
    return np.hstack([1e3 * model.generosity[user][:, None], *parts])


def test_it_is_the_regression_of_scikit_learn(tiny: CrossDomainData) -> None:
    model = fit_leniency(tiny)
    columns = one_hot(model, tiny)
    other = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(columns, tiny.train.label)
    # The search ends at a relative change of the loss of 1e-8, some 1e-6, at which a log odds is
    # off by its root.
    expected = other.decision_function(columns)
    np.testing.assert_allclose(model.log_odds(tiny.train), expected, atol=5e-3)


def test_generosity_is_a_smoothed_share(tiny: CrossDomainData) -> None:
    label, mean = tiny.source.label.numpy(), float(tiny.source.label.mean())
    own = label[tiny.source.user.numpy() == 3]
    share = (own.sum() + 5 * mean) / (len(own) + 5)
    expected = np.log(share / (1 - share)) - np.log(mean / (1 - mean))
    assert generosity(tiny)[3] == pytest.approx(expected, rel=1e-5)  # the mean is in float32


def test_a_user_without_source_behaviours_is_an_average_one(gappy: CrossDomainData) -> None:
    counts = torch.bincount(gappy.source.user, minlength=gappy.num_users)
    assert (generosity(gappy)[(counts == 0).numpy()] == 0.0).all() and (counts == 0).any()


def test_the_source_helps_where_it_says_how_users_rate() -> None:
    data = generate(num_users=600, num_source_items=300, num_target_items=100, seed=3)
    rows = data.extra_test
    assert rows is not None
    found = {source: fit_leniency(data, source=source) for source in (True, False)}
    aucs = {source: model.scores(rows).metrics()["auc"] for source, model in found.items()}
    # Two of five source categories are rated with the user's bias of the target.
    assert found[True].slope > 0.1 and found[False].slope == 0.0
    assert aucs[True] > aucs[False] > 0.6


def test_labels_of_test_rows_make_no_difference(tiny: CrossDomainData) -> None:
    other = replace(tiny, test=replace(tiny.test, label=1 - tiny.test.label))
    one, two = (fit_leniency(data).log_odds(tiny.test) for data in (tiny, other))
    np.testing.assert_array_equal(one, two)


def test_every_kind_of_row_gets_a_score(gappy: CrossDomainData) -> None:
    scores = fit_leniency(gappy).scores(gappy.test)
    assert np.isfinite(scores.probability).all() and len(scores.label) == len(gappy.test)
