"""How steady this machine is, and what short calls take alone and in turns.

    taskset -c 1 python -m benchmarks.pace [--seconds 60] [--runtime xla]

Runs one block over and over and says in how many seconds it took longer than it mostly does, and
for how many seconds on end. Then runs short blocks, that one and one that fills the caches in
turns, for `--span` seconds. Says by how much the medians of so many seconds on end differ, which is
how far apart two measurements are that last as long, and what short blocks take in turns and over
and over.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
import tyro

from latency_models.runtimes import Run
from nas.devices import RUNTIMES
from search_spaces.blocks import Conv, Downsample, ResNet, Upsample
from search_spaces.ops import Call

SLOW = 1.1  # Times what it mostly takes.
WINDOWS = (10, 20, 40, 60)  # Seconds.


@dataclasses.dataclass(frozen=True)
class Settings:
    seconds: float = 60.0
    """For which the machine is watched."""
    span: float = 240.0
    """For which blocks run in turns."""
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


def in_turns(runs: Sequence[Run], seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """When each turn began, and the seconds of each run in it: `[turns]` and `[turns, runs]`."""
    begin, at, turns = time.perf_counter(), list[float](), list[list[float]]()
    while (now := time.perf_counter() - begin) < seconds:
        at.append(now)
        turns.append([timed(run) for run in runs])
    return np.array(at), np.array(turns)


def apart(at: np.ndarray, turns: np.ndarray, window: float) -> np.ndarray:
    """The deviation of the medians of whole windows, relative to them, of each run: `[runs]`."""
    number = (at // window).astype(int)
    medians = [np.median(turns[number == i], axis=0) for i in range(int(at[-1] // window))]
    return np.std(np.log(medians), axis=0, ddof=1)


def main() -> None:
    asked = tyro.cli(Settings, description=__doc__)
    if asked.span < 2 * max(WINDOWS):
        raise SystemExit(f"--span {asked.span:g} is less than two of {max(WINDOWS)} seconds")
    runtime = RUNTIMES[asked.runtime]()
    print(runtime.provenance)
    watched = runtime.prepare(WATCHED).run
    watched()
    pace = watch(watched, asked.seconds)
    slow = pace > SLOW
    print(
        f"{len(pace)} seconds watched, {slow.sum()} of them more than {SLOW - 1:.0%} slower than "
        f"mostly, {longest(slow)} on end; the slowest {pace.max():.2f} times"
    )
    short = [runtime.prepare(call).run for call in SHORT.values()]
    large = runtime.prepare(LARGE).run
    for each in (*short, large):
        each()
    at, turns = in_turns([*short, watched, large], asked.span)
    names = [*SHORT, "the watched", "the large"]
    print("\n| medians of | " + " | ".join(names) + " |")
    print("|---" * (1 + len(names)) + "|")
    for window in WINDOWS:
        cells = [f"{deviation:.1%}" for deviation in apart(at, turns, window)]
        print(f"| {window} s | " + " | ".join(cells) + " |")
    beside = np.median(turns, axis=0)
    print("\n| block | over and over, ms | in turns, ms | times |\n|---|---|---|---|")
    for name, run, ms in zip(SHORT, short, 1e3 * beside, strict=False):
        alone = 1e3 * np.median([timed(run) for _ in range(300)])
        print(f"| {name} | {alone:.3f} | {ms:.3f} | {ms / alone:.1f} |")


if __name__ == "__main__":
    main()
