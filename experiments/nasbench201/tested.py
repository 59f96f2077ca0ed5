"""Test accuracies of what `nas explore` found on NAS-Bench-201, of which no search knows.

    NASBENCH201_DATA=DIR python -m experiments.nasbench201.tested runs/nasbench201 [--fronts]

`--fronts` prints, besides the best, what of the evaluated is best for its latency on each device.
"""

from collections.abc import Iterator
from pathlib import Path

import tyro

from experiments.nasbench201.cells import Cell
from experiments.nasbench201.study import table
from experiments.nasbench201.table import Table
from nas.cli import guarded
from nas.commands.explore import story
from nas.report.studied import Studied
from nas.strategies.exploration import Result


def main(
    folder: tyro.conf.Positional[Path], *, accuracy: str = "c10_test_200ep", fronts: bool = False
) -> int:
    """
    Args:
        folder: Folder of the search.
        accuracy: Column of accuracies to give.
        fronts: Give the front of every device as well.
    """
    for line in lines(story(folder), table(), accuracy, fronts=fronts):
        print(line)
    return 0


def lines(found: Studied, table: Table, accuracy: str, *, fronts: bool) -> Iterator[str]:
    """What was found, with its accuracies. Raises `ValueError` if that is nothing."""
    search, state = found.strategy, found.state
    best = search.best(state)
    if best is None:
        raise ValueError(f"{found.folder}: no evaluated cell keeps to all limits")

    def line(result: Result[Cell]) -> str:
        times = search.problem.latencies(result.spec).items()
        tested = table.accuracy(result.spec, accuracy)
        return (
            f"{result.quality.mean:.2f}% as evaluated, {tested:.2f}% {accuracy}; "
            f"{', '.join(f'{name} {time.ms:.2f} ms' for name, time in times)}; "
            f"{' '.join(result.spec.ops)}"
        )

    yield f"{len(state.trials)} cells evaluated; the best within all limits:"
    yield line(best)
    for device in search.problem.devices if fronts else ():
        yield f"\nFront of {device}:"
        yield from map(line, search.front(state, [device]))


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: tyro.cli(main, description=__doc__)))
