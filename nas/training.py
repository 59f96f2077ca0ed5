"""Training as an iterator: the caller logs, stops early and saves by looping over it."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from search_spaces.model import Weights

Batch: TypeAlias = Any
Loss: TypeAlias = Callable[[Weights, Batch, jax.Array], jax.Array]


class Packed(NamedTuple):
    """Weights as two vectors: an optimiser compiles to a few operations instead of thousands."""

    matrices: jax.Array  # What has two axes or more, and decays.
    vectors: jax.Array  # Biases and scales.


class TrainState(NamedTuple):
    """All that training needs to go on: a pytree, so it is checkpointed as it is."""

    step: jax.Array  # Steps done.
    weights: Packed
    average: Packed  # Exponential moving average of the weights.
    moments: Any  # The optimiser's state.


class Progress(NamedTuple):
    state: TrainState
    loss: jax.Array  # Of the batch just used, not yet waited for.


class Trainer:
    """An update of weights of these `shapes`, compiled once and used for any number of trainings.

    `loss(weights, batch, key)` is a scalar. It sees the weights in `dtype`, while `optimizer`
    keeps float32; the optimiser's updates are multiplied by the learning rate, so it must not scale
    by one itself. `decay` is the moving average's; the first steps use less, so that it forgets
    the start.
    """

    def __init__(
        self,
        loss: Loss,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        optimizer: optax.GradientTransformation,
        *,
        decay: float = 0.999,
        dtype: str = "float32",
    ):
        self._shapes, self._optimizer = shapes, optimizer

        def update(
            state: TrainState, batch: Batch, rate: jax.Array, key: jax.Array
        ) -> tuple[TrainState, jax.Array]:
            def of_packed(packed: Packed) -> jax.Array:
                weights = unpack(jax.tree.map(lambda w: w.astype(dtype), packed), shapes)
                return loss(weights, batch, jax.random.fold_in(key, state.step)).astype(jnp.float32)

            value, grads = jax.value_and_grad(of_packed)(state.weights)
            updates, moments = optimizer.update(grads, state.moments, state.weights)
            weights = jax.tree.map(lambda w, u: w - rate * u, state.weights, updates)
            step = state.step + 1
            keep = jnp.minimum(decay, (1 + step) / (10 + step))
            average = jax.tree.map(lambda a, w: keep * a + (1 - keep) * w, state.average, weights)
            return TrainState(step, weights, average, moments), value

        self._update = jax.jit(update, donate_argnums=0)

    def start(self, weights: Weights) -> TrainState:
        """The state before the first step."""
        packed = pack(weights)
        average = jax.tree.map(jnp.copy, packed)  # Both are donated, so they must be two.
        return TrainState(jnp.zeros((), jnp.int32), packed, average, self._optimizer.init(packed))

    def average(self, state: TrainState) -> Weights:
        """The averaged weights of `state`."""
        return unpack(state.average, self._shapes)

    def run(
        self,
        state: TrainState,
        batches: Callable[[int], Batch],
        rates: Callable[[int], jax.typing.ArrayLike],
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
        optax.add_decayed_weights(weight_decay, mask=Packed(matrices=True, vectors=False)),  # pyright: ignore
    )


def pack(weights: Mapping[str, jax.Array]) -> Packed:
    """Inverse of `unpack`."""
    matrices, vectors = _halves(weights)
    return Packed(
        *(jnp.concatenate([jnp.ravel(weights[n]) for n in names]) for names in (matrices, vectors))
    )


def unpack(packed: Packed, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Weights:
    """The weights of these `shapes` in `packed`."""
    weights: Weights = {}
    for vector, names in zip(packed, _halves(shapes), strict=True):
        ends = np.cumsum([math.prod(shapes[name].shape) for name in names])
        for name, part in zip(names, jnp.split(vector, ends[:-1]), strict=True):
            weights[name] = part.reshape(shapes[name].shape)
    return weights


def _halves(weights: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    names = sorted(weights)
    return (
        [name for name in names if len(weights[name].shape) > 1],
        [name for name in names if len(weights[name].shape) <= 1],
    )
