"""Evaluations, numbered in the order in which they are thought of, as ask and tell.

What to evaluate as number `n` is a function of the evaluations before it, and of nothing else: a
policy says how many of those it has to wait for. So a search proposes the same candidates on one
worker as on many, in whatever order they end, and what a killed search had under way is asked for
again from the journal alone.
"""

import dataclasses
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, overload

import numpy as np

from nas.journal import Outcome
from nas.strategies.outcomes import Quality, check, combined
from nas.strategies.pareto import nondominated
from nas.strategies.problem import Problem
from nas.strategies.versions import Places, Vector
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

    def __hash__(self) -> int:
        return hash(
            (self.number, self.shard)
        )  # Specs can be large, and are as good as their number.


class Trial(NamedTuple):
    """A proposal, and what its shards gave so far."""

    number: int
    proposal: Proposal
    outcomes: Mapping[int, Outcome]
    asked: tuple[Evaluate, ...] = ()
    """Of its shards, those that are to be told; none once one has failed."""

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


class Trials(Sequence[Trial]):
    """Trials in order. A value, which can be added to and told more, in no more time for being
    long."""

    def __init__(self) -> None:
        self._trials: Vector[Trial] = Vector()
        self.places: Places[Any] = Places()
        """Where a spec was proposed first."""
        self.settled = 0
        """So many of the first are done."""
        self.shards = 0
        """That were proposed, in all."""
        self.notes: dict[Hashable, Any] = {}
        """What policies know of trials that are done and need not find out again. Those that come
        of these have a copy. They must follow from the trials, as they may be gone at any time."""

    def added(self, proposal: Proposal) -> "Trials":
        """With one more, of which nothing is told."""
        number = len(self)
        asked = tuple(Evaluate(number, proposal, shard) for shard in proposal.shards)
        trials = self._trials.add(Trial(number, proposal, {}, asked))
        found = self._after(trials)
        found.places = self.places.add(proposal.spec)
        found.shards += len(proposal.shards)
        return found

    def told(self, number: int, shard: int, outcome: Outcome) -> "Trials":
        """With an outcome of trial `number`."""
        trial = self._trials[number]
        trial = trial._replace(outcomes={**trial.outcomes, shard: outcome})
        asked = () if trial.failed else trial.asked
        trial = trial._replace(asked=tuple(task for task in asked if task.shard != shard))
        return self._after(self._trials.set(number, trial))

    def _after(self, trials: Vector[Trial]) -> "Trials":
        found = Trials()
        found._trials, found.places, found.shards = trials, self.places, self.shards
        found.settled, found.notes = self.settled, self.notes.copy()
        while found.settled < len(trials) and trials[found.settled].done:
            found.settled += 1
        return found

    def __len__(self) -> int:
        return len(self._trials)

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Trial, ...]: ...
    def __getitem__(self, index: int | slice) -> Trial | tuple[Trial, ...]:
        return self._trials[index]

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    def __eq__(self, other: object) -> bool:
        return self._trials == other._trials if isinstance(other, Trials) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._trials)

    def __repr__(self) -> str:
        return repr(self._trials)


class Policy(Protocol):
    """What to evaluate next. Pure: it draws from `rng` only, which is made of seed and number.

    A policy that cannot search every problem has a method `check` besides: see `checked`.
    """

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        """The proposal after `trials`, which are in order and of which some may not be done.

        None if it depends on what is not done yet or, with all done, if the search is over. It may
        look only at outcomes that it waits for. It proposes no shard of a spec twice.
        """
        ...


def checked(policy: Policy, devices: Collection[str], shards: int, evaluations: int) -> None:
    """Raises `ValueError` if a policy cannot search these devices in so many full evaluations.

    That is what the policy's own `check(devices, shards, evaluations)` raises, if it has one.
    """
    check = getattr(policy, "check", None)
    if check is not None:
        check(devices, shards, evaluations)


@dataclasses.dataclass(frozen=True)
class State:
    """All trials that were proposed, in order, and what was told of them."""

    trials: Trials = dataclasses.field(default_factory=Trials)


class Result(NamedTuple, Generic[Spec]):
    """A spec with its quality, over all of its trials."""

    spec: Spec
    quality: Quality


@dataclasses.dataclass(frozen=True)
class Exploration(Generic[Spec]):
    """A search of `problem` by `policy`, that takes as much as `evaluations` full evaluations.

    No more than `window` trials are thought of beyond the first that is not done, however many the
    policy has at hand. What is found does not depend on it.
    """

    problem: Problem[Spec]
    policy: Policy
    evaluations: int
    seed: int = 0
    window: int = 4096

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window is {self.window}; it must be one or more")
        checked(self.policy, self.problem.devices, self.problem.shards, self.evaluations)

    def init(self) -> State:
        return self._extended(Trials())

    def ask(self, state: State) -> tuple[Evaluate, ...]:
        """The evaluations that can run now, independent of each other; none when it is over."""
        open_ = state.trials[state.trials.settled :]
        return tuple(itertools.chain.from_iterable(trial.asked for trial in open_))

    def tell(self, state: State, task: Evaluate, outcome: Outcome) -> State:
        """The state after `task` ended with `outcome`.

        Raises `ValueError` on a task that was not asked for, or told already.
        """
        check(outcome)
        trials, number = state.trials, task.number
        if not (0 <= number < len(trials) and trials[number].proposal == task.proposal):
            raise ValueError(f"{task} was never asked for; it is another search's")
        if task.shard in trials[number].outcomes:
            raise ValueError(f"{task} was told already")
        return self._extended(trials.told(number, task.shard, outcome))

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

    def _extended(self, trials: Trials) -> State:
        """The state of these trials, and of all that can be proposed after them."""
        most = self.evaluations * self.problem.shards
        while trials.shards < most and len(trials) < trials.settled + self.window:
            rng = np.random.default_rng([self.seed, len(trials)])
            proposal = self.policy.propose(self.problem, trials, rng)
            if proposal is None:
                break
            trials = trials.added(proposal)
        return State(trials)


Seen: TypeAlias = Places[Any] | dict[Any, None]


def settled(trials: Sequence[Trial], count: int) -> bool:
    """Whether the first `count` trials are there and done."""
    if isinstance(trials, Trials):
        return trials.settled >= count
    return len(trials) >= count and all(trial.done for trial in trials[:count])


def seen(trials: Sequence[Trial]) -> Seen:
    """Specs that were proposed."""
    if isinstance(trials, Trials):
        return trials.places
    return dict.fromkeys(trial.spec for trial in trials)


def noted(trials: Sequence[Trial]) -> dict[Hashable, Any]:
    """The notes of these trials, to be read and written; none, which are soon lost, of a list."""
    return trials.notes if isinstance(trials, Trials) else {}


def full(problem: Problem[Any], spec: Any | None) -> Proposal | None:
    """A proposal to take all shards of `spec`; none of none."""
    return None if spec is None else Proposal(spec, tuple(range(problem.shards)))
