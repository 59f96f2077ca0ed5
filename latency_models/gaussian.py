"""Gaussian process regression (Rasmussen & Williams, 2006), for few rows with known errors."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from latency_models.learned import Regressor, same_rows

_QUERIES = 64  # Predicted at once, so that any number of them takes one program.
_ROWS = 400  # Among which lengths are chosen: a likelihood takes the cube of their number.
_FLOOR = 3e-3  # Least standard deviation of a row, for float32's sake too.
_LEVEL = 0.9  # Of the interval whose width is set by what was left out.
_FREEDOM = 4.0  # Of Student's t, which errors are drawn from: a few may be far greater than most.
_PASSES = 4  # Of doubting rows, and of fitting again.


class Process(NamedTuple):
    """Logarithms of amplitude, of noise beyond the rows' own, and of a length per feature."""

    amplitude: jax.Array
    noise: jax.Array
    lengths: jax.Array  # [features]


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian(Regressor):
    """A fitted process: means and standard deviations of a function of features, `[n, features]`.

    It stores what prediction needs and no more. Deviations are those of the process, times
    `widening`: what makes nine tenths of the intervals hold on rows left out one by one.
    """

    x: np.ndarray  # [rows, features], in lengths.
    pull: np.ndarray  # [rows]: the inverse covariance times what was seen.
    factor: np.ndarray  # [rows, rows]: the covariance's lower triangle.
    lengths: np.ndarray  # [features]
    amplitude: float
    noise: float
    widening: float

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation at `x`, `[n]` each; the noise of a row is part of it."""
        means, deviations = [], []
        for start in range(0, len(x), _QUERIES):
            part = np.asarray(x[start : start + _QUERIES], np.float32) / self.lengths
            padded = np.pad(part, ((0, _QUERIES - len(part)), (0, 0)))
            mean, variance = _predict(padded, self.x, self.pull, self.factor, self.amplitude)
            means.append(np.asarray(mean, np.float64)[: len(part)])
            deviations.append(np.asarray(variance, np.float64)[: len(part)])
        variance = np.concatenate([*deviations, np.empty(0)]) + self.noise**2
        return np.concatenate([*means, np.empty(0)]), self.widening * np.sqrt(variance)

    def covariance(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """What is alike is wrong alike: the process's own covariance, and noise of each row."""
        near, far = (_padded(np.asarray(part, np.float32) / self.lengths) for part in (x, z))
        found = np.asarray(_together(near, far, self.x, self.factor, self.amplitude), np.float64)
        signal, same = found[: len(x), : len(z)], same_rows(x, z)
        # Rounding may leave less than nothing where much is known.
        signal = np.where(same, np.maximum(signal, 0.0), signal)
        return self.widening**2 * (signal + self.noise**2 * same)


def matern(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Matern's correlation with smoothness 3/2, of features in lengths: `[len(x), len(z)]`."""
    near, far = (_padded(np.asarray(part, np.float32)) for part in (x, z))
    return np.asarray(_correlation(near, far), np.float64)[: len(x), : len(z)]


def _padded(x: np.ndarray) -> np.ndarray:
    """`x` with rows added, so that few sizes are compiled for."""
    return np.pad(x, ((0, -len(x) % _QUERIES), (0, 0)))


def fit(x: np.ndarray, y: np.ndarray, std: np.ndarray, *, seed: int = 0) -> Gaussian:
    """Fits a process to `y` `[rows]` at `x` `[rows, features]`, whose errors have deviations `std`.

    Features should be of the order of one. Lengths and noise maximise the marginal likelihood. A
    machine that others share is slow for all the time that some row is measured, now and then, so
    errors have the tails of Student's t: a row that is many deviations off what the others say of
    it is doubted accordingly, as in the expectation-maximisation of its mixture of scales (Lange,
    Little & Taylor, 1989).
    """
    if len(x) < 3:
        raise ValueError(f"{len(x)} rows; a Gaussian process takes three or more")
    rows = np.random.default_rng(seed).permutation(len(x))[:_ROWS]
    x, y, std = (np.asarray(array, np.float32) for array in (x, y, np.maximum(std, _FLOOR)))
    found = _likeliest(x, y, std, np.ones(len(x), np.float32), rows)
    for _ in range(_PASSES - 1):
        # By what the noise of a row grows that is so many deviations off.
        doubt = np.sqrt(np.maximum(1.0, (_FREEDOM + found.left**2) / (_FREEDOM + 1)))
        found = _likeliest(x, y, std, doubt, rows)
    widening = float(np.quantile(np.abs(found.left), _LEVEL) / norm.ppf(0.5 + _LEVEL / 2))
    return Gaussian(
        x / found.lengths,
        found.pull,
        found.factor,
        found.lengths,
        found.amplitude,
        found.noise,
        max(widening, 0.5),
    )


class _Found(NamedTuple):
    """A process given its rows, and how many deviations each is off when it is left out."""

    amplitude: float
    noise: float
    lengths: np.ndarray  # [features]
    factor: np.ndarray  # [rows, rows]
    pull: np.ndarray  # [rows]
    left: np.ndarray  # [rows]


def _likeliest(
    x: np.ndarray, y: np.ndarray, std: np.ndarray, doubt: np.ndarray, rows: np.ndarray
) -> _Found:
    """The process of the greatest likelihood of some `rows`, given all of them."""
    some = [jnp.asarray(array[rows], jnp.float32) for array in (x, y, std, doubt)]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _likelihood(jnp.asarray(flat, jnp.float32), *some)
        if not np.isfinite(value):
            return 1e10, np.zeros_like(flat)
        return float(value), np.asarray(slope, np.float64)

    start = np.concatenate([[np.log(np.std(y) + 1e-2), np.log(0.02)], np.log(2 * _spread(x))])
    bounds = [(-5, 3), (np.log(_FLOOR), 0), *[(s - 3, s + 6) for s in start[2:]]]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    amplitude, noise, *rest = np.exp(found.astype(np.float32)).tolist()
    lengths = np.asarray(rest, np.float32)
    posterior = _posterior(x / lengths, y, std, doubt, amplitude, noise)
    return _Found(amplitude, noise, lengths, *map(np.asarray, posterior))


def _spread(x: np.ndarray) -> np.ndarray:
    return np.maximum(x.std(0), 0.05)


def _process(flat: jax.Array) -> Process:
    return Process(flat[0], flat[1], flat[2:])


def _kernel(a: jax.Array, b: jax.Array, amplitude: jax.Array | float) -> jax.Array:
    """Matern's covariance with smoothness 3/2, of features in lengths."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    distance = jnp.sqrt(3 * jnp.maximum(squares, 1e-10))
    return amplitude**2 * (1 + distance) * jnp.exp(-distance)


def _covariance(
    x: jax.Array,
    std: jax.Array,
    doubt: jax.Array,
    amplitude: jax.Array | float,
    noise: jax.Array | float,
):
    return _kernel(x, x, amplitude) + jnp.diag(doubt**2 * (std**2 + noise**2))


@jax.jit
@jax.value_and_grad
def _likelihood(
    flat: jax.Array, x: jax.Array, y: jax.Array, std: jax.Array, doubt: jax.Array
) -> jax.Array:
    process = _process(flat)
    scaled = x / jnp.exp(process.lengths)
    factor = jnp.linalg.cholesky(
        _covariance(scaled, std, doubt, jnp.exp(process.amplitude), jnp.exp(process.noise))
    )
    half = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
    # Long lengths are likelier before anything is seen: most features do not matter.
    prior = 0.5 * ((process.lengths - 1.0) / 1.5) ** 2
    return 0.5 * half @ half + jnp.log(jnp.diag(factor)).sum() + prior.sum()


@jax.jit
def _posterior(
    x: jax.Array,
    y: jax.Array,
    std: jax.Array,
    doubt: jax.Array,
    amplitude: float,
    noise: float,
):
    """Factor, pull, and how many deviations each row is off when it is left out (equations 5.10
    to 5.12 there) and not doubted."""
    factor = jnp.linalg.cholesky(_covariance(x, std, doubt, amplitude, noise))
    inverse = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(len(x)))
    pull, spread = inverse @ y, 1 / jnp.diag(inverse)
    undoubted = spread - (doubt**2 - 1) * (std**2 + noise**2)
    return factor, pull, pull * spread / jnp.sqrt(undoubted)


@jax.jit
def _predict(x: jax.Array, seen: jax.Array, pull: jax.Array, factor: jax.Array, amplitude: float):
    cross = _kernel(x, seen, amplitude)
    half = jax.scipy.linalg.solve_triangular(factor, cross.T, lower=True)
    return cross @ pull, jnp.maximum(amplitude**2 - (half**2).sum(0), 0.0)


@jax.jit
def _together(
    x: jax.Array, z: jax.Array, seen: jax.Array, factor: jax.Array, amplitude: float
) -> jax.Array:
    near, far = (
        jax.scipy.linalg.solve_triangular(factor, _kernel(part, seen, amplitude).T, lower=True)
        for part in (x, z)
    )
    return _kernel(x, z, amplitude) - near.T @ far


@jax.jit
def _correlation(x: jax.Array, z: jax.Array) -> jax.Array:
    return _kernel(x, z, 1.0)
