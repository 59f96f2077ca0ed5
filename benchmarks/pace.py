"""How steady this machine is, and what short calls take alone and in turns.

    taskset -c 1 python -m benchmarks.pace [--seconds 60] [--runtime xla]

Runs one block over and over and says in how many seconds it took longer than it mostly does, and
for how many seconds on end. Then measures short blocks over and over, and in turns with each other
and with one that fills the caches.
"""

import dataclasses
import time
from typing import Literal

import jax
import numpy as np
import tyro

from latency_models.runtimes import Run
from nas.commands.profile import RUNTIMES
from search_spaces.blocks import Conv, Downsample, ResNet, Upsample
from search_spaces.ops import Call

SLOW = 1.1  # Times what it mostly takes.


@dataclasses.dataclass(frozen=True)
class Settings:
    seconds: float = 60.0
    """For which the machine is watched."""
    runtime: Literal["xla", "onnxruntime", "litert"] = "xla"


def image(side: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, side, side, channels), "float32")


WATCHED = Call(ResNet(64, 32), (image(16, 64),))
LARGE = Call(ResNet(256, 32), (image(32, 256),))
SHORT = {
    f"{type(op).__name__} {side}x{side}x{channels}": Call(op, (image(side, channels),))
    for op, side, channels in (
        (Conv(32), 8, 32),
        (Downsample(), 16, 32),
        (ResNet(32, 32), 4, 32),
        (Upsample(), 4, 64),
    )
}


def timed(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def watch(run: Run, seconds: float) -> np.ndarray:
    """What the run took in each second, over what it mostly took."""
    begin, found = time.perf_counter(), list[list[float]]()
    while (now := time.perf_counter() - begin) < seconds:
        while len(found) <= now:
            found.append([])
        found[int(now)].append(timed(run))
    medians = np.array([np.median(times) for times in found if times])
    return medians / np.median(medians)


def longest(slow: np.ndarray) -> int:
    """The most seconds on end."""
    best = streak = 0
    for each in slow:
        streak = streak + 1 if each else 0
        best = max(best, streak)
    return best


def main() -> None:
    asked = tyro.cli(Settings, description=__doc__)
    runtime = RUNTIMES[asked.runtime]()
    print(runtime.provenance)
    run = runtime.prepare(WATCHED).run
    run()
    pace = watch(run, asked.seconds)
    slow = pace > SLOW
    print(
        f"{len(pace)} seconds watched, {slow.sum()} of them more than {SLOW - 1:.0%} slower than "
        f"mostly, {longest(slow)} on end; the slowest {pace.max():.2f} times"
    )
    runs = {name: runtime.prepare(call).run for name, call in SHORT.items()}
    large = runtime.prepare(LARGE).run
    for each in (*runs.values(), large):
        each()
    turns = []
    for _ in range(100):
        turns.append([timed(each) for each in runs.values()])
        large()
    beside = np.median(turns, axis=0)
    print("\n| block | over and over, ms | in turns, ms | times |\n|---|---|---|---|")
    for (name, each), ms in zip(runs.items(), 1e3 * beside, strict=True):
        alone = 1e3 * np.median([timed(each) for _ in range(300)])
        print(f"| {name} | {alone:.3f} | {ms:.3f} | {ms / alone:.1f} |")


if __name__ == "__main__":
    main()
