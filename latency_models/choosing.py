"""Which architectures to measure next, so that the latencies of all others become known best."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from latency_models.components import diagonals, grams
from latency_models.transfer import Beliefs

# Architectures among which to choose, and those whose uncertainty counts.
_CANDIDATES, _JUDGES = 500, 500


def choose(
    beliefs: Beliefs,
    archs: np.ndarray,
    count: int,
    *,
    exclude: np.ndarray | tuple[int, ...] = (),
    seed: int = 0,
) -> np.ndarray:
    """Indices `[count]` of rows of `archs`, in the order in which to measure them.

    Each is the one that, measured, takes most off the variance of the latencies of a random
    sample of `archs` (Cohn, Ghahramani and Jordan, "Active learning with statistical models", JAIR
    1996). With the beliefs of a prior that plans all measurements of a new device; with those of a
    predictor it says what to measure next. `exclude` are indices not to choose. The same `seed`
    looks at the same sample. Raises `ValueError` if there are fewer than `count` to choose from.
    """
    allowed = np.setdiff1d(np.arange(len(archs)), np.asarray(exclude, int))
    if not 0 < count <= len(allowed):
        raise ValueError(f"cannot choose {count} of {len(allowed)} architectures")
    rng = np.random.default_rng(seed)
    candidates = rng.permutation(allowed)[: max(_CANDIDATES, count)]
    judges = rng.permutation(len(archs))[:_JUDGES]
    with jax.enable_x64(True):
        order = _greedy(
            archs[candidates],
            archs[judges],
            beliefs.measured,
            beliefs.sizes,
            count=count,
            parts=beliefs.parts,
        )
    return candidates[np.asarray(order)]


@functools.partial(jax.jit, static_argnames=("count", "parts"))
def _greedy(candidates, judges, measured, sizes, *, count, parts):
    """Positions in `candidates`, `[count]`."""
    everyone = jnp.concatenate([candidates, judges])
    chosen_from = len(candidates)
    between = grams(candidates, everyone, parts=parts)
    own = diagonals(everyone, parts=parts)
    known = grams(measured, measured, parts=parts)
    towards = grams(measured, everyone, parts=parts)

    def start(size):
        """Covariance `[candidates, everyone]` and variance `[everyone]` given the measured."""
        variances, noise = jnp.exp(size[:-1]), jnp.exp(size[-1])
        covariance = jnp.tensordot(variances, between, 1) + 1.0
        variance = variances @ own + 1.0
        if len(measured):
            signal = jnp.tensordot(variances, known, 1) + 1.0
            factor = jnp.linalg.cholesky(signal + (noise + 1e-7) * jnp.eye(len(measured)))
            cross = jnp.tensordot(variances, towards, 1) + 1.0
            half = jax.scipy.linalg.solve_triangular(factor, cross, lower=True)
            covariance -= half[:, :chosen_from].T @ half
            variance -= jnp.sum(half**2, axis=0)
        return covariance, variance, noise + 1e-7

    covariance, variance, noise = jax.vmap(start)(sizes)

    def step(index, state):
        covariance, variance, taken, order = state
        shown = variance[:, :chosen_from] + noise[:, None]
        removed = jnp.sum(covariance[:, :, chosen_from:] ** 2, axis=2) / shown
        left = jnp.sum(variance[:, chosen_from:], axis=1)
        gain = jnp.mean(removed / jnp.maximum(left, 1e-12)[:, None], axis=0)
        best = jnp.argmax(jnp.where(taken, -jnp.inf, gain))
        move = covariance[:, best] / jnp.sqrt(shown[:, best])[:, None]
        covariance = covariance - move[:, :chosen_from, None] * move[:, None, :]
        variance = jnp.maximum(variance - move**2, 0.0)
        return covariance, variance, taken.at[best].set(True), order.at[index].set(best)

    taken = jnp.zeros(chosen_from, bool)
    order = jnp.zeros(count, int)
    return jax.lax.fori_loop(0, count, step, (covariance, variance, taken, order))[3]
