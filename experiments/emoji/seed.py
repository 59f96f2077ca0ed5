"""Trains the default's seed: a latent U-Net of SD-1.5's form, and the text encoder it listens to.

    python -m experiments.emoji.seed FOLDER --vae AUTOENCODER [--steps 20000]

AUTOENCODER is the folder that `experiments.emoji.autoencoder` wrote. Checkpoints go to
FOLDER/training, the pipeline to FOLDER/pipeline; run it again to go on. `--start-from PIPELINE`
begins with the weights of an earlier one.

About 0.6 s a step on two cores, so more than three hours for all steps: an estimate from the first.
After 9,000 steps its pictures of 2,080 trained prompts are found with R@5 0.927, where real ones
reach 0.966.
"""

import shutil
import time
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

from experiments.emoji import tokenizer as vocabulary
from experiments.emoji.pictures import load
from nas.checkpoints import Checkpoints
from nas.diffusion import clip, unet
from nas.diffusion.autoencoder import Autoencoder
from nas.diffusion.folders import (
    DIFFUSERS_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    read_json,
    read_weights,
    write_json,
    write_weights,
)
from nas.diffusion.schedule import Schedule
from nas.diffusion.tokens import read_tokenizer
from nas.objectives import Batch, denoising
from nas.supernet import Supernet
from nas.training import Trainer, adamw
from search_spaces.model import Model, Weights

STYLES = ("fluent-flat", "fluent-3d")
TEXT = {"architectures": ["CLIPTextModel"], **vocabulary.ENCODER}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 4,
    "block_out_channels": [32, 48, 96],
    "center_input_sample": False,
    "cross_attention_dim": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 16,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "timestep_spacing": "trailing",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
BATCH = 48
RATE = 1e-3
UNCONDITIONAL = 0.1  # Share of prompts emptied, for classifier-free guidance; as in SD.


def main(
    folder: Path,
    /,
    *,
    vae: Path,
    steps: int = 20000,
    save_every: int = 250,
    start_from: Path | None = None,
) -> None:
    pictures = load().of("train", styles=STYLES)
    pipeline = folder / "pipeline"
    vocabulary.main(pipeline / "tokenizer")
    tokenizer = read_tokenizer(pipeline / "tokenizer")
    ids = np.array(
        tokenizer(["", *pictures.prompts], padding="max_length", truncation=True)["input_ids"],
        np.int32,
    )
    autoencoder = Autoencoder(read_json(vae / "vae" / "config.json"))
    latents = _encode(autoencoder, vae, pictures.on_white())
    schedule = Schedule.from_config(SCHEDULER)
    text = clip.text_model(TEXT)
    supernet = Supernet(
        unet.from_config(UNET), unet.shapes(UNET, batch=BATCH, tokens=vocabulary.LENGTH)
    )
    denoise = denoising(supernet, schedule)

    def loss(weights, batch, key):
        x, prompts = batch
        contexts = text({name: weights[name] for name in text.shapes}, {"ids": prompts})
        backbone = {name: weights[name] for name in supernet.model.shapes}
        return denoise(backbone, Batch(x, {"context": contexts}, keep={}), key)

    def batch(step: int):
        rng = np.random.default_rng([0, step])
        rows = rng.integers(len(latents), size=BATCH)
        prompts = np.where(rng.random(BATCH) < UNCONDITIONAL, 0, 1 + rows)
        return latents[rows], ids[prompts]

    rates = optax.join_schedules(
        [
            optax.linear_schedule(0.0, RATE, 200),
            optax.constant_schedule(RATE),
            optax.linear_schedule(RATE, 0.02 * RATE, steps // 5),
        ],
        [200, steps - steps // 5],
    )
    trainer = Trainer(loss, {**supernet.model.shapes, **text.shapes}, adamw(b2=0.99), decay=0.9995)
    checkpoints = Checkpoints(folder / "training")
    state = trainer.start(_first(supernet, text, start_from))
    state = checkpoints.latest(state) or state
    print(f"{len(pictures)} pictures, U-Net of {supernet.model.size:,} parameters")
    begun, losses = time.time(), []
    for state, value in trainer.run(state, batch, rates, steps=steps, seed=0):
        done = int(state.step)
        losses.append(value)
        if done % 50 == 0:
            mean = np.mean(losses)
            print(f"step {done:6} loss {mean:.4f} {time.time() - begun:6.0f} s", flush=True)
            losses.clear()
        if done % save_every == 0 or done == steps:
            checkpoints.save(done, state)
    average = trainer.average(state)
    parts = {
        "unet": (UNET, supernet.model, DIFFUSERS_WEIGHTS),
        "text_encoder": (TEXT, text, TRANSFORMERS_WEIGHTS),
    }
    for name, (config, model, file) in parts.items():
        write_json(pipeline / name / "config.json", config)
        write_weights(pipeline / name / file, {weight: average[weight] for weight in model.shapes})
    write_json(pipeline / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(pipeline / "model_index.json", INDEX)
    shutil.copytree(vae / "vae", pipeline / "vae", dirs_exist_ok=True)


def _first(supernet: Supernet, text: Model, start_from: Path | None) -> Weights:
    """Weights to begin with: fresh, or those of an earlier pipeline."""
    if start_from is None:
        outlets = frozenset(f"{step.name}.{step.op.outlet}" for step in supernet.program)
        return {**supernet.model.initial(0, zeros=outlets), **text.initial(1)}
    return {
        **read_weights(start_from / "unet" / DIFFUSERS_WEIGHTS, supernet.model.shapes),
        **read_weights(start_from / "text_encoder" / TRANSFORMERS_WEIGHTS, text.shapes),
    }


def _encode(autoencoder: Autoencoder, vae: Path, pixels: np.ndarray) -> np.ndarray:
    weights = read_weights(vae / "vae" / DIFFUSERS_WEIGHTS, autoencoder.shapes)
    encode = jax.jit(autoencoder.encode)
    return np.concatenate([encode(weights, part) for part in np.array_split(pixels, 8)])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
