"""A tiny recipe with some hundred pictures, and a process that is killed while it stores them.

    python -c "from tests.precomputing import main; main()" MODELS WHERE

is killed between the two arrays of the third shard.
"""

import itertools
import os
import signal
import sys
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
    created, calls = precomputed._created, itertools.count(1)

    def killed(*given: Any) -> Any:
        if next(calls) == 1 + 2 + 2 + 2:  # The empty prompt has one array, a shard two.
            os.kill(os.getpid(), signal.SIGKILL)
        return created(*given)

    precomputed._created = killed
    list(precomputed.write(sys.argv[2], recipe(folders), pipeline, ENCODED))
