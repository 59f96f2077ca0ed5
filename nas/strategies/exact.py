"""Exact selection by mixed-integer programming, as in Puzzle (Bercovich et al., 2024, arXiv
2411.19146) and LAPTOP-Diff (Zhang et al., 2024, arXiv 2404.11098), and how far greedy is from it.

Single edits of the first spec are scored one by one, and both quality and latency are taken to add
up. Of all sets of edits that go together and keep to every limit, the one of most quality is then
found for certain (scipy's HiGHS).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from nas.strategies.exploration import Proposal, Trial, full
from nas.strategies.following import Following, worth
from nas.strategies.outcomes import lost
from nas.strategies.problem import Problem
from search_spaces.space import Edit

CORRECTIONS = 100
"""How often limits are tightened where latencies do not add up, before it is given up."""


class Single(NamedTuple):
    """A single edit of the first spec: the quality it gains and the milliseconds it costs."""

    action: Edit[Any]
    gain: float
    cost_ms: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Edits to be applied to the first spec in this order, and their gains added up."""

    edits: tuple[Single, ...]

    @property
    def gain(self) -> float:
        return math.fsum(edit.gain for edit in self.edits)

    def apply(self, spec: Any) -> Any:
        for edit in self.edits:
            spec = edit.action.apply(spec)
        return spec


class Verdict(NamedTuple):
    """What is best if edits add up, what greedy chooses of the same scores, and how far off it is.

    `best_spec` and `greedy_spec` are what the choices lead to. `gap` is in units of quality.
    """

    best: Choice
    greedy: Choice
    best_spec: Any
    greedy_spec: Any

    @property
    def gap(self) -> float:
        return self.best.gain - self.greedy.gain


@dataclasses.dataclass(frozen=True)
class Exact:
    """Evaluates the first spec and all of its single edits, over a limit or not, then the choice.

    If the choice fails, the next best is evaluated. The single edits can run at once.
    """

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        way, first = Following(trials), problem.space.initial()
        scored = [first, *problem.neighbours(first)]
        missing = way.missing(scored)
        if missing is not None:
            return full(problem, missing)
        if not way.done(scored):
            return None
        edits = singles(problem, way)
        out: list[Choice] = []
        while (choice := solve(problem, edits, out)) is not None:
            spec = choice.apply(first)
            if way.missing([spec]) is not None:
                return full(problem, spec)
            if not way.done([spec]) or way.quality(spec) is not None:
                return None
            out.append(choice)
        return None


def referee(problem: Problem[Any], trials: Sequence[Trial]) -> Verdict | None:
    """The verdict on greedy selection, once all single edits are evaluated; none if nothing fits.

    Raises `ValueError` before that.
    """
    # Whatever strategy it was that evaluated them, and in whatever order.
    way, first = Following(trials, len(trials)), problem.space.initial()
    scored = [first, *problem.neighbours(first)]
    if any(way.trial(spec) is None for spec in scored) or not way.done(scored):
        raise ValueError(f"not all of the {len(scored) - 1} single edits are evaluated yet")
    edits = singles(problem, way)
    best, other = solve(problem, edits), greedy(problem, edits)
    if best is None or other is None:
        return None
    return Verdict(best, other, best.apply(first), other.apply(first))


def singles(problem: Problem[Any], way: Following) -> tuple[Single, ...]:
    """The edits of the first spec that were evaluated and did not fail.

    Gains are over the first spec, or where that failed over the best of them.
    """
    first = problem.space.initial()
    qualities = {spec: way.quality(spec) for spec in (first, *problem.neighbours(first))}
    before = qualities[first] or max(qualities.values(), key=worth)
    found: dict[Any, Single] = {}
    for action in problem.space.actions(first):
        spec = action.apply(first)
        after = qualities[spec]
        if before is not None and after is not None and spec not in found:
            cost = {
                name: problem.upper_ms(spec, name) - problem.upper_ms(first, name)
                for name in problem.devices
            }
            found[spec] = Single(action, -lost(before, after).mean, cost)
    return tuple(found.values())


def solve(
    problem: Problem[Any], edits: Sequence[Single], out: Sequence[Choice] = ()
) -> Choice | None:
    """The edits of most gain that go together and keep to every limit; none if there are none.

    Choices in `out` are out. Where latencies do not add up and what is chosen is over a limit after
    all, it is chosen again with that limit lowered by as much: then it need not be the best of all.
    """
    room, apart = _room(problem), clashes(problem.space.initial(), edits)
    banned = [frozenset(map(edits.index, choice.edits)) for choice in out]
    for _ in range(CORRECTIONS):
        chosen = _solved(edits, room, apart, banned)
        if chosen is None:
            return None
        choice = Choice(tuple(edits[i] for i in chosen))
        spec = _led(problem, choice)
        if spec is None:  # Each pair of edits goes together, but not all of them.
            banned.append(frozenset(chosen))
            continue
        over = problem.overruns(spec)
        if not over:
            return choice
        for name, share in over.items():
            room[name] -= share * problem.devices[name].limit_ms + 1e-9
    return None


def greedy(problem: Problem[Any], edits: Sequence[Single]) -> Choice | None:
    """What Algorithm 1 chooses of the same scores: the least lost for what is saved, one by one,
    and once it keeps to all limits the most gained; none if it gets nowhere."""
    first = problem.space.initial()
    apart = set(clashes(first, edits))
    chosen: tuple[int, ...] = ()
    while True:
        over = problem.overruns(Choice(tuple(edits[i] for i in chosen)).apply(first))
        options = {}
        for i in range(len(edits)):
            if i not in chosen and not apart & {(min(i, j), max(i, j)) for j in chosen}:
                spec = _led(problem, Choice(tuple(edits[j] for j in (*chosen, i))))
                saved = -math.fsum(
                    edits[i].cost_ms[name] / problem.devices[name].limit_ms for name in over
                )
                if spec is not None and over and saved > 0:
                    options[i] = edits[i].gain / saved
                elif spec is not None and not over and edits[i].gain > 0 and problem.fits(spec):
                    options[i] = edits[i].gain
        if not options:
            return None if over else Choice(tuple(edits[i] for i in chosen))
        chosen = (*chosen, max(options, key=lambda i: options[i]))


def clashes(first: Any, edits: Sequence[Single]) -> tuple[tuple[int, int], ...]:
    """Pairs of edits that do not go together: one undoes or forbids the other."""
    found = []
    for i, one in enumerate(edits):
        for j in range(i):
            both = _after(first, edits[j], one)
            if both is None or both != _after(first, one, edits[j]):
                found.append((j, i))
    return tuple(found)


def _after(spec: Any, one: Single, other: Single) -> Any | None:
    try:
        return other.action.apply(one.action.apply(spec))
    except (LookupError, ValueError):
        return None


def _room(problem: Problem[Any]) -> dict[str, float]:
    """Milliseconds that edits may cost on the devices that have a limit."""
    first = problem.space.initial()
    return {
        name: device.limit_ms - problem.upper_ms(first, name)
        for name, device in problem.devices.items()
        if math.isfinite(device.limit_ms)
    }


def _led(problem: Problem[Any], choice: Choice) -> Any | None:
    """What a choice leads to; none where its edits do not go together."""
    try:
        return choice.apply(problem.space.initial())
    except (LookupError, ValueError):
        return None


def _solved(
    edits: Sequence[Single],
    room: Mapping[str, float],
    apart: Sequence[tuple[int, int]],
    banned: Sequence[frozenset[int]],
) -> tuple[int, ...] | None:
    """Which edits to choose if costs and gains add up; none if no set keeps to the room."""
    rows = [[edit.cost_ms[name] for edit in edits] for name in room]
    most = list(room.values())
    for pair in apart:
        rows.append([float(i in pair) for i in range(len(edits))])
        most.append(1.0)
    for chosen in banned:
        rows.append([1.0 if i in chosen else -1.0 for i in range(len(edits))])
        most.append(len(chosen) - 1.0)
    if not edits:
        return () if all(value >= 0 for value in most) else None
    found = milp(
        [-edit.gain for edit in edits],
        integrality=np.ones(len(edits)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.array(rows), -np.inf, most) if rows else (),  # pyright: ignore
        options={"mip_rel_gap": 0.0},
    )
    return tuple(np.flatnonzero(found.x > 0.5).tolist()) if found.success else None
