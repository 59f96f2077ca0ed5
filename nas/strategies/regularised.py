"""Regularised evolution (Real et al., 2019, arXiv 1802.01548): the oldest die, not the worst."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.strategies.drawing import draw, mutant
from nas.strategies.exploration import Proposal, Trial, full, seen, settled
from nas.strategies.numbers import whole
from nas.strategies.problem import Problem


@dataclasses.dataclass(frozen=True)
class RegularisedEvolution:
    """Of `tournament` among the last `population`, the best is edited once at random.

    A child waits for all but the last `ahead - 1` before it, so `ahead` of them can run at once.
    """

    population: int = 50
    tournament: int = 10
    ahead: int = 1

    def __post_init__(self) -> None:
        whole(self, population=1, tournament=1, ahead=1)
        if max(self.tournament, self.ahead) > self.population:
            raise ValueError(f"{self}: the tournament or those ahead are more than the population")

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        if len(trials) < self.population:
            return full(problem, draw(problem, rng, seen(trials)))
        known = len(trials) - self.ahead + 1
        if not settled(trials, known):
            return None
        last = (trials[number] for number in reversed(range(known)))
        found = itertools.islice((t for t in last if t.quality is not None), self.population)
        alive = list(found)[::-1]
        if not alive:
            return full(problem, draw(problem, rng, seen(trials)))
        size = min(self.tournament, len(alive))
        rivals = [alive[i] for i in rng.choice(len(alive), size, replace=False)]
        parent = max(rivals, key=lambda trial: trial.quality.mean)  # pyright: ignore
        return full(problem, mutant(problem, parent.spec, rng, seen(trials)))
