"""What a round of scoring costs: one compiled program, or a rebuilt network for every candidate.

    python -m benchmarks.scoring [--prompts 64] [--repeats 5]

Scores the embedded default's seed and every single removal of it in two ways, in turns:

- gated: one supernet, whose blocks are switched at run time; it is traced and compiled once;
- rebuilt: each candidate is lowered, traced and compiled as a network of its own.

The rebuilt programs' time once compiled is the pure compute of the same candidates. Every pair of
programs is checked to give the same scores. Prints Markdown; six minutes on two cores. Run it with
nothing else running.
"""

import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

from experiments.emoji.recipe import default
from nas.diffusion.pipeline import Pipeline
from nas.perform import GUIDED
from nas.scoring import Evaluator, Scorer
from nas.supernet import Supernet
from search_spaces.unet_space import UNetSpace


def main(*, prompts: int = 64, repeats: int = 5) -> None:
    recipe = default()
    pipeline = Pipeline.load(recipe.pipeline)
    space = UNetSpace(pipeline.spec, pipeline.inputs(GUIDED))
    scorer = Scorer(
        pipeline,
        Evaluator.load(recipe.evaluator),
        recipe.prompts[:prompts],
        steps=recipe.sampling.steps,
        guidance=recipe.sampling.guidance,
        seed=recipe.seed,
        batch=recipe.sampling.batch,
    )

    def gated(supernet: Supernet, spec) -> np.ndarray:
        lifted = supernet.lift(pipeline.unet)
        return np.concatenate(list(scorer.embedded(supernet, lifted, supernet.keep(spec))))

    def rebuilt(network: Supernet) -> np.ndarray:
        weights = {name: pipeline.unet[name] for name in network.model.shapes}
        # With nothing to switch there is no conditional in the program.
        return np.concatenate(list(scorer.embedded(network, weights, {})))

    specs = [space.seed, *(removal.apply(space.seed) for removal in space.removals(space.seed))]
    shared = Supernet(space.seed, space.inputs)
    gated_first, _ = timed(lambda: gated(shared, space.seed))
    gated_s, rebuilt_s, first_s, errors = [], [], [], []
    for number, spec in enumerate(specs):
        network = Supernet(spec, space.inputs)
        first, ours = timed(lambda network=network: rebuilt(network))
        pairs = [
            (timed(lambda spec=spec: gated(shared, spec)), timed(lambda n=network: rebuilt(n)))
            for _ in range(repeats)
        ]
        errors.append(np.abs(pairs[0][0][1] - ours).max())
        gated_s.append([pair[0][0] for pair in pairs])
        rebuilt_s.append([pair[1][0] for pair in pairs])
        first_s.append(first)
        print(f"candidate {number + 1} of {len(specs)}", file=sys.stderr)
    report(np.array(gated_s), np.array(rebuilt_s), np.array(first_s), gated_first, scorer)
    print(f"\nEmbeddings of the two differ by {max(errors):.1e} at most.")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `run` took, and what it returned."""
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def report(
    gated: np.ndarray, rebuilt: np.ndarray, first: np.ndarray, gated_first: float, scorer: Scorer
) -> None:
    """Prints the table. Times are `[candidates, repeats]` seconds; first calls compile too."""
    gated_run, pure = np.median(gated, axis=1), np.median(rebuilt, axis=1)
    compile_gated = gated_first - gated_run[0]
    compile_rebuilt = first - pure
    gated_round = compile_gated + gated_run.sum()
    rebuilt_round = compile_rebuilt.sum() + pure.sum()
    ratios = gated_run / pure
    low, high = np.quantile(ratios, [0.1, 0.9])
    print(
        f"jax {jax.__version__}, {platform.machine()}, {jax.default_backend()}, "
        f"{len(scorer.prompts)} prompts, {len(gated)} candidates, "
        f"medians of {gated.shape[1]} repeats\n"
    )
    print("| a round of scoring | compiling, s | running, s | total, s | total, pure compute = 1 |")
    print("|---|---|---|---|---|")
    for name, compiling, running in (
        ("gated: one program", compile_gated, gated_run.sum()),
        ("rebuilt for every candidate", compile_rebuilt.sum(), pure.sum()),
        ("pure compute", 0.0, pure.sum()),
    ):
        total = compiling + running
        print(
            f"| {name} | {compiling:.1f} | {running:.1f} | {total:.1f} | {total / pure.sum():.2f} |"
        )
    print(
        f"\nRebuilding takes {rebuilt_round / gated_round:.1f} times as long. Once compiled, a "
        f"gated candidate takes {np.median(ratios):.2f} of a rebuilt one's time "
        f"({low:.2f} to {high:.2f}, tenth to ninetieth percentile of candidates)."
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
