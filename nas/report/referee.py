"""How far a greedy choice is from the exact one, of the same scores of single edits."""

import dataclasses
from collections.abc import Iterator
from html import escape
from typing import Any

from latency_models.latency import Latency
from nas.evolution import Evolution, State
from nas.progress_exploring import said
from nas.report import tables
from nas.strategies.exact import Choice, Verdict, referee
from nas.strategies.exploration import Trial, full
from nas.strategies.outcomes import failed, scored
from nas.strategies.problem import Device, Problem
from search_spaces.actions import Remove
from search_spaces.edited import Step
from search_spaces.unet import UNetSpec


@dataclasses.dataclass(frozen=True)
class Gone:
    """A network without these blocks, in the order of their names."""

    blocks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Drop:
    """Leaves one more block out."""

    block: str

    def apply(self, spec: Gone) -> Gone:
        if self.block in spec.blocks:
            raise ValueError(f"{self.block} is gone already")
        return Gone(tuple(sorted((*spec.blocks, self.block))))


@dataclasses.dataclass(frozen=True)
class Removals:
    """What is left of a network whose blocks may each be removed."""

    blocks: tuple[str, ...]

    def initial(self) -> Gone:
        return Gone()

    def actions(self, spec: Gone) -> Iterator[Drop]:
        return (Drop(block) for block in self.blocks if block not in spec.blocks)


def verdict(strategy: Evolution, state: State, number: int) -> Verdict | None:
    """What is exactly best of the removals scored of network `number`, if scores add up, and what
    greedy choice makes of the same scores; none where they cannot keep to the budget.

    Raises `ValueError` before they are all scored.
    """
    if number > state.current:
        raise ValueError(f"network {number} is not made yet")
    # As it was when they were chosen from: nothing had been measured as a whole.
    state = dataclasses.replace(state, correction=1.0)
    spec = state.networks[number].spec
    blocks = tuple(removal.block for removal in strategy.space.removals(spec))
    known = state.scores.keys() | state.failed.keys()
    if missing := [block for block in (None, *blocks) if (number, block) not in known]:
        raise ValueError(f"{len(missing)} scores of network {number} are still to be taken")

    def left(gone: Gone) -> UNetSpec:
        edited = spec
        for block in gone.blocks:
            edited = Remove(block).apply(edited)
        return edited

    def latency(gone: Gone) -> Latency:
        return strategy.predict(state, left(gone))

    devices = {"device": Device(latency, strategy.limit_ms(state))}
    problem = Problem(Removals(blocks), devices, caution=strategy.caution)
    trials = []
    for block in (None, *blocks):
        proposal = full(problem, Gone(() if block is None else (block,)))
        assert proposal is not None
        if (number, block) in state.failed:
            outcome = failed(state.failed[number, block])
        else:
            outcome = scored(state.scores[number, block])
        trials.append(Trial(len(trials), proposal, {0: outcome}))
    return referee(problem, trials)


def section(strategy: Evolution, state: State, number: int) -> str:
    """The verdict on the first round, as a part of the report."""
    try:
        return ruling(verdict(strategy, state, number))
    except ValueError as error:
        return f"<p>Not known yet: {escape(str(error))}.</p>"


def ruling(found: Verdict | None) -> str:
    """A verdict, as a part of a report."""
    if found is None:
        return "<p>No set of the edits that were scored keeps to the limits.</p>"
    rows = [
        (name, f"{choice.gain:+.4f}", str(len(choice.edits)), _edits(choice))
        for name, choice in (("exact", found.best), ("greedy", found.greedy))
    ]
    same = "They choose the same. " if found.best_spec == found.greedy_spec else ""
    return (
        tables.table(("choice", "score, if it adds up", "edits", "which"), rows, style="words")
        + f"<p>{same}Greedy choice is {found.gap:.4f} of a score from the exact one: all edits are "
        "chosen at once from the scores of the first round, by mixed-integer programming and one "
        "by one by their value. Both take scores and latencies to add up, so this is what greed "
        "costs, and not how good either network is; the search itself scores anew after every "
        "group.</p>"
    )


def _edits(choice: Choice) -> str:
    words = (_said(edit.action) for edit in choice.edits)
    return ", ".join(words) or "none"


def _said(action: Any) -> str:
    if isinstance(action, Step):
        return said(action.action)
    return f"remove {action.block}" if isinstance(action, Drop) else str(action)
