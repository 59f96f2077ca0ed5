"""The embedded default: shrink a small text-to-image pipeline that was trained on emoji.

    nas search experiments.emoji.recipe:default

The pipeline, the CLIP model that scores it and the pictures both were trained on lie beside this
file; see `MODEL_CARD.md`. The prompts are those of trained pictures, drawn once and fixed.
Six to nine minutes on two cores, the longer where there is room for a copy. The U-Net then takes
72% or 73% of the seed's latency, and scores 0.666 or 0.673 where the seed scores 0.689.
"""

import functools
from pathlib import Path

import numpy as np

from experiments.emoji.pictures import Pictures, load
from experiments.emoji.seed import STYLES
from latency_models.bench import CACHE, LocalBench
from nas.recipe import Recipe, Sampling, Search, Training

HERE = Path(__file__).parent
PROMPTS = 512  # At most; a search uses as many of the first as its settings say.


def default() -> Recipe:
    return Recipe(
        pipeline=HERE / "pipeline",
        evaluator=HERE / "clip_model",
        pictures=training,
        prompts=validation().prompts,
        references=lambda: validation().on_white(),
        held_out=held_out,
        bench=LocalBench(CACHE),
        # More guidance than 2 saturates the colours: R@5 falls from 94 to 88 of 100 pictures.
        sampling=Sampling(prompts=64, steps=6, guidance=2.0),
        training=Training(robust_steps=120, between_steps=40, recovery_steps=200),
        search=Search(group=5),
    )


@functools.cache
def known() -> Pictures:
    """What the seed was trained on."""
    return load().of("train", styles=STYLES)


def training() -> tuple[np.ndarray, tuple[str, ...]]:
    return known().on_white(), known().prompts


def held_out() -> tuple[np.ndarray, tuple[str, ...]]:
    """Pictures of trained concepts in the style they were not trained in."""
    pictures = load().of("val_combo", styles=STYLES)
    return pictures.on_white(), pictures.prompts


@functools.cache
def validation() -> Pictures:
    """The pictures whose prompts score a search, in their fixed random order."""
    rows = np.random.default_rng(2023).permutation(len(known()))[:PROMPTS]
    return known().take(rows)
