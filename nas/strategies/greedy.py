"""SnapFusion's Algorithm 1 (Li et al., 2023) for any space: score every single edit, apply some."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nas.strategies.exploration import Proposal, Trial, full
from nas.strategies.following import Following, worth
from nas.strategies.numbers import whole
from nas.strategies.outcomes import Quality, lost
from nas.strategies.problem import Problem
from search_spaces.space import Edit


class Move(NamedTuple):
    """A single edit as Algorithm 1 sees it."""

    action: Edit[Any]
    spec: Any  # What it leads to.
    saved: float  # Latency, as a share of the limit, added up over devices; below 0 if it costs.


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Over a limit, apply the `group` edits that lose least for what they save; else the best one.

    All single edits of a spec are evaluated before any is chosen, also those of specs that are
    over a limit: the only strategy that has to walk through such. A loss within its standard error
    counts as that error. An edit is worth having if it gains more than `caution` standard errors.
    The search ends where none is. Edits of a spec can run at once.
    """

    group: int = 4
    caution: float = 1.0

    def __post_init__(self) -> None:
        whole(self, group=1)
        if not self.caution >= 0:
            raise ValueError(f"caution is {self.caution}; it must be zero or more")

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        way, spec = Following(trials), problem.space.initial()
        while True:
            found = moves(problem, spec)
            around = [move.spec for move in found]
            missing = way.missing([spec, *around])
            if missing is not None:
                return full(problem, missing)
            if not way.done([spec, *around]):
                return None
            qualities = {each: way.quality(each) for each in (spec, *around)}
            step = self._down if not problem.fits(spec) else self._up
            after = step(problem, spec, found, qualities)
            if after is None:
                return None
            spec = after

    def _down(
        self,
        problem: Problem[Any],
        spec: Any,
        found: Sequence[Move],
        qualities: Mapping[Any, Quality | None],
    ) -> Any | None:
        """The spec after the edits of least value; none where no edit saves anything."""
        # Where the spec itself could not be evaluated, losses are from the best that could.
        before = qualities[spec] or max(qualities.values(), key=worth)
        if before is None:
            return None

        def value(move: Move) -> float:
            after = qualities[move.spec]
            if after is None:
                return math.inf
            loss = lost(before, after)
            return max(loss.mean, loss.error) / move.saved

        edited, applied, legal = spec, 0, {move.action for move in found}
        for move in sorted(found, key=value):
            if applied == self.group or problem.fits(edited) or value(move) == math.inf:
                break
            if move.action in legal:
                after = move.action.apply(edited)
                if problem.excess(after) < problem.excess(edited):
                    edited, applied = after, applied + 1
                    legal = set(problem.space.actions(edited))
        return edited if applied else None

    def _up(
        self,
        problem: Problem[Any],
        spec: Any,
        found: Sequence[Move],
        qualities: Mapping[Any, Quality | None],
    ) -> Any | None:
        """The spec after the edit of most value; none where no edit is surely worth having."""
        before = qualities[spec]
        best, most = None, 0.0
        for move in found:
            after = qualities[move.spec]
            if before is None or after is None:
                continue
            gain = lost(after, before)
            value = gain.mean / -move.saved if move.saved < 0 else math.inf
            if gain.mean > self.caution * gain.error and (value, gain.mean) > (most, 0.0):
                best, most = move.spec, value
        return best


def moves(problem: Problem[Any], spec: Any) -> tuple[Move, ...]:
    """The edits to evaluate: over a limit those that save latency where it is exceeded, else those
    that keep to all limits."""
    over = problem.overruns(spec)
    found: dict[Any, Move] = {}
    for action in problem.space.actions(spec):
        after = action.apply(spec)
        saved = savings(problem, spec, after, tuple(over or problem.devices))
        if after not in found and (saved > 0 if over else problem.fits(after)):
            found[after] = Move(action, after, saved)
    return tuple(found.values())


def savings(problem: Problem[Any], before: Any, after: Any, devices: Sequence[str]) -> float:
    """Latency saved, as a share of the limit (or of itself without one), over these devices."""
    return math.fsum(
        (problem.upper_ms(before, name) - problem.upper_ms(after, name)) / scale
        for name in devices
        if (scale := min(problem.devices[name].limit_ms, problem.upper_ms(before, name))) > 0
    )
