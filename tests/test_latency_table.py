import jax
import pytest

from latency_models import roofline
from latency_models.latency import Latency, Spread, UnknownCall, total
from latency_models.roofline import Roofline
from latency_models.table import Table, profile
from nas.testing.latencies import LatencyModelLaws
from search_spaces.blocks import Conv, ResNet
from search_spaces.ops import Call, Cost, cost

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
TIME = jax.ShapeDtypeStruct((2, 8), "float32")
CONV, WIDER = Call(Conv(4), (IMAGE,)), Call(Conv(8), (IMAGE,))
RESNET = Call(ResNet(4, groups=2), (IMAGE, TIME))
REJECTED = Call(ResNet(4, groups=3), (IMAGE, TIME))  # Four channels have no three groups.
TABLE = Table({CONV: Latency(0.1, 0.01), WIDER: Latency(0.2, 0.03), RESNET: Latency(0.7, 0.04)})


class TestTable(LatencyModelLaws):
    model = TABLE
    calls = (CONV, RESNET, WIDER, CONV)
    unknown = REJECTED


class TestRoofline(LatencyModelLaws):
    model = Roofline(flops_per_s=1e9, bytes_per_s=1e9, overhead_ms=0.01)
    calls = (CONV, RESNET, WIDER, CONV)
    unknown = REJECTED


def test_errors_of_parts_are_independent_and_those_of_one_row_are_not():
    assert total([Latency(1, 3), Latency(2, 4)]) == Latency(3, 5)
    assert TABLE.predict([CONV, CONV]).std == pytest.approx(0.02)
    assert TABLE.predict([WIDER, RESNET]).std == pytest.approx(0.05)


def test_an_unknown_call_says_how_many_are_missing_and_which():
    small = Table({CONV: Latency(0.1, 0.01)})
    with pytest.raises(UnknownCall, match=r"2 of 3 distinct .*ResNet\(width=4.*profile"):
        small.predict([CONV, RESNET, RESNET, WIDER])


def test_profile_measures_only_what_is_missing_and_that_once():
    asked = []

    def device(calls):
        asked.append(list(calls))
        return [Latency(len(asked), 0.5, Spread(9, (1.0,))) for _ in calls]

    table = profile([CONV, RESNET, CONV, RESNET], measure=device)
    more = profile([WIDER, RESNET, CONV], table, measure=device)
    assert asked == [[CONV, RESNET], [WIDER]]
    assert more.rows[CONV].ms == 1 and more.rows[WIDER].ms == 2
    assert list(table.rows) == [CONV, RESNET]
    assert profile([CONV], more, measure=device) == more and len(asked) == 2


def test_a_device_that_answers_too_little_is_an_error():
    with pytest.raises(ValueError):
        profile([CONV, RESNET], measure=lambda calls: [Latency(1, 0)])


def test_a_roofline_is_the_slower_of_arithmetic_and_memory():
    flops, moved, _ = cost(CONV)
    bound_by_arithmetic = Roofline(flops_per_s=1e3, bytes_per_s=1e30, overhead_ms=2)
    bound_by_memory = Roofline(flops_per_s=1e30, bytes_per_s=1e3)
    assert bound_by_arithmetic.predict([CONV]).ms == pytest.approx(2 + flops)
    assert bound_by_memory.predict([CONV]).ms == pytest.approx(moved)


@pytest.mark.parametrize("rates", [(0, 1, 0), (1, -1, 0), (1, 1, -1), (float("nan"), 1, 0)])
def test_a_roofline_of_no_device_is_refused(rates):
    with pytest.raises(ValueError, match="positive"):
        Roofline(*rates)


def test_a_call_without_any_cost_is_unknown_and_not_free(monkeypatch):
    monkeypatch.setattr(roofline, "cost", lambda call: Cost(0.0, 0.0, 0))
    with pytest.raises(UnknownCall, match="costs nothing"):
        Roofline(flops_per_s=1e9, bytes_per_s=1e9, overhead_ms=1.0).predict([CONV])


def test_latencies_print_with_their_error():
    assert str(Latency(1.23456, 0.1)) == "1.235 ± 0.100 ms"
