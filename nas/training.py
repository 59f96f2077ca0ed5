"""Training as an iterator: the caller logs, stops early and saves by looping over it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from search_spaces.model import Weights

Batch: TypeAlias = Any
Loss: TypeAlias = Callable[[Weights, Batch, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """All that training needs to go on: a pytree, so it is checkpointed as it is."""

    step: jax.Array  # Steps done.
    weights: Weights
    average: Weights  # Exponential moving average of the weights.
    moments: Any  # The optimiser's state.


class Progress(NamedTuple):
    state: TrainState
    loss: jax.Array  # Of the batch just used, not yet waited for.


def start(weights: Weights, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. `weights` are copied, since training donates its state."""
    copy = jax.tree.map(jnp.copy, weights)
    return TrainState(
        jnp.zeros((), jnp.int32),
        weights=copy,
        average=jax.tree.map(jnp.copy, weights),
        moments=optimizer.init(weights),
    )


def train(
    state: TrainState,
    loss: Loss,
    batches: Callable[[int], Batch],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    seed: int,
    decay: float = 0.999,
    dtype: jnp.dtype = jnp.dtype("float32"),
) -> Iterator[Progress]:
    """Trains until `steps` steps are done in all, yielding after each.

    Step `i` sees `batches(i)` and a key folded from `seed` and `i` alone, so training that was
    interrupted and goes on from a checkpoint ends with the same weights. `loss(weights, batch,
    key)` is a scalar; it sees the weights in `dtype`, while the optimiser keeps float32.
    `decay` is the average's; the first steps use less, so that it forgets the start.
    The state that goes in, and every state yielded but the last, is donated: do not keep them.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        def cast(weights: Weights) -> jax.Array:
            low = jax.tree.map(lambda w: w.astype(dtype), weights)
            return loss(low, batch, key).astype(jnp.float32)

        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value, grads = jax.value_and_grad(cast)(state.weights)
        updates, moments = optimizer.update(grads, state.moments, state.weights)
        weights: Weights = optax.apply_updates(state.weights, updates)  # pyright: ignore
        step = state.step + 1
        keep = jnp.minimum(decay, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, w: keep * a + (1 - keep) * w, state.average, weights)
        return TrainState(step, weights, average, moments), value

    compiled = jax.jit(update, donate_argnums=0)
    for step in range(int(state.step), steps):
        state, value = compiled(state, batches(step))
        yield Progress(state, value)
