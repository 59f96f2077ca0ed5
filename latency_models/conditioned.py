"""Calls as they are within networks, learnt from calls measured alone and from whole networks.

Adding up calls measured one by one counts the start of each of them, which within a network is not
paid, and misses what the compiler fuses, what overlaps, and weights that are out of the caches by
the time they are needed again. Networks measured as a whole show all of it, and they also tell of
calls that were never measured alone. So a network's latency is one more observation of the same
Gaussian process: of the logarithm of a sum of its calls, made linear where the process has its mean
(as in an iterated extended Kalman filter; Bell & Cathey, 1993).
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

from latency_models.gaussian import matern
from latency_models.latency import Latency, LatencyModel
from latency_models.learned import Learned, described
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
        # Sorted, so that the order of the calls does not matter to the last bit.
        order = np.lexsort([*x.T, times, alone])
        x, alone, times = x[order], alone[order], times[order]
        own = _Calls(x, _starting(self.start_ms, alone), len(self.model.rates.kinds))
        known = _Calls(self.x, self.starts, own.kinds)
        cross = self._covariance(own, known) @ self.shares.T
        ms = times * alone * np.exp(cross @ self.pull)
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
    start_ms = float(np.quantile(alone, _SHORT))
    x = described(distinct, model.rates.kinds)
    lengths = _LENGTHS * np.maximum(x.std(0), 0.05)
    calls = _Calls(x, _starting(start_ms, alone), len(model.rates.kinds))
    parts = [model.regressor.covariance(x, x), *_parts(calls, calls, lengths)]

    def linear(shift: np.ndarray) -> tuple[_Seen, np.ndarray]:
        """What networks say where calls are `shift` off, and how far off they then are."""
        within = times * alone * np.exp(shift)
        shares = within / within.sum(1, keepdims=True)
        seen = np.log(measured / within.sum(1)) + shares @ shift
        seen_parts = [shares @ part @ shares.T for part in parts]
        change = _likeliest(np.array(seen_parts), seen, known)
        weights = (1.0, *(d**2 for d in change[:-1]))
        own = sum(w * part for w, part in zip(weights, seen_parts, strict=True))
        factor = np.linalg.cholesky(own + np.diag(change.noise**2 + known**2))
        pull = cho_solve((factor, True), seen)
        covariance = sum(w * part for w, part in zip(weights, parts, strict=True))
        return _Seen(change, shares, pull, factor), covariance @ shares.T @ pull

    found, shift = linear(np.zeros(len(distinct)))
    for _ in range(_PASSES - 1):
        found, shift = linear(shift)
    inverse = cho_solve((found.factor, True), np.eye(len(networks)))
    left_out = found.pull / np.sqrt(np.diag(inverse))  # In deviations (Rasmussen & Williams, 5.12).
    return Conditioned(
        model,
        tuple(map(float, found.change)),
        start_ms,
        lengths,
        x,
        calls.starts,
        found.shares,
        found.pull,
        found.factor,
        widening=max(1.0, math.sqrt(float(np.mean(left_out**2)))),
    )


class _Seen(NamedTuple):
    change: Change
    shares: np.ndarray  # [networks, calls]
    pull: np.ndarray  # [networks]
    factor: np.ndarray  # [networks, networks]


_USUAL = Change(common=0.1, kind=0.05, start=0.3, smooth=0.1, noise=0.03)
_DOUBT = 1.0  # Of the logarithms of these: a factor of e to either side is no surprise.
_SHORT = 0.05  # The quantile of calls that are little but their start.
_LENGTHS = 5.0  # Of the smooth change, in standard deviations of each feature.
_PASSES = 3


def _likeliest(parts: np.ndarray, seen: np.ndarray, known: np.ndarray) -> Change:
    """The deviations of the greatest posterior density, of what networks are seen to take."""
    start = np.log(np.array(_USUAL))
    arguments = [jnp.asarray(array, jnp.float32) for array in (parts, seen, known, start)]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _surprise(jnp.asarray(flat, jnp.float32), *arguments)
        return float(value), np.asarray(slope, np.float64)

    bounds = [(s - 4, s + 3) for s in start]
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
