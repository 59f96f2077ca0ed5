"""Calls as they are within networks, learnt from calls measured alone and from whole networks.

Adding up calls measured one by one counts the start of each of them, which within a network is not
paid, and misses what the compiler fuses, what overlaps, and weights that are out of the caches by
the time they are needed again. Networks measured as a whole show all of it, and they also tell of
calls that were never measured alone.

What networks have in common comes first (`within`). For the rest a network's latency is one more
observation of the same Gaussian process: of the logarithm of a sum of its calls, made linear where
the process has its mean (as in an iterated extended Kalman filter; Bell & Cathey, 1993).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.stats import norm
from scipy.stats import t as student

from latency_models import within
from latency_models.gaussian import matern
from latency_models.latency import Latency, LatencyModel
from latency_models.learned import Learned, described
from latency_models.within import ALONE, Within, asked
from search_spaces.ops import Call


class Change(NamedTuple):
    """Standard deviations of what networks change of the logarithm of a call's latency."""

    common: float
    """Of all calls alike."""
    kind: float
    """Of the calls of one kind."""
    start: float
    """Of a call that is nothing but its start; of longer ones by the share that is."""
    smooth: float
    """Of calls whose features are alike."""
    noise: float
    """Of a network, by what none of this tells."""


@dataclasses.dataclass(frozen=True, eq=False)
class Conditioned(LatencyModel):
    """`model`, given networks that were measured as a whole.

    It stores their distinct calls, as features and as shares of each network, and what prediction
    needs of the rest.
    """

    model: Learned
    within: tuple[float, ...]  # As in `Within`.
    change: tuple[float, ...]  # As in `Change`.
    start_ms: float
    lengths: np.ndarray  # [features]: what counts as alike.
    x: np.ndarray  # [calls, features]
    starts: np.ndarray  # [calls]: the share of each that is its start.
    shares: np.ndarray  # [networks, calls]
    pull: np.ndarray  # [networks]: the inverse covariance times what was seen.
    factor: np.ndarray  # [networks, networks]: the covariance's lower triangle.
    widening: float

    def predict(self, calls: Iterable[Call]) -> Latency:
        counts = Counter(calls)
        if not counts:
            return Latency(0.0, 0.0)
        x = described(tuple(counts), self.model.rates.kinds)
        alone = np.array([row.ms for row in self.model.price(tuple(counts))])
        times = np.array(list(counts.values()))
        asks = asked(counts)
        # Sorted, so that the order of the calls does not matter to the last bit.
        order = np.lexsort([*x.T, *asks.T, times, alone])
        x, alone, times, asks = x[order], alone[order], times[order], asks[order]
        own = _Calls(x, _starting(self.start_ms, alone), len(self.model.rates.kinds))
        known = _Calls(self.x, self.starts, own.kinds)
        cross = np.zeros((len(x), 0))
        if len(self.x):
            cross = self._covariance(own, known) @ self.shares.T
        ms = times * Within(*self.within).ms(alone, asks, times) * np.exp(cross @ self.pull)
        share = ms / math.fsum(ms)
        told = solve_triangular(self.factor, cross.T @ share, lower=True)
        variance = share @ self._covariance(own, own) @ share - told @ told
        variance = max(0.0, float(variance)) + Change(*self.change).noise ** 2
        total = math.fsum(ms)
        return Latency(total, self.widening * total * math.sqrt(math.expm1(variance)))

    @property
    def alone(self) -> LatencyModel:
        return self.model.alone

    def _covariance(self, a: "_Calls", b: "_Calls") -> np.ndarray:
        """Of the logarithms of the calls' latencies, `[a, b]`, before networks are known."""
        found = self.model.regressor.covariance(a.x, b.x)
        parts = _parts(a, b, self.lengths)
        deviations = Change(*self.change)[: len(parts)]
        return found + sum(d**2 * part for d, part in zip(deviations, parts, strict=True))


class _Calls(NamedTuple):
    x: np.ndarray  # [calls, features]
    starts: np.ndarray  # [calls]
    kinds: int  # How many; which one a call is of are the last features.


def _starting(start_ms: float, alone: np.ndarray) -> np.ndarray:
    return np.minimum(1.0, start_ms / alone)


def _parts(a: _Calls, b: _Calls, lengths: np.ndarray) -> list[np.ndarray]:
    """What each deviation of `Change` but the noise makes of the covariance, `[a, b]` each."""
    same = a.x[:, -a.kinds :] @ b.x[:, -b.kinds :].T
    smooth = matern(a.x / lengths, b.x / lengths)
    return [np.ones_like(same), same, np.outer(a.starts, b.starts), smooth]


def unseen(model: Learned, calls: Iterable[Call]) -> Conditioned:
    """`model` of these calls where no network was measured as a whole.

    It says what `model` does of a network, and that sums are wrong by what networks usually change:
    much more than calls that were measured one by one are.
    """
    x, starts, start_ms, lengths = _starts(model, tuple(calls))
    return Conditioned(
        model,
        tuple(ALONE),
        tuple(map(float, _USUAL)),
        start_ms,
        lengths,
        x[:0],
        starts[:0],
        shares=np.zeros((0, 0)),
        pull=np.zeros(0),
        factor=np.zeros((0, 0)),
        widening=1.0,
    )


def _starts(
    model: Learned, calls: tuple[Call, ...]
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Features of calls, the share of each that is its start, how long a start takes, and the
    lengths over which what networks change varies."""
    alone = np.array([row.ms for row in model.price(calls)])
    start_ms = float(np.quantile(alone, _SHORT))
    x = described(calls, model.rates.kinds)
    return x, _starting(start_ms, alone), start_ms, _LENGTHS * np.maximum(x.std(0), 0.05)


def fit(model: Learned, networks: Sequence[tuple[Iterable[Call], Latency]]) -> Conditioned:
    """Conditions `model` on networks, each its calls and its latency as a whole.

    Raises `ValueError` where there are no networks, and `UnknownCall` where the model cannot price
    a call of one. Few networks move little: the deviations are the likeliest given what is usual.
    """
    if not networks:
        raise ValueError("no networks to learn from; measure at least one as a whole")
    counted = [Counter(calls) for calls, _ in networks]
    distinct = tuple(dict.fromkeys(call for counts in counted for call in counts))
    times = np.array([[counts[call] for call in distinct] for counts in counted], float)
    measured = np.array([latency.ms for _, latency in networks])
    if not (measured > 0).all():
        raise ValueError("a network took no time; leave it out")
    known = np.array([latency.std / latency.ms for _, latency in networks])
    alone = np.array([row.ms for row in model.price(distinct)])
    asks = asked(distinct)

    def expected(kept: np.ndarray) -> tuple[Within, np.ndarray]:
        """What these networks make of calls, and the milliseconds of each in every one."""
        found = within.fit(alone, asks, times[kept], measured[kept])
        return found, np.array([found.ms(alone, asks, counts) for counts in times])

    numbers = np.arange(len(networks))
    made, base = expected(numbers)
    x, starts, start_ms, lengths = _starts(model, distinct)
    calls = _Calls(x, starts, len(model.rates.kinds))
    parts = [model.regressor.covariance(x, x), *_parts(calls, calls, lengths)]

    def linear(shift: np.ndarray) -> _Seen:
        """What networks say where calls are `shift` off."""
        taken = times * base * np.exp(shift)
        shares = taken / taken.sum(1, keepdims=True)
        off = np.log(measured / taken.sum(1)) + shares @ shift
        return _Seen(shares, np.array([shares @ part @ shares.T for part in parts]), off, known)

    def told(seen: _Seen) -> tuple[_Told, np.ndarray]:
        """What follows from it, and how far off calls are."""
        change = _likeliest(seen)
        factor = np.linalg.cholesky(seen.covariance(change))
        pull = cho_solve((factor, True), seen.off)
        covariance = np.tensordot(_weights(change), np.array(parts), 1)
        return _Told(change, pull, factor), covariance @ seen.shares.T @ pull

    seen = linear(np.zeros(len(distinct)))
    found, shift = told(seen)
    for _ in range(_PASSES - 1):
        seen = linear(shift)
        found, shift = told(seen)
    without = (expected(np.delete(numbers, i))[1] for i in numbers)
    moved = np.array([np.log((seen.shares * ms / base).sum(1)) for ms in without])
    return Conditioned(
        model,
        tuple(made),
        tuple(map(float, found.change)),
        start_ms,
        lengths,
        x,
        calls.starts,
        seen.shares,
        found.pull,
        found.factor,
        widening=_widening(_left_out(seen, moved)),
    )


class _Told(NamedTuple):
    """What networks tell."""

    change: Change
    pull: np.ndarray  # [networks]
    factor: np.ndarray  # [networks, networks]


class _Seen(NamedTuple):
    """Networks, as sums of calls that are off by little."""

    shares: np.ndarray  # [networks, calls]
    parts: np.ndarray  # [parts, networks, networks]: of the covariance, by what causes it.
    off: np.ndarray  # [networks]: logarithms of what was measured over what the calls say.
    known: np.ndarray  # [networks]: standard deviations of what was measured.

    def only(self, kept: np.ndarray) -> "_Seen":
        """These networks."""
        return _Seen(
            self.shares[kept], self.parts[:, kept][:, :, kept], self.off[kept], self.known[kept]
        )

    def covariance(self, change: Change) -> np.ndarray:
        """Of what is seen, `[networks, networks]`."""
        own = np.tensordot(_weights(change), self.parts, 1)
        return own + np.diag(change.noise**2 + self.known**2)


def _weights(change: Change) -> np.ndarray:
    """Of the parts of a covariance: the model's own errors, and what networks change."""
    return np.array([1.0, *(d**2 for d in change[:-1])])


def _left_out(seen: _Seen, moved: np.ndarray) -> np.ndarray:
    """How many deviations each network is off where the others alone are known.

    All is found anew without it, but for where the sums are made linear: deviations that are
    likeliest given a network too flatter what is said of it. `moved`, `[networks, networks]`, is by
    how much `Within` without each says more of the logarithm of all.
    """
    found = []
    for number in range(count := len(seen.off)):
        others = np.delete(np.arange(count), number)
        off = seen.off - moved[number]
        change = _likeliest(seen._replace(off=off).only(others)) if count > 1 else _USUAL
        covariance = seen.covariance(change)
        across = covariance[number, others]
        told = np.linalg.solve(covariance[np.ix_(others, others)], across)
        variance = covariance[number, number] - told @ across
        found.append((off[number] - told @ off[others]) / math.sqrt(variance))
    return np.array(found)


def _widening(left_out: np.ndarray) -> float:
    """What deviations are multiplied by, so that an interval that is taken to be normal holds.

    Few networks do not tell how wide errors are, so intervals are those of Student's t.
    """
    unknown = student.ppf(_LEVEL, len(left_out)) / norm.ppf(_LEVEL)
    return max(1.0, float(unknown) * math.sqrt(float(np.mean(left_out**2))))


_USUAL = Change(common=0.1, kind=0.05, start=0.3, smooth=0.1, noise=0.03)
# Of a network that is measured again on another occasion, whatever those that were measured
# together say: what `benchmarks.runtimes` found of visits half an hour apart.
_AGAIN = 0.02
_DOUBT = 1.0  # Of the logarithms of these: a factor of e to either side is no surprise.
_SHORT = 0.05  # The quantile of calls that are little but their start.
_LENGTHS = 5.0  # Of the smooth change, in standard deviations of each feature.
_PASSES = 3
_LEVEL = 0.95  # The side of an interval that holds in nine of ten cases.


def _likeliest(seen: _Seen) -> Change:
    """The deviations of the greatest posterior density, of what networks are seen to take."""
    start = np.log(np.array(_USUAL))
    given = (seen.parts, seen.off, seen.known, start)
    arguments = [jnp.asarray(array, jnp.float32) for array in given]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _surprise(jnp.asarray(flat, jnp.float32), *arguments)
        return float(value), np.asarray(slope, np.float64)

    bounds = [(s - 4, s + 3) for s in start]
    bounds[-1] = (math.log(_AGAIN), start[-1] + 3)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Change(*np.exp(found).tolist())


@jax.jit
@jax.value_and_grad
def _surprise(flat: jax.Array, parts: jax.Array, seen: jax.Array, known: jax.Array, usual):
    squares = jnp.exp(2 * flat)
    covariance = parts[0] + jnp.tensordot(squares[:-1], parts[1:], 1)
    factor = jnp.linalg.cholesky(covariance + jnp.diag(squares[-1] + known**2))
    half = jax.scipy.linalg.solve_triangular(factor, seen, lower=True)
    prior = 0.5 * (((flat - usual) / _DOUBT) ** 2).sum()
    return 0.5 * half @ half + jnp.log(jnp.diag(factor)).sum() + prior
