"""Runs of a strategy under a latency limit, counted evaluation by evaluation."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from experiments.nasbench201.cells import Cell
from experiments.nasbench201.study import study_of
from experiments.nasbench201.table import Table
from nas.exploring import Limit
from nas.strategies.exploration import Exploration, Policy
from nas.strategies.outcomes import scored


class Step(NamedTuple):
    """Evaluations so far, those of them that were of a new cell within the limit, and the regret.

    The regret is in points of accuracy, of the best cell within the limit so far.
    """

    spent: int
    new: int
    regret: float


@dataclasses.dataclass(frozen=True)
class Case:
    """The cell of most accuracy (a column of the table, in %) within a limit on one device."""

    accuracy: str
    device: str
    limit_ms: float

    @property
    def name(self) -> str:
        return f"{self.accuracy} {self.device} {self.limit_ms:g} ms"


class Task:
    """A case with its numbers at hand."""

    def __init__(self, table: Table, case: Case):
        self.case = case
        limit = Limit(case.limit_ms, "ms")
        self.problem = study_of(table, case.accuracy).problem({case.device: limit})
        column = table.accuracies[case.accuracy]
        times = table.latencies[case.device]
        self.accuracy = {cell: float(column[row]) for cell, row in table.rows.items()}
        self.over = {c: float(times[row] / case.limit_ms - 1) for c, row in table.rows.items()}
        self.best = float(column[times <= case.limit_ms].max())


Run: TypeAlias = Callable[[Task, int], Iterator[Cell]]
"""Yields the cells that a strategy evaluates, from a task and a seed, without end or to its own."""


@dataclasses.dataclass(frozen=True)
class Ours:
    """A run of one of our policies, of as many evaluations as it may spend."""

    policy: Policy
    evaluations: int

    def __call__(self, task: Task, seed: int) -> Iterator[Cell]:
        strategy = Exploration(task.problem, self.policy, self.evaluations, seed)
        state = strategy.init()
        while asked := strategy.ask(state):
            yield asked[0].spec
            state = strategy.tell(state, asked[0], scored([task.accuracy[asked[0].spec]]))


def steps(task: Task, evaluated: Iterator[Cell], most: int) -> list[Step]:
    """Where the regret falls, until it is 0 or `most` new cells within the limit were evaluated.

    It ends as well after twice as many evaluations in all.
    """
    found: list[Step] = []
    known: set[Cell] = set()
    regret = np.inf
    for count, cell in enumerate(evaluated, 1):
        if task.over[cell] <= 0:
            known.add(cell)
            now = task.best - task.accuracy[cell]
            if now < regret:
                regret = now
                found.append(Step(count, len(known), regret))
        if regret <= 0 or len(known) >= most or count >= 2 * most:
            break
    return found
