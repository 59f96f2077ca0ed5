"""Training as an iterator: the caller logs, stops early and saves by looping over it.

The rows of a batch are split over all devices there are, of this process and of those it was joined
with by `jax.distributed`; weights are whole on every one. What is drawn depends on the step alone,
so the number of devices changes the order of sums, and nothing else.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from search_spaces.model import Weights

T = TypeVar("T")
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
    the start. `rows` says what of a batch has a row for every example: it is a tree of booleans of
    which every leaf stands for all that is there in a batch. `devices` are all there are, if not
    given.
    """

    def __init__(
        self,
        loss: Loss,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        optimizer: optax.GradientTransformation,
        *,
        decay: float = 0.999,
        dtype: str = "float32",
        rows: Any = True,
        devices: Sequence[Any] | None = None,
    ):
        self._shapes, self._optimizer = shapes, optimizer
        mesh = Mesh(np.array(devices or jax.devices()), ("rows",))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec("rows"))
        self._places = jax.tree.map(lambda has: self._split if has else self._whole, rows)

        def update(
            state: TrainState, batch: Batch, rate: jax.Array, key_data: jax.Array
        ) -> tuple[TrainState, jax.Array]:
            key = jax.random.wrap_key_data(key_data)

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

        self._update = jax.jit(
            update,
            donate_argnums=0,
            in_shardings=(self._whole, self._places, self._whole, self._whole),
            out_shardings=self._whole,
        )

    def start(self, weights: Weights) -> TrainState:
        """The state before the first step."""
        packed = pack(weights)
        average = jax.tree.map(jnp.copy, packed)  # Both are donated, so they must be two.
        return TrainState(jnp.zeros((), jnp.int32), packed, average, self._optimizer.init(packed))

    def average(self, state: TrainState) -> Weights:
        """The averaged weights of `state`, tied to no device."""
        own = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state.average)
        return unpack(own, self._shapes)

    def everywhere(self, tree: T) -> T:
        """`tree`, whole on every device. What batches have in common is sent once this way."""
        return jax.tree.map(self._sent, tree)

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
        weights, on however many devices. Several processes that train together must all do so with
        the same arguments. The state that goes in, and every state yielded but the last, is
        donated: do not keep them.

        Raises `ValueError` if the rows of a batch do not divide into as many parts as there are
        devices.
        """
        # Several processes can have in common what comes from the host, and no local array.
        key_data = np.asarray(jax.random.key_data(jax.random.key(seed)))
        _agree(int(state.step))
        state = self.everywhere(state)
        for step in range(int(state.step), steps):
            rate = np.asarray(rates(step), np.float32)
            batch = jax.tree.map(self._placed, self._places, batches(step))
            state, value = self._update(state, batch, rate, key_data)
            yield Progress(state, value)

    def _placed(self, place: NamedSharding, part: Batch) -> Batch:
        """A part of a batch, with its rows where they belong."""
        return part if place is self._whole else jax.tree.map(self._dealt, part)

    def _dealt(self, x: jax.typing.ArrayLike) -> jax.Array:
        """Every device's own rows of `x`."""
        rows, devices = len(np.asarray(x)), self._split.num_devices
        if rows % devices:
            raise ValueError(
                f"a batch of {rows} rows does not divide into {devices} parts, one for every "
                f"device; ask for a multiple of {devices} with --training.batch"
            )
        return _array(x, self._split)

    def _sent(self, x: jax.typing.ArrayLike) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding == self._whole:
            return x
        return _array(x, self._whole)


def _agree(step: int) -> None:
    """Raises `RuntimeError` if processes that train together do not begin at the same step.

    They would wait for each other for ever. A process that was given up, and still writes, may have
    saved a checkpoint between the looks of two others.
    """
    if jax.process_count() == 1:
        return
    first = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step != first:
        raise RuntimeError(f"one process begins at step {step}, where another does at {first}")


def _array(x: jax.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
    """`x`, which every process has, as one array over the devices of all."""
    own = np.asarray(x)
    return jax.make_array_from_callback(own.shape, sharding, lambda index: own[index])


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
