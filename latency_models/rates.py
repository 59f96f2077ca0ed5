"""Every kind of work at a rate of its own: a roofline whose parts add up, fitted to a device."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from scipy.optimize import nnls

from latency_models.features import WORK, kind, work
from latency_models.latency import Latency, LatencyModel, UnknownCall, total
from search_spaces.ops import Call


@dataclasses.dataclass(frozen=True)
class Rates(LatencyModel):
    """Prices a call by the work it does, `milliseconds` for one of each of `features.WORK`.

    `residual` is the standard deviation of its relative errors on calls it was not fitted on.
    Kinds of ops that it has not seen are refused: their efficiency is unknown.
    """

    milliseconds: tuple[float, ...]
    residual: float
    kinds: tuple[str, ...]

    def predict(self, calls: Iterable[Call]) -> Latency:
        # A call made twice is wrong by the same amount twice.
        parts = ((n, self.price(call)) for call, n in Counter(calls).items())
        return total(Latency(n * ms, self.residual * n * ms) for n, ms in parts)

    def price(self, call: Call) -> float:
        """Milliseconds of one call."""
        known(call, self.kinds)
        return float(np.dot(work(call), self.milliseconds))


def known(call: Call, kinds: Iterable[str]) -> None:
    """Raises `UnknownCall` unless `call` is of one of `kinds`."""
    if kind(call) not in kinds:
        raise UnknownCall(
            f"nothing like {call.op} was measured, only {sorted(kinds)}; "
            "measure some of its kind and fit again"
        )


def fit(rows: Mapping[Call, Latency]) -> Rates:
    """Fits rates to measured calls, by least squares of relative errors; none is negative."""
    calls, ms = tuple(rows), np.array([row.ms for row in rows.values()])
    if len(calls) < 3:
        raise ValueError(f"{len(calls)} measured calls; rates take three or more")
    # In each call's own milliseconds, and each kind of work by its mean, so that columns compare.
    amounts = np.array([work(call) for call in calls]) / ms[:, None]
    scale = amounts.mean(0)
    scaled = amounts[:, scale > 0] / scale[scale > 0]
    errors = np.array(
        [row @ _solve(np.delete(scaled, i, 0)) - 1 for i, row in enumerate(scaled) if i < _LEFT_OUT]
    )
    found = np.zeros(len(WORK))
    found[scale > 0] = _solve(scaled) / scale[scale > 0]
    return Rates(
        tuple(map(float, found)),
        float(np.sqrt(np.mean(errors**2))),
        tuple(sorted({kind(call) for call in calls})),
    )


_LEFT_OUT = 200  # Calls that are left out in turns, to see the error on what was not fitted.


def _solve(scaled: np.ndarray) -> np.ndarray:
    return nnls(scaled, np.ones(len(scaled)))[0]
