"""The most accurate cell of NAS-Bench-201 under a latency limit, against evaluations spent.

    python -m benchmarks.strategies --data ../shared/data/nasbench201 [--seeds 20] [--plot FILE]

CIFAR-10 and CIFAR-100, three limits each on five devices, 20 seeds: our strategies beside Optuna's
TPE and NSGA-II samplers and pymoo's genetic algorithm (`pip install 'nas[peers]'`), in the same
space of 15,625 cells, told the same accuracies and limits. Peers are told by how much a cell is
over the limit, in the way each of them wants it, and may spend up to 400 evaluations, of which at
most 200 are of new cells within the limit. Ours know latencies beforehand, as a search with a
latency model does, and never evaluate what is over. So two counts are given: of all evaluations,
and, kindest to peers, of new cells within the limit only, in which what is over or was evaluated
before is free.

What is chosen by and what is reported is the same number: the table's test accuracy after 200
epochs, the mean over its training seeds. So this compares optimisers, and says nothing of how a
choice by validation accuracy holds on test data (`experiments.nasbench201.tested` gives both).

Every run is kept in a file as soon as it is done; the command goes on from there. Prints Markdown.
The default took 45 minutes on one core, with one thread (`OPENBLAS_NUM_THREADS=1`).
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tyro

from benchmarks.limits import LIMITS
from benchmarks.strategy_peers import PEERS
from benchmarks.strategy_runs import Case, Ours, Run, Step, Task, steps
from experiments.nasbench201.cells import computed
from experiments.nasbench201.table import Table, read
from nas.report.plots import race
from nas.strategies.exact import Exact
from nas.strategies.greedy import Greedy
from nas.strategies.local import LocalSearch
from nas.strategies.nsga2 import NSGA2
from nas.strategies.random import Random
from nas.strategies.regularised import RegularisedEvolution
from nas.strategies.surrogate import Surrogate

ACCURACIES = {"CIFAR-10": "c10_test_200ep", "CIFAR-100": "c100_test_200ep"}
MOST = 200
CLOSE = 0.1
AT = (10, 25, 50, 100, 200)
OURS: Mapping[str, Run] = {
    name: Ours(policy, MOST)
    for name, policy in {
        "surrogate, of what cells compute": Surrogate(computed),
        "surrogate, of their six ops": Surrogate(),
        "local search": LocalSearch(),
        "regularised evolution": RegularisedEvolution(20, 5),
        "NSGA-II": NSGA2(20),
        "random": Random(),
        "greedy (Algorithm 1)": Greedy(group=2),
        "exact (single edits)": Exact(),
    }.items()
}

Runs: TypeAlias = Mapping[tuple[str, str, int], Sequence[Step]]
"""Steps by strategy, case and seed."""


def main(
    *,
    data: Path,
    runs: Path = Path("runs/strategies.jsonl"),
    seeds: int = 20,
    only: tuple[str, ...] = (),
    plot: Path | None = None,
) -> None:
    """
    Args:
        data: Folder of NAS-Bench-201's tables.
        runs: File that every run is added to, and not repeated from.
        only: Names of the strategies to run; all by default.
        plot: SVG file for the regret against evaluations.
    """
    chosen = {**OURS, **PEERS}
    unknown = [name for name in only if name not in chosen]
    if unknown:
        raise SystemExit(f"no strategy {', '.join(unknown)}; there are {'; '.join(chosen)}")
    chosen = {name: run for name, run in chosen.items() if not only or name in only}
    complete(read(data), runs, seeds, chosen)
    found = {key: value for key, value in stored(runs).items() if key[2] < seeds}
    print(report(found))
    if plot is not None:
        plot.write_text(
            race(
                curves(found), "evaluations of new cells within the limit", "median regret, points"
            )
        )


def cases() -> dict[Case, str]:
    """The cases, and the name of each one's data set."""
    return {
        Case(column, device, limit): name
        for name, column in ACCURACIES.items()
        for device, limits in LIMITS.items()
        for limit in limits
    }


def complete(table: Table, file: Path, seeds: int, chosen: Mapping[str, Run]) -> None:
    """Adds what is missing to the file of runs."""
    done = stored(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    for case in cases():
        task = Task(table, case)
        for name, run in chosen.items():
            for seed in range(seeds):
                if (name, case.name, seed) in done:
                    continue
                try:
                    found = steps(task, run(task, seed), MOST)
                except ValueError as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    break
                line = {"strategy": name, "case": case.name, "seed": seed, "steps": found}
                with file.open("a") as out:
                    out.write(json.dumps(line) + "\n")
        print(case.name, file=sys.stderr)


def stored(file: Path) -> Runs:
    if not file.exists():
        return {}
    lines = map(json.loads, file.read_text().splitlines())
    return {
        (line["strategy"], line["case"], line["seed"]): [Step(*step) for step in line["steps"]]
        for line in lines
    }


def grouped(found: Runs) -> dict[str, dict[str, list[Sequence[Step]]]]:
    """Runs by data set and strategy."""
    names = {case.name: name for case, name in cases().items()}
    groups: dict[str, dict[str, list[Sequence[Step]]]] = {}
    for data in ACCURACIES:
        mine: dict[str, list[Sequence[Step]]] = defaultdict(list)
        for name in (*OURS, *PEERS):
            for (strategy, case, _), run in found.items():
                if strategy == name and names.get(case) == data:
                    mine[name].append(run)
        groups[data] = mine
    return groups


def regret(run: Sequence[Step], count: int) -> float:
    """The regret after so many new cells within the limit; infinite before there is any."""
    return min((step.regret for step in run if step.new <= count), default=np.inf)


def needed(run: Sequence[Step]) -> tuple[float, float]:
    """New cells within the limit, and evaluations in all, until it is close; infinite if never."""
    found = [step for step in run if step.regret <= CLOSE]
    return (found[0].new, found[0].spent) if found else (np.inf, np.inf)


def report(found: Runs) -> str:
    lines = []
    for data, strategies in grouped(found).items():
        lines += [
            f"\n{data}, {sum(name == data for name in cases().values())} limits\n",
            f"| strategy | runs | new cells to within {CLOSE} | all evaluations | reached | "
            + " | ".join(f"at {at}" for at in AT)
            + " |",
            "|---" * (5 + len(AT)) + "|",
        ]
        for name, runs in strategies.items():
            counts = np.array([needed(run) for run in runs])
            reached = np.isfinite(counts[:, 0]).mean()
            regrets = [np.median([regret(run, at) for run in runs]) for at in AT]
            shown = " | ".join(f"{r:.2f}" if np.isfinite(r) else "–" for r in regrets)
            ours = f"**{name}**" if name in OURS else name
            lines.append(
                f"| {ours} | {len(runs)} | {spread(counts[:, 0])} | {spread(counts[:, 1])} | "
                f"{reached:.0%} | {shown} |"
            )
    return "\n".join(lines)


def spread(counts: np.ndarray) -> str:
    """Median and quartiles; what was never reached is the largest of all."""
    low, middle, high = (np.quantile(counts, q, method="inverted_cdf") for q in (0.25, 0.5, 0.75))
    return f"{_count(middle)} ({_count(low)} to {_count(high)})"


def _count(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "never"


def curves(found: Runs) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Median regret at every count, by data set and strategy."""
    at = np.unique(np.geomspace(5, MOST, 40).astype(int))
    return {
        data: {
            name: [
                (float(count), float(middle))
                for count in at
                if np.isfinite(middle := np.median([regret(run, count) for run in runs]))
            ]
            for name, runs in strategies.items()
        }
        for data, strategies in grouped(found).items()
    }


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
