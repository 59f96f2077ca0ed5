"""The search loop: ask what to do, do it, write it down."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from nas.journal import Entry, Journal, Outcome
from nas.places import Place

State = TypeVar("State")
Task = TypeVar("Task")


class Strategy(Protocol[State, Task]):
    """Says what to do next. Pure: the state is a fold of `tell` over the journal."""

    def init(self) -> State: ...

    def ask(self, state: State) -> tuple[Task, ...]:
        """The tasks that can run now, independent of each other; none when the search is over.

        A task is asked for until it is told. The states after telling two tasks of one asking are
        equal whichever was told first.
        """
        ...

    def tell(self, state: State, task: Task, outcome: Outcome) -> State:
        """The state after `task` ended with `outcome`."""
        ...


Perform = Callable[[Any, Any, Any], Outcome]
"""Does a task, given the strategy, the state and the task."""


class Crew(Protocol):
    """Performs several tasks at once."""

    def start(self, strategy: Any, state: Any, task: Any) -> Future[Outcome]:
        """Has `task` performed; the future is of its outcome."""
        ...

    def wait(self, futures: Collection[Future[Outcome]]) -> None:
        """Returns when one of the futures is done."""
        ...


class InTurn:
    """A crew that performs what was started first when it is waited for."""

    def __init__(self, perform: Perform):
        self._perform = perform
        self._started: dict[Future[Outcome], tuple[Any, Any, Any]] = {}

    def start(self, strategy: Any, state: Any, task: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self._started[future] = (strategy, state, task)
        return future

    def wait(self, futures: Collection[Future[Outcome]]) -> None:
        future = next(future for future in self._started if future in futures)
        future.set_result(self._perform(*self._started.pop(future)))


class Done(NamedTuple, Generic[State, Task]):
    """A finished task, and what the search knows after it."""

    task: Task
    outcome: Outcome
    state: State


def states(
    strategy: Strategy[State, Any], path: Place, entries: Iterable[Entry]
) -> Iterator[State]:
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
    """Performs one task after another until the strategy asks for none.

    It is `search_abreast`, which says more, with a crew of one.
    """
    yield from search_abreast(strategy, InTurn(perform), journal)


def search_abreast(
    strategy: Strategy[State, Task], crew: Crew, journal: Journal
) -> Iterator[Done[State, Task]]:
    """Starts every task that the strategy asks for, until it asks for none, yielding after each is
    in the journal.

    Tasks are journalled as they end, by this process alone. A task that is no longer asked for is
    cancelled, and not journalled if it has begun. If a task raises, those that ended with it are
    journalled first. Call it again on the same journal to go on where it stopped.
    """
    state = replay(strategy, journal)
    running: dict[Task, Future[Outcome]] = {}
    try:
        while tasks := strategy.ask(state):
            for task in running.keys() - set(tasks):
                running.pop(task).cancel()
            for task in tasks:
                if task not in running:
                    running[task] = crew.start(strategy, state, task)
            wrong = None
            try:
                crew.wait(running.values())
            except ValueError as error:
                wrong = error  # What has ended is journalled first.
            done = {task: future for task, future in running.items() if future.done()}
            for task in sorted(done, key=lambda task: done[task].exception() is not None):
                outcome = running.pop(task).result()
                journal.append(task, outcome)
                state = strategy.tell(state, task, outcome)
                yield Done(task, outcome, state)
            if wrong:
                raise wrong
    finally:
        for future in running.values():
            future.cancel()
