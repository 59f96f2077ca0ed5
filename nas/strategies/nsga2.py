"""NSGA-II (Deb et al., 2002): quality against latency, on one device or on several at once."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from nas.strategies.drawing import draw, mutant
from nas.strategies.exploration import Proposal, Trial, full, noted, seen, settled
from nas.strategies.leaves import apart
from nas.strategies.numbers import whole
from nas.strategies.pareto import crowding, ranks
from nas.strategies.problem import Problem


@dataclasses.dataclass(frozen=True)
class NSGA2:
    """Generations of `population`, bred from the best fronts of all before.

    The costs are the latencies on `devices` (by default all) besides quality. What is over a limit
    is not evaluated, as latencies are known, so there is no need of dominance among such. A child
    is its one parent, with `crossover` moved halfway to the other by edits, and edited once more at
    random with `mutation`, or if it is nothing new. A generation can run at once.
    """

    population: int = 20
    crossover: float = 0.9
    mutation: float = 0.5
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole(self, population=1)
        for name in ("crossover", "mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        names = self.devices
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f'devices is {names!r}; it must be names of devices, as in devices=["phone"]'
            )

    def check(self, devices: Collection[str], shards: int, evaluations: int) -> None:
        unknown = [name for name in self.devices if name not in devices]
        if unknown:
            raise ValueError(
                f"no device {', '.join(unknown)} to be searched for; there are {', '.join(devices)}"
            )

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        taken = seen(trials)
        first = len(trials) // self.population * self.population
        if not first:
            return full(problem, draw(problem, rng, taken))
        if not settled(trials, first):
            return None
        parents = self.survivors(problem, trials, first)
        if not parents:
            return full(problem, draw(problem, rng, taken))
        one, other = (self._winner(parents, rng) for _ in range(2))
        child = one
        if rng.random() < self.crossover:
            child = halfway(problem, one, other, rng)
        if rng.random() < self.mutation or child in taken or not problem.fits(child):
            child = mutant(problem, child, rng, taken)
        return full(problem, child)

    def survivors(
        self, problem: Problem[Any], trials: Sequence[Trial], count: int
    ) -> tuple[Any, ...]:
        """The parents after the first `count` trials, whole generations that are done; the best
        first."""
        notes = noted(trials)
        begin, before = notes.get((self, problem), (0, ()))
        if begin > count:  # It was noted of more.
            begin, before = 0, ()
        alive: list[Trial] = list(before)
        for start in range(begin, count, self.population):
            generation = trials[start : start + self.population]
            alive += [trial for trial in generation if trial.quality is not None]
            if not alive:
                continue
            costs = np.array([self._costs(problem, trial) for trial in alive])
            rank = ranks(costs)
            apart = np.zeros(len(alive))
            for front in np.unique(rank):
                apart[rank == front] = crowding(costs[rank == front])
            order = np.lexsort((-apart, rank))
            alive = [alive[i] for i in order[: self.population]]
        notes[self, problem] = (count, tuple(alive))
        return tuple(trial.spec for trial in alive)

    def _costs(self, problem: Problem[Any], trial: Trial) -> tuple[float, ...]:
        assert trial.quality is not None
        latencies = problem.latencies(trial.spec)
        names = self.devices or tuple(problem.devices)
        return -trial.quality.mean, *(latencies[name].ms for name in names)

    def _winner(self, parents: Sequence[Any], rng: np.random.Generator) -> Any:
        """The better of two at random."""
        return parents[min(rng.integers(len(parents), size=2))]


def halfway(problem: Problem[Any], start: Any, goal: Any, rng: np.random.Generator) -> Any:
    """A spec on a shortest known way of edits from `start` to `goal`, half as far from it.

    So specs of any space can be crossed; those over a limit may lie on the way.
    """
    spec, far = start, apart(start, goal)
    left = far
    while left > far / 2:
        nearer = [n for n in problem.neighbours(spec) if apart(n, goal) < left]
        if not nearer:
            break
        spec = nearer[rng.integers(len(nearer))]
        left = apart(spec, goal)
    return spec
