"""Successive halving (Jamieson & Talwalkar, 2016): a few prompts for many, more for the best."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from nas.strategies.drawing import draw
from nas.strategies.exploration import Proposal, Trial, noted, seen
from nas.strategies.numbers import whole
from nas.strategies.outcomes import combined
from nas.strategies.problem import Problem


@dataclasses.dataclass(frozen=True)
class SuccessiveHalving:
    """Of `candidates` at random, one in `keep` goes on to `keep` times as many shards, and so on.

    All candidates of a rung are compared on the same shards, and those taken before are not taken
    again. Once some have had all shards, it begins anew with others. A rung can run at once. Where
    no more candidates are found, a first rung goes on with those there are.
    """

    candidates: int = 27
    keep: int = 3

    def __post_init__(self) -> None:
        whole(self, candidates=2, keep=2)

    def rungs(self, shards: int) -> tuple[tuple[int, ...], ...]:
        """The shards that are taken on every rung."""
        had = 1
        found: list[tuple[int, ...]] = [(0,)]
        while had < shards:
            had, before = min(had * self.keep, shards), had
            found.append(tuple(range(before, had)))
        return tuple(found)

    def check(self, devices: Collection[str], shards: int, evaluations: int) -> None:
        # With a single rung all candidates are evaluated in full, however many there are.
        need = self._evaluations(self.candidates, shards)
        if shards == 1 or need <= evaluations:
            return
        fewer = range(self.candidates, 1, -1)
        most = next((n for n in fewer if self._evaluations(n, shards) <= evaluations), None)
        raise ValueError(
            f"{self.candidates} candidates, of which one in {self.keep} is kept, take {need} "
            f"evaluations until some have had all {shards} shards, and there are {evaluations}: "
            f"allow more{f', or give candidates={most}' if most else ''}"
        )

    def _evaluations(self, candidates: int, shards: int) -> int:
        """Full evaluations that as many candidates take, to the end of their rungs."""
        count, taken = candidates, 0
        for rung in self.rungs(shards):
            taken += count * len(rung)
            count = math.ceil(count / self.keep)
        return math.ceil(taken / shards)

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
            count = self.candidates
            for rung, shards in enumerate(rungs):
                wanted = count if rung == 0 else min(count, len(alive))
                # A first rung that found no more candidates ends where other shards are taken.
                mine = list(
                    itertools.takewhile(
                        lambda trial, shards=shards: trial.proposal.shards == shards,
                        trials[start : start + wanted],
                    )
                )
                if len(mine) < wanted and start + len(mine) == len(trials):
                    spec = draw(problem, rng, seen(trials)) if rung == 0 else alive[len(mine)]
                    if spec is not None:
                        return Proposal(spec, shards)
                if not all(trial.done for trial in mine) or (rung == 0 and not mine):
                    return None
                start += len(mine)
                bracket += mine
                alive = _ranked(bracket, mine)
                count = math.ceil((len(mine) if rung == 0 else count) / self.keep)


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
