"""What calls take right after themselves and after others, and what networks are the sum of.

    taskset -c 1 python -m benchmarks.loops [--runtime onnxruntime] [--networks 4] [--seconds 80]

Runs random U-Nets and all their distinct calls in turns, each twice: the first run finds the caches
full of others' memory, the second its own. Prints for each network what it takes right after itself
and after others, and by how much the sums of its calls are off what it takes right after itself.
And by how much medians of a quarter of the time differ.
"""

import dataclasses

import numpy as np
import tyro

from benchmarks.pace import apart, in_turns
from benchmarks.runtimes import LEARNT, networks
from nas.cli import tuned
from nas.devices import RUNTIMES, RuntimeName
from search_spaces.counting import macs
from search_spaces.program import calls


@dataclasses.dataclass(frozen=True)
class Settings:
    runtime: RuntimeName = "onnxruntime"
    networks: int = 4
    """Of the smaller half of 24 random U-Nets."""
    seconds: float = 80.0
    """For which they run."""


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
    subjects = [*distinct, *(drawn[name] for name in chosen)]
    runs = [runtime.prepare(subject, compare=False).run for subject in subjects]
    for run in runs:
        run()
    at, turns = in_turns([run for run in runs for _ in range(2)], asked.seconds)
    after_others, looped = 1e3 * turns[:, ::2], 1e3 * turns[:, 1::2]
    count = len(distinct)
    far, near = (
        np.median(apart(at, times[:, :count], at[-1] / 4)) for times in (after_others, looped)
    )
    print(
        f"{runtime.provenance}: {len(turns)} turns of {count} calls and {len(chosen)} networks\n"
        f"medians of a quarter of the time differ by {near:.1%} right after themselves, "
        f"by {far:.1%} after others\n\n"
        "| network | calls | right after itself, ms | after others, ms | sum of calls right after "
        "themselves | after others |\n|---|---|---|---|---|---|"
    )
    for number, name in enumerate(chosen, start=count):
        own = [distinct.index(call) for call in parts[name]]
        whole = np.median(looped[:, number])
        sums = [
            np.median(times[:, own], axis=0).sum() / whole - 1 for times in (looped, after_others)
        ]
        print(
            f"| {name} | {len(own)} | {whole:.2f} | {np.median(after_others[:, number]):.2f} | "
            f"{sums[0]:+.0%} | {sums[1]:+.0%} |"
        )


if __name__ == "__main__":
    main()
