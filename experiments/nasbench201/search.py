"""The most accurate cell of NAS-Bench-201 that keeps to latency limits on one device or several.

    python -m experiments.nasbench201.search --data DIR --limits gold_6226=11 eyeriss=7

DIR holds the tables (`table.py` says which). Candidates are chosen by validation accuracy after 12
epochs, and the test accuracy after 200, which the search never sees, is what is reported. Takes a
few seconds. It is journalled: killed and called again with the same settings it goes on where it
was. `--fronts` prints, for every device, what of the evaluated is best for its latency: the same
evaluations serve all devices.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import tyro

from experiments.nasbench201.cells import Cell, Cells, computed
from experiments.nasbench201.table import Table, read
from latency_models.latency import Latency
from nas.journal import Journal, Outcome
from nas.search import replay, search
from nas.strategies.exact import Exact
from nas.strategies.exploration import Evaluate, Exploration, Policy, Result, State
from nas.strategies.greedy import Greedy
from nas.strategies.local import LocalSearch
from nas.strategies.nsga2 import NSGA2
from nas.strategies.outcomes import scored
from nas.strategies.problem import Device, Problem
from nas.strategies.random import Random
from nas.strategies.regularised import RegularisedEvolution
from nas.strategies.surrogate import Surrogate

POLICIES: Mapping[str, Policy] = {
    "surrogate": Surrogate(computed),
    "local": LocalSearch(),
    "regularised": RegularisedEvolution(20, 5),
    "nsga2": NSGA2(20),
    "random": Random(),
    "greedy": Greedy(),
    "exact": Exact(),
}


def main(
    *,
    data: Path,
    limits: tuple[str, ...],
    out: Path = Path("runs/nasbench201"),
    policy: str = "surrogate",
    choose: str = "c10_val_12ep",
    report: str = "c10_test_200ep",
    evaluations: int = 100,
    seed: int = 0,
    fronts: bool = False,
) -> int:
    """
    Args:
        data: Folder of NAS-Bench-201's tables.
        limits: Devices with their limits in ms, each as DEVICE=MS.
        out: Folder of the journal.
        policy: What chooses: surrogate, local, regularised, nsga2, random, greedy or exact.
        choose: Column of accuracies that candidates are evaluated by.
        report: Column of accuracies to report of what was found.
        evaluations: How many cells to evaluate.
        fronts: Print the Pareto front of every device as well.
    """
    try:
        table = read(data)
        problem = problem_of(table, parsed(limits))
        strategy = Exploration(problem, chosen(policy), evaluations, seed)
        header = {"space": "nasbench201", "limits": sorted(limits), "policy": policy}
        header |= {"choose": choose, "evaluations": evaluations, "seed": seed}
        state = run(strategy, table, choose, out / "journal.jsonl", header)
        best = strategy.best(state)
        if best is None:
            raise ValueError(f"none of {len(state.trials)} evaluated cells keeps to all limits")
        print(f"{len(state.trials)} cells evaluated; the best within all limits:")
        print(line(best, problem, table, choose, report))
        for device in problem.devices if fronts else ():
            print(f"\nFront of {device}:")
            for result in strategy.front(state, [device]):
                print(line(result, problem, table, choose, report))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    return 0


def run(
    strategy: Exploration[Cell], table: Table, choose: str, path: Path, header: Mapping
) -> State:
    """The state in which the search ends, from where its journal at `path` left it."""

    def perform(_: object, __: State, task: Evaluate) -> Outcome:
        return scored([table.accuracy(task.spec, choose)])

    with Journal(path, header) as journal:
        state = replay(strategy, journal)
        for done in search(strategy, perform, journal):
            state = done.state
        return state


def problem_of(table: Table, limits: Mapping[str, float]) -> Problem[Cell]:
    """All cells, and each device with its limit in ms."""

    def device(name: str) -> Device[Cell]:
        def latency(cell: Cell) -> Latency:
            return table.latency(cell, name)

        return Device(latency, limits[name])

    devices = {name: device(name) for name in limits}
    return Problem(Cells(), devices, specs=tuple(table.rows))


def parsed(limits: tuple[str, ...]) -> dict[str, float]:
    """Milliseconds by device, from texts like `gold_6226=11`. Raises `ValueError` on others."""
    found: dict[str, float] = {}
    for text in limits:
        match = re.fullmatch(r"(\w+)=([0-9]*\.?[0-9]+)", text)
        if match is None or match[1] in found:
            raise ValueError(f"limits are DEVICE=MS, each device once, not {' '.join(limits)!r}")
        found[match[1]] = float(match[2])
    return found


def chosen(policy: str) -> Policy:
    if policy not in POLICIES:
        raise ValueError(f"no policy {policy!r}; there are {', '.join(POLICIES)}")
    return POLICIES[policy]


def line(
    result: Result[Cell], problem: Problem[Cell], table: Table, choose: str, report: str
) -> str:
    times = ", ".join(f"{n} {t.ms:.2f} ms" for n, t in problem.latencies(result.spec).items())
    return (
        f"{result.quality.mean:.2f}% {choose}, {table.accuracy(result.spec, report):.2f}% "
        f"{report}; {times}; {' '.join(result.spec.ops)}"
    )


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=__doc__))
