"""Latency models corrected on whole networks.

Adding up calls measured one by one counts the start of each of them, which within a network is not
paid, and misses what the compiler fuses and overlaps; the error bars of the parts do not show it.
Networks measured as a whole show both: here as a line in the sum, which serves any model, and in
`conditioned` call by call, which serves models that were learnt.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from latency_models.latency import Latency, LatencyModel
from search_spaces.ops import Call

# Networks whose latencies differ by less cannot tell a fixed cost from a factor: their errors
# of a few percent would decide.
_ALIKE = 1.2


@dataclasses.dataclass(frozen=True)
class Calibrated(LatencyModel):
    """Predicts `fixed_ms + scale * ms`, of the `ms` that `model` predicts.

    `fixed_ms` is never negative and `scale` is positive, so whatever makes `model` faster makes
    this one faster. `residual` says how wrong it was on the networks it was fitted on: the standard
    deviation of measured over predicted, as a share of the latency; it is part of every
    prediction's `std`.
    """

    model: LatencyModel
    fixed_ms: float
    scale: float
    residual: float

    def __post_init__(self) -> None:
        values = (self.fixed_ms, self.scale, self.residual)
        if not all(map(math.isfinite, values)) or min(values) < 0 or self.scale == 0:
            raise ValueError(
                f"fixed_ms, scale, residual = {values}: they must be finite and not negative, "
                "and scale must be positive"
            )

    def predict(self, calls: Iterable[Call]) -> Latency:
        parts = self.model.predict(calls)
        ms = self.fixed_ms + self.scale * parts.ms
        return Latency(ms, math.hypot(self.scale * parts.std, self.residual * ms))

    @property
    def parts(self) -> "Calibrated":
        """This model without the fixed cost."""
        return dataclasses.replace(self, fixed_ms=0.0)

    @property
    def alone(self) -> LatencyModel:
        return self.model.alone


def fit(
    model: LatencyModel,
    networks: Sequence[tuple[Iterable[Call], Latency]],
    *,
    fixed_cost: bool = True,
) -> Calibrated:
    """Calibrates `model` on networks, each its calls and its latency as a whole.

    Least squares of relative errors. Fewer than three networks, or ones too alike to tell a fixed
    cost from a factor, give a factor only; so does `fixed_cost=False`. The residual is never less
    than the measurements' own error, which with one network is all that is known of it. Measure the
    networks in turns with each other and with the calls, or the machine's drift becomes part of the
    fit.
    """
    if not networks:
        raise ValueError("no networks to calibrate on; measure at least one as a whole")
    measured = [latency for _, latency in networks]
    networks = [(tuple(calls), latency) for calls, latency in networks]
    parts = [model.predict(calls) for calls, _ in networks]
    if not all(latency.ms > 0 for latency in (*measured, *parts)):
        raise ValueError("a network took no time, measured or predicted; leave it out")
    # Row i: what a millisecond of fixed cost, and a factor of one, explain of network i's latency.
    shares = np.array([(1 / m.ms, p.ms / m.ms) for m, p in zip(measured, parts, strict=True)])
    fixed_ms, scale = _line(shares, fixed_cost)
    noise = [m.std / m.ms for m in measured]
    if len(networks) == 1:
        noise[0] = math.hypot(noise[0], parts[0].std / parts[0].ms)
    residual = max(_residual(shares, fixed_ms, scale), float(np.median(noise)))
    return Calibrated(model, fixed_ms, scale, residual)


def leave_one_out(
    model: LatencyModel,
    networks: Sequence[tuple[Iterable[Call], Latency]],
    *,
    fixed_cost: bool = True,
) -> list[Latency]:
    """Latencies of the networks, in their order, each predicted by a fit on all others.

    What this misses by is the error to expect of a network that was not measured. There must be
    two networks or more.
    """
    held = [(tuple(calls), latency) for calls, latency in networks]
    return [
        fit(model, held[:i] + held[i + 1 :], fixed_cost=fixed_cost).predict(calls)
        for i, (calls, _) in enumerate(held)
    ]


def _line(shares: np.ndarray, fixed_cost: bool) -> tuple[float, float]:
    """Fixed cost and factor that explain every network best, the one not negative, the other
    positive."""
    ones = np.ones(len(shares))
    summed_ms = shares[:, 1] / shares[:, 0]
    if fixed_cost and len(shares) >= 3 and summed_ms.max() > _ALIKE * summed_ms.min():
        solution, *_ = np.linalg.lstsq(shares, ones)
        fixed_ms, scale = map(float, solution)
        if fixed_ms >= 0 and scale > 0:
            return fixed_ms, scale
    factor, *_ = np.linalg.lstsq(shares[:, 1:], ones)
    return 0.0, float(factor[0])


def _residual(shares: np.ndarray, fixed_ms: float, scale: float) -> float:
    """Standard deviation of the relative errors, given what the fit used up of them."""
    errors = shares @ (fixed_ms, scale) - 1
    used = 2 if fixed_ms else 1
    return math.sqrt(float(errors @ errors) / max(1, len(errors) - used))
