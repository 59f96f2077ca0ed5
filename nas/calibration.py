"""What blocks see on noised training pictures, which edits fit weights by."""

from collections.abc import Sequence

import jax
import numpy as np

from nas.diffusion.pipeline import Pipeline
from nas.objectives import Batch, noised
from search_spaces.ops import Shape
from search_spaces.recording import Recorder

ROWS = 128
"""Pictures that are looked at."""


def recorded(
    pipeline: Pipeline,
    inputs: dict[str, Shape],
    pixels: np.ndarray,
    prompts: Sequence[str],
    rows: int = ROWS,
) -> Recorder:
    """What the blocks of a network for these `inputs` see on so many noised pictures, at all
    diffusion steps alike. Of fewer pictures, on all of them."""
    chosen = np.random.default_rng(0).permutation(len(pixels))[:rows]
    captions = [prompts[int(row)] for row in chosen]
    batch = Batch(pipeline.latents(pixels[chosen]), pipeline.conditioning(captions), {})
    # Stratified times would put early steps into one half and late ones into the other.
    values, target = noised(pipeline.schedule, {}, batch, jax.random.key(0))
    order = np.random.default_rng(1).permutation(len(chosen))
    return Recorder(inputs, {n: v[order] for n, v in values.items()}, target[order])
