"""The noise schedule: z_t = a_t x + s_t e, with a_t^2 + s_t^2 = 1."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete-time schedule over `steps` training steps.

    `signal` and `noise` are a_t and s_t for t in [0, steps). `prediction` says what the network
    returns: `epsilon` or `v_prediction`, diffusers' words.
    """

    signal: np.ndarray
    noise: np.ndarray
    prediction: str

    @property
    def steps(self) -> int:
        return len(self.signal)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Reads a `scheduler_config.json`. Raises `ValueError` on what we do not know."""
        kind, steps = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        if kind == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2
        elif kind == "linear":
            betas = np.linspace(start, end, steps, dtype=np.float64)
        else:
            raise ValueError(
                f"beta_schedule is {kind!r}; supported are 'linear' and 'scaled_linear'"
            )
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"prediction_type is {prediction!r}; supported are 'epsilon' and 'v_prediction'"
            )
        if config.get("rescale_betas_zero_snr", False):
            raise ValueError("rescale_betas_zero_snr is not supported")
        kept = np.cumprod(1 - betas)
        return cls(np.sqrt(kept), np.sqrt(1 - kept), prediction)

    def noised(self, x: jax.Array, e: jax.Array, t: jax.Array) -> jax.Array:
        """z_t of clean latents `x` and noise `e` `[batch, ...]` at integer steps `t` `[batch]`."""
        a, s = self.at(t, x.ndim)
        return a * x + s * e

    def target(self, x: jax.Array, e: jax.Array, t: jax.Array) -> jax.Array:
        """What the network should return for z_t: `e`, or v = a_t e - s_t x."""
        if self.prediction == "epsilon":
            return e
        a, s = self.at(t, x.ndim)
        return a * e - s * x

    def clean(self, z: jax.Array, prediction: jax.Array, t: jax.Array) -> jax.Array:
        """The estimate of x from the network's `prediction` at z_t."""
        a, s = self.at(t, z.ndim)
        if self.prediction == "epsilon":
            return (z - s * prediction) / a
        return a * z - s * prediction

    def at(self, t: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
        """a_t and s_t, shaped to multiply arrays `[batch, ...]` of `rank` axes."""
        shape = (-1, *(1 for _ in range(rank - 1)))
        signal, noise = (
            jnp.asarray(table, jnp.float32)[t].reshape(shape) for table in (self.signal, self.noise)
        )
        return signal, noise
