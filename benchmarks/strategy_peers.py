"""Other tools' optimisers on the cells of NAS-Bench-201, used as their own documents say."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.strategy_runs import Task
from experiments.nasbench201.cells import EDGES, OPS, Cell

NAMES = tuple(f"edge{edge}" for edge in range(len(EDGES)))


@dataclasses.dataclass(frozen=True)
class Optuna:
    """One of Optuna's samplers, made of `optuna.samplers` and a seed. It is told by how much a cell
    is over the limit; choosing by that is its own affair."""

    sampler: Callable[[Any, int], Any]

    def __call__(self, task: Task, seed: int) -> Iterator[Cell]:
        optuna = _optuna()
        sampler = self.sampler(optuna.samplers, seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        while True:
            trial = study.ask()
            cell = Cell(tuple(trial.suggest_categorical(name, OPS) for name in NAMES))
            trial.set_constraint("latency", task.over[cell])
            study.tell(trial, task.accuracy[cell])
            yield cell


@dataclasses.dataclass(frozen=True)
class Pymoo:
    """pymoo's genetic algorithm for choices. It never proposes a cell twice."""

    population: int

    def __call__(self, task: Task, seed: int) -> Iterator[Cell]:
        genetic, problem_of, static, choice = _pymoo()
        variables = {name: choice(options=list(OPS)) for name in NAMES}
        problem = problem_of(vars=variables, n_obj=1, n_ieq_constr=1)
        algorithm = genetic(pop_size=self.population)
        algorithm.setup(problem, termination=("n_gen", 10**6), seed=seed, verbose=False)
        while (asked := algorithm.ask()) is not None and len(asked):
            cells = [Cell(tuple(each.X[name] for name in NAMES)) for each in asked]
            costs = np.array([[-task.accuracy[cell]] for cell in cells])
            over = np.array([[task.over[cell]] for cell in cells])
            algorithm.evaluator.eval(static(problem, F=costs, G=over), asked)
            yield from cells
            algorithm.tell(infills=asked)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError("Optuna is not installed: pip install 'nas[peers]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _pymoo() -> tuple[Any, ...]:
    try:
        from pymoo.core.mixed import MixedVariableGA
        from pymoo.core.problem import Problem
        from pymoo.core.variable import Choice
        from pymoo.problems.static import StaticProblem
    except ImportError:
        raise ValueError("pymoo is not installed: pip install 'nas[peers]'") from None
    return MixedVariableGA, Problem, StaticProblem, Choice


PEERS = {
    "Optuna TPE": Optuna(lambda samplers, seed: samplers.TPESampler(seed=seed)),
    "Optuna NSGA-II": Optuna(lambda samplers, seed: samplers.NSGAIISampler(seed=seed)),
    "Optuna NSGA-II, population 20": Optuna(
        lambda samplers, seed: samplers.NSGAIISampler(seed=seed, population_size=20)
    ),
    "pymoo GA, population 20": Pymoo(20),
}
