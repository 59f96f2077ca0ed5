"""Reading precomputed training data beside encoding it.

    python -m benchmarks.precomputed [--recipe PATH] [--batch 32] [--batches 50] [--repeats 5]

Encodes the recipe's pictures and prompts into a store in a temporary folder, then takes batches of
random rows, as training does:

- encode: pictures and prompts of a batch encoded when it is asked for;
- memory: taken from arrays that were encoded before;
- store: read from the store, opened anew, so what is read first comes from files;
- store, again: by the same reader, which keeps a part of the store in memory;
- N readers: as many threads with a reader each, together.

Prints Markdown, rows a second, medians with their quartiles. A minute or two on two cores; run it
with nothing else running. The files have just been written, so the system has them in memory: this
is what checking, cutting and copying cost, and no disk's speed.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tyro

from nas import precomputed
from nas import recipe as recipes
from nas.diffusion.pipeline import Pipeline
from nas.objectives import Captioned

Take = Callable[[np.ndarray], object]


def rate(take: Take, rows: int, batch: int, batches: int) -> float:
    """Rows a second of so many batches."""
    rng = np.random.default_rng(0)
    picks = [rng.integers(rows, size=batch) for _ in range(batches)]
    begun = time.perf_counter()
    for pick in picks:
        take(pick)
    return batch * batches / (time.perf_counter() - begun)


def together(takes: list[Take], rows: int, batch: int, batches: int) -> float:
    """Rows a second of several who take as many batches each, at once."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(takes)) as pool:
        list(pool.map(lambda take: rate(take, rows, batch, batches), takes))
    return len(takes) * batch * batches / (time.perf_counter() - begun)


def taking(data: Captioned) -> Take:
    return lambda rows: (data.latents[rows], data.conditioning_of(rows))


def main(
    *,
    recipe: str = recipes.DEFAULT,
    batch: int = 32,
    batches: int = 50,
    repeats: int = 5,
    readers: int = 4,
) -> None:
    asked = recipes.load(recipe)
    pipeline = Pipeline.load(asked.pipeline)
    pictures = asked.pictures()
    pixels, prompts = pictures
    rows = len(prompts)

    def encode(pick: np.ndarray) -> None:
        pipeline.latents(pixels[pick], batch=batch)
        pipeline.conditioning([prompts[int(row)] for row in pick], batch=batch)

    with tempfile.TemporaryDirectory() as where:
        list(precomputed.write(where, asked, pipeline))

        def fresh() -> Take:
            return taking(precomputed.read(where, precomputed.TRAINING, pipeline, pictures))

        memory = taking(precomputed.captioned(pipeline, *pictures))
        kept = fresh()
        encode(np.zeros(batch, int))  # Compiled.
        found: dict[str, list[float]] = {}
        for _ in range(repeats):
            few = max(1, batches // 10)  # Encoding is slow.
            found.setdefault("encode", []).append(rate(encode, rows, batch, few))
            found.setdefault("memory", []).append(rate(memory, rows, batch, batches))
            found.setdefault("store", []).append(rate(fresh(), rows, batch, batches))
            found.setdefault("store, again", []).append(rate(kept, rows, batch, batches))
            crew = [fresh() for _ in range(readers)]
            found.setdefault(f"{readers} readers", []).append(together(crew, rows, batch, batches))
    print(f"{rows} rows, batches of {batch}\n\n| | rows a second | quartiles |\n|---|---|---|")
    for name, rates in found.items():
        low, middle, high = np.percentile(rates, (25, 50, 75))
        print(f"| {name} | {middle:,.0f} | {low:,.0f} to {high:,.0f} |")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
