"""What the design space costs to work in: describing an architecture, and editing one.

    python -m benchmarks.space [--repeats 5]

- described: `nas describe PRESET` as a whole process, from the shell's call to its end;
- edited: `apply` of every legal edit of the seed, by kind;
- judged: `UNetSpace.illegal` of the same, once the ops it meets have been traced.

Prints Markdown; two minutes on two cores. Run it with nothing else running.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from search_spaces.presets import PRESETS
from search_spaces.unet_space import UNetSpace


def main(*, repeats: int = 5) -> None:
    print("| `nas describe` | seconds, median (least to most) |\n|---|---|")
    for name in PRESETS:
        command = [sys.executable, "-m", "nas", "describe", name]
        taken = [
            seconds(
                lambda command=command: subprocess.run(command, check=True, capture_output=True)
            )
            for _ in range(repeats)
        ]
        print(f"| {name} | {spread(taken)} |", flush=True)
    print("\n| seed | edit | number | `apply`, ms | `illegal`, ms |\n|---|---|---|---|---|")
    for name in ("sd15", "sdxl"):
        space = UNetSpace(*PRESETS[name]())
        kinds: dict[str, list[Any]] = {}
        for action in space.actions(space.seed):  # Traces what there is to trace.
            kinds.setdefault(type(action).__name__, []).append(action)
        for kind, actions in kinds.items():
            applied, judged = (
                [1e3 * seconds(lambda a=a, f=f: f(a)) for a in actions]
                for f in (
                    lambda action, space=space: action.apply(space.seed),
                    lambda action, space=space: space.illegal(space.seed, action),
                )
            )
            print(f"| {name} | {kind} | {len(actions)} | {spread(applied)} | {spread(judged)} |")


def described(name: str) -> None:
    command = [sys.executable, "-m", "nas", "describe", name]
    subprocess.run(command, check=True, capture_output=True)


def seconds(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def spread(numbers: Sequence[float]) -> str:
    return f"{statistics.median(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"


if __name__ == "__main__":
    tyro.cli(main)
