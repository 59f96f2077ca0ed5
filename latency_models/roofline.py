"""Latency without measurements: a call is bound by arithmetic or by memory (Williams, 2009)."""

import dataclasses
from collections.abc import Iterable

from latency_models.latency import Latency, LatencyModel, UnknownCall, total
from search_spaces.ops import Call, cost


@dataclasses.dataclass(frozen=True)
class Roofline(LatencyModel):
    """Prices calls at a device's peak rates. Every call costs `overhead_ms` on top.

    Its error is unknown and `std` is zero: `calibrate.fit` finds it out.
    """

    flops_per_s: float
    bytes_per_s: float
    overhead_ms: float = 0.0

    def __post_init__(self) -> None:
        if not (self.flops_per_s > 0 and self.bytes_per_s > 0 and self.overhead_ms >= 0):
            raise ValueError(f"{self}: rates must be positive and the overhead not negative")

    def predict(self, calls: Iterable[Call]) -> Latency:
        return total(self._price(call) for call in calls)

    def _price(self, call: Call) -> Latency:
        try:
            flops, moved, _ = cost(call)
        except (TypeError, ValueError) as error:
            raise UnknownCall(f"{call} has no cost, as its op rejects it: {error}") from error
        if flops <= 0 and moved <= 0:
            raise UnknownCall(f"{call} costs nothing by XLA's analysis; measure it instead")
        seconds = max(flops / self.flops_per_s, moved / self.bytes_per_s)
        return Latency(self.overhead_ms + 1e3 * seconds, 0.0)
