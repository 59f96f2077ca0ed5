import math

import numpy as np
import pytest

from latency_models.check import Pair, errors, reliability, worst
from latency_models.latency import Latency


def pair(predicted: float, measured: float, std: float = 0.1, noise: float = 0.0) -> Pair:
    return Pair("a", Latency(predicted, std), Latency(measured, noise))


def test_errors_are_relative_to_what_was_measured():
    found = errors([pair(10.9, 10), pair(8, 10), pair(10.5, 10)])
    assert found.pairs == 3
    assert found.mape == pytest.approx((0.09 + 0.2 + 0.05) / 3)
    assert found.bias == pytest.approx((0.09 - 0.2 + 0.05) / 3)
    assert found.within_10 == pytest.approx(2 / 3)


def test_intervals_count_the_measurements_own_error():
    assert errors([pair(10, 11, std=0.1)]).coverage == 0
    assert errors([pair(10, 11, std=0.1, noise=1.0)]).coverage == 1
    assert pair(10, 11, 3.0, 4.0).deviations == pytest.approx(-0.2)
    assert pair(10, 10, 0.0).deviations == 0 and pair(10, 9, 0.0).deviations == math.inf


def test_errors_of_the_right_width_are_reliable_at_every_level():
    rng = np.random.default_rng(0)
    drawn = [pair(10 + rng.normal(), 10, std=1.0) for _ in range(4000)]
    assert all(abs(share - level) < 0.03 for level, share in reliability(drawn))
    narrow = [p._replace(predicted=Latency(p.predicted.ms, 0.5)) for p in drawn]
    assert all(share < level for level, share in reliability(narrow))


def test_the_rank_is_that_of_the_order_alone():
    assert errors([pair(n**3 + 1, n + 1) for n in range(5)]).spearman == pytest.approx(1)
    assert errors([pair(9 - n, n + 1) for n in range(5)]).spearman == pytest.approx(-1)
    assert errors([pair(1, 1), pair(2, 2)]).spearman is None


def test_the_worst_come_first():
    assert worst([pair(10, 10), pair(5, 10), pair(12, 10)], 2) == [pair(5, 10), pair(12, 10)]


def test_nothing_to_check_is_an_error():
    with pytest.raises(ValueError, match="nothing to check"):
        errors([])
