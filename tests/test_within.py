"""What networks make of calls is found again where it is known, from few of them."""

import numpy as np
import pytest

from latency_models import within
from latency_models.within import ALONE, Within

MEGABYTE = 1e6
TRUE = Within(scale=0.95, start_ms=2e-3, fetch_ms=8e-8, cache=2.0**24)


def drawn(seed: int, calls: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """What calls take alone, and what they ask of the device: `[calls]` and `[calls, 2]`."""
    rng = np.random.default_rng(seed)
    weights = 10 ** rng.uniform(4, 8, calls)
    operations = rng.integers(5, 80, calls)
    return 10 ** rng.uniform(-1, 1, calls), np.stack([operations, weights], 1)


def measured(times: np.ndarray, seed: int = 0) -> np.ndarray:
    alone, asked = drawn(seed)
    return np.array([row @ TRUE.ms(alone, asked, row) for row in times])


def networks(count: int, seed: int = 1) -> np.ndarray:
    """Few calls and many, as networks are small and large."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.05, 0.9, (count, 1))
    return (rng.uniform(size=(count, 40)) < share) * rng.integers(1, 4, (count, 40))


def test_what_made_networks_slower_than_their_calls_is_told_from_a_few():
    alone, asked = drawn(0)
    found = within.fit(alone, asked, networks(24), measured(networks(24)))
    assert found.cache == TRUE.cache
    assert found[:3] == pytest.approx(TRUE[:3], rel=0.2)
    others = networks(50, seed=2)
    says = np.array([row @ found.ms(alone, asked, row) for row in others])
    np.testing.assert_allclose(says, measured(others), rtol=0.05)


def test_networks_that_are_the_sum_of_their_calls_teach_nothing_else():
    alone, asked = drawn(0)
    times = networks(24)
    found = within.fit(alone, asked, times, times @ alone)
    says = np.array([row @ found.ms(alone, asked, row) for row in networks(50, seed=2)])
    np.testing.assert_allclose(says, networks(50, seed=2) @ alone, rtol=0.01)
    assert ALONE.ms(alone, asked, times[0]) == pytest.approx(alone)


def test_a_call_that_runs_over_and_over_is_what_it_takes_alone_but_for_its_starts():
    (one,) = np.eye(1, 40)
    alone, asked = drawn(0)
    taken = TRUE.ms(alone, asked, one)[0]
    assert taken == pytest.approx(TRUE.scale * alone[0] + TRUE.start_ms * asked[0, 0])


def test_weights_are_fetched_where_many_others_are_between_and_they_alone_would_stay():
    """Not those that are larger than the cache, which are fetched alone, too."""
    asked = np.array([[0.0, MEGABYTE], [0.0, 1000 * MEGABYTE], [0.0, 0.0]])
    true, zero = TRUE._replace(scale=0.0), np.zeros(3)
    small, large, none = true.ms(zero, asked, np.ones(3)) / true.fetch_ms
    assert small == pytest.approx(MEGABYTE, rel=0.1)
    assert large < 1e-6 * MEGABYTE and none == 0
    # Alone with what has no weights, nothing comes between.
    assert true.ms(zero, asked, np.array([1, 0, 1]))[0] == 0


def test_one_network_moves_little_and_none_of_it_below_nothing():
    alone, asked = drawn(0)
    times = networks(1)
    for factor in (0.5, 3.0):
        found = within.fit(alone, asked, times, factor * times @ alone)
        assert min(found) >= 0
        assert 0.5 < found.scale < 1.5
    without = np.stack([asked[:, 0], np.zeros(40)], 1)
    assert within.fit(alone, without, times, times @ alone).fetch_ms == 0
