"""Trains the default's autoencoder: 32x32 pictures to 16x16x4 latents.

    python -m experiments.emoji.autoencoder FOLDER [--steps 4000]

Checkpoints go to FOLDER/training, the model to FOLDER/vae; run it again to go on.

A third of a second a step on two cores, so twenty minutes or so: an estimate from the first 200.
The default's restores held-out concepts at 28.8 dB.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.emoji.pictures import load, over
from nas.checkpoints import Checkpoints
from nas.diffusion.autoencoder import Autoencoder
from nas.diffusion.folders import DIFFUSERS_WEIGHTS, write_json, write_weights
from nas.training import Trainer, adamw
from search_spaces.model import Weights

CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
    "norm_num_groups": 4,
    "sample_size": 32,
    "scaling_factor": 1.0,
}
BATCH = 32
RATE = 2e-3
DIVERGENCE = 1e-5  # Weight of the KL term: enough to keep latents bounded, as in SD.


def main(folder: Path, /, *, steps: int = 4000, save_every: int = 500) -> None:
    pictures = load()
    rgba = pictures.of("train").rgba
    model = Autoencoder(CONFIG)

    def loss(weights, pixels, key):
        mean, log_variance = model.moments(weights, pixels)
        noise = jax.random.normal(key, mean.shape)
        restored = model.decode(weights, mean + jnp.exp(0.5 * log_variance) * noise)
        divergence = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        error = restored - pixels
        return jnp.mean(error**2) + 0.05 * jnp.mean(jnp.abs(error)) + DIVERGENCE * divergence

    def batch(step: int) -> np.ndarray:
        rng = np.random.default_rng([0, step])
        rows = rng.integers(len(rgba), size=BATCH)
        backgrounds = np.ones((BATCH, 1, 1, 3), np.float32)
        coloured = rng.random(BATCH) < 0.2
        backgrounds[coloured] = rng.uniform(-1, 1, (coloured.sum(), 1, 1, 3))
        pixels = over(rgba[rows], backgrounds)
        return pixels[:, :, ::-1] if step % 2 else pixels

    rates = optax.warmup_cosine_decay_schedule(0.0, RATE, 100, steps, 1e-5)
    trainer = Trainer(loss, model.shapes, adamw())
    checkpoints = Checkpoints(folder / "training")
    state = trainer.start(model.initial(0))
    state = checkpoints.latest(state) or state
    begun, value = time.time(), None
    for state, value in trainer.run(state, batch, rates, steps=steps, seed=0):
        done = int(state.step)
        if done % 100 == 0:
            print(f"step {done:6} loss {value:.5f} {time.time() - begun:6.0f} s", flush=True)
        if done % save_every == 0:
            checkpoints.save(done, state)

    weights, held_out = trainer.average(state), pictures.of("val_concept").on_white()
    moments = jax.jit(model.moments)
    train_mean, _ = moments(weights, over(rgba[::8], np.ones(3, np.float32)))
    scale = float(1 / jnp.std(train_mean))
    print(f"held-out concepts: {fidelity(model, weights, held_out):.1f} dB; scale {scale:.4f}")
    write_json(folder / "vae" / "config.json", {**CONFIG, "scaling_factor": scale})
    write_weights(folder / "vae" / DIFFUSERS_WEIGHTS, weights)


def fidelity(model: Autoencoder, weights: Weights, pixels: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio of what the autoencoder makes of pictures, in dB."""
    restored = model.decode(weights, model.encode(weights, jnp.asarray(pixels)))
    error = jnp.mean(((jnp.clip(restored, -1, 1) - pixels) / 2) ** 2, axis=(1, 2, 3))
    return float(jnp.mean(-10 * jnp.log10(error)))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
