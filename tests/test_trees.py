"""Trees as arrays say what LightGBM says, and their errors hold for what was left out."""

import dataclasses

import numpy as np
import pytest

from latency_models import trees
from latency_models.trees import COVERAGES, Trees

OPTIONS = {**trees.OPTIONS, "num_leaves": 7}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = np.stack(
        [rng.integers(0, 9, 600), rng.normal(size=600) * 1e6, rng.random(600)], axis=1
    ).astype(np.float32)
    noise = np.where(x[:, 0] > 4, 0.2, 0.02) * rng.normal(size=600)
    return x, np.log1p(x[:, 0]) + 0.3 * (x[:, 1] > 0) + x[:, 2] + noise


@pytest.fixture(scope="module")
def booster(data):
    return trees.boost(*data, options=OPTIONS, rounds=60)


def test_trees_say_what_lightgbm_says(data, booster):
    x, _ = data
    ours = trees.from_lightgbm(booster)
    rng = np.random.default_rng(1)
    new = (x[rng.integers(len(x), size=500)] + rng.normal(size=(500, 3)) * [2, 1e6, 1]).astype(
        np.float32
    )
    for rows in (x, new):
        theirs = booster.predict(rows.astype(np.float64))
        np.testing.assert_allclose(ours(rows), theirs, rtol=1e-5, atol=1e-5)
    assert np.ptp(ours(x)) > 1  # And not one number for all.


def test_a_row_at_a_threshold_goes_where_lightgbm_sends_it(booster):
    ours = trees.from_lightgbm(booster)
    inner = ours.left != np.arange(ours.left.shape[1])
    on = ours.threshold[inner & (ours.feature == 1)]
    rows = np.zeros((3 * len(on), 3), np.float32)
    rows[:, 1] = [np.nextafter(t, np.float32(to)) for t in on for to in (-np.inf, t, np.inf)]
    theirs = booster.predict(rows.astype(np.float64))
    np.testing.assert_allclose(ours(rows), theirs, rtol=1e-5, atol=1e-5)


def test_trees_fit_what_they_are_given(data):
    x, y = data
    fitted = trees.fit(x, y, options=OPTIONS, rounds=200)
    assert np.std(fitted(x) - y) < 0.5 * np.std(y)


def test_features_that_are_no_numbers_or_too_few_are_refused(booster):
    ours = trees.from_lightgbm(booster)
    with pytest.raises(ValueError, match=r"not finite, in columns \[1\]"):
        ours(np.array([[1.0, np.nan, 0.0]]))
    with pytest.raises(ValueError, match="at least 3 columns"):
        ours(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="at least 3 columns"):
        ours(np.zeros(3))


def test_splits_by_category_are_refused(data):
    import lightgbm

    x, y = data
    table = lightgbm.Dataset(x, y, categorical_feature=[0], params={"verbose": -1})
    booster = lightgbm.train({"verbose": -1, "min_data_per_group": 5}, table, 3)
    with pytest.raises(ValueError, match="only numbers are compared"):
        trees.from_lightgbm(booster)


def test_errors_are_those_of_groups_left_out_by_stratum(data):
    x, y = data
    strata, groups = (x[:, 0] > 4).astype(int), [f"network {i % 20}" for i in range(len(x))]
    half = np.arange(len(x)) < 300
    fitted, left_out = trees.regress(
        x[half], y[half], strata[half], [g for g, h in zip(groups, half, strict=True) if h],
        number=3, options=OPTIONS, rounds=100,
    )  # fmt: skip
    assert fitted.std[1] > 1.5 * fitted.std[0]
    # Left out means left out: the fit on all rows is closer to them.
    assert np.std(left_out - y[half]) > 1.1 * np.std(fitted.trees(x[half]) - y[half])
    mean, std = fitted(x[~half], strata[~half])
    assert std.shape == mean.shape == (300,)
    for coverage in COVERAGES:
        inside = np.abs(mean - y[~half]) <= fitted.interval(strata[~half], coverage)
        for stratum in (0, 1):
            share = inside[strata[~half] == stratum].mean()
            assert abs(share - coverage) < 0.12, (coverage, stratum, share)


def test_a_stratum_that_was_never_seen_is_an_error(data):
    x, y = data
    strata = np.zeros(len(x), int)
    fitted, _ = trees.regress(x, y, strata, list(x[:, 0]), number=2, options=OPTIONS, rounds=5)
    with pytest.raises(ValueError, match=r"strata \[1\] were not among"):
        fitted(x, strata + 1)
    with pytest.raises(ValueError, match="knows 2"):
        fitted(x, strata + 2)
    with pytest.raises(ValueError, match="no interval of"):
        fitted.interval(strata, 0.42)
    with pytest.raises(ValueError, match="make no 5 folds"):
        trees.regress(x, y, strata, ["a"] * len(x), number=1)


def test_the_conformal_distance_covers_at_least_its_share():
    distances = np.arange(1.0, 20.0)
    assert trees.conformal(distances, 0.5) == 10
    assert trees.conformal(distances, 0.95) == 19
    assert trees.conformal(distances[:3], 0.95) == 3  # Too few to promise it: the largest.


def test_trees_are_a_regressor_of_features(data):
    x, y = data
    fitted = trees.boosted(x[:300], y[:300], np.zeros(300), rounds=100)
    mean, std = fitted.predict(x[300:])
    off = mean - y[300:]
    assert np.std(off) < 0.5 * np.std(y)
    assert std.tolist() == [fitted.std] * 300
    assert 0.5 < np.sqrt(np.mean(off**2)) / fitted.std < 2


def test_a_tree_of_one_leaf_is_a_constant():
    one = np.zeros((1, 1), np.int16)
    constant = Trees(one, np.zeros((1, 1), np.float32), one, one, np.full((1, 1), 2.5), 0)
    assert constant(np.ones((4, 1))).tolist() == [2.5] * 4
    assert dataclasses.is_dataclass(constant)
