"""`nas profile NAME...`: measures blocks and networks on this machine, for latency models."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from latency_models import campaign, store
from latency_models.affinity import pin
from latency_models.bench import CAREFUL
from latency_models.latency import Whole
from latency_models.measure import ADVICE, Target
from latency_models.runtimes import CACHE, Runtime
from latency_models.runtimes.litert import LiteRT
from latency_models.runtimes.onnxruntime import OnnxRuntime
from latency_models.runtimes.xla import XLA
from nas import describe
from search_spaces.program import calls
from search_spaces.sampling import draw
from search_spaces.unet import lower

RUNTIMES: Mapping[str, Callable[[], Runtime]] = {
    "xla": XLA,
    "onnxruntime": OnnxRuntime,
    "litert": LiteRT,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures every distinct block of some networks, and the networks as a whole, and keeps what
    it measures in a file. Killed at any moment, the same command goes on."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Presets, and folders of pipelines or of U-Nets."""
    random: int = 0
    """How many U-Nets drawn at random from the whole space are measured, too."""
    seed: int = 0
    """Of that draw."""
    runtime: Literal["xla", "onnxruntime", "litert"] = "xla"
    """What runs them."""
    batch: int = 1
    """Pictures in a call; a guided sampler asks for two."""
    cores: tuple[int, ...] = ()
    """Which of this machine's cores to use, by default all that the process may."""
    blocks_only: bool = False
    """Leave the networks as a whole out."""
    blocks: int | None = None
    """At most so many blocks, drawn at random from all."""
    minutes: float | None = None
    """Nothing is begun after so many minutes."""
    target: Target = dataclasses.field(default_factory=Target)
    """How sure every measurement has to be, and when it is given up."""
    out: Path | None = None
    """The file: by default one for this device and runtime in the user's cache."""


def run(arguments: list[str]) -> int:
    asked = tyro.cli(Settings, args=arguments, prog="nas profile")
    if not asked.names and not asked.random:
        raise ValueError("nothing to measure: give presets or folders, or --random COUNT")
    if asked.batch < 1 or asked.random < 0:
        raise ValueError(f"--batch {asked.batch} --random {asked.random}: one or more are possible")
    if asked.cores:
        pin(asked.cores)
    runtime = RUNTIMES[asked.runtime]()
    provenance = runtime.provenance
    path = asked.out or store.file(CACHE, provenance)
    print(f"{provenance}; cores {provenance.affinity or 'not told'}", flush=True)
    networks = _networks(asked)
    blocks = list(dict.fromkeys(c for w in networks.values() for c in calls(*w).values()))
    if asked.blocks is not None:
        order = np.random.default_rng(asked.seed).permutation(len(blocks))
        blocks = [blocks[i] for i in sorted(order[: asked.blocks])]
    print(f"{len(blocks)} distinct blocks of {len(networks)} networks", flush=True)
    done = campaign.measure(
        path,
        runtime,
        blocks,
        {} if asked.blocks_only else networks,
        dataclasses.replace(CAREFUL, target=asked.target),
        minutes=asked.minutes,
        report=lambda line: print(f"  {line}", flush=True),
    )
    print(f"{done.measured} measured, {done.known} known before, {done.left} not come to")
    for name, reason in done.refused.items():
        print(f"refused: {name}: {reason}")
    if done.refused:
        print(f"Where it is noise: {ADVICE}. Then run the same command again.")
    print(f"file  {path}")
    return 1 if done.refused else 0


def _networks(asked: Settings) -> dict[str, Whole]:
    """The networks asked for, by name, at the batch asked for."""
    found = {name: describe.find(name) for name in asked.names}
    rng = np.random.default_rng(asked.seed)
    found |= {f"random/{asked.seed}/{number}": draw(rng) for number in range(asked.random)}
    suffix = f", batch {asked.batch}" if asked.batch > 1 else ""
    return {
        name + suffix: Whole(
            lower(spec),
            {
                key: jax.ShapeDtypeStruct((asked.batch, *shape.shape[1:]), shape.dtype)
                for key, shape in inputs.items()
            },
        )
        for name, (spec, inputs) in found.items()
    }
