"""Latency learnt from measured calls: rates of work, and what a regression adds to them."""

import abc
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from latency_models import rates
from latency_models.features import features, kind
from latency_models.latency import Latency, LatencyModel
from latency_models.rates import Rates, known
from search_spaces.ops import Call


class Regressor(abc.ABC):
    """A fitted function of features, `[n, features]`."""

    @abc.abstractmethod
    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations, `[n]` each."""

    def covariance(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Of the errors at rows `[n, features]` and `[m, features]`: `[n, m]`. Equal rows share
        theirs; unless a regressor knows of it, others have nothing in common."""
        return np.outer(self.predict(x)[1], self.predict(z)[1]) * same_rows(x, z)


def same_rows(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Which rows of `x` are rows of `z`, `[len(x), len(z)]`."""
    return (x[:, None] == z[None]).all(-1)


Fit: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], Regressor]
"""Makes a regressor of features `[n, features]`, values `[n]` and their standard deviations."""


@dataclasses.dataclass(frozen=True, eq=False)
class Learned(LatencyModel):
    """Prices a call at `rates`, times the exponential of what `regressor` finds of its features.

    The regressor learns where a device is better or worse than its rates; far from what was
    measured the rates remain, with an error as wide as the regressor says. Kinds of ops that were
    not measured are refused.
    """

    rates: Rates
    regressor: Regressor

    def predict(self, calls: Iterable[Call]) -> Latency:
        counts = Counter(calls)
        if not counts:
            return Latency(0.0, 0.0)
        x = described(tuple(counts), self.rates.kinds)
        ms = np.array([n * self.rates.price(call) for call, n in counts.items()])
        ms *= np.exp(self.regressor.predict(x)[0])
        # Sorted, so that the order of the calls does not matter to the last bit.
        order = np.lexsort([*x.T, ms])
        x, ms = x[order], ms[order]
        # A call made twice is wrong by the same amount twice, and calls that are alike nearly so.
        variance = ms @ np.expm1(self.regressor.covariance(x, x)) @ ms
        return Latency(math.fsum(ms), math.sqrt(max(0.0, float(variance))))

    def price(self, calls: tuple[Call, ...]) -> list[Latency]:
        """Latency of each call, in their order."""
        if not calls:
            return []
        base = np.array([self.rates.price(call) for call in calls])
        mean, std = self.regressor.predict(described(calls, self.rates.kinds))
        return [
            Latency(float(ms), float(ms * np.sqrt(np.expm1(s**2))))
            for ms, s in zip(base * np.exp(mean), std, strict=True)
        ]


def described(calls: tuple[Call, ...], kinds: tuple[str, ...]) -> np.ndarray:
    """`features` of the calls, and which of `kinds` each is: `[calls, features]`."""
    for call in calls:
        known(call, kinds)
    kinds_of = np.array([[kind(call) == other for other in kinds] for call in calls], float)
    return np.concatenate([features(calls), kinds_of], axis=1)


def fit(rows: Mapping[Call, Latency], regression: Fit) -> Learned:
    """Fits rates to measured calls, and `regression` to what they leave unexplained."""
    base, calls = rates.fit(rows), tuple(rows)
    priced = np.array([base.price(call) for call in calls])
    if not (priced > 0).all():
        raise ValueError(f"{calls[int(np.argmin(priced))]} costs nothing at the fitted rates")
    ms = np.array([row.ms for row in rows.values()])
    std = np.array([row.std for row in rows.values()])
    found = regression(described(calls, base.kinds), np.log(ms / priced), std / ms)
    return Learned(base, found)
