"""The laws every latency model obeys. Subclass `LatencyModelLaws` to hold yours to them.

    class TestMine(LatencyModelLaws):
        model = MyModel(...)
        calls = (...)
        unknown = Call(...)

pytest finds the laws.
"""

import itertools
import math
from typing import ClassVar

import pytest

from latency_models.latency import LatencyModel, UnknownCall
from search_spaces.ops import Call


class LatencyModelLaws:
    model: ClassVar[LatencyModel]
    calls: ClassVar[tuple[Call, ...]]  # At least three that the model prices.
    unknown: ClassVar[Call]  # One that it cannot price.
    additive: ClassVar[bool] = True

    def test_every_call_takes_time(self):
        assert all(self.model.predict([call]).ms > 0 for call in self.calls)

    def test_the_error_is_finite_and_not_negative(self):
        for count in range(1, len(self.calls) + 1):
            std = self.model.predict(self.calls[:count]).std
            assert std >= 0 and math.isfinite(std)

    def test_the_order_of_calls_does_not_matter(self):
        orders = itertools.islice(itertools.permutations(self.calls), 24)
        assert len({self.model.predict(order) for order in orders}) == 1

    def test_removing_a_call_never_makes_it_slower(self):
        whole = self.model.predict(self.calls).ms
        for i in range(len(self.calls)):
            assert self.model.predict(self.calls[:i] + self.calls[i + 1 :]).ms <= whole

    def test_a_call_made_twice_is_paid_for_twice(self):
        whole, twice = self.model.predict(self.calls), self.model.predict(2 * self.calls)
        assert twice.ms > whole.ms
        if self.additive:
            assert twice.ms == pytest.approx(2 * whole.ms)

    def test_it_adds_up_where_it_says_so(self):
        if not self.additive:
            pytest.skip("not additive")
        parts = [self.model.predict([call]).ms for call in self.calls]
        assert self.model.predict(self.calls).ms == pytest.approx(sum(parts))

    def test_an_unknown_call_is_an_error_even_among_known_ones(self):
        for calls in [self.unknown], [*self.calls, self.unknown], [self.unknown, *self.calls]:
            with pytest.raises(UnknownCall):
                self.model.predict(calls)

    def test_calls_may_be_an_iterator(self):
        assert self.model.predict(iter(self.calls)) == self.model.predict(self.calls)
