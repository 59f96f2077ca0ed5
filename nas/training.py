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


class Trainer:
    """An update of weights, compiled once and used for any number of trainings.

    `loss(weights, batch, key)` is a scalar. It sees the weights in `dtype`, while `optimizer`
    keeps float32; the optimiser's updates are multiplied by the learning rate, so it must not scale
    by one itself. `decay` is the moving average's; the first steps use less, so that it forgets
    the start.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        *,
        decay: float = 0.999,
        dtype: str = "float32",
    ):
        self._optimizer = optimizer

        def update(
            state: TrainState, batch: Batch, rate: jax.Array, key: jax.Array
        ) -> tuple[TrainState, jax.Array]:
            def of_low(weights: Weights) -> jax.Array:
                low = jax.tree.map(lambda w: w.astype(dtype), weights)
                return loss(low, batch, jax.random.fold_in(key, state.step)).astype(jnp.float32)

            value, grads = jax.value_and_grad(of_low)(state.weights)
            updates, moments = optimizer.update(grads, state.moments, state.weights)
            weights = jax.tree.map(lambda w, u: w - rate * u, state.weights, updates)
            step = state.step + 1
            keep = jnp.minimum(decay, (1 + step) / (10 + step))
            average = jax.tree.map(lambda a, w: keep * a + (1 - keep) * w, state.average, weights)
            return TrainState(step, weights, average, moments), value

        self._update = jax.jit(update, donate_argnums=0)

    def start(self, weights: Weights) -> TrainState:
        """The state before the first step. `weights` are copied, since training donates them."""
        return TrainState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.copy, weights),
            jax.tree.map(jnp.copy, weights),
            self._optimizer.init(weights),
        )

    def run(
        self,
        state: TrainState,
        batches: Callable[[int], Batch],
        rates: Callable[[int], float | jax.Array],
        *,
        steps: int,
        seed: int,
    ) -> Iterator[Progress]:
        """Trains until `steps` steps are done in all, yielding after each.

        Step `i` sees `batches(i)`, the learning rate `rates(i)` and a key folded from `seed` and
        `i` alone, so training that was interrupted and goes on from a checkpoint ends with the same
        weights. The state that goes in, and every state yielded but the last, is donated: do not
        keep them.
        """
        key = jax.random.key(seed)
        for step in range(int(state.step), steps):
            rate = jnp.asarray(rates(step), jnp.float32)
            state, value = self._update(state, batches(step), rate, key)
            yield Progress(state, value)


def adamw(*, b2: float = 0.999, weight_decay: float = 0.01) -> optax.GradientTransformation:
    """AdamW at unit learning rate (Loshchilov & Hutter, 2019), gradients clipped to norm one."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=b2),
        optax.add_decayed_weights(weight_decay, mask=_matrices),
    )


def _matrices(weights: Weights) -> dict[str, bool]:
    return {name: weight.ndim > 1 for name, weight in weights.items()}
