"""The search loop: ask what to do, do it, write it down."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nas.evolution import Evolution, Outcome, State, Task
from nas.journal import Journal

Perform = Callable[[Evolution, State, Task], Outcome]


class Done(NamedTuple):
    """A finished task, and what the search knows after it."""

    task: Task
    outcome: Outcome
    state: State


def replay(strategy: Evolution, journal: Journal) -> State:
    """The state that the journal's entries lead to."""
    return functools.reduce(
        lambda state, entry: strategy.tell(state, *entry), journal, strategy.init()
    )


def search(strategy: Evolution, perform: Perform, journal: Journal) -> Iterator[Done]:
    """Performs tasks until the strategy asks for none, yielding after each is in the journal.

    Call it again on the same journal to go on where it stopped.
    """
    state = replay(strategy, journal)
    while tasks := strategy.ask(state):
        outcome = perform(strategy, state, tasks[0])
        journal.append(tasks[0], outcome)
        state = strategy.tell(state, tasks[0], outcome)
        yield Done(tasks[0], outcome, state)
