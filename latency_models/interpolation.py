"""A table that prices what lies between its rows."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from latency_models.features import features, kind
from latency_models.latency import Latency, LatencyModel, UnknownCall, total
from latency_models.rates import Rates
from latency_models.rates import fit as fit_rates
from latency_models.table import Table
from search_spaces.ops import Call

_NEAREST = 8  # Rows among which a call is interpolated.
_RIDGE = 0.05  # How much a slope must explain to be believed.


@dataclasses.dataclass(frozen=True, eq=False)
class Interpolated(LatencyModel):
    """Rows where there are any, and between them what the nearest rows of the same kind say.

    What is interpolated is how far latency is from `rates`, in logarithms, linearly in those of
    the features, by the nearest rows, nearer ones counting more. The error is what the rows
    themselves show when each is left out, and grows with the distance. A kind of op with fewer
    than two rows is refused.
    """

    table: Table
    rates: Rates

    def predict(self, calls: Iterable[Call]) -> Latency:
        parts = ((n, self.price(call)) for call, n in Counter(calls).items())
        return total(Latency(n * row.ms, n * row.std) for n, row in parts)

    def price(self, call: Call) -> Latency:
        """Latency of one call."""
        if call in self.table.rows:
            return self.table.rows[call]
        rows = {c: row for c, row in self.table.rows.items() if kind(c) == kind(call)}
        if len(rows) < 2:
            raise UnknownCall(
                f"the table has {len(rows)} rows of the kind of {call.op} and none of this call; "
                "measure it, or two of its kind"
            )
        x, (at,) = features(rows), features([call])
        y = np.log([row.ms / self.rates.price(c) for c, row in rows.items()])
        spread = np.maximum(x.std(0), 1e-3)
        off = [
            _interpolate(np.delete(x, i, 0), np.delete(y, i), x[i], spread) - y[i]
            for i in _nearest(x, at, spread)
        ]
        found = np.log(self.rates.price(call)) + _interpolate(x, y, at, spread)
        # Between rows the error of the nearest; outside them it grows as one goes.
        nearest = np.sqrt((((x - at) / spread) ** 2).sum(1)).min()
        typical = np.median([_gap(np.delete(x, i, 0), x[i], spread) for i in range(len(x))])
        far = max(1.0, nearest / max(float(typical), 1e-6))
        ms = float(np.exp(found))
        return Latency(ms, ms * far * float(np.sqrt(np.mean(np.square(off)))))


def fit(rows: Mapping[Call, Latency]) -> Interpolated:
    """A table of measured calls, and the rates between them."""
    return Interpolated(Table(dict(rows)), fit_rates(rows))


def _gap(x: np.ndarray, at: np.ndarray, spread: np.ndarray) -> float:
    return float(np.sqrt((((x - at) / spread) ** 2).sum(1)).min())


def _nearest(x: np.ndarray, at: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.argsort((((x - at) / spread) ** 2).sum(1), kind="stable")[:_NEAREST]


def _interpolate(x: np.ndarray, y: np.ndarray, at: np.ndarray, spread: np.ndarray) -> float:
    """The value at `at` of the plane through the nearest rows, nearer ones counting more."""
    near = _nearest(x, at, spread)
    away = (x[near] - at) / spread
    weight = 1 / ((away**2).sum(1) + 1e-6)
    weight /= weight.sum()
    mean, centre = weight @ y[near], weight @ away
    moved = away - centre
    slope = np.linalg.solve(
        (moved * weight[:, None]).T @ moved + _RIDGE**2 * np.eye(len(at)),
        (moved * weight[:, None]).T @ (y[near] - mean),
    )
    return float(mean - centre @ slope)
