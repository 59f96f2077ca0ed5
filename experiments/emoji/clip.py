"""Trains the CLIP model that scores the default's pictures, from scratch, in `CLIPModel` format.

    python -m experiments.emoji.clip FOLDER [--steps 8000]

Checkpoints go to FOLDER/training, the model to FOLDER/clip; run it again to go on. `--start-from
MODEL` begins with the weights of an earlier one. Prints how well pictures of held-out (style,
concept) cells and of held-out concepts find their captions.

About 0.6 s a step on two cores, so an hour and a half for all steps: an estimate from the first. It
reached R@5 0.581 of 1,291 captions on held-out cells (AUC 0.978), and 0.283 of 69 on held-out
concepts.
"""

import functools
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.emoji import tokenizer as vocabulary
from experiments.emoji.pictures import Pictures, load
from nas.checkpoints import Checkpoints
from nas.diffusion.clip import CLIP
from nas.diffusion.folders import (
    TRANSFORMERS_WEIGHTS,
    read_weights,
    write_json,
    write_weights,
)
from nas.diffusion.tokens import read_tokenizer
from nas.training import Trainer, adamw

CONFIG = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 128,
    "logit_scale_init_value": 2.6592,
    "text_config": vocabulary.ENCODER,
    "vision_config": {
        "model_type": "clip_vision_model",
        "image_size": 32,
        "patch_size": 4,
        "num_channels": 3,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "projection_dim": 128,
    },
}
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
BATCH = 192
RATE = 1e-3


def main(
    folder: Path,
    /,
    *,
    steps: int = 8000,
    save_every: int = 200,
    seed: int = 0,
    rate: float = RATE,
    start_from: Path | None = None,
) -> None:
    pictures = load()
    vocabulary.main(folder / "clip")
    tokenizer = read_tokenizer(folder / "clip")
    tokens = lambda texts: np.array(  # noqa: E731
        tokenizer(list(texts), padding="max_length", truncation=True)["input_ids"], np.int32
    )
    model = CLIP(CONFIG)
    known = pictures.of("train")
    texts = _Texts(known, tokens)

    def loss(weights, batch, key):
        rgba, ids, concepts, styles = batch
        pixels = augmented(rgba, key)
        images, prompts = model.image(weights, pixels), model.text(weights, ids)
        logits = jnp.exp(jnp.minimum(weights["logit_scale"], jnp.log(100.0))) * images @ prompts.T
        # Pictures of one concept share their captions: split the target between them, and give
        # the right style the larger part.
        same = (concepts[:, None] == concepts) * (1.0 + 3.0 * (styles[:, None] == styles))
        target = same / same.sum(1, keepdims=True)
        rows = -jnp.sum(target * jax.nn.log_softmax(logits, axis=1), axis=1)
        columns = -jnp.sum(target * jax.nn.log_softmax(logits, axis=0), axis=0)
        return jnp.mean(rows + columns) / 2

    style_numbers = np.unique(known.styles, return_inverse=True)[1]

    def batch(step: int):
        rng = np.random.default_rng([seed, step])
        rows = rng.choice(len(known), BATCH, replace=False)
        return known.rgba[rows], texts.draw(rows, rng), known.concepts[rows], style_numbers[rows]

    rates = optax.warmup_cosine_decay_schedule(0.0, rate, 300, steps, 1e-5)
    trainer = Trainer(loss, model.shapes, adamw(b2=0.98, weight_decay=0.1))
    checkpoints = Checkpoints(folder / "training")
    first = model.initial(seed)
    if start_from is not None:
        first = read_weights(start_from / TRANSFORMERS_WEIGHTS, model.shapes)
    state = trainer.start(first)
    state = checkpoints.latest(state) or state
    image, text = jax.jit(model.image), jax.jit(model.text)
    begun = time.time()
    for state, value in trainer.run(state, batch, rates, steps=steps, seed=seed):
        done = int(state.step)
        if done % 50 == 0:
            print(f"step {done:6} loss {value:.4f} {time.time() - begun:6.0f} s", flush=True)
        if done % save_every == 0 or done == steps:
            checkpoints.save(done, state)
            average = trainer.average(state)
            for split in ("val_combo", "val_concept"):
                report = retrieval(pictures, split, average, image, text, tokens)
                print(f"    {split}: {report}", flush=True)
    write_json(folder / "clip" / "config.json", CONFIG)
    write_json(folder / "clip" / "preprocessor_config.json", PREPROCESSOR)
    write_weights(folder / "clip" / TRANSFORMERS_WEIGHTS, trainer.average(state))


class _Texts:
    """Token ids of the prompt, the caption and the other captions of every picture."""

    def __init__(self, pictures: Pictures, tokens):
        phrases = [
            prompt.removesuffix(caption)
            for prompt, caption in zip(pictures.prompts, pictures.captions, strict=True)
        ]
        everything = [*pictures.prompts, *pictures.captions]
        self._others = []
        for phrase, others in zip(phrases, pictures.others, strict=True):
            self._others.append(range(len(everything), len(everything) + len(others)))
            everything += [phrase + other for other in others]
        self._ids = tokens(everything)

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One text a row: the prompt (half), the bare caption, or another caption."""
        count = len(self._others)
        chosen = []
        for row, kind in zip(rows, rng.random(len(rows)), strict=True):
            others = self._others[row]
            if kind < 0.5 or (kind >= 0.75 and not others):
                chosen.append(row)
            elif kind < 0.75:
                chosen.append(count + row)
            else:
                chosen.append(others[rng.integers(len(others))])
        return self._ids[chosen]


@functools.partial(jax.vmap, in_axes=(0, 0))
def _augment(rgba: jax.Array, key: jax.Array) -> jax.Array:
    """Moves, scales and slightly spoils one picture, over white or a random colour."""
    keys = jax.random.split(key, 8)
    alpha = rgba[..., 3:] / 255.0
    background = jnp.where(
        jax.random.bernoulli(keys[0], 0.7),
        jnp.ones(3),
        jax.random.uniform(keys[1], (3,), minval=-1),
    )
    premultiplied = jnp.concatenate([alpha * (rgba[..., :3] / 127.5 - 1), alpha], axis=-1)
    scale = jnp.exp(0.15 * jax.random.uniform(keys[2], (2,), minval=-1))
    shift = jax.random.uniform(keys[3], (2,), minval=-3, maxval=3) + 16 * (1 - scale)
    moved = jax.image.scale_and_translate(
        premultiplied, premultiplied.shape, (0, 1), scale, shift, "linear"
    )
    pixels = moved[..., :3] + (1 - moved[..., 3:]) * background
    blurred = _blur(pixels)
    mix = jax.random.bernoulli(keys[4], 0.3) * jax.random.uniform(keys[5])
    pixels = (1 - mix) * pixels + mix * blurred
    noise = 0.1 * jax.random.uniform(keys[6]) * jax.random.normal(keys[7], pixels.shape)
    return jnp.clip(pixels + noise, -1, 1)


def _blur(pixels: jax.Array) -> jax.Array:
    """A 3x3 binomial filter of `[height, width, 3]`."""
    for axis in (0, 1):
        ends = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        wide = jnp.pad(pixels, ends, mode="edge")
        size = pixels.shape[axis]
        take = functools.partial(jax.lax.slice_in_dim, wide, axis=axis)
        pixels = 0.25 * take(0, size) + 0.5 * take(1, size + 1) + 0.25 * take(2, size + 2)
    return pixels


def augmented(rgba: jax.Array, key: jax.Array) -> jax.Array:
    return _augment(rgba.astype(jnp.float32), jax.random.split(key, len(rgba)))


class Retrieval(NamedTuple):
    """How well held-out pictures find their captions."""

    pictures: int
    captions: int
    recall_1: float  # Share of pictures whose own caption is the nearest.
    recall_5: float
    auc: float  # Probability that a matched caption is nearer than a mismatched one.
    matched: float  # Mean cosine.
    mismatched: float

    def __str__(self) -> str:
        return (
            f"R@1 {self.recall_1:.3f} R@5 {self.recall_5:.3f} of {self.captions}, "
            f"AUC {self.auc:.3f}, cosine {self.matched:.3f} against {self.mismatched:.3f}"
        )


def retrieval(pictures: Pictures, split: str, weights, image, text, tokens) -> Retrieval:
    """Recall of the caption of every held-out picture, matched against mismatched.

    The candidates are the captions of all concepts (of the held-out ones for `val_concept`), put in
    the picture's own style.
    """
    held = pictures.of(split)
    pool = pictures if split == "val_combo" else held
    first = {caption: i for i, caption in enumerate(pool.captions)}
    styles = {
        style: prompt.removesuffix(caption)
        for style, prompt, caption in zip(
            pictures.styles, pictures.prompts, pictures.captions, strict=True
        )
    }
    pixels = held.on_white()
    ranks, matched, mismatched = [], [], []
    for style in np.unique(held.styles):
        rows = np.flatnonzero(held.styles == style)
        candidates = text(weights, tokens([styles[style] + caption for caption in first]))
        cosines = np.asarray(image(weights, pixels[rows]) @ candidates.T)
        names = list(first)
        right = np.array([names.index(held.captions[row]) for row in rows])
        own = cosines[np.arange(len(rows)), right]
        ranks += list((cosines > own[:, None]).sum(1))
        matched += list(own)
        mismatched += list(cosines[:, :: max(1, len(names) // 50)].ravel())
    ranks, matched, mismatched = map(np.array, (ranks, matched, mismatched))
    return Retrieval(
        pictures=len(ranks),
        captions=len(first),
        recall_1=float(np.mean(ranks < 1)),
        recall_5=float(np.mean(ranks < 5)),
        auc=float(np.mean(matched[:, None] > np.random.default_rng(0).choice(mismatched, 2000))),
        matched=float(matched.mean()),
        mismatched=float(mismatched.mean()),
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
