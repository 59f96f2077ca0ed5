"""The laws every strategy obeys. Subclass `StrategyLaws` to hold your policy to them.

    class TestMine(StrategyLaws):
        strategy = Exploration(problem, MyPolicy(), evaluations=20)
        quality = staticmethod(lambda task: [0.5])  # Scores of a task: a pure function.

Evaluations end in any order, fail, and are killed; what is found may not depend on it.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.journal import Journal, Outcome
from nas.search import replay
from nas.strategies.exploration import Evaluate, Exploration, Policy, Proposal, State, Trial
from nas.strategies.outcomes import failed, scored
from nas.strategies.problem import Problem
from search_spaces.values import decode, encode

orders = st.lists(st.integers(0, 10**6), min_size=1, max_size=30)
"""Which of the tasks asked for ends next, modulo their number, again and again."""
broken = st.integers(2, 6)
"""One spec in so many cannot be evaluated."""


@dataclasses.dataclass(frozen=True)
class Forgetful:
    """A policy that looks at all trials anew whenever it is asked."""

    policy: Policy

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        return self.policy.propose(problem, tuple(trials), rng)


class StrategyLaws:
    strategy: ClassVar[Exploration[Any]]
    quality: ClassVar[Callable[[Evaluate], list[float]]]
    walks_over_limits: ClassVar[bool] = False
    """Whether it has to evaluate what is over a limit on its way."""

    @settings(max_examples=3, deadline=None)
    @given(orders)
    def test_asking_is_pure(self, order):
        state = self.strategy.init()
        for task in self._run(order):
            before = repr(state)
            asked = self.strategy.ask(state)
            assert asked == self.strategy.ask(state) and task in asked
            told = self.strategy.tell(state, task, self._outcome(task))
            assert told == self.strategy.tell(state, task, self._outcome(task))
            assert repr(state) == before
            state = told

    @settings(max_examples=3, deadline=None)
    @given(orders)
    def test_the_order_in_which_evaluations_end_changes_nothing(self, order):
        one, other = self._state(self._run([0])), self._state(self._run(order))
        assert one == other
        assert self.strategy.best(one) == self.strategy.best(other)

    @settings(max_examples=3, deadline=None)
    @given(orders, broken)
    def test_nor_does_it_where_some_fail(self, order, every):
        one = self._state(self._run([0], every), every)
        other = self._state(self._run(order, every), every)
        assert self.strategy.results(one) == self.strategy.results(other)

    @settings(max_examples=2, deadline=None)
    @given(orders, broken)
    def test_what_is_remembered_of_trials_changes_nothing(self, order, every):
        anew = dataclasses.replace(self.strategy, policy=Forgetful(self.strategy.policy))
        assert [*self._run(order, every)] == [*self._run(order, every, anew)]

    @settings(max_examples=2, deadline=None)
    @given(orders, st.integers(1, 8))
    def test_how_far_ahead_is_thought_changes_nothing(self, order, window):
        near = dataclasses.replace(self.strategy, window=window)
        assert self._state([*self._run(order)]) == self._state([*self._run(order, 0, near)])

    @settings(max_examples=3, deadline=None)
    @given(orders)
    def test_nothing_is_evaluated_twice(self, order):
        tasks = list(self._run(order))
        assert len({(task.spec, task.shard) for task in tasks}) == len(tasks) > 0

    @settings(max_examples=3, deadline=None)
    @given(orders, st.integers(0, 10**6))
    def test_a_killed_search_goes_on_from_its_journal(self, order, cut):
        whole = list(self._run(order))
        done = whole[: cut % (len(whole) + 1)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "journal.jsonl"
            with Journal(path, {}) as journal:
                for task in done:
                    journal.append(task, self._outcome(task))
            with Journal(path, {}) as journal:
                state = replay(self.strategy, journal)
        assert state == self._state(done)
        assert self.strategy.ask(state) == self.strategy.ask(self._state(done))

    def test_tasks_survive_json(self):
        for task in self._run([0]):
            assert decode(json.loads(json.dumps(encode(task)))) == task

    def test_it_ends_and_takes_no_more_than_it_may(self):
        tasks = list(self._run([0]))
        most = self.strategy.evaluations * self.strategy.problem.shards
        assert len(tasks) < most + max(len(task.proposal.shards) for task in tasks)

    def test_what_it_finds_keeps_to_every_limit(self):
        problem, tasks = self.strategy.problem, list(self._run([0]))
        state = self._state(tasks)
        best = self.strategy.best(state)
        assert best is not None and problem.fits(best.spec)
        for device in problem.devices:
            assert all(problem.fits(r.spec) for r in self.strategy.front(state, [device]))
        if not self.walks_over_limits:
            assert all(problem.fits(task.spec) for task in tasks)

    @settings(max_examples=3, deadline=None)
    @given(broken)
    def test_failed_evaluations_do_not_stop_it(self, every):
        state = self._state(self._run([0], every), every)
        assert len(state.trials) > 1 and not self.strategy.ask(state)
        assert not any(self._broken(r.spec, every) for r in self.strategy.results(state))
        if any(not trial.failed for trial in state.trials):
            assert self.strategy.results(state)

    def _run(
        self, order: list[int], every: int = 0, strategy: Exploration[Any] | None = None
    ) -> Iterator[Evaluate]:
        """Yields the tasks of a whole search in the order in which they end."""
        strategy = strategy or self.strategy
        state, count = strategy.init(), 0
        while asked := strategy.ask(state):
            task = asked[order[count % len(order)] % len(asked)]
            yield task
            state = strategy.tell(state, task, self._outcome(task, every))
            count += 1

    def _state(self, tasks: Any, every: int = 0) -> State:
        state = self.strategy.init()
        for task in tasks:
            state = self.strategy.tell(state, task, self._outcome(task, every))
        return state

    def _outcome(self, task: Evaluate, every: int = 0) -> Outcome:
        if self._broken(task.spec, every):
            return failed("it is broken")
        return scored(type(self).quality(task))

    def _broken(self, spec: Any, every: int) -> bool:
        # Not `hash`, which differs from process to process.
        return every > 0 and sum(json.dumps(encode(spec)).encode()) % every == 0
