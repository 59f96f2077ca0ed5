"""How much of a block's function do its weights keep through an edit, before any training?

    python -m experiments.emoji.surgery FOLDER

Makes every micro-choice of every block of the embedded default's seed, one at a time. Weights are
fitted on half of the calibration rows; on the other half the block's output is compared with what
it was: the mean squared difference, as a share of the mean square of what the block adds to its
input. Beside it stands naive initialisation, which keeps weights whose shape is unchanged and draws
the rest. Trimming is tried by all three criteria. Widths concern many blocks: for them it is the
whole network's output that is compared. Prints medians and ranges over blocks, and writes the table
to FOLDER/surgery.md. About 10 minutes on two cores.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.emoji.recipe import default
from nas.calibration import ROWS, recorded  # Half of the rows to fit, half to compare.
from nas.diffusion.pipeline import Pipeline
from nas.perform import GUIDED
from search_spaces.actions import stage_width
from search_spaces.criteria import Criterion, L1Norm, OutputError, Taylor
from search_spaces.model import Weights
from search_spaces.ops import model
from search_spaces.program import Program, network
from search_spaces.recording import Recorder, compiled
from search_spaces.surgery import Calibration, Change, Samples, part
from search_spaces.unet import lower
from search_spaces.unet_space import UNetSpace

CRITERIA: dict[str, Criterion] = {
    "output error": OutputError(),
    "Taylor": Taylor(),
    "L1 norm": L1Norm(),
}
TRIMS = ("ffn", "heads")


def main(folder: Path, /) -> None:
    recipe = default()
    pipeline = Pipeline.load(recipe.pipeline)
    space = UNetSpace(pipeline.spec, pipeline.inputs(GUIDED))
    recorder = recorded(pipeline, pipeline.inputs(GUIDED), *recipe.pictures())
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for key, errors in (
        *micro(space, pipeline.unet, recorder),
        *widths(space, pipeline.unet, recorder),
    ):
        found.setdefault(key, []).append(errors)
    text = table(found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "surgery.md").write_text(text)
    print(text)


def micro(
    space: UNetSpace, weights: Weights, recorder: Recorder
) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    """Yields what was chosen, by which criterion, and the errors: fitted and naive."""
    spec = space.seed

    def fitting(program: Program, weights: Weights, step: str) -> Samples:
        samples = recorder(program, weights, step)
        half = tuple(read[: ROWS // 2] for read in samples.reads)
        return Samples(half, samples.gradient)

    for choose in space.choices(spec):
        reads = recorder(lower(spec), weights, choose.block).reads
        held_out = tuple(read[ROWS // 2 :] for read in reads)
        criteria = CRITERIA if choose.field in TRIMS else {"–": OutputError()}
        for name, criterion in criteria.items():
            calibration = Calibration(space.inputs, fitting, criterion)
            change = choose.change(spec, weights, calibration)
            carried = choose.carry(spec, weights, calibration).weights
            own = part(carried, choose.block)
            label = f"{choose.field}: {getattr(change.old.op, choose.field)} to {choose.value}"
            print(label, name, choose.block, error(change, own, held_out), flush=True)
            yield (
                (label, name),
                (error(change, own, held_out), error(change, naive(change), held_out)),
            )


def naive(change: Change) -> Weights:
    """Weights of unchanged shape; the rest as it would be drawn for a network built anew."""
    drawn = model(change.new).initial(0)
    kept = change.weights
    return {n: kept[n] if n in kept and kept[n].shape == w.shape else w for n, w in drawn.items()}


def error(change: Change, weights: Weights, reads: tuple[jax.Array, ...]) -> float:
    """Mean squared change of the block's output, over the mean square of what the block adds."""
    was = compiled(change.old)(change.weights, *reads)
    now = compiled(change.new)(weights, *reads)
    added = was - reads[0] if was.shape == reads[0].shape else was
    return float(jnp.square(now - was).mean() / jnp.square(added).mean())


def widths(
    space: UNetSpace, weights: Weights, recorder: Recorder
) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    """The same for widths of stages, by the output of the network."""
    spec = space.seed
    was = recorder.values(lower(spec), weights)["conv_out"]
    for action in space.widths(spec):
        if space.illegal(spec, action):
            continue
        program = lower(action.apply(spec))
        carried = action.carry(spec, weights, Calibration(space.inputs)).weights
        built = network(program, space.inputs)
        drawn = built.initial(0)
        fresh = {
            n: weights[n] if n in weights and weights[n].shape == w.shape else w
            for n, w in drawn.items()
        }
        errors = []
        for each in (carried, fresh):
            now = Recorder(space.inputs, recorder.given, recorder.target).values(program, each)
            errors.append(float(jnp.square(now["conv_out"] - was).mean() / jnp.square(was).mean()))
        label = f"width: {stage_width(spec, action.stage)} to {action.width}"
        yield (label, "L1 norm"), (errors[0], errors[1])


def table(found: dict[tuple[str, str], list[tuple[float, float]]]) -> str:
    lines = [
        "| edit | units kept by | blocks | error, fitted | error, naive |",
        "|---|---|---|---|---|",
    ]
    for (label, criterion), errors in sorted(found.items()):
        fitted, drawn = (_spread([e[i] for e in errors]) for i in (0, 1))
        lines.append(f"| {label} | {criterion} | {len(errors)} | {fitted} | {drawn} |")
    return "\n".join(lines) + "\n"


def _spread(errors: list[float]) -> str:
    return f"{np.median(errors):.3f} ({min(errors):.3f} to {max(errors):.3f})"


if __name__ == "__main__":
    tyro.cli(main)
