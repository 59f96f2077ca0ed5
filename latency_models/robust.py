"""Gaussian processes whose noise has heavy tails and grows with the latency.

Latencies of real devices have outliers, nearly all of them too slow (an interrupt, a hot chip),
and slow networks scatter more than fast ones. Here the noise of a latency `f` is a Student t with
`FREEDOM` degrees of freedom, of scale `noise * f**GROWTH`. The t is a Gaussian whose precision is
itself uncertain, so expectation maximisation finds the posterior: an observation that fits the
others badly gets little weight (Jylänki, Vanhatalo and Vehtari, "Robust Gaussian Process
Regression with a Student-t Likelihood", JMLR 2011).

Everything here is in units of the device's typical latency, in float64, and of padded size: `real`
marks the rows that are measurements. `sizes` are logarithms: of the variance of each component,
and last of the noise's.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FREEDOM = 4.0
GROWTH = 0.5
# Latencies below this share of the typical one scatter no less than at it.
_FASTEST = 0.1
# Keeps covariances invertible where a device has no noise at all.
_JITTER = 1e-7


class Posterior(NamedTuple):
    """What `n` measurements say. `k @ dual` is the mean where the kernel with them is `k`;
    `k @ inverse @ k` what they take off the variance."""

    evidence: jax.Array  # []: a lower bound of the log density of the measurements.
    dual: jax.Array  # [n]
    inverse: jax.Array  # [n, n]


class _Pass(NamedTuple):
    evidence: jax.Array
    dual: jax.Array
    inverse: jax.Array
    fitted: jax.Array  # [n]
    trust: jax.Array  # [n]: expected precision of each measurement over that of the noise.


def spread(latency: jax.Array) -> jax.Array:
    """Variance of the noise at `latency`, over that at the typical latency."""
    return jnp.maximum(latency, _FASTEST) ** (2 * GROWTH)


def variance_of_t() -> float:
    """Variance of the noise over its squared scale."""
    return FREEDOM / (FREEDOM - 2)


def _pass(sizes, kernels, latency, real, trust, growth) -> _Pass:
    """One round of expectation maximisation."""
    scale = jnp.exp(sizes[-1]) * growth + _JITTER
    noise = jnp.where(real, scale / trust, 1.0)
    # The constant 1.0: how far the mean may be from typical.
    signal = (jnp.tensordot(jnp.exp(sizes[:-1]), kernels, 1) + 1.0) * real[:, None] * real
    factor = jnp.linalg.cholesky(signal + jnp.diag(noise))
    half = jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(latency)), lower=True)
    inverse = half.T @ half
    dual = inverse @ latency
    residual = noise * dual
    uncertain = noise - noise**2 * jnp.diag(inverse)
    surprise = jnp.where(real, (residual**2 + uncertain) / scale, 0.0)
    evidence = (
        -0.5 * latency @ dual
        - jnp.log(jnp.diag(factor)).sum()
        + jnp.sum(
            jnp.where(
                real,
                0.5 * (trust * surprise - jnp.log(trust))
                - 0.5 * (FREEDOM + 1) * jnp.log1p(surprise / FREEDOM),
                0.0,
            )
        )
    )
    trust = jnp.where(real, (FREEDOM + 1) / (FREEDOM + surprise), 1.0)
    return _Pass(evidence, dual, inverse, latency - residual, trust)


@functools.partial(jax.jit, static_argnames="rounds")
def condition(
    sizes: jax.Array, kernels: jax.Array, latency: jax.Array, real: jax.Array, *, rounds: int
) -> Posterior:
    """Posterior for given `sizes` `[components + 1]`, of `kernels` `[components, n, n]`."""

    def improve(_, weights):
        done = _pass(sizes, kernels, latency, real, *weights)
        return done.trust, spread(done.fitted)

    ones = jnp.ones_like(latency)
    weights = jax.lax.fori_loop(0, rounds - 1, improve, (ones, ones))
    done = _pass(sizes, kernels, latency, real, *weights)
    return Posterior(done.evidence, done.dual, done.inverse)


@functools.partial(jax.jit, static_argnames="rounds")
def condition_each(
    sizes: jax.Array, kernels: jax.Array, latency: jax.Array, real: jax.Array, *, rounds: int
) -> Posterior:
    """Posteriors for every row of `sizes` `[h, components + 1]`, stacked."""
    one = functools.partial(condition, rounds=rounds)
    return jax.vmap(one, in_axes=(0, None, None, None))(sizes, kernels, latency, real)


@functools.partial(jax.jit, static_argnames="steps")
def likely_sizes(
    start: jax.Array,
    centre: jax.Array,
    width: jax.Array,
    kernels: jax.Array,
    latency: jax.Array,
    real: jax.Array,
    *,
    steps: int,
) -> jax.Array:
    """Sizes near the maximum of the evidence times a normal prior, `centre ± width`.

    Adam, with the weights of the measurements renewed at every step.
    """
    pairs = real[:, None] * real

    def step(index, state):
        sizes, first, second, trust, growth = state
        done = _pass(sizes, kernels, latency, real, trust, growth)
        slope = 0.5 * (done.inverse - jnp.outer(done.dual, done.dual)) * pairs
        noise = jnp.sum(jnp.diag(slope) * jnp.exp(sizes[-1]) * growth / trust)
        signal = jnp.tensordot(kernels, slope, 2) * jnp.exp(sizes[:-1])
        gradient = jnp.append(signal, noise) + (sizes - centre) / width**2
        first = 0.7 * first + 0.3 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        away = first / (1 - 0.7 ** (index + 1))
        size = jnp.sqrt(second / (1 - 0.9 ** (index + 1)))
        rate = 0.5 * (1 - index / steps) + 0.02
        sizes = sizes - rate * away / (size + 1e-6)
        return sizes, first, second, done.trust, spread(done.fitted)

    zeros, ones = jnp.zeros_like(start), jnp.ones_like(latency)
    return jax.lax.fori_loop(0, steps, step, (start, zeros, zeros, ones, ones))[0]


class Padded(NamedTuple):
    features: np.ndarray  # [padded, width]
    latency: np.ndarray  # [padded]
    real: np.ndarray  # [padded], bool


def padded(features: np.ndarray, latency: np.ndarray) -> Padded:
    """Rows added so that few sizes are ever compiled: the next multiple of 4, of 16 from 32 and
    of 64 from 128."""
    count = len(latency)
    step = 4 if count <= 32 else 16 if count <= 128 else 64
    more = -count % step
    return Padded(
        np.pad(features, ((0, more), (0, 0))),
        np.pad(latency, (0, more)),
        np.arange(count + more) < count,
    )
