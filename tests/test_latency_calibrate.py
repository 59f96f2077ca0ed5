import jax
import numpy as np
import pytest

from latency_models.calibrate import Calibrated, fit, leave_one_out
from latency_models.latency import Latency, UnknownCall
from latency_models.table import Table
from nas.testing.latencies import LatencyModelLaws
from search_spaces.blocks import Conv
from search_spaces.ops import Call

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
CALLS = tuple(Call(Conv(width), (IMAGE,)) for width in range(1, 9))
TABLE = Table({call: Latency(call.op.width, 0.1) for call in CALLS})  # pyright: ignore
UNKNOWN = Call(Conv(99), (IMAGE,))


class TestCalibrated(LatencyModelLaws):
    model = Calibrated(TABLE, fixed_ms=2.0, scale=0.5, residual=0.1)
    calls = CALLS
    unknown = UNKNOWN
    additive = False


class TestCalibratedByAFactor(LatencyModelLaws):
    model = Calibrated(TABLE, fixed_ms=0.0, scale=0.5, residual=0.1)
    calls = CALLS
    unknown = UNKNOWN


def measured(
    fixed_ms: float, scale: float, *, std: float = 0.0, noise: float = 0.0, count: int = 7
):
    """Networks of ever more calls, whose latency is a line in the sum over the table."""
    rng = np.random.default_rng(0)
    for size in range(2, 2 + count):
        true = fixed_ms + scale * TABLE.predict(CALLS[:size]).ms
        yield CALLS[:size], Latency(true * (1 + noise * rng.standard_normal()), std)


def test_a_known_line_is_recovered():
    found = fit(TABLE, list(measured(3.0, 0.6)))
    assert (found.fixed_ms, found.scale) == pytest.approx((3.0, 0.6))
    assert found.residual == pytest.approx(0, abs=1e-9)
    assert found.predict(CALLS[4:6]).ms == pytest.approx(3.0 + 0.6 * 11)


def test_a_known_line_is_recovered_from_three_networks():
    found = fit(TABLE, list(measured(3.0, 0.6, count=3)))
    assert (found.fixed_ms, found.scale) == pytest.approx((3.0, 0.6))


def test_a_factor_only_may_be_asked_for():
    found = fit(TABLE, list(measured(3.0, 0.6)), fixed_cost=False)
    assert found.fixed_ms == 0 and found.scale > 0.6
    assert found.residual > 0.05  # It says that the factor does not fit.


@pytest.mark.parametrize("fixed_cost", [True, False])
def test_a_network_that_is_left_out_is_predicted_by_the_others(fixed_cost):
    networks = list(measured(3.0, 0.6, noise=0.05, count=4))
    found = leave_one_out(TABLE, networks, fixed_cost=fixed_cost)
    for i, (calls, _) in enumerate(networks):
        others = fit(TABLE, networks[:i] + networks[i + 1 :], fixed_cost=fixed_cost)
        assert found[i] == others.predict(calls)


def test_the_residual_is_the_noise_of_the_networks():
    assert 0.02 < fit(TABLE, list(measured(3.0, 0.6, noise=0.05))).residual < 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_few_networks_give_a_factor_only(count):
    found = fit(TABLE, list(measured(0.0, 0.6, count=count)))
    assert found.fixed_ms == 0 and found.scale == pytest.approx(0.6)
    off = fit(TABLE, list(measured(3.0, 0.6, count=count)))
    assert off.fixed_ms == 0 and off.scale > 0.6


def test_networks_too_alike_give_a_factor_only():
    same = [(CALLS[:5], Latency(ms, 0.1)) for ms in (8.0, 9.0, 10.0)]
    found = fit(TABLE, same)
    assert found.fixed_ms == 0 and 8 < found.scale * 15 < 10
    assert found.residual == pytest.approx(1 / 9, rel=0.1)


@pytest.mark.parametrize("line", [(-3.0, 1.5), (60.0, -1.0)])
def test_removing_a_call_never_helps_against_the_measurements(line):
    found = fit(TABLE, list(measured(*line)))
    assert found.fixed_ms >= 0 and found.scale > 0
    assert found.residual > 0.1  # It says that the line does not fit.
    assert found.predict(CALLS[:-1]).ms < found.predict(CALLS).ms


def test_the_residual_is_never_less_than_the_measurements_error():
    found = fit(TABLE, [(calls, Latency(ms, 0.2 * ms)) for calls, (ms, *_) in measured(3.0, 0.6)])
    assert found.residual == pytest.approx(0.2)
    single = fit(Table({CALLS[4]: Latency(5, 2)}), [((CALLS[4],), Latency(10, 3))])
    assert single.residual == pytest.approx(0.5)  # 0.3 of the network and 0.4 of its part.


def test_the_residual_and_the_parts_errors_are_both_in_the_error():
    model = Calibrated(Table({CALLS[0]: Latency(10, 3)}), fixed_ms=20, scale=2, residual=0.2)
    assert model.predict(CALLS[:1]) == Latency(40, 10)


def test_errors_are_relative_so_small_networks_count_as_much():
    networks = [(CALLS[:1], Latency(1, 0)), (CALLS[:8], Latency(72, 0))]  # Factors one and two.
    assert fit(TABLE, networks).scale == pytest.approx((1 + 0.5) / (1 + 0.25))


def test_what_cannot_be_calibrated_on_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        fit(TABLE, [])
    for calls, ms in (CALLS, 0.0), ((), 1.0):
        with pytest.raises(ValueError, match="no time"):
            fit(TABLE, [(calls, Latency(ms, 0))])
    with pytest.raises(UnknownCall):
        fit(TABLE, [((UNKNOWN,), Latency(1, 0))])


@pytest.mark.parametrize(
    "wrong", [(-1, 1, 0), (0, 0, 0), (0, -1, 0), (0, 1, -1), (0, float("nan"), 0)]
)
def test_a_calibration_that_is_not_monotone_is_refused(wrong):
    with pytest.raises(ValueError, match="scale must be positive"):
        Calibrated(TABLE, *wrong)
