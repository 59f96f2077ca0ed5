"""Latency models corrected on whole networks.

Adding up calls measured one by one counts the start of each of them, which within a network is not
paid, and misses what the compiler fuses and overlaps; the error bars of the parts do not show it.
Networks measured as a whole show both.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy.optimize import nnls

from latency_models.features import kind
from latency_models.latency import Latency, LatencyModel, total
from latency_models.table import Table
from search_spaces.ops import Call

# Networks whose latencies differ by less cannot tell a fixed cost from a factor: their errors
# of a few percent would decide.
_ALIKE = 1.2


_STARTING = 0.9  # Of a call's latency, what its start is at most.


@dataclasses.dataclass(frozen=True)
class Within(LatencyModel):
    """Calls as they are within a network: without `start_ms`, which each pays where it is measured
    alone. Of a short call no more than nine tenths are its start, so that none costs nothing."""

    model: LatencyModel
    start_ms: float

    def predict(self, calls: Iterable[Call]) -> Latency:
        counts = Counter(calls)
        found = self.model.predict(counts.elements())
        if not self.start_ms:
            return found
        starts = (
            n * min(self.start_ms, _STARTING * self.model.predict([call]).ms)
            for call, n in counts.items()
        )
        return Latency(found.ms - math.fsum(starts), found.std)

    @property
    def alone(self) -> LatencyModel:
        return self.model.alone


def within(model: LatencyModel, networks: Sequence[tuple[Iterable[Call], Latency]]) -> Within:
    """The model's calls without the start that makes networks left out come out best.

    Raises `ValueError` on fewer than three networks.
    """
    if len(networks) < 3:
        raise ValueError(f"{len(networks)} networks do not show what starts cost; measure more")
    held = [(tuple(calls), latency) for calls, latency in networks]
    prices = Table({call: model.predict([call]) for calls, _ in held for call in calls})
    typical = float(np.quantile([row.ms for row in prices.rows.values()], _SHORT))

    def error(share: float) -> float:
        found = leave_one_out(Within(prices, share * typical), held)
        return math.fsum((a.ms / b.ms - 1) ** 2 for a, (_, b) in zip(found, held, strict=True))

    return Within(model, min(_STARTS, key=error) * typical)


# A start is looked for among shares of what short calls take.
_SHORT, _STARTS = 0.05, tuple(np.arange(0, 2.01, 0.1).tolist())


@dataclasses.dataclass(frozen=True)
class Calibrated(LatencyModel):
    """Predicts `fixed_ms + scale * ms`, of the `ms` that `model` predicts.

    Kinds of ops in `scales` have factors of their own in place of `scale`: a convolution loses to
    fusion what an attention does not. `fixed_ms` is never negative and factors are positive, so
    whatever makes `model` faster makes this one faster. `residual` says how wrong it was on the
    networks it was fitted on: the standard deviation of measured over predicted, as a share of the
    latency; it is part of every prediction's `std`.
    """

    model: LatencyModel
    fixed_ms: float
    scale: float
    residual: float
    scales: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        values = (self.fixed_ms, self.scale, self.residual, *(s for _, s in self.scales))
        if not all(map(math.isfinite, values)) or min(values) < 0 or self.scale == 0:
            raise ValueError(
                f"fixed_ms, scale, residual = {values}: they must be finite and not negative, "
                "and scale must be positive"
            )

    def predict(self, calls: Iterable[Call]) -> Latency:
        parts = total(self._parts(list(calls)))
        ms = self.fixed_ms + parts.ms
        return Latency(ms, math.hypot(parts.std, self.residual * ms))

    @property
    def parts(self) -> "Calibrated":
        """This model without the fixed cost."""
        return dataclasses.replace(self, fixed_ms=0.0)

    @property
    def alone(self) -> LatencyModel:
        return self.model.alone

    def _parts(self, calls: list[Call]) -> Iterator[Latency]:
        """Yields the scaled latency of the calls of each factor."""
        factors = dict(self.scales)
        # Sorted, so that the order of the calls does not matter to the last bit.
        for name in sorted({kind(call) for call in calls} & factors.keys()):
            found = self.model.predict(call for call in calls if kind(call) == name)
            yield Latency(factors[name] * found.ms, factors[name] * found.std)
        found = self.model.predict(call for call in calls if kind(call) not in factors)
        yield Latency(self.scale * found.ms, self.scale * found.std)


def fit(
    model: LatencyModel,
    networks: Sequence[tuple[Iterable[Call], Latency]],
    *,
    fixed_cost: bool = True,
    kinds: bool = False,
) -> Calibrated:
    """Calibrates `model` on networks, each its calls and its latency as a whole.

    Least squares of relative errors. Fewer than three networks, or ones too alike to tell a fixed
    cost from a factor, give a factor only; so does `fixed_cost=False`. With `kinds`, which takes
    twice as many networks as there are kinds of ops, every kind has a factor of its own, as far
    from the common one as networks left out say that it should be. The residual is never less than
    the measurements' own error, which with one network is all that is known of it. Measure the
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
    common = Calibrated(model, fixed_ms, scale, residual)
    return _by_kind(common, networks, float(np.median(noise))) if kinds else common


def _by_kind(
    common: Calibrated, networks: Sequence[tuple[Sequence[Call], Latency]], noise: float
) -> Calibrated:
    """`common` with a factor for every kind of op, drawn towards its own."""
    names = sorted({kind(call) for calls, _ in networks for call in calls})
    if len(networks) < 2 * len(names):
        raise ValueError(
            f"{len(networks)} networks for factors of {len(names)} kinds of ops; measure "
            f"{2 * len(names)} or more, or calibrate without kinds"
        )
    explained = np.zeros((len(networks), len(names) + 1))
    for row, (calls, latency) in zip(explained, networks, strict=True):
        row[0] = 1 / latency.ms
        for column, name in enumerate(names, 1):
            own = [call for call in calls if kind(call) == name]
            row[column] = common.model.predict(own).ms / latency.ms
    # In units of what `common` says of it, so that one penalty serves all.
    centre = np.array([max(common.fixed_ms, 1e-3), *[common.scale] * len(names)])
    explained *= centre

    def solve(rows: np.ndarray, pull: float) -> np.ndarray:
        weighted = math.sqrt(pull * len(rows)) * np.eye(len(centre))
        target = np.concatenate([np.ones(len(rows)), weighted.sum(1)])
        return nnls(np.concatenate([rows, weighted]), target)[0]

    def left_out(pull: float) -> np.ndarray:
        """Relative error of every network by a fit to the others."""
        return np.array(
            [row @ solve(np.delete(explained, i, 0), pull) - 1 for i, row in enumerate(explained)]
        )

    errors = {pull: left_out(pull) for pull in _PULLS}
    best = min(_PULLS, key=lambda pull: float(errors[pull] @ errors[pull]))
    found = solve(explained, best) * centre
    residual = math.sqrt(float(np.mean(errors[best] ** 2)))
    scales = tuple(zip(names, map(float, found[1:]), strict=True))
    return Calibrated(common.model, float(found[0]), common.scale, max(residual, noise), scales)


_PULLS = (1e-4, 1e-3, 1e-2, 1e-1)  # Towards a common factor; the one that errs least is taken.


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
