"""The search loop: ask what to do, do it, write it down."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from nas.journal import Entry, Journal, Outcome

State = TypeVar("State")
Task = TypeVar("Task")


class Strategy(Protocol[State, Task]):
    """Says what to do next. Pure: the state is a fold of `tell` over the journal."""

    def init(self) -> State: ...

    def ask(self, state: State) -> tuple[Task, ...]:
        """The tasks that can run now, independent of each other; none when the search is over."""
        ...

    def tell(self, state: State, task: Task, outcome: Outcome) -> State:
        """The state after `task` ended with `outcome`."""
        ...


Perform = Callable[[Any, Any, Any], Outcome]
"""Does a task, given the strategy, the state and the task."""


class Done(NamedTuple, Generic[State, Task]):
    """A finished task, and what the search knows after it."""

    task: Task
    outcome: Outcome
    state: State


def states(strategy: Strategy[State, Any], path: Path, entries: Iterable[Entry]) -> Iterator[State]:
    """Yields the state after each entry of the journal at `path`.

    Raises `ValueError` naming the line that does not follow from those before it.
    """
    state = strategy.init()
    for number, (task, outcome) in enumerate(entries, 2):
        try:
            state = strategy.tell(state, task, outcome)
        except (AttributeError, AssertionError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} does not follow from those before it "
                f"({type(error).__name__}: {error}); it is damaged or another version's"
            ) from error
        yield state


def replay(strategy: Strategy[State, Any], journal: Journal) -> State:
    """The state that the journal's entries lead to."""
    found = states(strategy, journal.path, journal)
    return functools.reduce(lambda _, state: state, found, strategy.init())


def search(
    strategy: Strategy[State, Task], perform: Perform, journal: Journal
) -> Iterator[Done[State, Task]]:
    """Performs tasks until the strategy asks for none, yielding after each is in the journal.

    Call it again on the same journal to go on where it stopped.
    """
    state = replay(strategy, journal)
    while tasks := strategy.ask(state):
        outcome = perform(strategy, state, tasks[0])
        journal.append(tasks[0], outcome)
        state = strategy.tell(state, tasks[0], outcome)
        yield Done(tasks[0], outcome, state)
