"""What calls and networks take in a loop and after others, and what networks are the sum of.

    taskset -c 1 python -m benchmarks.loops [--runtime onnxruntime] [--networks 4] [--seconds 80]

Random U-Nets, all their distinct calls, and a large U-Net take turns, each in a loop: the first run
finds the caches full of others' memory, the later half of the loop its own. Prints for each network
what its first and its second run take and what it takes in the loop, by how much the sums of its
calls are off what it takes in the loop, and by how much medians of a quarter of the time differ.
"""

import dataclasses
import time

import numpy as np
import tyro

from benchmarks.pace import apart
from benchmarks.runtimes import LEARNT, networks
from latency_models.measure import PLAN, loop, steady
from latency_models.runtimes import Run
from nas.cli import tuned
from nas.devices import RUNTIMES, RuntimeName
from search_spaces.counting import macs
from search_spaces.program import calls

QUARTERS = 4  # Of the time: their medians are compared.


@dataclasses.dataclass(frozen=True)
class Settings:
    runtime: RuntimeName = "onnxruntime"
    networks: int = 4
    """Of the smaller half of 24 random U-Nets."""
    seconds: float = 80.0
    """For which they run."""


def looped(run: Run) -> tuple[float, float, float]:
    """Milliseconds of the first run of a loop, of the second, and of the later half."""
    times = loop(run, PLAN.loop_s)
    return 1e3 * times[0], 1e3 * times[1], 1e3 * steady(times)


def main() -> None:
    tuned("benchmarks.loops")  # As `nas profile` is.
    asked = tyro.cli(Settings, description=__doc__)
    runtime = RUNTIMES[asked.runtime]()
    drawn = networks(LEARNT, 24)
    size = {
        name: sum(macs(call).total for call in calls(*whole).values())
        for name, whole in drawn.items()
    }
    smaller = sorted(drawn, key=lambda name: size[name])[:12]
    chosen = [smaller[round(i)] for i in np.linspace(0, 11, asked.networks)]
    parts = {name: list(calls(*drawn[name]).values()) for name in chosen}
    distinct = list(dict.fromkeys(call for name in chosen for call in parts[name]))
    count = len(distinct)
    large = max(drawn, key=lambda name: size[name])
    subjects = [*distinct, *(drawn[name] for name in (*chosen, large))]
    runs = [runtime.prepare(subject, compare=False).run for subject in subjects]
    for run in runs:
        run()
    begin, at, turns = time.perf_counter(), list[float](), list[list[tuple[float, ...]]]()
    while (now := time.perf_counter() - begin) < asked.seconds:
        at.append(now)
        turns.append([looped(run) for run in runs])
    if len(turns) < QUARTERS * 2:
        raise SystemExit(f"{asked.seconds:g} s are {len(turns)} turns; give more --seconds")
    first, second, later = np.moveaxis(np.array(turns), -1, 0)  # [turns, runs] each.
    far, near = (
        np.median(apart(np.array(at), times[:, :count], at[-1] / QUARTERS))
        for times in (first, later)
    )
    print(
        f"{runtime.provenance}: {len(turns)} turns of {count} calls, {len(chosen)} networks and a "
        f"large one\nmedians of a quarter of the time differ by {near:.1%} in loops, by {far:.1%} "
        "after others\n\n"
        "| network | calls | first run, ms | second | in a loop | sum of calls in loops | of their "
        "first runs |\n|---|---|---|---|---|---|---|"
    )
    for number, name in enumerate(chosen, start=count):
        own = [distinct.index(call) for call in parts[name]]
        one, two, whole = (np.median(times[:, number]) for times in (first, second, later))
        sums = [np.median(times[:, own], axis=0).sum() / whole - 1 for times in (later, first)]
        print(
            f"| {name} | {len(own)} | {one:.2f} | {two:.2f} | {whole:.2f} | "
            f"{sums[0]:+.0%} | {sums[1]:+.0%} |"
        )


if __name__ == "__main__":
    main()
