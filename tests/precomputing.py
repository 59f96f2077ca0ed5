"""A tiny recipe with some hundred pictures, and a process that precomputes them until it is killed.

python -c "from tests.precomputing import main; main()" MODELS WHERE
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nas import precomputed
from nas.diffusion.pipeline import ENCODED, Pipeline
from nas.recipe import Pictures, Recipe
from tests import drawn, tiny

ROWS = 5 * ENCODED + 7


def pictures(rows: int = ROWS, seed: int = 3) -> Pictures:
    prompts = tuple(tiny.PROMPTS[row % len(tiny.PROMPTS)] for row in range(rows))
    return np.tanh(drawn.normal(seed, rows, 16, 16, 3)), prompts


def recipe(folders: tiny.Folders, **changes: Any) -> Recipe:
    given = {"pictures": pictures, "held_out": lambda: pictures(5, seed=4), **changes}
    return tiny.recipe(folders, **given)


def main() -> None:
    folders = tiny.Folders(Path(sys.argv[1]) / "pipeline", Path(sys.argv[1]) / "clip")
    pipeline = Pipeline.load(folders.pipeline)
    for shard in precomputed.write(sys.argv[2], recipe(folders), pipeline, ENCODED):
        print(shard.part, shard.number, flush=True)
        time.sleep(0.2)
