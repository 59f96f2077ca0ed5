"""Local search (White et al., 2021, arXiv 2005.02960): to the best neighbour, until none is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.strategies.drawing import draw
from nas.strategies.exploration import Proposal, Trial, full, noted, seen
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
        notes = noted(trials)
        start, centre = notes.get((self, problem), (0, None))
        way = Following(trials, start)
        while True:
            if centre is None:
                if (begun := next(way, None)) is None:
                    break
                centre = begun.spec
            while True:
                around = [n for n in problem.neighbours(centre) if problem.fits(n)]
                missing = way.missing(around)
                if missing is not None:
                    return full(problem, missing)
                if not way.done([centre, *around]):
                    return None
                best = max(around, key=lambda n: worth(way.quality(n)), default=centre)
                if worth(way.quality(best)) <= worth(way.quality(centre)):
                    centre = None
                    break
                centre = best
                notes[self, problem] = (way.at, centre)
            notes[self, problem] = (way.at, centre)
        return full(problem, draw(problem, rng, seen(trials)))
