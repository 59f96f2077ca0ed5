"""Evaluations, numbered in the order in which they are thought of, as ask and tell.

What to evaluate as number `n` is a function of the evaluations before it, and of nothing else: a
policy says how many of those it has to wait for. So a search proposes the same candidates on one
worker as on many, in whatever order they end, and what a killed search had under way is asked for
again from the journal alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol

import numpy as np

from nas.journal import Outcome
from nas.strategies.outcomes import Quality, check, combined
from nas.strategies.pareto import nondominated
from nas.strategies.problem import Problem
from search_spaces.space import Spec


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate, and which shards of its quality are to be taken."""

    spec: Any
    shards: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Take one shard of proposal `number`. The outcome is `nas.strategies.outcomes.scored` or
    `failed`."""

    number: int
    proposal: Proposal
    shard: int

    @property
    def spec(self) -> Any:
        return self.proposal.spec


class Trial(NamedTuple):
    """A proposal, and what its shards gave so far."""

    number: int
    proposal: Proposal
    outcomes: Mapping[int, Outcome]

    @property
    def spec(self) -> Any:
        return self.proposal.spec

    @property
    def failed(self) -> bool:
        return any("failed" in outcome for outcome in self.outcomes.values())

    @property
    def done(self) -> bool:
        """Whether all shards are in, or one failed, as then the others do not matter."""
        return self.failed or len(self.outcomes) == len(self.proposal.shards)

    @property
    def quality(self) -> Quality | None:
        """Of the shards of this trial, in order; none if it failed. Only once it is done."""
        return combined([self.outcomes[shard] for shard in sorted(self.outcomes)])


class Policy(Protocol):
    """What to evaluate next. Pure: it draws from `rng` only, which is made of seed and number."""

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        """The proposal after `trials`, which are in order and of which some may not be done.

        None if it depends on what is not done yet or, with all done, if the search is over. It may
        look only at outcomes that it waits for. It proposes no shard of a spec twice.
        """
        ...


@dataclasses.dataclass(frozen=True)
class State:
    """All trials that were proposed, in order, and what was told of them."""

    trials: tuple[Trial, ...] = ()


class Result(NamedTuple, Generic[Spec]):
    """A spec with its quality, over all of its trials."""

    spec: Spec
    quality: Quality


@dataclasses.dataclass(frozen=True)
class Exploration(Generic[Spec]):
    """A search of `problem` by `policy`, that takes as much as `evaluations` full evaluations."""

    problem: Problem[Spec]
    policy: Policy
    evaluations: int
    seed: int = 0

    def init(self) -> State:
        return self._extended(())

    def ask(self, state: State) -> tuple[Evaluate, ...]:
        """The evaluations that can run now, independent of each other; none when it is over."""
        return tuple(
            Evaluate(trial.number, trial.proposal, shard)
            for trial in state.trials
            if not trial.failed
            for shard in trial.proposal.shards
            if shard not in trial.outcomes
        )

    def tell(self, state: State, task: Evaluate, outcome: Outcome) -> State:
        """The state after `task` ended with `outcome`.

        Raises `ValueError` on a task that was not asked for, or told already.
        """
        check(outcome)
        trials, number = list(state.trials), task.number
        if not (0 <= number < len(trials) and trials[number].proposal == task.proposal):
            raise ValueError(f"{task} was never asked for; it is another search's")
        if task.shard in trials[number].outcomes:
            raise ValueError(f"{task} was told already")
        outcomes = {**trials[number].outcomes, task.shard: outcome}
        trials[number] = trials[number]._replace(outcomes=outcomes)
        return self._extended(trials)

    def results(self, state: State) -> tuple[Result[Spec], ...]:
        """What every shard was taken of, and none failed, in the order it was proposed."""
        outcomes: dict[Spec, dict[int, Outcome]] = {}
        for trial in state.trials:
            outcomes.setdefault(trial.spec, {}).update(trial.outcomes)
        found = []
        for spec, shards in outcomes.items():
            if len(shards) == self.problem.shards:
                quality = combined([shards[shard] for shard in sorted(shards)])
                if quality is not None:
                    found.append(Result(spec, quality))
        return tuple(found)

    def best(self, state: State) -> Result[Spec] | None:
        """The best that keeps to all limits, the first of equals; none if nothing does yet."""
        fitting = (result for result in self.results(state) if self.problem.fits(result.spec))
        return max(fitting, key=lambda result: result.quality.mean, default=None)

    def front(self, state: State, devices: Sequence[str]) -> tuple[Result[Spec], ...]:
        """What keeps to all limits and has no better that is as fast on each of these devices.

        Fastest on the first device first. Any subset of the problem's devices will do: the same
        evaluations serve them all.
        """
        unknown = [name for name in devices if name not in self.problem.devices]
        if unknown or not devices:
            raise ValueError(
                f"a front takes one or more of {', '.join(self.problem.devices)}, not {unknown}"
            )
        fitting = [result for result in self.results(state) if self.problem.fits(result.spec)]
        costs = [
            (-result.quality.mean, *(self.problem.latencies(result.spec)[d].ms for d in devices))
            for result in fitting
        ]
        kept = nondominated(costs)
        return tuple(fitting[i] for i in sorted(kept, key=lambda i: costs[i][1:]))

    def _extended(self, trials: Sequence[Trial]) -> State:
        """The state of these trials, and of all that can be proposed after them."""
        found = list(trials)
        left = self.evaluations * self.problem.shards - sum(len(t.proposal.shards) for t in found)
        while left > 0:
            rng = np.random.default_rng([self.seed, len(found)])
            proposal = self.policy.propose(self.problem, found, rng)
            if proposal is None:
                break
            found.append(Trial(len(found), proposal, {}))
            left -= len(proposal.shards)
        return State(tuple(found))


def settled(trials: Sequence[Trial], count: int) -> bool:
    """Whether the first `count` trials are there and done."""
    return len(trials) >= count and all(trial.done for trial in trials[:count])


def seen(trials: Sequence[Trial]) -> set[Any]:
    """Specs that were proposed."""
    return {trial.spec for trial in trials}


def full(problem: Problem[Any], spec: Any | None) -> Proposal | None:
    """A proposal to take all shards of `spec`; none of none."""
    return None if spec is None else Proposal(spec, tuple(range(problem.shards)))
