"""What a U-Net is trained for: denoising, with blocks skipped, and agreement with a teacher."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nas.diffusion.prompts import Conditioning
from nas.diffusion.schedule import Schedule
from nas.supernet import Supernet
from nas.training import Loss
from search_spaces.model import Weights
from search_spaces.unet import UNetSpec


class Batch(NamedTuple):
    """One training batch: clean latents, what they are conditioned on, and which blocks run."""

    latents: np.ndarray  # [batch, height, width, channels]
    conditioning: Conditioning  # [batch, ...] each.
    keep: dict[str, np.ndarray]  # Boolean scalars.
    taught: np.ndarray | bool = False  # Boolean scalar: whether the teacher is listened to.
    teacher: Weights = {}  # noqa: RUF012
    teacher_keep: dict[str, np.ndarray] = {}  # noqa: RUF012


ROWS: Any = Batch(True, True, False, False, False, False)  # pyright: ignore[reportArgumentType]
"""What of a batch has a row for every picture."""


def denoising(supernet: Supernet, schedule: Schedule) -> Loss:
    """Mean squared error of the network's prediction, over noise and all diffusion steps.

    The network computes in the precision of its weights, the error in float32.
    """

    def loss(weights: Weights, batch: Batch, key: jax.Array) -> jax.Array:
        values, target = noised(schedule, weights, batch, key)
        guess = supernet.model(weights, values, batch.keep)
        return jnp.mean((guess.astype(jnp.float32) - target) ** 2)

    return loss


def distillation(supernet: Supernet, schedule: Schedule, teacher: Supernet | None = None) -> Loss:
    """Denoising plus, where a batch is `taught`, agreement with its teacher, in the output and at
    the end of every stage.

    Both terms are divided by the teacher's mean square, so stages of any width and scale count
    alike (the normalisation of LAPTOP-Diff, Zhang et al., 2024). One program serves robust training
    and recovery: a batch that is not taught does not run the teacher. The teacher runs in the same
    supernet, or in one of its own; stages are then compared where both have them, of one shape.
    """
    by = teacher or supernet
    pairs = [(supernet.ends[name], by.ends[name]) for name in supernet.ends if name in by.ends]
    ends, marked = tuple(end for end, _ in pairs), tuple(mark for _, mark in pairs)

    def loss(weights: Weights, batch: Batch, key: jax.Array) -> jax.Array:
        values, target = noised(schedule, weights, batch, key)
        guess, features = supernet.model(weights, values, batch.keep, also=ends)

        def disagreement(guess: jax.Array, features: dict[str, jax.Array]) -> jax.Array:
            wanted, marks = jax.lax.stop_gradient(
                by.model(batch.teacher, values, batch.teacher_keep, also=marked)
            )
            terms = [
                _relative(features[end], marks[mark])
                for end, mark in pairs
                if features[end].shape == marks[mark].shape
            ]
            return _relative(guess, wanted) + jnp.mean(jnp.stack(terms or [jnp.zeros(())]))

        extra = jax.lax.cond(batch.taught, disagreement, lambda *_: jnp.zeros(()), guess, features)
        return jnp.mean((guess.astype(jnp.float32) - target) ** 2) + extra

    return loss


def _relative(x: jax.Array, wanted: jax.Array) -> jax.Array:
    x, wanted = x.astype(jnp.float32), wanted.astype(jnp.float32)
    return jnp.mean((x - wanted) ** 2) / (jnp.mean(wanted**2) + 1e-6)


def noised(
    schedule: Schedule, weights: Weights, batch: Batch, key: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What the network reads of a batch, with noise for a random step on every latent, and what it
    should give for it."""
    x = jnp.asarray(batch.latents)
    # Layers compute in the precision of what they read.
    precision = next(iter(weights.values()), x).dtype
    for_time, for_noise = jax.random.split(key)
    # Stratified over the batch: the loss varies less from step to step.
    spread = (jnp.arange(len(x)) + jax.random.uniform(for_time, (len(x),))) / len(x)
    t = (spread * schedule.steps).astype(jnp.int32)
    noise = jax.random.normal(for_noise, x.shape)
    values = {
        "sample": schedule.noised(x, noise, t).astype(precision),
        "timestep": t,
        **{name: _cast(x, precision) for name, x in batch.conditioning.items()},
    }
    return values, schedule.target(x, noise, t)


def _cast(x: np.ndarray, precision: jnp.dtype) -> jax.Array:
    """`x` in that precision; whole numbers as they are."""
    return jnp.asarray(x, precision if jnp.issubdtype(x.dtype, jnp.floating) else None)


class Rows(Protocol):
    """Rows of an array, in memory or read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Training data: latents, what they are conditioned on, and the same of no prompt."""

    latents: Rows  # [rows, height, width, channels] float32
    conditioning: Mapping[str, Rows]  # [rows, ...] each.
    unconditional: Conditioning  # [1, ...] each.

    def conditioning_of(self, rows: np.ndarray) -> Conditioning:
        return {name: x[rows] for name, x in self.conditioning.items()}


def batches(
    data: Captioned,
    supernet: Supernet,
    spec: UNetSpec,
    *,
    size: int,
    seed: int,
    skip: float,
    teacher: tuple[Weights, UNetSpec],
    taught: bool,
    by: Supernet | None = None,
    unconditional: float = 0.1,
) -> Callable[[int], Batch]:
    """Batches of `size` rows by step number; a step's batch depends on `seed` and it alone.

    Every removable block that `spec` has is skipped with probability `skip`, independently and for
    the whole batch, since a skipped block then costs nothing. A share of `unconditional` prompts is
    emptied, for classifier-free guidance. `teacher` is weights in the supernet, or in `by` if that
    is given, and their spec.
    """
    present, taught_keep = supernet.keep(spec), (by or supernet).keep(teacher[1])

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(data.latents), size=size)
        emptied = rng.random(size) < unconditional
        conditioning = {
            name: np.where(_across(emptied, x.ndim), data.unconditional[name], x)
            for name, x in data.conditioning_of(rows).items()
        }
        run = dict(zip(present, rng.random(len(present)) >= skip, strict=True))
        keep = {name: np.array(has and run[name]) for name, has in present.items()}
        told = (np.array(taught), teacher[0], taught_keep)
        return Batch(data.latents[rows], conditioning, keep, *told)

    return batch


def _across(rows: np.ndarray, rank: int) -> np.ndarray:
    """A value for each row, shaped to meet arrays `[rows, ...]` of `rank` axes."""
    return rows.reshape(-1, *(1 for _ in range(rank - 1)))
