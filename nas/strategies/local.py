"""Local search (White et al., 2021, arXiv 2005.02960): to the best neighbour, until none is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.strategies.drawing import draw
from nas.strategies.exploration import Proposal, Trial, full, seen
from nas.strategies.following import Following, worth
from nas.strategies.problem import Problem


@dataclasses.dataclass(frozen=True)
class LocalSearch:
    """All neighbours of a spec, then all of the best of them; from a local best, anywhere else.

    Neighbours can run at once.
    """

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        way = Following(trials)
        while (start := next(way, None)) is not None:
            centre = start.spec
            while True:
                around = [n for n in problem.neighbours(centre) if problem.fits(n)]
                missing = way.missing(around)
                if missing is not None:
                    return full(problem, missing)
                if not way.done([centre, *around]):
                    return None
                best = max(around, key=lambda n: worth(way.quality(n)), default=centre)
                if worth(way.quality(best)) <= worth(way.quality(centre)):
                    break
                centre = best
        return full(problem, draw(problem, rng, seen(trials)))
