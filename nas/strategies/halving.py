"""Successive halving (Jamieson & Talwalkar, 2016): a few prompts for many, more for the best."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.strategies.drawing import draw
from nas.strategies.exploration import Proposal, Trial, noted, seen
from nas.strategies.outcomes import combined
from nas.strategies.problem import Problem


@dataclasses.dataclass(frozen=True)
class SuccessiveHalving:
    """Of `candidates` at random, one in `keep` goes on to `keep` times as many shards, and so on.

    All candidates of a rung are compared on the same shards, and those taken before are not taken
    again. Once some have had all shards, it begins anew with others. A rung can run at once.
    """

    candidates: int = 27
    keep: int = 3

    def __post_init__(self) -> None:
        if self.candidates < 2 or self.keep < 2:
            raise ValueError(f"{self}: two candidates or more, of which one in two or more is kept")

    def rungs(self, shards: int) -> tuple[tuple[int, int], ...]:
        """How many candidates there are on every rung, and how many shards each has had after."""
        count, had = self.candidates, 1
        found = [(count, had)]
        while had < shards:
            count, had = math.ceil(count / self.keep), min(had * self.keep, shards)
            found.append((count, had))
        return tuple(found)

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        """Follows the rungs through `trials` to their end, and goes on from there."""
        notes, rungs = noted(trials), self.rungs(problem.shards)
        start = notes.get((self, problem), 0)
        while True:
            notes[self, problem] = start
            bracket: list[Trial] = []
            alive: list[Any] = []
            had = 0
            for rung, (count, having) in enumerate(rungs):
                wanted = count if rung == 0 else min(count, len(alive))
                mine = trials[start : start + wanted]
                if len(mine) < wanted:
                    shards = tuple(range(had, having))
                    spec = draw(problem, rng, seen(trials)) if rung == 0 else alive[len(mine)]
                    return None if spec is None else Proposal(spec, shards)
                if not all(trial.done for trial in mine):
                    return None
                start, had = start + wanted, having
                bracket += mine
                alive = _ranked(bracket, mine)


def _ranked(bracket: Sequence[Trial], rung: Sequence[Trial]) -> list[Any]:
    """Specs of a rung that did not fail, the best first, by all shards they have had."""
    worth: dict[Any, float] = {}
    for trial in rung:
        if not trial.failed:
            own = [t for t in bracket if t.spec == trial.spec]
            quality = combined([t.outcomes[shard] for t in own for shard in sorted(t.outcomes)])
            assert quality is not None  # A spec that failed went no further.
            worth[trial.spec] = quality.mean
    return sorted(worth, key=lambda spec: -worth[spec])
