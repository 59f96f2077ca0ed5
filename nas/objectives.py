"""What a U-Net is trained for: denoising, with blocks skipped, and agreement with a teacher."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas.diffusion.schedule import Schedule
from nas.supernet import Supernet
from nas.training import Loss
from search_spaces.model import Weights
from search_spaces.unet import UNetSpec


class Batch(NamedTuple):
    """One training batch: clean latents, encoded prompts, and which blocks run."""

    latents: np.ndarray  # [batch, height, width, channels]
    contexts: np.ndarray  # [batch, tokens, width]
    keep: dict[str, np.ndarray]  # Boolean scalars.
    teacher: Weights | None = None
    teacher_keep: dict[str, np.ndarray] | None = None


def denoising(supernet: Supernet, schedule: Schedule) -> Loss:
    """Mean squared error of the network's prediction, over noise and all diffusion steps."""

    def loss(weights: Weights, batch: Batch, key: jax.Array) -> jax.Array:
        values, target = _noised(schedule, batch, key)
        guess = supernet.model(weights, values, batch.keep)
        return jnp.mean((guess - target) ** 2)

    return loss


def distillation(supernet: Supernet, schedule: Schedule) -> Loss:
    """Denoising plus agreement with the teacher, in its output and at the end of every stage.

    Both terms are divided by the teacher's mean square, so stages of any width and scale count
    alike (the normalisation of LAPTOP-Diff, Zhang et al., 2024).
    """
    ends = supernet.stage_ends

    def loss(weights: Weights, batch: Batch, key: jax.Array) -> jax.Array:
        values, target = _noised(schedule, batch, key)
        guess, features = supernet.model(weights, values, batch.keep, also=ends)
        wanted, marks = jax.lax.stop_gradient(
            supernet.model(batch.teacher, values, batch.teacher_keep, also=ends)
        )
        agreement = [_relative(features[end], marks[end]) for end in ends]
        return (
            jnp.mean((guess - target) ** 2)
            + _relative(guess, wanted)
            + jnp.mean(jnp.stack(agreement))
        )

    return loss


def _relative(x: jax.Array, wanted: jax.Array) -> jax.Array:
    return jnp.mean((x - wanted) ** 2) / (jnp.mean(wanted**2) + 1e-6)


def _noised(
    schedule: Schedule, batch: Batch, key: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    x = jnp.asarray(batch.latents)
    for_time, for_noise = jax.random.split(key)
    # Stratified over the batch: the loss varies less from step to step.
    spread = (jnp.arange(len(x)) + jax.random.uniform(for_time, (len(x),))) / len(x)
    t = (spread * schedule.steps).astype(jnp.int32)
    noise = jax.random.normal(for_noise, x.shape)
    values = {
        "sample": schedule.noised(x, noise, t),
        "timestep": t,
        "context": jnp.asarray(batch.contexts),
    }
    return values, schedule.target(x, noise, t)


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Training data: latents with encoded prompts, and the encoded empty prompt."""

    latents: np.ndarray  # [rows, height, width, channels] float32
    contexts: np.ndarray  # [rows, tokens, width] float32
    empty: np.ndarray  # [tokens, width]


def batches(
    data: Captioned,
    supernet: Supernet,
    spec: UNetSpec,
    *,
    size: int,
    seed: int,
    skip: float,
    teacher: tuple[Weights, UNetSpec] | None = None,
    unconditional: float = 0.1,
) -> Callable[[int], Batch]:
    """Batches of `size` rows by step number; a step's batch depends on `seed` and it alone.

    Every removable block that `spec` has is skipped with probability `skip`, independently and for
    the whole batch, since a skipped block then costs nothing. A share of `unconditional` prompts is
    emptied, for classifier-free guidance.
    """
    present = supernet.keep(spec)
    taught = None if teacher is None else teacher[0]
    taught_keep = None if teacher is None else supernet.keep(teacher[1])

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(data.latents), size=size)
        emptied = rng.random(size) < unconditional
        contexts = np.where(emptied[:, None, None], data.empty, data.contexts[rows])
        drawn = rng.random(len(present)) >= skip
        keep = {
            n: np.array(has and run) for (n, has), run in zip(present.items(), drawn, strict=True)
        }
        return Batch(data.latents[rows], contexts, keep, taught, taught_keep)

    return batch
